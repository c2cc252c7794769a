"""Rows from real GPUs that stand beside the tables: what the docs say of them follows from them."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

from infergy.energy.compare import compare
from infergy.energy.phases import find_phases
from infergy.records import Measurement
from infergy.records.check import check_rows
from infergy.records.store import read_store
from infergy.records.timeline import ratio

ROWS = Path(__file__).parents[1] / "benchmarks" / "rows"


def rows_in(name: str) -> tuple[Measurement, ...]:
    return tuple(row for row in read_store(ROWS / f"{name}.jsonl").rows if row.is_ok)


def load_of(row: Measurement) -> tuple[int, int, int]:
    return row.cell.load.input_tokens, row.cell.load.output_tokens, row.cell.load.batch


def test_looking_at_power_in_the_counted_windows_cost_one_request_ten_percent() -> None:
    without = rows_in("h200-no-timeline")
    assert all(not row.timeline for row in without)
    for name, excess in (("h200-timeline-1", 1.090), ("h200-timeline-2", 1.116)):
        found = {cell.cell: cell.ratio for cell in compare(without, rows_in(name)).cells}
        (one,) = (ratio for cell, ratio in found.items() if cell.endswith("512→64 × 1"))
        assert one.value == pytest.approx(excess, abs=0.001)
        assert one.low is not None
        assert one.low > 1.05
        others = [ratio for cell, ratio in found.items() if not cell.endswith("512→64 × 1")]
        assert all(0.98 < ratio.value < 1.03 for ratio in others)


def test_the_watched_window_costs_the_windows_that_count_nothing() -> None:
    found = compare(rows_in("h200-vllm-unwatched"), rows_in("h200-vllm-watched"))
    assert len(found.cells) == 10
    assert all(not row.timeline for row in rows_in("h200-vllm-unwatched"))
    assert all(row.timeline and row.watched for row in rows_in("h200-vllm-watched"))
    mean = found.overall
    assert mean.low is not None
    assert mean.high is not None
    # What docs/timeline.md says: within half a percent.
    assert (mean.value, mean.low, mean.high) == pytest.approx((1.0014, 0.9986, 1.0043), abs=0.0002)


@pytest.mark.parametrize(("place", "mean", "low", "high"), [(1, -1.0, -4.9, 3.1), (2, 1.4, -2.3, 5.1)])
def test_what_waits_for_its_host_differs_more_from_process_to_process_than_by_being_watched(
    place: int, mean: float, low: float, high: float
) -> None:
    found = compare(rows_in(f"h200-hf-watched-{place}"), rows_in(f"h200-hf-unwatched-{place}")).overall
    assert found.low is not None
    assert found.high is not None
    assert [round(100 * (each - 1), 1) for each in (found.value, found.low, found.high)] == [mean, low, high]


def test_two_visits_hold_what_one_visit_does_not() -> None:
    """Ten cells of transformers in four processes, on a host that slows for longer than a window."""
    names = ("h200-hf-watched-1", "h200-hf-unwatched-1", "h200-hf-unwatched-2", "h200-hf-watched-2")
    runs = [rows_in(name) for name in names]
    single = [compare(a, b) for place, a in enumerate(runs) for b in runs[place + 1 :]]
    held = [not cell.ratio.is_significant for found in single for cell in found.cells]
    assert (sum(held), len(held)) == (48, 60)
    twos = [((0, 1), (2, 3)), ((0, 3), (1, 2)), ((0, 2), (1, 3))]
    double = [compare(runs[a] + runs[b], runs[c] + runs[d]) for (a, b), (c, d) in twos]
    held = [not cell.ratio.is_significant for found in double for cell in found.cells]
    assert (sum(held), len(held)) == (28, 30)


def test_of_three_processes_all_intervals_but_those_of_the_watched_request_hold_no_difference() -> None:
    names = ("h200-timeline-1", "h200-no-timeline", "h200-timeline-2")
    runs = [rows_in(name) for name in names]
    ratios = [
        (cell.cell, cell.ratio)
        for place, a in enumerate(runs)
        for b in runs[place + 1 :]
        for cell in compare(a, b).cells
    ]
    differ = [cell.partition("llama-3.1-8b ")[2] for cell, ratio in ratios if ratio.is_significant]
    assert len(ratios) == 19
    assert sorted(differ) == ["512→64 × 1", "512→64 × 1", "512→8 × 8"]


@pytest.mark.parametrize(
    ("cells", "names"),
    [
        (6, ("timeline-1", "no-timeline", "timeline-2")),
        (10, ("hf-watched-1", "hf-unwatched-1", "hf-unwatched-2", "hf-watched-2")),
        (10, ("vllm-watched", "vllm-unwatched")),
    ],
)
def test_the_page_shows_what_the_benchmark_of_repeatability_prints(
    cells: int, names: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    show = runpy.run_path(str(ROWS.parent / "repeatability.py"))["show"]
    show([ROWS / f"h200-{name}.jsonl" for name in names])
    first, *rest = capsys.readouterr().out.splitlines()
    assert first == f"{cells} cells, each in {len(names)} processes"
    page = (ROWS.parents[1] / "docs" / "uncertainty.md").read_text(encoding="utf-8")
    assert "\n".join(rest) in page


def test_the_witnesses_agree_within_three_percent_where_batches_do_not_keep_time_with_the_sensor() -> None:
    found: dict[tuple[str | int, ...], float] = {}
    for name in ("h200-timeline-1", "h200-timeline-2", "h200-pairs"):
        found |= {(name, *load_of(row)): value for row in rows_in(name) if (value := ratio(row)) is not None}
    beat = found.pop(("h200-pairs", 512, 1, 8))
    assert beat == pytest.approx(1.127, abs=0.001)
    assert all(abs(value - 1) < 0.04 for value in found.values())
    (checked,) = (
        each
        for row, each in zip(rows_in("h200-pairs"), check_rows(rows_in("h200-pairs"), target=0.02), strict=True)
        if load_of(row) == (512, 1, 8)
    )
    (flag,) = checked.flags
    assert flag.code == "disagree"
    assert "batches of 0.101 s keep time with its period of 0.098 s" in flag.reason


def test_prefill_and_decode_of_vllm_were_told_apart_by_pairs() -> None:
    (setup,) = find_phases(rows_in("h200-pairs")).setups
    decode = {cell.batch: (cell.pair.prefill.value_j, cell.pair.decode.value_j) for cell in setup.cells if cell.pair}
    assert decode[1] == pytest.approx((10.8, 155), rel=0.01)
    assert decode[128] == pytest.approx((1059, 377), rel=0.01)
    assert all(row.result and row.result.time_to_first_token_s for row in rows_in("h200-pairs"))


def test_what_doctor_found_of_an_h200_is_kept() -> None:
    found = json.loads((ROWS / "h200-meter.json").read_text())
    assert found["schema"] == "infergy.meter/1"
    assert found["gpu"]["name"] == "NVIDIA H200"
    assert found["counter"]["period_s"] == pytest.approx(0.1, abs=0.001)
    assert found["instant_power"]["period_s"] == pytest.approx(0.1, abs=0.001)
    assert found["instant_power"]["averaged_s"] == pytest.approx(0.0055, abs=0.0001)
    assert found["average_power"]["averaged_s"] == pytest.approx(1.03, abs=0.01)


def test_under_a_steady_load_counter_and_instant_power_agree_within_two_thousandths() -> None:
    found = json.loads((ROWS / "h200-meter-2.json").read_text())
    steady = {one["load"]: one["ratio"] for one in found["agreements"] if one["half_period_s"] is None}
    assert set(steady) == {"idle", "half", "full"}
    assert all(abs(ratio - 1) < 0.002 for ratio in steady.values())
    waves = [one["ratio"] for one in found["agreements"] if one["half_period_s"] is not None]
    assert [round(ratio, 2) for ratio in waves] == [0.97, 0.95, 0.95, 0.93]
