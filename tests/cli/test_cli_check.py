"""`infergy check` as a user meets it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from typer.testing import CliRunner

from infergy.cli import app
from infergy.records import Failure, GpuState, Plan
from infergy.records.flags import CODES
from known_tables import rows_of, write_store
from rows import UUID, build_row, spread_over


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["check", *arguments], catch_exceptions=False)
    return result.exit_code, result.stdout


def store(folder: Path) -> Path:
    """A good row, one that shared its GPU, and one that failed."""
    good = rows_of(inputs=[4096], outputs=[512])
    crowded = build_row(input_tokens=8, duration_s=0.5, batches=2, before=(GpuState(uuid=UUID, processes=2),))
    failure = Failure(code="out_of_memory", message="no room")
    failed = replace(build_row(input_tokens=16), windows=(), result=None, status="failed", failure=failure)
    return write_store(folder / "rows.jsonl", [*good, crowded, failed])


def test_the_summary_counts_rows_by_flag_with_meaning_and_fix(tmp_path: Path) -> None:
    path = store(tmp_path)
    code, text = run(str(path))
    assert code == 0
    first, flag, hint = text.splitlines()
    assert first == f"{path}: 3 rows, 1 flagged, 1 failed"
    assert flag.startswith(f"  other-process, 1 row: {CODES['other-process']}. Fix: ")
    assert "--rows" in hint


def test_rows_are_listed_with_their_interval_flags_and_facts(tmp_path: Path) -> None:
    text = run(str(store(tmp_path)), "--rows")[1]
    assert "8→64 × 8: 1.00 kJ ± " in text
    assert "other-process: 2 processes on the GPU, expected one; end the others" in text
    assert "windows 1, shortest 1.00 s" in text
    assert "failed: out_of_memory: no room. Try it again: --retry-failed" in text
    assert text.count("no flag") == 1


def test_strict_makes_doubts_fatal_and_leaves_good_files_alone(tmp_path: Path) -> None:
    assert run(str(store(tmp_path)), "--strict")[0] == 5
    good = write_store(tmp_path / "good.jsonl", rows_of(inputs=[4096], outputs=[512]))
    assert run(str(good), "--strict")[0] == 0


def test_as_json_it_holds_intervals_flags_and_failures(tmp_path: Path) -> None:
    found = json.loads(run(str(store(tmp_path)), "--json")[1])
    assert found["schema"] == "infergy.check/1"
    good, crowded, failed = found["files"][0]["rows"]
    assert good["flags"] == []
    assert good["uncertainty"]["low_j"] < good["energy_j"] * 1.001
    (flag,) = crowded["flags"]
    assert (flag["code"], flag["value"], flag["limit"]) == ("other-process", 2, 1)
    assert crowded["facts"]["shortest_window_s"] == 1.0
    assert failed["facts"] is None
    assert (failed["energy_j"], failed["failure"]) == (None, "out_of_memory: no room")


def test_a_target_is_read_as_a_share_or_in_percent(tmp_path: Path) -> None:
    path = store(tmp_path)
    assert "uncertain, 2 rows" in run(str(path), "--target", "0.0001%")[1]
    assert "uncertain" not in run(str(path), "--target", "0.9")[1]


def test_of_several_gpus_each_is_told_beside_their_sum(tmp_path: Path) -> None:
    row = spread_over(build_row(duration_s=0.5, batches=2), {"GPU-b": 0.3, "GPU-a": 0.7})
    text = run(str(write_store(tmp_path / "rows.jsonl", [row])), "--rows")[1]
    assert "per batch: GPU 0 300 J, GPU 1 700 J" in text
    (told,) = json.loads(run(str(tmp_path / "rows.jsonl"), "--json")[1])["files"][0]["rows"]
    assert list(told["energy_by_gpu_j"]) == ["GPU-b", "GPU-a"]
    assert round(told["imbalance"], 6) == 0.8


def test_doubtful_cells_become_a_plan_between_control_cells(tmp_path: Path) -> None:
    path, plan = store(tmp_path), tmp_path / "again.json"
    run(str(path), "--again", str(plan))
    planned = Plan.load(plan)
    assert planned.gpu == "h200"
    visits = [(one.visit, one.cell.load.input_tokens) for one in planned.cells]
    # The failed cell; the short one is a control cell, and so measured twice anyway.
    assert [tokens for visit, tokens in visits if visit == "grid"] == [16]
    start, end = ([tokens for visit, tokens in visits if visit == when] for when in ("start", "end"))
    assert start == end
    assert set(start) == {8, 4096}
    assert visits[0][0] == "start"
    assert visits[-1][0] == "end"
    run(str(path), "--again", str(plan), "--worst", "1")
    assert [one.cell.load.input_tokens for one in Plan.load(plan).cells if one.visit == "grid"] == [16]


def test_where_nothing_is_doubtful_no_plan_is_written(tmp_path: Path) -> None:
    good = write_store(tmp_path / "good.jsonl", rows_of(inputs=[4096], outputs=[512]))
    code, _ = run(str(good), "--again", str(tmp_path / "again.json"))
    assert code == 0
    assert not (tmp_path / "again.json").exists()


def test_the_plan_has_the_target_that_was_asked_for_and_more_time(tmp_path: Path) -> None:
    plan = tmp_path / "again.json"
    run(str(store(tmp_path)), "--target", "1%", "--again", str(plan))
    options = Plan.load(plan).options
    assert (options.target, options.max_time_s) == (0.01, 120.0)


def test_joules_come_from_the_raw_facts_not_from_what_a_row_says_of_itself(tmp_path: Path) -> None:
    (row,) = rows_of(inputs=[4096], outputs=[512])
    assert row.result is not None
    path = write_store(tmp_path / "rows.jsonl", [replace(row, result=replace(row.result, energy_j=1.0))])
    (found,) = json.loads(run(str(path), "--json")[1])["files"][0]["rows"]
    assert found["energy_j"] == row.result.energy_j
