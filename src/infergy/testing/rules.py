"""How rules are run and how their breach is told."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from infergy.errors import MissingError


class BrokenRuleError(AssertionError):
    """What was checked breaks rules of infergy's protocol.

    Attributes:
        rules: Names of the broken rules, as in `METER_RULES` and `ENGINE_RULES`.
    """

    def __init__(self, subject: str, found: Mapping[str, str], checked: int) -> None:
        self.rules = tuple(found)
        lines = [f"{subject} breaks {len(found)} of {checked} rules:"]
        super().__init__("\n".join([*lines, *(f"- {rule}: {sentence}" for rule, sentence in found.items())]))


class BreachError(AssertionError):
    """One rule is broken; the message is the sentence that says how."""


def demand(condition: bool, sentence: str) -> None:
    """Break the rule at hand with `sentence` unless `condition` holds."""
    if not condition:
        raise BreachError(sentence)


@contextmanager
def calling(what: str) -> Iterator[None]:
    """Break the rule at hand if the body raises; `what` names the call, as ``close()``."""
    try:
        yield
    except (BreachError, MissingError):
        raise
    except Exception as error:
        # What is checked was written by others and may raise anything.
        raise BreachError(f"{what} raised {type(error).__name__}: {error}") from error


def run_rules(subject: str, rules: Mapping[str, Callable[[], None]]) -> tuple[str, ...]:
    """Run all rules, whether or not some are broken; returns their names.

    Raises:
        BrokenRuleError: Some are broken: all of them are told.
        MissingError: What is to be checked cannot run here.
    """
    found: dict[str, str] = {}
    for name, rule in rules.items():
        try:
            with calling("checking it"):
                rule()
        except BreachError as breach:
            found[name] = str(breach)
    if found:
        raise BrokenRuleError(subject, found, len(rules))
    return tuple(rules)
