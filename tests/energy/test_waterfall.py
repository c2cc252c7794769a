"""Waterfalls: steps that add up, what each of them is, and what is told where it is unknown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from infergy.cli import app
from infergy.energy.estimate import PriceOptions
from infergy.energy.load import load_table
from infergy.energy.waterfall import Waterfall, find_waterfall
from infergy.errors import UsageError
from infergy.records import Measurement
from infergy.workload.bins import Bin, BinCount, Bins, Histogram
from known_tables import rows_of, under, write_store


def histogram(*, full: bool) -> Histogram:
    """1,000 requests in the bin 512→64: at its upper corner, or at half of it."""
    share = 1.0 if full else 0.5
    corner = Bin(input_tokens=512, output_tokens=64, input_floor=256, output_floor=32)
    count = BinCount(bin=corner, requests=1000, input_tokens=int(512_000 * share), output_tokens=int(64_000 * share))
    return Histogram(source="test", bins=Bins.powers_of_two(512, 64), counts=(count,))


def fall(
    tmp_path: Path, rows: Sequence[Measurement], engine: str = "vllm", *, full: bool = False, **options: Any
) -> Waterfall:
    table = load_table(write_store(tmp_path / "rows.jsonl", rows))
    return find_waterfall(histogram(full=full), engine, PriceOptions(tables=table), **options)


def by_name(found: Waterfall) -> dict[str, float]:
    return {step.name.partition(":")[0]: step.energy_j for step in found.steps}


def test_steps_add_up_to_the_measured_joules(tmp_path: Path) -> None:
    rows = rows_of(engine="vllm")
    found = fall(tmp_path, rows)
    row = next(row for row in rows if (row.cell.load.input_tokens, row.cell.load.output_tokens) == (512, 64))
    assert row.result is not None
    assert found.energy_j == pytest.approx(1000 * row.result.energy_per_request_j)
    assert sum(step.energy_j for step in found.steps) == pytest.approx(found.energy_j)
    assert found.steps[-1].total_j == pytest.approx(found.energy_j)
    assert list(by_name(found)) == ["ideal", "memory", "ceiling bins", "rest"]


def test_requests_at_the_corners_of_their_bins_lose_nothing_to_bins(tmp_path: Path) -> None:
    rows = rows_of(engine="vllm")
    assert by_name(fall(tmp_path, rows, full=True))["ceiling bins"] == pytest.approx(0.0, abs=1e-6)
    half = by_name(fall(tmp_path, rows))
    assert half["ceiling bins"] > half["ideal"] / 2


def test_larger_batches_wait_less_for_memory(tmp_path: Path) -> None:
    small, large = (by_name(fall(tmp_path, rows_of(engine="vllm", batch=batch)))["memory"] for batch in (1, 64))
    assert small > 10 * large > 0


def test_launch_overhead_is_what_graphs_save_where_both_were_measured(tmp_path: Path) -> None:
    eager = [under(row, cuda_graphs=False) for row in rows_of(engine="vllm", scale=1.5)]
    found = fall(tmp_path, [*eager, *rows_of(engine="vllm")], "vllm-eager")
    assert by_name(found)["launch overhead"] == pytest.approx(found.energy_j / 3)
    assert sum(step.energy_j for step in found.steps) == pytest.approx(found.energy_j)
    alone = fall(tmp_path, eager, "vllm-eager")
    assert "launch overhead" not in by_name(alone)
    assert "vllm was not measured" in alone.notes[0]
    assert fall(tmp_path, rows_of(engine="vllm")).notes == ()


def test_joules_below_the_roofline_are_told_as_less_than_nothing_left(tmp_path: Path) -> None:
    found = fall(tmp_path, rows_of(engine="vllm", scale=1e-4))
    assert by_name(found)["rest"] < 0
    assert sum(step.energy_j for step in found.steps) == pytest.approx(found.energy_j)


def test_gaps_between_arrivals_are_idle_gpus_for_the_rest_of_the_time(tmp_path: Path) -> None:
    rows = rows_of(engine="vllm", idle_w=80.0)
    busy_s = 1000 * next(
        row.result.duration_s / row.cell.load.batch
        for row in rows
        if row.result is not None and (row.cell.load.input_tokens, row.cell.load.output_tokens) == (512, 64)
    )
    found = fall(tmp_path, rows, duration_s=busy_s / 2.5).idle
    assert found is not None
    assert found.gpus == 3
    assert found.idle_s == pytest.approx(0.2 * busy_s)
    assert found.energy_j == pytest.approx(0.2 * busy_s * 80.0)
    unknown = fall(tmp_path, rows)
    assert (unknown.idle, unknown.idle_reason) == (None, "the trace does not tell when requests arrive")


def test_an_engine_without_a_value_is_an_error_that_says_what_to_measure(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown measured engine 'vllm-eager'"):
        fall(tmp_path, rows_of(engine="vllm"), "vllm-eager")


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["waterfall", *arguments], catch_exceptions=False)


def test_of_what_ships_it_ends_at_the_estimate(tmp_path: Path) -> None:
    found = json.loads(invoke("azure-conv-2023", "--json").stdout)
    estimate = json.loads(CliRunner().invoke(app, ["estimate", "azure-conv-2023", "--json"]).stdout)
    (vllm,) = [one for one in estimate["estimates"] if one["engine"] == "vllm"]
    assert found["energy_j"] == pytest.approx(vllm["energy_j"])
    assert found["idle"]["gpus"] == 1
    text = invoke("azure-conv-2023", "-e", "transformers").stdout
    assert "transformers-compiled was not measured" in text
    assert "measured offline" in text


@pytest.mark.parametrize("suffix", [".svg", ".png", ".html"])
def test_it_is_drawn(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"waterfall{suffix}"
    assert invoke("azure-code-2023", "-o", str(path)).exit_code == 0
    assert path.stat().st_size > 5000
    content = path.read_bytes()
    if suffix != ".png":
        assert b"ceiling bins" in content
        # No script comes from elsewhere.
        assert b"<script src=" not in content
