"""`infergy compare` of this GPU and a table, as a user meets it; and tables that are rescaled."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from infergy.cli import app
from infergy.measure.control_cells import choose_control_cells, plan_control_cells
from infergy.records import result_of
from infergy.records.store import read_store, shipped_store
from raising import raises


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["compare", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_three_unlike_cells_of_the_table_are_chosen_and_cheap_ones() -> None:
    rows = read_store(shipped_store()).rows
    plan = plan_control_cells(rows, "vllm")
    seconds = [planned.forecast_batch_s for planned in plan.cells]
    assert len(seconds) == 3
    assert seconds[0] < seconds[1] / 2 < seconds[2] / 2
    assert max(seconds) < 5.0
    assert {planned.cell.setup.weights for planned in plan.cells} == {"random"}
    assert plan.gpu == "h200"
    assert choose_control_cells([]) == []


def test_an_engine_that_the_table_lacks_gives_the_nearest() -> None:
    with raises("unknown-name", name="vlm", nearest=["vllm"]):
        plan_control_cells(read_store(shipped_store()).rows, "vlm")


def test_the_simulated_gpu_is_compared_with_the_shipped_table_and_its_rows_are_kept(tmp_path: Path) -> None:
    kept = tmp_path / "kept.jsonl"
    text = run("--measure", "--simulate", "-o", str(kept))
    assert "mean of 3 cells" in text
    assert "Different: simulated: False against True" in text
    assert str(kept) in text
    assert len(read_store(kept).rows) == 3


def test_rows_of_another_h200_tell_how_far_it_lies_from_the_shipped_store(tmp_path: Path) -> None:
    rows = str(Path(__file__).parents[2] / "benchmarks" / "rows" / "h200-vllm-watched.jsonl")
    found = json.loads(run(rows, "--json"))
    percent = [round(100 * (found["overall"][end] - 1), 1) for end in ("value", "low", "high")]
    # docs/measurements.md says so.
    assert percent == [1.4, 0.0, 2.9]
    text = run(rows, "--rescale", str(tmp_path / "here.jsonl"))
    assert "45 rows of vllm llama-3.1-8b × 1.0143" in text
    rescaled = read_store(tmp_path / "here.jsonl").rows
    assert {row.rescaled and round(row.rescaled.factor, 4) for row in rescaled} == {1.0143}


def test_a_table_of_this_gpus_own_rows_does_not_differ(tmp_path: Path) -> None:
    mine, kept = tmp_path / "mine.jsonl", tmp_path / "kept.jsonl"
    cells = ["--engine", "vllm", "--input", "32,512", "--output", "8,64", "--batch", "8,64"]
    made = CliRunner().invoke(app, ["measure", *cells, "-o", str(mine), "--simulate"], catch_exceptions=False)
    assert made.exit_code == 0
    assert "do not differ significantly" in run(str(mine), "--measure", "--simulate", "-o", str(kept))
    found = json.loads(run(str(mine), "--measure", "--simulate", "-o", str(tmp_path / "again.jsonl"), "--json"))
    assert found["overall"]["value"] == pytest.approx(1.0, abs=0.01)


FACTOR = 1.07


@pytest.fixture
def off(tmp_path: Path) -> Path:
    """A table from a GPU whose counter shows less than the simulated one's, by a known factor."""
    mine, path = tmp_path / "mine.jsonl", tmp_path / "off.jsonl"
    cells = ["--engine", "vllm", "--input", "32,512", "--output", "8,64", "--batch", "8,64"]
    made = CliRunner().invoke(app, ["measure", *cells, "-o", str(mine), "--simulate"], catch_exceptions=False)
    assert made.exit_code == 0
    rows = [json.loads(line) for line in mine.read_text().splitlines()]
    for row in rows:
        windows = [*row["windows"], row["loaded_idle"], row["bare_idle"]]
        for tick in (tick for window in windows for edge in EDGES for tick in window[edge].values()):
            tick["energy_j"] /= FACTOR
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


EDGES = ("open", "settled", "close")


