"""How rules are run and how broken ones are reported."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

from infergy.errors import MissingError

Rule = TypeVar("Rule")


class BrokenRuleError(AssertionError):
    """The checked object breaks rules of infergy's protocol.

    Attributes:
        rules: Names of the broken rules, as in `METER_RULES` and `ENGINE_RULES`.
    """

    def __init__(self, subject: str, broken: Mapping[str, str], checked: int) -> None:
        self.rules = tuple(broken)
        lines = [f"{subject} breaks {len(broken)} of {checked} rules:"]
        super().__init__("\n".join([*lines, *(f"- {rule}: {sentence}" for rule, sentence in broken.items())]))


class BreachError(AssertionError):
    """One rule is broken; the message says how."""


def named(rules: dict[str, Rule], name: str) -> Callable[[Rule], Rule]:
    """Add the decorated rule to `rules` as `name`."""

    def add(rule: Rule) -> Rule:
        rules[name] = rule
        return rule

    return add


def demand(condition: bool, sentence: str) -> None:
    """Break the current rule with `sentence` unless `condition` is true."""
    if not condition:
        raise BreachError(sentence)


@contextmanager
def calling(what: str, *allowed: type[Exception]) -> Iterator[None]:
    """Break the current rule if the body raises other than `allowed` errors; `what` names the call, as ``close()``."""
    passed: tuple[type[Exception], ...] = (BreachError, MissingError, *allowed)
    try:
        yield
    except passed:
        raise
    except Exception as error:
        # The checked object was written by others and may raise anything.
        raise BreachError(f"{what} raised {type(error).__name__}: {error}") from error


def run_rules(subject: str, rules: Mapping[str, Callable[[], None]]) -> tuple[str, ...]:
    """Run all rules, whether or not some are broken; returns their names.

    Raises:
        BrokenRuleError: Some are broken; it names all of them.
        MissingError: The object cannot run here.
    """
    broken: dict[str, str] = {}
    for name, rule in rules.items():
        try:
            with calling("checking it"):
                rule()
        except BreachError as breach:
            broken[name] = str(breach)
    if broken:
        raise BrokenRuleError(subject, broken, len(rules))
    return tuple(rules)
