"""Flags: each is raised by what it names, and a good row has none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import pytest

import infergy
from infergy.records import Failure, GpuState, Measurement, Window
from infergy.records.check import check_rows
from infergy.records.flags import CODES, TARGET, find_flags
from infergy.records.store import read_store
from infergy.records.timeline import looking_error_by_gpu, ratio_by_gpu
from infergy.records.uncertainty import Uncertainty, find_uncertainties
from infergy.records.unlike import find_unlike
from infergy.records.visits import join_visits
from rows import UUID, build_row, spread_over

SURE = Uncertainty(
    low_j=990.0, high_j=1010.0, half_width=0.01, spread=0.005, edges=0.0, tail=0.0, degrees_of_freedom=9.0
)
TABLES = Path(infergy.__file__).parent / "data" / "tables"
UNSURE = replace(SURE, half_width=0.05)


def state(temperature_c: float = 60.0, slowdowns: tuple[str, ...] = (), processes: int = 1) -> GpuState:
    return GpuState(uuid=UUID, temperature_c=temperature_c, slowdowns=slowdowns, processes=processes)


GOOD = replace(build_row(batches=4, duration_s=2.0), before=(state(),), after=(state(),))


def good(**changes: Any) -> Measurement:
    return replace(GOOD, **changes)


def lasting(seconds: Sequence[float]) -> Measurement:
    (window,) = build_row(batches=len(seconds)).windows
    batches, start_s = [], 10.0
    for batch, duration_s in zip(window.batches, seconds, strict=True):
        batches.append(replace(batch, start_s=start_s, end_s=start_s + duration_s))
        start_s += duration_s
    return good(windows=(replace(window, batches=tuple(batches)),))


def told(**options: str) -> Measurement:
    """A row of 8 requests of 576 tokens, 36 blocks of 16 each, with what its engine tells of itself."""
    return good(environment=replace(GOOD.environment, engine=options))


def shipped(name: str) -> tuple[Measurement, ...]:
    return read_store(TABLES / f"{name}.jsonl").rows


def codes(row: Measurement, uncertainty: Uncertainty | None = SURE) -> list[str]:
    return [flag.code for flag in find_flags(row, uncertainty)]


def test_a_good_row_has_no_flag() -> None:
    assert codes(good()) == []


def test_the_power_limit_is_a_fact_not_a_doubt() -> None:
    assert codes(good(after=(state(slowdowns=("sw_power_cap",)),))) == []


@pytest.mark.parametrize(
    ("row", "uncertainty", "code"),
    [
        (good(), UNSURE, "uncertain"),
        (good(), None, "uncertain"),
        (good(interrupted=Failure(code="meter", message="lost")), SURE, "interrupted"),
        (lasting([1.0, 1.0]), SURE, "short-window"),
        (lasting([1.5, 1.0, 1.0]), SURE, "first-batch"),
        (lasting([1.0, 1.0, 1.06, 1.06]), SURE, "trend"),
        (good(after=(state(slowdowns=("hw_thermal_slowdown",)),)), SURE, "slowed"),
        (good(after=(state(temperature_c=90.0),)), SURE, "temperature"),
        (good(before=(state(processes=2),)), SURE, "other-process"),
        (told(max_num_seqs="4"), SURE, "batch"),
        (told(kv_cache_blocks="287", kv_block_size="16"), SURE, "batch"),
    ],
)
def test_each_doubt_raises_its_flag_alone(row: Measurement, uncertainty: Uncertainty | None, code: str) -> None:
    (flag,) = find_flags(row, uncertainty)
    assert flag.code == code
    assert flag.reason
    assert flag.cure


def test_what_the_driver_does_not_tell_is_no_doubt() -> None:
    unknown = (GpuState(uuid=UUID),)
    assert codes(good(before=unknown, after=unknown)) == []


def test_a_batch_that_an_engine_holds_at_once_is_no_doubt() -> None:
    assert codes(told(max_num_seqs="8", kv_cache_blocks="288", kv_block_size="16")) == []
    assert codes(told(max_num_seqs="auto", kv_cache_blocks="288")) == []


def test_the_batch_to_type_is_the_one_that_fits() -> None:
    (flag,) = find_flags(told(kv_cache_blocks="200", kv_block_size="16"), SURE)
    assert "--batch 5 or less" in flag.cure


def test_a_failed_row_has_no_flag() -> None:
    assert codes(good(windows=())) == []


def test_the_target_decides_what_is_certain_enough() -> None:
    assert [flag.code for flag in find_flags(good(), UNSURE, target=0.06)] == []


def test_every_code_has_its_line_in_the_docs() -> None:
    page = (Path(__file__).parents[2] / "docs" / "flags.md").read_text(encoding="utf-8")
    for code in CODES:
        assert f"| `{code}` |" in page


def test_what_ships_has_no_flags_but_those_that_the_docs_explain() -> None:
    rows = shipped("h200-llama-3.1-8b")
    chips = Counter(row.environment.gpus[0].uuid for row in rows)
    ((usual, _),) = chips.most_common(1)
    widths: dict[str, list[float]] = {}
    seen: list[str] = []
    for engine in ("transformers", "vllm"):
        group = [row for row in rows if row.cell.setup.engine == engine]
        for row, unlike in zip(group, find_unlike(group), strict=True):
            # docs/measurements.md: twelve cells, three of them at the start and at the end, are of another chip.
            assert [flag.code for flag in unlike] == ["environment"] * (row.environment.gpus[0].uuid != usual)
            assert all(flag.reason.startswith("unlike the most rows of its set-up: chip: ") for flag in unlike)
        for row, uncertainty in zip(group, find_uncertainties(group), strict=True):
            seen += [flag.code for flag in find_flags(row, uncertainty) if flag.code != "uncertain"]
        for uncertainty in find_uncertainties(join_visits(group)):
            assert uncertainty is not None
            widths.setdefault(engine, []).append(uncertainty.half_width)
    assert sorted(chips.values()) == [15, 86]
    assert sorted(seen) == ["first-batch", *["trend"] * 6]
    middle = {engine: sorted(found)[len(found) // 2] for engine, found in widths.items()}
    assert middle["vllm"] == pytest.approx(0.012, abs=0.001)
    assert middle["transformers"] == pytest.approx(0.029, abs=0.001)
    assert max(widths["vllm"]) == pytest.approx(0.028, abs=0.001)


def test_what_ships_of_the_axes_is_doubted_for_its_host_and_its_few_windows_alone() -> None:
    """docs/measurements.md names each of them."""
    checked = check_rows(shipped("h200-llama-3.1-8b_axes"), target=TARGET)
    doubted = {one.cell.replace(" llama-3.1-8b", ""): [flag.code for flag in one.flags] for one in checked if one.flags}
    assert doubted == {
        "transformers 50→64 × 32": ["uncertain", "trend"],
        "transformers 137→64 × 32": ["uncertain"],
        "transformers 512→64 × 16": ["uncertain", "trend"],
        "transformers-t0.8 512→64 × 16": ["uncertain", "trend"],
        "vllm-poisson32 512→64 × 64": ["uncertain"],
        "vllm-poisson2 512→64 × 64": ["uncertain"],
        "vllm-spec4:llama-3.2-1b:0.8 512→64 × 1": ["uncertain", "trend"],
    }


@pytest.mark.parametrize(
    ("name", "rows", "doubted", "counts"),
    [
        ("h100-sxm-llama-3.1-8b", 70, 37, {"uncertain": 21, "environment": 20, "trend": 14, "disagree": 1}),
        ("h100-sxm-other-models", 12, 3, {"uncertain": 3, "trend": 3}),
        ("replicates/h100-sxm-llama-3.1-8b-2", 9, 3, {"uncertain": 2, "trend": 2, "environment": 2}),
        (
            "h100-sxm-llama-3.1-8b_third-host",
            121,
            85,
            {"uncertain": 40, "environment": 70, "trend": 24, "behind": 3, "disagree": 1},
        ),
        ("h100-sxm-other-models_third-host", 14, 2, {"uncertain": 2, "trend": 2}),
        ("replicates/h100-sxm-llama-3.1-8b-3", 17, 7, {"environment": 7}),
        (
            "h100-sxm-llama-3.1-8b_fourth-host",
            140,
            103,
            {"uncertain": 45, "environment": 70, "trend": 23, "slowed": 6, "clocks": 1},
        ),
        ("h100-sxm-other-models_fourth-host", 7, 5, {"uncertain": 5, "trend": 2}),
        *((f"replicates/h100-sxm-llama-3.1-8b-{number}", 3, 0, {}) for number in (4, 5, 6, 7)),
    ],
)
def test_what_ships_of_h100s_is_doubted_as_the_docs_say(
    name: str, rows: int, doubted: int, counts: dict[str, int]
) -> None:
    """docs/measurements.md tells why."""
    checked = check_rows(shipped(name), target=TARGET)
    flags = [flag for one in checked for flag in one.flags]
    assert (len(checked), sum(bool(one.flags) for one in checked)) == (rows, doubted)
    assert Counter(flag.code for flag in flags) == counts
    unlike = [flag.reason for flag in flags if flag.code == "environment"]
    assert all(reason.startswith("unlike the most rows of its set-up: chip: ") for reason in unlike)
    assert not any("; " in reason for reason in unlike)


def test_the_least_certain_rows_of_h100s_wait_for_their_host_as_the_docs_say() -> None:
    names = ("h100-sxm-llama-3.1-8b", "h100-sxm-other-models")
    checked = [one for name in names for one in check_rows(shipped(name), target=TARGET)]
    groups: dict[str, list[float]] = {}
    for one in checked:
        if one.uncertainty is not None and any(flag.code == "uncertain" for flag in one.flags):
            setup, _, rest = one.cell.partition(" ")
            kind = "replay" if "replay" in setup else rest.split()[0] if "olmo" in rest else "8b"
            engine = setup.split(":")[0].split("-t")[0].split("-beam")[0].split("-s32")[0]
            tensors = "-tp4" if "-tp4" in setup else ""
            groups.setdefault(f"{engine}{tensors} {kind}", []).append(round(100 * one.uncertainty.half_width, 1))
    assert {group: sorted(widths) for group, widths in groups.items()} == {
        "transformers 8b": [3.8, 4.5, 4.6, 4.7, 4.7, 4.8, 10.0],
        "transformers replay": [3.0, 3.5],
        "vllm-spec4 8b": [5.7, 6.4, 11.5, 18.8],
        "vllm-eager 8b": [2.1, 5.0, 11.0, 11.1],
        "vllm replay": [2.1, 2.3],
        "vllm-tp4 8b": [2.4, 2.6],
        "vllm olmoe-1b-7b": [2.7],
        "vllm olmo-1b": [4.3, 6.4],
    }


def test_a_slow_first_batch_of_a_busy_host_is_not_taken_for_compiling() -> None:
    """Speculation at batch 1 on an H100: the first batch took 0.84 s, later ones up to 1.29 s."""
    cell = "vllm-spec4:llama-3.2-1b:0.8 llama-3.1-8b 512→64 × 1"
    (row,) = (row for row in shipped("h100-sxm-llama-3.1-8b") if str(row.cell) == cell)
    seconds = [batch.duration_s for window in row.windows for batch in window.batches]
    assert (min(seconds), seconds[0], max(seconds)) == pytest.approx((0.539, 0.835, 1.292), abs=0.001)
    assert "first-batch" not in codes(row)


def test_few_looks_at_short_batches_are_no_disagreement_and_lost_joules_of_one_gpu_are() -> None:
    rows = shipped("h100-sxm-llama-3.1-8b")
    short = next(row for row in rows if str(row.cell) == "vllm llama-3.1-8b 512→8 × 1")
    assert ratio_by_gpu(short)[short.environment.gpus[0].uuid] == pytest.approx(0.947, abs=0.001)
    assert "disagree" not in codes(short)
    four = next(row for row in rows if str(row.cell) == "vllm-tp4 llama-3.1-8b 512→64 × 512")
    assert codes(four) == []
    louder = [replace(one, power_w=tuple(1.2 * watts for watts in one.power_w)) for one in four.timeline]
    (flag,) = find_flags(replace(four, timeline=(*four.timeline[:2], louder[2], four.timeline[3])), SURE)
    assert flag.code == "disagree"
    assert "of GPU 2 (GPU-e8c0201b-" in flag.reason


def test_of_rows_on_several_gpus_those_in_use_count_and_no_other() -> None:
    rows = [row for name in ("h100-sxm-llama-3.1-8b", "h100-sxm-other-models") for row in shipped(name)]
    many = [row for row in rows if row.cell.setup.tensor_parallel > 1]
    assert Counter(row.cell.setup.tensor_parallel for row in many) == {2: 5, 4: 6}
    for row, checked in zip(many, check_rows(many, target=TARGET), strict=True):
        uuids = [gpu.uuid for gpu in row.environment.gpus]
        assert len(uuids) == row.cell.setup.tensor_parallel
        assert row.environment.engine["gpu_uuids"] == ",".join(uuids)
        assert row.loaded_idle is not None
        for window in (*row.windows, row.loaded_idle):
            assert set(window.open) == set(window.close) == set(uuids)
        for states in (row.before, row.after, row.timeline):
            assert [state.uuid for state in states] == uuids
        assert {state.processes for state in (*row.before, *row.after)} == {1}
        assert list(checked.energy_by_gpu_j) == list(checked.power_by_gpu_w) == uuids
        assert sum(checked.energy_by_gpu_j.values()) == pytest.approx(checked.energy_j)
        assert checked.imbalance is not None
        assert checked.imbalance < 0.013


def test_half_of_all_watched_windows_lie_within_a_third_of_what_their_sensor_may_miss() -> None:
    """docs/timeline.md; the looks are evenly spaced, not random."""
    names = (
        "h100-sxm-llama-3.1-8b",
        "h100-sxm-llama-3.1-8b_third-host",
        "h100-sxm-llama-3.1-8b_fourth-host",
        "h100-sxm-other-models",
        "h100-sxm-other-models_third-host",
        "h100-sxm-other-models_fourth-host",
        *(f"replicates/h100-sxm-llama-3.1-8b-{number}" for number in range(2, 8)),
        "h200-llama-3.1-8b_axes",
    )
    beside = (Path(__file__).parents[2] / "benchmarks" / "rows").glob("*.jsonl")
    paths = [TABLES / f"{name}.jsonl" for name in names]
    paths += [path for path in beside if "calibration" not in path.stem]
    seen = {(row.key, row.measured_utc): row for path in paths for row in read_store(path).rows if row.watched}
    found = []
    for row in seen.values():
        errors = looking_error_by_gpu(row, row.seen_windows)
        found += [(abs(value - 1) / errors[uuid], abs(value - 1)) for uuid, value in ratio_by_gpu(row).items()]
    assert len(found) == 528
    assert median(errors for errors, _ in found) == pytest.approx(0.320, abs=0.005)
    assert sum(errors < 2 for errors, _ in found) / len(found) == pytest.approx(0.955, abs=0.001)
    assert sum(errors > 2 and far > 0.05 for errors, far in found) == 2


def test_a_check_tells_the_intervals_that_an_estimate_carries() -> None:
    rows = shipped("h200-llama-3.1-8b")
    told = [one.uncertainty for one in check_rows(rows, target=TARGET)]
    assert told == find_uncertainties(rows)
    # Two laws of random weights: each tells of the other's spread.
    groups = [[row for row in rows if row.cell.setup == setup] for setup in {row.cell.setup for row in rows}]
    apart = {row.key: one for group in groups for row, one in zip(group, find_uncertainties(group), strict=True)}
    assert told != [apart[row.key] for row in rows]


PAIR = ("GPU-a", "GPU-b")


def two_gpus(*, before: GpuState = GOOD.before[0], after: GpuState = GOOD.after[0]) -> Measurement:
    """A good row of two GPUs, but for what the second one told before and after."""
    measured = spread_over(build_row(duration_s=2.0, batches=4), dict.fromkeys(PAIR, 0.5))
    first, second = PAIR
    return replace(
        measured,
        before=(replace(state(), uuid=first), replace(before, uuid=second)),
        after=(replace(state(), uuid=first), replace(after, uuid=second)),
    )


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        (
            {"after": state(slowdowns=("hw_slowdown",))},
            "slowed",
            "GPU 1 (GPU-b) was held down by hw_slowdown, expected",
        ),
        ({"after": state(temperature_c=90.0)}, "temperature", "GPU 1 (GPU-b) went from 60 to 90 °C, expected"),
        ({"before": state(processes=3)}, "other-process", "3 processes on GPU 1 (GPU-b), expected"),
    ],
)
def test_of_several_gpus_the_one_in_doubt_is_named(changes: dict[str, GpuState], code: str, words: str) -> None:
    assert codes(two_gpus()) == []
    (flag,) = find_flags(two_gpus(**changes), SURE)
    assert flag.code == code
    assert flag.reason.startswith(words)
    assert "GPU-a" not in flag.reason


def test_unlike_shares_of_several_gpus_are_a_fact_not_a_doubt() -> None:
    row = spread_over(build_row(duration_s=2.0, batches=4), {"GPU-b": 0.3, "GPU-a": 0.7})
    (checked,) = check_rows([row], target=0.02)
    assert checked.flags == ()
    assert list(checked.energy_by_gpu_j) == ["GPU-b", "GPU-a"]
    assert checked.energy_by_gpu_j == pytest.approx({"GPU-b": 300.0, "GPU-a": 700.0})
    assert checked.power_by_gpu_w == pytest.approx({"GPU-b": 150.0, "GPU-a": 350.0})
    assert checked.imbalance == pytest.approx(0.8)
    (alone,) = check_rows([build_row()], target=0.02)
    assert alone.imbalance is None
    (failed,) = check_rows([replace(row, windows=(), result=None)], target=0.02)
    assert (failed.energy_by_gpu_j, failed.imbalance) == ({}, None)


def test_joules_that_rise_while_seconds_stay_are_a_trend() -> None:
    def windows(joules: Sequence[float]) -> tuple[Window, ...]:
        return tuple(build_row(energy_j=one, duration_s=2.0, batches=2).windows[0] for one in joules)

    rising = good(windows=windows([1000.0 + 5.0 * place for place in range(10)]))
    steady = good(windows=windows([1000.0 + 5.0 * (place % 2) for place in range(10)]))
    noisy = good(windows=windows([1000.0, 1060.0, 950.0, 1030.0, 1080.0, 960.0, 1090.0, 1010.0]))
    assert codes(rising) == ["trend"]
    assert codes(steady) == []
    assert codes(noisy) == []
