"""`infergy doctor` as a user meets it."""

from __future__ import annotations

import json
import sys

import pytest
from jsonschema import Draft202012Validator
from typer.testing import CliRunner

from infergy.cli import app
from infergy.cli.schema import make_schema


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["doctor", *arguments], catch_exceptions=False)
    return result.exit_code, result.stdout


def test_a_machine_without_nvml_is_told_what_is_missing_and_exits_with_3(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    code, text = run()
    assert code == 3
    assert "missing" in text
    assert "--simulate" in text
    assert text.endswith("This machine cannot measure.\n")


def test_a_simulated_gpu_can_be_looked_at() -> None:
    code, text = run("--simulate")
    assert code == 0
    assert "simulated, joules of the gpu-board" in text
    assert "the driver does not tell" in text
    assert text.endswith("This machine can measure.\n")


def test_as_json_it_follows_its_schema() -> None:
    found = json.loads(run("--simulate", "--json")[1])
    Draft202012Validator(make_schema("doctor")).validate(found)
    assert found["simulated"]
    assert {"nvml", "simulated"} <= set(found["meters"])
