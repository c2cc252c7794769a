"""How a command ends that fails: one JSON object on stderr with ``--json``, a line without."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from typing import Any

import jsonschema
import pytest

from infergy import VERSION
from infergy.cli import main
from infergy.cli.failure import asks_json, take_debug
from infergy.cli.schemas import make_schema
from infergy.records.store import shipped_store


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


def broken(*_: object, **__: object) -> None:
    raise ZeroDivisionError("of two figures")


def test_an_error_that_is_not_foreseen_is_a_short_report_with_its_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("infergy.records.check.flag_rows", broken)
    path = shipped_store()
    assert run(monkeypatch, "check", str(path)) == 1
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert "ZeroDivisionError: of two figures" in err
    assert f"infergy check {path}" in err
    assert VERSION in err
    assert len(err.splitlines()) <= 4, err
    assert run(monkeypatch, "check", str(path), "--json") == 1
    report = json.loads(capsys.readouterr().err)
    jsonschema.validate(report, make_schema("error"))
    assert report["error"]["code"] == "bug"


def test_debug_shows_the_stack_of_such_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infergy.records.check.flag_rows", broken)
    monkeypatch.setattr("sys.argv", ["infergy", "check", str(shipped_store()), "--debug"])
    with pytest.raises(ZeroDivisionError):
        main()
    assert take_debug(["run", "--", "serve", "--debug"]) == (["run", "--", "serve", "--debug"], False)


COMMAND = f"{shlex.quote(sys.executable)} -m infergy list gpus"


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        (f"{COMMAND} > /dev/full", 2, "the output cannot be written"),
        (f"{COMMAND} --json > /dev/full", 2, "file-not-writable"),
        (f"{COMMAND} >&-", 0, ""),
        (f"{COMMAND} 2>&-", 0, "h200"),
        (f"{COMMAND} nosuch 2>/dev/full", 2, ""),
        (f"{COMMAND} | head -1; exit ${{PIPESTATUS[0]}}", 0, ""),
        (f"{COMMAND} | true; exit ${{PIPESTATUS[0]}}", 0, ""),
        (f"PYTHONIOENCODING=ascii {COMMAND}", 0, "h200"),
        (f"PYTHONIOENCODING=ascii {sys.executable} -m infergy check $'\\xff\\xc3\\xa9.jsonl'", 2, "no such file"),
        (f"COLUMNS=0 {COMMAND}", 0, "h200"),
    ],
)
def test_outputs_that_take_nothing_or_little_end_quietly_or_with_a_sentence(line: str, code: int, said: str) -> None:
    done = subprocess.run(["bash", "-c", line], capture_output=True, timeout=60, check=False)
    shown = (done.stdout + done.stderr).decode("utf-8", "replace")
    assert done.returncode == code, shown
    assert said in shown
    assert "Traceback" not in shown
    assert "Exception ignored" not in shown


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("--target", "0"),
        *(
            (option, text)
            for option in ("--target", "--fail-if-worse")
            for text in ("nan", "inf", "-1", "-5%", "3", "300%", "100%", "1e400", "x", "nan%")
        ),
    ],
)
def test_a_gate_that_cannot_fail_or_pass_is_an_error_of_usage(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], option: str, text: str
) -> None:
    store = str(shipped_store())
    verb = ["check", store] if option == "--target" else ["compare", store, store]
    assert run(monkeypatch, *verb, f"{option}={text}", "--json") == 2
    error = json.loads(capsys.readouterr().err)["error"]
    assert (error["code"], error["fields"]["option"], error["fields"]["value"]) == ("bad-value", option, text)


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e30"])
def test_no_option_takes_a_number_that_is_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    assert run(monkeypatch, "estimate", "azure-code-2023", f"--price-per-kwh={text}", "--json") == 2
    assert json.loads(capsys.readouterr().err)["error"]["fields"]["option"] == "--price-per-kwh"
