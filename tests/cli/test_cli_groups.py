"""Options that verbs share: the fields of a dataclass become options of each verb that names it."""

from __future__ import annotations

import inspect
from dataclasses import MISSING, dataclass
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from infergy.cli.options import option, with_options

made: list[tuple[str, Pair, Many, bool, str]] = []


@dataclass(frozen=True)
class Pair:
    name: str = option("Of the pair", default=MISSING)
    count: int = option("How many", default=3, min=1)


@dataclass(frozen=True)
class Many:
    tags: list[str] | None = option("Repeatable", "--tag")


def verb(
    source: Annotated[str, typer.Argument()],
    pair: Pair,
    many: Many,
    flag: Annotated[bool, typer.Option("--flag")] = False,
    budget: str = option("How long", default="5m"),
) -> None:
    """Collect what was given."""
    made.append((source, pair, many, flag, budget))


@pytest.fixture
def door() -> typer.Typer:
    made.clear()
    small = typer.Typer()
    small.command("verb")(with_options(verb))
    small.command("other")(lambda: None)
    return small


def test_fields_are_options_and_come_back_as_the_group(door: typer.Typer) -> None:
    arguments = ["verb", "here", "--name", "x", "--count", "7", "--tag", "a", "--tag", "b", "--flag"]
    done = CliRunner().invoke(door, arguments)
    assert done.exit_code == 0, done.output
    assert made == [("here", Pair(name="x", count=7), Many(tags=["a", "b"]), True, "5m")]


def test_defaults_are_those_of_the_fields(door: typer.Typer) -> None:
    assert CliRunner().invoke(door, ["verb", "here", "--name", "x"]).exit_code == 0
    assert made == [("here", Pair(name="x"), Many(), False, "5m")]


@pytest.mark.parametrize("arguments", [["here"], ["here", "--name", "x", "--count", "0"], ["--name", "x"]])
def test_required_fields_and_ranges_are_those_of_options(door: typer.Typer, arguments: list[str]) -> None:
    assert CliRunner().invoke(door, ["verb", *arguments]).exit_code == 2
    assert made == []


def test_the_signature_names_each_field_and_no_group() -> None:
    wrapped = with_options(verb)
    assert list(inspect.signature(wrapped).parameters) == ["source", "name", "count", "tags", "flag", "budget"]
    assert wrapped.__doc__ == verb.__doc__
