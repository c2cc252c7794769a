"""What messages say to type exists: verbs of the command line, and options of those verbs."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import typer.main

from infergy.cli import app
from infergy.cli.verbs import RETIRED

SOURCE = Path(str(resources.files("infergy")))
COMMAND = re.compile(r"\binfergy ((?:[a-z]+)(?: (?:build|merge|phases|timeline))?)\b(?![.:])([^.;:\n`]*)")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]+")
PROSE = {
    "measures",
    "estimates",
    "measurement",
    "energy",
    "is",
    "itself",
    "needs",
    "runs",
    "draws",
    "raises",
    "on",
    "lacks",
    "and",
}
"""Words after the name of the package that begin no command."""


def texts() -> Iterator[tuple[Path, str]]:
    for path in sorted(SOURCE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        inner = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "X" for part in node.values]
                yield path, "".join(map(str, parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inner:
                yield path, node.value


def find(verb: str) -> Any:
    """The command of a verb, or of a verb and what follows it; None if there is none."""
    command: Any = typer.main.get_command(app)
    for word in verb.split():
        command = getattr(command, "commands", {}).get(word)
    return command


def test_the_verbs_and_options_that_messages_name_exist() -> None:
    wrong, seen = [], 0
    for path, text in texts():
        for verb, rest in COMMAND.findall(text):
            word = verb.split()[0]
            if word in PROSE:
                continue
            command = find(verb) or find(word)
            if command is None:
                wrong.append(f"{path.name}: infergy {verb}{rest}")
                continue
            seen += 1
            known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
            # What follows " -- " is another program's; what a plain text goes on to say may be of another verb.
            options = set(OPTION.findall(rest.partition(" -- ")[0].partition(",")[0]))
            if not getattr(command, "commands", None):
                unknown = sorted(options - known - {"--help", "--json"})
                wrong += [f"{path.name}: infergy {verb} has no {option}" for option in unknown]
    assert not wrong, "\n".join(wrong)
    assert seen > 60


def test_what_stands_in_place_of_a_retired_verb_exists() -> None:
    for instead in RETIRED.values():
        for verb, _ in COMMAND.findall(instead):
            assert find(verb) or find(verb.split()[0]), instead
