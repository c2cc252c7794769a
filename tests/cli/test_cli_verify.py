"""`infergy verify` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from infergy.cli import app
from infergy.energy.load import shipped_tables
from infergy.errors import UsageError
from infergy.measure.anchors import choose_anchors, plan_anchors
from infergy.records.store import read_store


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["verify", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_three_unlike_cells_of_the_table_are_chosen_and_cheap_ones() -> None:
    rows = read_store(shipped_tables()[0]).rows
    plan = plan_anchors(rows, "vllm")
    seconds = [planned.forecast_batch_s for planned in plan.cells]
    assert len(seconds) == 3
    assert seconds[0] < seconds[1] / 2 < seconds[2] / 2
    assert max(seconds) < 5.0
    assert {planned.cell.setup.weights for planned in plan.cells} == {"random"}
    assert plan.gpu == "h200"
    assert choose_anchors([]) == []


def test_an_engine_that_the_table_lacks_gives_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean vllm"):
        plan_anchors(read_store(shipped_tables()[0]).rows, "vlm")


def test_the_simulated_gpu_is_compared_with_the_shipped_table_and_its_rows_are_kept(tmp_path: Path) -> None:
    kept = tmp_path / "kept.jsonl"
    text = run("--simulate", "-o", str(kept))
    assert "mean of 3 cells" in text
    assert "Different: simulated: False against True" in text
    assert str(kept) in text
    assert len(read_store(kept).rows) == 3


def test_a_table_of_this_gpus_own_rows_does_not_differ(tmp_path: Path) -> None:
    mine, kept = tmp_path / "mine.jsonl", tmp_path / "kept.jsonl"
    cells = ["--engine", "vllm", "--input", "32,512", "--output", "8,64", "--batch", "8,64"]
    made = CliRunner().invoke(app, ["measure", *cells, "-o", str(mine), "--simulate"], catch_exceptions=False)
    assert made.exit_code == 0
    assert "do not differ significantly" in run(str(mine), "--simulate", "-o", str(kept))
    found = json.loads(run(str(mine), "--simulate", "-o", str(tmp_path / "again.jsonl"), "--json"))
    assert found["overall"]["value"] == pytest.approx(1.0, abs=0.01)
