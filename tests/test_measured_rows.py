"""Rows from real GPUs that stand beside the tables: what the docs say of them follows from them."""

from __future__ import annotations

import json
import runpy
from datetime import datetime, timedelta
from pathlib import Path
from statistics import fmean

import pytest
from typer.testing import CliRunner

import infergy
from infergy.cli import app
from infergy.cost.table import SHIPPED_TABLE, read_table
from infergy.estimates.build import entries_of_rows
from infergy.measure.grid import make_plan, parse_grid, read_toml
from infergy.measure.studies import study_path
from infergy.quality.compare import compare
from infergy.quality.phases import find_phases
from infergy.records import Measurement, derive, result_of
from infergy.records.check import check_rows
from infergy.records.store import read_store
from infergy.records.timeline import ratio
from infergy.records.uncertainty import find_uncertainties
from infergy.records.visits import join_visits
from infergy.report.our_values import changes
from infergy.report.points import points_of
from quick_alone import errors

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
    assert differ == ["512→64 × 1", "512→64 × 1"]


@pytest.mark.parametrize(
    ("cells", "names"),
    [
        (7, ("timeline-1", "no-timeline", "timeline-2")),
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
    assert first == f"{cells} cells in {len(names)} processes"
    page = (ROWS.parents[1] / "docs" / "uncertainty.md").read_text(encoding="utf-8")
    assert "\n".join(rest) in page


H100 = tuple(f"h100-vllm-process-{number}" for number in (1, 2, 3))
TABLES = Path(infergy.__file__).parent / "data" / "tables"
H100_TABLES = (TABLES / "h100-sxm-llama-3.1-8b.jsonl", TABLES / "replicates" / "h100-sxm-llama-3.1-8b-2.jsonl")
PAGE = ROWS.parents[1] / "docs" / "uncertainty.md"


@pytest.mark.parametrize(("tables", "processes"), [((), 3), (H100_TABLES, 9)])
def test_the_page_shows_how_h100s_repeat(
    tables: tuple[Path, ...], processes: int, capsys: pytest.CaptureFixture[str]
) -> None:
    show = runpy.run_path(str(ROWS.parent / "repeatability.py"))["show"]
    show([*(ROWS / f"{name}.jsonl" for name in H100), *tables], "vllm")
    first, *rest = capsys.readouterr().out.splitlines()
    assert first == f"10 cells in {processes} processes"
    assert "\n".join(rest) in PAGE.read_text(encoding="utf-8")


def test_the_page_shows_how_three_whole_processes_repeat(capsys: pytest.CaptureFixture[str]) -> None:
    show = runpy.run_path(str(ROWS.parent / "repeatability.py"))["show"]
    show([ROWS / f"h100-vllm-ten-{number}.jsonl" for number in (1, 2, 3)])
    assert capsys.readouterr().out.strip() in PAGE.read_text(encoding="utf-8")


def test_a_cell_of_several_chips_is_one_change_and_of_one_chip_where_both_sides_have_it() -> None:
    names = ("h100-sxm-llama-3.1-8b.jsonl", "h100-sxm-llama-3.1-8b_third-host.jsonl")
    points = points_of({TABLES / name: read_store(TABLES / name).rows for name in names})
    lengths = [point for point in points if load_of(point.row)[:2] == (512, 64)]
    eager, graphs = ([point for point in lengths if point.label == label] for label in ("vllm-eager", "vllm"))
    found = {change.cell: change.value for change in changes(eager, graphs)}
    assert len(changes(eager, graphs)) == len(found) == 4
    (one,) = (point for point in eager if point.batch == 1)
    alone = [point for point in graphs if point.batch == 1]
    near = [point for point in alone if point.row.environment.gpus == one.row.environment.gpus]
    assert (len(alone), len(near)) == (2, 1)
    assert found["512→64 × 1"] == near[0].energy_j / one.energy_j - 1


@pytest.mark.parametrize(
    "command",
    [
        ["compare", str(ROWS / f"{H100[0]}.jsonl"), str(ROWS / f"{H100[1]}.jsonl")],
        ["compare", str(H100_TABLES[0]), str(ROWS / f"{H100[1]}.jsonl")],
    ],
)
def test_the_page_shows_what_compare_says_of_h100s(command: list[str]) -> None:
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    assert result.exit_code == 0
    told = [line.rstrip() for line in result.stdout.splitlines() if line.strip()]
    shown = PAGE.read_text(encoding="utf-8").splitlines()
    if command[1] == str(H100_TABLES[0]):
        told = [line for line in told if "512→64 × 128" in line or "mean of" in line]
    assert all(line in shown for line in told)


def test_a_warmer_chip_takes_what_the_interval_of_one_visit_does_not_hold() -> None:
    """docs/uncertainty.md, of 512→64 × 64 in two processes on one H100."""
    first, second = (next(row for row in rows_in(name) if load_of(row) == (512, 64, 64)) for name in H100[:2])
    assert [row.before[0].temperature_c for row in (first, second)] == [49, 53]
    tails = [fmean(sum(window.tail_power_by_gpu_w.values()) for window in row.windows) for row in (first, second)]
    assert tails == pytest.approx([127, 134], abs=0.5)
    assert result_of(second).duration_s / result_of(first).duration_s == pytest.approx(1.011, abs=0.001)
    for row in (first, second):
        assert row.loaded_idle is not None
        joules = [derive([window], row.loaded_idle).energy_j for window in row.windows]
        assert max(joules) / min(joules) < 1.006
    joined = join_visits(rows_in(H100[0]) + rows_in(H100[1]))
    intervals = dict(zip(map(load_of, joined), find_uncertainties(joined), strict=True))
    found = intervals[512, 64, 64]
    assert found is not None
    assert (found.half_width, found.visits) == pytest.approx((0.0042, 0.0015), abs=0.0001)


def test_what_the_other_chips_of_the_host_measured_beside_two_processes() -> None:
    """docs/measurements.md, "Several chips of one host at once"."""

    def span(row: Measurement) -> tuple[datetime, datetime]:
        begin = datetime.fromisoformat(row.measured_utc)
        windows = [*([row.watched] if row.watched else []), *row.windows]
        opened = min(tick.time_s for window in windows for tick in window.open.values())
        closed = max(tick.time_s for window in windows for tick in window.close.values())
        return begin, begin + timedelta(seconds=closed - opened)

    others = [row for path in (*H100_TABLES, TABLES / "h100-sxm-other-models.jsonl") for row in read_store(path).rows]
    beside: dict[str, list[int]] = {}
    for name in H100[:2]:
        for row in rows_in(name)[5:]:
            begin, end = span(row)
            (own,) = (gpu.uuid for gpu in row.environment.gpus)
            at_once = [other for other in others if span(other)[0] < end and begin < span(other)[1]]
            chips = {gpu.uuid for other in at_once for gpu in other.environment.gpus} - {own}
            beside.setdefault(name, []).append(len(chips))
    assert max(beside[H100[0]]) == 1
    assert min(beside[H100[1]]) >= 2
    found = compare(rows_in(H100[0])[5:], rows_in(H100[1])[5:])
    ratios = [100 * (cell.ratio.value - 1) for cell in found.cells]
    assert len(ratios) == 5
    assert (fmean(ratios), min(ratios), max(ratios)) == pytest.approx((0.1, -0.7, 0.5), abs=0.05)
    assert not any(cell.ratio.is_significant for cell in found.cells)


def test_transformers_took_less_on_the_second_host() -> None:
    table, replicates = (read_store(path).rows for path in H100_TABLES)
    ratios = {cell.cell: cell.ratio for cell in compare(replicates, table).cells if "transformers" in cell.cell}
    one, many = ratios["transformers llama-3.1-8b 512→64 × 1"], ratios["transformers llama-3.1-8b 512→64 × 32"]
    assert [round(100 * ((each or 0) - 1)) for each in (one.value, one.low, one.high)] == [-15, -24, -5]
    assert [round(100 * ((each or 0) - 1)) for each in (many.value, many.low, many.high)] == [-11, -13, -8]


def test_the_witnesses_agree_within_three_percent_where_batches_do_not_keep_time_with_the_sensor() -> None:
    found: dict[tuple[str | int, ...], float] = {}
    for name in ("h200-timeline-1", "h200-timeline-2", "h200-pairs"):
        found |= {(name, *load_of(row)): value for row in rows_in(name) if (value := ratio(row)) is not None}
    beat = found.pop(("h200-pairs", 512, 1, 8))
    assert beat == pytest.approx(1.127, abs=0.001)
    assert all(abs(value - 1) < 0.04 for value in found.values())
    (checked,) = (
        each
        for row, each in zip(rows_in("h200-pairs"), check_rows(rows_in("h200-pairs")), strict=True)
        if load_of(row) == (512, 1, 8)
    )
    (flag,) = checked.flags
    assert flag.code == "disagree"
    assert "batches of 0.101 s last a multiple of its period of 0.098 s" in flag.reason


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


def test_compare_tells_what_differs_between_the_cells_that_both_hold() -> None:
    """The table holds transformers and other engine configs too, which the ten cells are not compared with."""
    found = compare(rows_in(H100[1]), read_store(H100_TABLES[0]).rows)
    (difference,) = found.differences
    assert difference.startswith("GPU UUID: GPU-13ea17f5")
    assert len(found.only_b) == 60


def test_rows_of_the_study_quick() -> None:
    study = make_plan(parse_grid(read_toml(study_path("quick")), "quick"))
    cells = {planned.cell.id for planned in study.cells}
    assert (study.name, len(cells)) == ("quick", 5)
    first, second = rows_in("../quick/h200-vllm-1"), rows_in("../quick/h200-vllm-2")
    assert {row.cell_id for row in first} == {row.cell_id for row in second}
    threes = [rows_in(f"../quick/{name}") for name in ("h200-3b-vllm", "h200-3b-vllm-2", "h200-3b-vllm-3")]
    for rows in threes:
        assert {row.cell_id for row in rows} == cells
    for same in zip(*(sorted(rows, key=lambda row: row.cell_id) for rows in threes), strict=True):
        joules = [result_of(row).energy_j for row in same]
        assert max(joules) / min(joules) < 1.04
    energy = [{load_of(row): result_of(row).energy_j for row in rows} for rows in (first, second)]
    differ = {load: energy[1][load] / energy[0][load] - 1 for load in energy[0]}
    assert differ.pop((128, 128, 1)) == pytest.approx(-0.170, abs=0.001)
    assert differ.pop((128, 128, 16)) == pytest.approx(-0.196, abs=0.001)
    assert all(abs(change) < 0.03 for change in differ.values())
    for name in ("h200-hf", "h200-3b-hf", "h200-3b-hf-2", "h200-3b-vllm"):
        assert {load_of(row) for row in rows_in(f"../quick/{name}")} == set(energy[0])


def test_cells_of_small_batches_in_fp8_are_predicted_as_docs_say() -> None:
    table = read_table(SHIPPED_TABLE, entries=True)
    entries, _ = entries_of_rows([ROWS / "h200-vllm-fp8-small.jsonl"], table.fits)
    energy, seconds = errors(entries, table.fits["vllm"])
    assert not table.identities & {entry.origin.identity for entry in entries}
    assert [round(100 * one, 1) for one in (seconds.min(), seconds.max())] == [-1.5, 4.2]
    assert [round(100 * one) for one in (energy.min(), energy.max())] == [4, 10]


def test_the_replay_on_another_host_is_what_docs_say() -> None:
    (row,) = rows_in("h200-replay-20s")
    assert (row.cell.load.batch, row.environment.gpus[0].uuid[:12]) == (88, "GPU-1a8c0f04")
    assert result_of(row).energy_j == pytest.approx(11_400, rel=0.005)