def raw(path: Path) -> list[Any]:
    """What a store's rows say that was measured, not derived."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in ("result", "rescaled")} for row in rows]


def test_a_table_that_differs_is_rescaled_by_what_is_to_be_typed_and_nothing_is_measured_twice(
    off: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "kept rows.jsonl"
    *_, typed = run(str(off), "--measure", "--simulate", "-o", str(kept)).splitlines()
    words = shlex.split(typed.partition(": ")[2])
    assert words == ["infergy", "compare", str(off), str(kept), "--rescale", "rescaled.jsonl"]
    measured = kept.read_bytes()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("infergy.measure.sweep.sweep", None)
    *_, told, last = run(*words[2:]).splitlines()
    assert kept.read_bytes() == measured
    # Eight cells, three of them visited twice.
    assert f"11 rows of vllm llama-3.1-8b × {FACTOR:.2f}" in told
    assert last == "To estimate with it: infergy estimate TRACE --table rescaled.jsonl --allow-simulated"
    rescaled = tmp_path / "rescaled.jsonl"
    assert raw(rescaled) == raw(off)
    for was, now in zip(read_store(off).rows, read_store(rescaled).rows, strict=True):
        assert result_of(now).energy_j == pytest.approx(result_of(was).energy_j * FACTOR, rel=0.002)
    estimated = CliRunner().invoke(
        app, ["estimate", "azure-code-2023", "--requests", "50", *shlex.split(last)[-3:]], catch_exceptions=False
    )
    assert estimated.exit_code == 0, estimated.output


def test_measuring_and_rescaling_are_one_command_too(off: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    found = json.loads(
        run(str(off), "--measure", "--simulate", "-o", str(tmp_path / "kept.jsonl"), "--rescale", str(out), "--json")
    )
    assert found["overall"]["value"] == pytest.approx(FACTOR, abs=0.002)
    assert all(row.rescaled for row in read_store(out).rows)


def test_what_may_not_be_rescaled_leaves_no_file(off: Path, tmp_path: Path) -> None:
    kept, out = tmp_path / "kept.jsonl", tmp_path / "out.jsonl"
    run(str(off), "--measure", "--simulate", "-o", str(kept))
    with raises("no-difference"):
        run(str(tmp_path / "mine.jsonl"), str(kept), "--rescale", str(out))
    with raises("environments-differ", fact="GPU"):
        run("--measure", "--simulate", "-o", str(tmp_path / "more.jsonl"), "--rescale", str(out))
    assert not out.exists()
    run(str(off), str(kept), "--rescale", str(out))
    before = out.read_bytes()
    with raises("file-exists", path=out):
        run(str(off), str(kept), "--rescale", str(out))
    assert out.read_bytes() == before
    with raises("option-missing", option="--measure"):
        run(str(off), str(kept), "-o", str(kept))
    for files in ([str(off), str(kept), "--measure"], [], [str(off)] * 3):
        with raises("bad-value", option="A B"):
            run(*files)


def test_a_table_of_several_gpus_is_not_offered_to_be_rescaled(off: Path, tmp_path: Path) -> None:
    """No factor holds between one GPU and three: `rescale` rejects it, so no one is advised to type it."""
    one = run(str(off), "--measure", "--simulate", "-o", str(tmp_path / "one.jsonl"))
    rows = [json.loads(line) for line in off.read_text().splitlines()]
    rows[0]["environment"]["gpus"][0]["uuid"] = "GPU-other"
    off.write_text("".join(json.dumps(row) + "\n" for row in rows))
    two = run(str(off), "--measure", "--simulate", "-o", str(tmp_path / "two.jsonl"))
    assert {text.split()[0] for text in (one, two)} == {"B"}
    assert ("--rescale" in one, "--rescale" in two) == (True, False)


def test_rows_of_an_h100_are_compared_with_the_table_of_h100s() -> None:
    rows = str(Path(__file__).parents[2] / "benchmarks" / "rows" / "h100-vllm-process-2.jsonl")
    found = json.loads(run(rows, "--json"))
    assert len(found["cells"]) == 10
    assert not any(text.startswith("GPU: ") for text in found["differences"])
