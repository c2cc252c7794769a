"""`python -m infergy.measure`: the sweep on a bare node, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fuzzing import plan_text
from infergy.measure.__main__ import main

PLAN = json.loads(plan_text())


def write(folder: Path, **changes: object) -> list[str]:
    path = folder / "plan.json"
    path.write_text(json.dumps(PLAN | changes), encoding="utf-8")
    return [str(path), "-o", str(folder / "rows.jsonl"), "--simulate"]


@pytest.mark.parametrize(("field", "value"), [("gpu", "x"), ("cells", []), ("models", 3)])
def test_a_plan_that_cannot_be_meant_is_named_with_its_field(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], field: str, value: object
) -> None:
    assert main(write(tmp_path, **{field: value})) == 2
    err = capsys.readouterr().err
    assert str(tmp_path / "plan.json") in err
    assert f"{field}" in err
    assert not (tmp_path / "rows.jsonl").exists()


def test_an_error_that_is_not_foreseen_is_a_short_report_and_a_stack_with_debug(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("of two figures")

    monkeypatch.setattr("infergy.measure.__main__.sweep", broken)
    words = write(tmp_path)
    assert main(words) == 1
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert "this is an error in infergy" in err
    assert f"python -m infergy.measure {words[0]}" in err
    with pytest.raises(ZeroDivisionError):
        main([*words, "--debug"])
