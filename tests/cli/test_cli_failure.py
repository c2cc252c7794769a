"""How a command ends that fails: one JSON object on stderr with ``--json``, a line without."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from infergy.cli import main
from infergy.cli.failure import asks_json
from infergy.cli.schemas import make_schema


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["infergy", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


@pytest.mark.parametrize(
    ("arguments", "code", "fields"),
    [
        (["list", "models", "qwen3-8", "--json"], "unknown-model", {"name": "qwen3-8", "kind": "model"}),
        (["check", "none.jsonl", "--json"], "file-not-found", {"path": "none.jsonl"}),
        (["check", "--json", "--jsonn"], "unknown-option", {"option": "--jsonn", "nearest": ["--json"]}),
        (["check", "--json"], "option-missing", {"option": "files"}),
        (["measure", "--json", "--repeats", "often"], "bad-value", {"option": "--repeats"}),
        (["nosuch", "--json"], "unknown-name", {"kind": "command", "name": "nosuch"}),
    ],
)
def test_with_json_an_error_is_one_object_of_the_published_schema(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: str,
    fields: dict[str, Any],
) -> None:
    assert run(monkeypatch, *arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    report = json.loads(line)
    jsonschema.validate(report, make_schema("error"))
    error = report["error"]
    assert (error["code"], error["exit_code"]) == (code, 2)
    assert error["message"]
    assert fields.items() <= error["fields"].items()


def test_without_json_an_error_is_a_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "check", "none.jsonl") == 2
    assert capsys.readouterr().err.startswith("error: none.jsonl: no such file. ")
    assert run(monkeypatch, "check", "--nosuch") == 2
    assert "No such option" in capsys.readouterr().err


def test_a_verb_that_works_ends_as_without_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "list", "gpus", "--json") == 0
    assert json.loads(capsys.readouterr().out)
    assert run(monkeypatch, "list", "gpus", "--json", "--help") == 0


def test_options_of_another_program_are_not_ours() -> None:
    assert asks_json(["run", "--json", "--", "serve"])
    assert not asks_json(["run", "--", "serve", "--json"])
