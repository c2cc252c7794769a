"""Options that verbs share: the fields of a dataclass become options of each verb that names it."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from infergy.cli.options import with_groups

made: list[tuple[str, Pair, Many, bool]] = []


@dataclass(frozen=True)
class Pair:
    name: Annotated[str, typer.Option("--name", help="Of the pair")]
    count: Annotated[int, typer.Option("--count", min=1)] = 3


@dataclass(frozen=True)
class Many:
    tags: Annotated[list[str] | None, typer.Option("--tag")] = None


def verb(
    source: Annotated[str, typer.Argument()],
    pair: Pair,
    many: Many,
    flag: Annotated[bool, typer.Option("--flag")] = False,
) -> None:
    """Collect what was given."""
    made.append((source, pair, many, flag))


@pytest.fixture
def door() -> typer.Typer:
    made.clear()
    small = typer.Typer()
    small.command("verb")(with_groups(verb))
    small.command("other")(lambda: None)
    return small


def test_fields_are_options_and_come_back_as_the_group(door: typer.Typer) -> None:
    arguments = ["verb", "here", "--name", "x", "--count", "7", "--tag", "a", "--tag", "b", "--flag"]
    done = CliRunner().invoke(door, arguments)
    assert done.exit_code == 0, done.output
    assert made == [("here", Pair(name="x", count=7), Many(tags=["a", "b"]), True)]


def test_defaults_are_those_of_the_fields(door: typer.Typer) -> None:
    assert CliRunner().invoke(door, ["verb", "here", "--name", "x"]).exit_code == 0
    assert made == [("here", Pair(name="x"), Many(), False)]


@pytest.mark.parametrize("arguments", [["here"], ["here", "--name", "x", "--count", "0"], ["--name", "x"]])
def test_required_fields_and_ranges_are_those_of_options(door: typer.Typer, arguments: list[str]) -> None:
    assert CliRunner().invoke(door, ["verb", *arguments]).exit_code == 2
    assert made == []


def test_the_signature_names_each_field_and_no_group() -> None:
    wrapped = with_groups(verb)
    assert list(inspect.signature(wrapped).parameters) == ["source", "name", "count", "tags", "flag"]
    assert wrapped.__doc__ == verb.__doc__
