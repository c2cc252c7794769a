"""Flags: each is raised by what it names, a good row has none, and facts are no flags."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import pytest

import infergy
from infergy.records import Failure, GpuState, Measurement
from infergy.records.check import check_rows, find_facts
from infergy.records.flags import CODES, find_flags
from infergy.records.store import read_store
from infergy.records.timeline import looking_error_by_gpu, ratio_by_gpu
from infergy.records.uncertainty import Uncertainty, find_uncertainties
from infergy.records.visits import join_visits
from rows import UUID, build_row, spread_over

SURE = Uncertainty(
    low_j=990.0, high_j=1010.0, half_width=0.01, spread=0.005, edges=0.0, tail=0.0, degrees_of_freedom=9.0
)
REPLICATES = {f"h100-sxm-llama-3.1-8b-{number}": rows for number, rows in ((3, 17), (4, 3), (5, 3), (6, 3), (7, 3))} | {
    "h200-llama-3.1-8b-2": 69,
    "h200-llama-3.1-8b-3": 12,
}
TABLES = Path(infergy.__file__).parent / "data" / "tables"
UNSURE = replace(SURE, half_width=0.05)
THREE = build_row(duration_s=2.0, batches=4).windows * 3


def state(temperature_c: float = 60.0, slowdowns: tuple[str, ...] = (), processes: int = 1) -> GpuState:
    return GpuState(uuid=UUID, temperature_c=temperature_c, slowdowns=slowdowns, processes=processes)


GOOD = replace(build_row(batches=4, duration_s=2.0), before=(state(),), after=(state(),))


def good(**changes: Any) -> Measurement:
    return replace(GOOD, result=None, **changes)


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
        (good(windows=THREE), UNSURE, "unsteady"),
        (good(interrupted=Failure(code="meter", message="lost")), SURE, "interrupted"),
        (good(after=(state(slowdowns=("hw_thermal_slowdown",)),)), SURE, "slowed"),
        (good(before=(state(processes=2),)), SURE, "other-process"),
        (told(max_num_seqs="4"), SURE, "batch"),
        (told(kv_cache_blocks="287", kv_block_size="16"), SURE, "batch"),
    ],
)
def test_each_doubt_raises_its_flag_alone(row: Measurement, uncertainty: Uncertainty | None, code: str) -> None:
    (flag,) = find_flags(row, uncertainty)
    assert flag.code == code
    assert flag.reason
    assert flag.fix


def test_what_the_driver_does_not_tell_is_no_doubt() -> None:
    unknown = (GpuState(uuid=UUID),)
    assert codes(good(before=unknown, after=unknown)) == []


def test_a_batch_that_an_engine_holds_at_once_is_no_doubt() -> None:
    assert codes(told(max_num_seqs="8", kv_cache_blocks="288", kv_block_size="16")) == []
    assert codes(told(max_num_seqs="auto", kv_cache_blocks="288")) == []


def test_the_batch_to_type_is_the_one_that_fits() -> None:
    (flag,) = find_flags(told(kv_cache_blocks="200", kv_block_size="16"), SURE)
    assert "--batch 5 or less" in flag.fix


def test_a_failed_row_has_no_flag() -> None:
    assert codes(good(windows=())) == []


def test_a_target_flags_wider_and_unknown_intervals_and_nothing_does_without() -> None:
    assert find_flags(good(), UNSURE, target=0.06) == find_flags(good(), UNSURE) == find_flags(good(), None) == ()
    (wide,), (unknown,) = (find_flags(good(), known, target=0.04) for known in (UNSURE, None))
    assert (wide.code, wide.value, wide.limit) == ("uncertain", 0.05, 0.04)
    assert (unknown.code, unknown.value, unknown.limit) == ("uncertain", None, 0.04)


def test_a_wide_interval_of_few_windows_is_a_fact_and_of_repeated_ones_a_flag() -> None:
    assert codes(good(windows=THREE[:2]), UNSURE) == []
    assert codes(good(windows=THREE), SURE) == []
    (flag,) = find_flags(good(windows=THREE), UNSURE)
    assert (flag.code, flag.value, flag.limit) == ("unsteady", 0.05, 0.02)


def test_facts_are_measured_and_not_flagged() -> None:
    row = replace(
        lasting([1.5, 1.0, 1.0, 1.1]),
        result=None,
        before=(state(), GpuState(uuid="GPU-other")),
        after=(state(temperature_c=90.0),),
    )
    assert codes(row) == []
    facts = find_facts(row, ("GPU: a against b",))
    assert facts is not None
    assert (facts.windows, facts.energy_drift, facts.temperature_change_c) == (1, None, 30.0)
    assert facts.shortest_window_s == pytest.approx(4.6)
    assert facts.batch_time_drift == pytest.approx(2.1 / 2.5 - 1)
    assert facts.first_batch_ratio == pytest.approx(1.5)
    assert "batch time drift -16.0 %" in str(facts)
    assert str(facts).endswith("GPU: a against b")
    assert find_facts(good(windows=())) is None
    short = find_facts(lasting([1.0, 1.0]))
    assert short is not None
    assert (short.batch_time_drift, short.first_batch_ratio) == (None, None)


def test_every_code_has_its_line_in_the_docs() -> None:
    page = (Path(__file__).parents[2] / "docs" / "flags.md").read_text(encoding="utf-8")
    for code in CODES:
        assert f"| `{code}` |" in page


def test_of_what_ships_of_the_h200_few_rows_are_flagged_and_intervals_are_narrow() -> None:
    rows = shipped("h200-llama-3.1-8b")
    gpus = Counter(row.environment.gpus[0].uuid for row in rows)
    ((usual, _),) = gpus.most_common(1)
    assert sorted(gpus.values()) == [15, 86]
    checked = check_rows(rows)
    flagged = Counter(
        (row.cell.setup.engine, flag.code) for row, one in zip(rows, checked, strict=True) for flag in one.flags
    )
    assert flagged == {("transformers", "unsteady"): 6}
    for row, one in zip(rows, checked, strict=True):
        # docs/measurements.md: twelve cells, three of them at the start and at the end, are of another GPU.
        assert one.facts is not None
        assert len(one.facts.differs) == (row.environment.gpus[0].uuid != usual)
    middle, widest = {"vllm": 0.012, "transformers": 0.029}, {}
    for engine, expected in middle.items():
        joined = join_visits(row for row in rows if row.cell.setup.engine == engine)
        widths = sorted(one.half_width for one in find_uncertainties(joined) if one is not None)
        assert len(widths) == len(joined)
        assert widths[len(widths) // 2] == pytest.approx(expected, abs=0.001)
        widest[engine] = widths[-1]
    assert widest["vllm"] == pytest.approx(0.028, abs=0.001)


def test_the_flagged_rows_of_the_axes_wait_for_their_host() -> None:
    """docs/measurements.md names each of them."""
    checked = check_rows(shipped("h200-llama-3.1-8b_axes"))
    flagged = {one.cell.replace(" llama-3.1-8b", ""): [flag.code for flag in one.flags] for one in checked if one.flags}
    assert list(flagged) == [
        "transformers 50→64 × 32",
        "transformers 137→64 × 32",
        "transformers 512→64 × 16",
        "transformers-t0.8 512→64 × 16",
        "vllm-poisson32 512→64 × 64",
        "vllm-spec4:llama-3.2-1b:0.8 512→64 × 1",
    ]
    assert all(codes == ["unsteady"] for codes in flagged.values())


@pytest.mark.parametrize(
    ("name", "rows", "flagged", "counts"),
    [
        ("h200-llama-3.1-8b_fp8", 7, 0, {}),
        ("h200-llama-3.1-8b_replays", 18, 0, {}),
        ("h100-sxm-llama-3.1-8b", 70, 18, {"unsteady": 18, "disagree": 1}),
        ("h100-sxm-other-models", 12, 3, {"unsteady": 3}),
        ("h100-sxm-llama-3.1-8b_third-host", 121, 24, {"unsteady": 24, "disagree": 1}),
        ("h100-sxm-other-models_third-host", 14, 2, {"unsteady": 2}),
        ("h100-sxm-llama-3.1-8b_fourth-host", 140, 33, {"unsteady": 27, "slowed": 6, "clocks": 1}),
        ("h100-sxm-other-models_fourth-host", 7, 4, {"unsteady": 4}),
        ("replicates/h100-sxm-llama-3.1-8b-2", 9, 2, {"unsteady": 2}),
        *((f"replicates/{name}", rows, 0, {}) for name, rows in REPLICATES.items()),
    ],
)
def test_what_ships_is_flagged_as_the_docs_say(name: str, rows: int, flagged: int, counts: dict[str, int]) -> None:
    """docs/measurements.md says why."""
    checked = check_rows(shipped(name))
    assert (len(checked), sum(bool(one.flags) for one in checked)) == (rows, flagged)
    assert Counter(flag.code for one in checked for flag in one.flags) == counts


def test_few_looks_at_short_batches_are_no_disagreement_and_lost_joules_of_one_gpu_are() -> None:
    rows = shipped("h100-sxm-llama-3.1-8b")
    short = next(row for row in rows if str(row.cell) == "vllm llama-3.1-8b 512→8 × 1")
    assert ratio_by_gpu(short)[short.environment.gpus[0].uuid] == pytest.approx(0.947, abs=0.001)
    assert "disagree" not in codes(short)
    four = next(row for row in rows if str(row.cell) == "vllm-tp4 llama-3.1-8b 512→64 × 512")
    assert codes(four) == []
    louder = [replace(one, power_w=tuple(1.2 * watts for watts in one.power_w)) for one in four.timeline]
    odd = replace(four, timeline=(*four.timeline[:2], louder[2], four.timeline[3]))
    (flag,) = find_flags(odd, SURE)
    assert flag.code == "disagree"
    assert "energy counter of GPU 2 (GPU-e8c0201b-" in flag.reason
    # Of a superchip the counter covers the module, the sampler the GPU.
    assert find_flags(replace(odd, environment=replace(odd.environment, scope="gpu-module")), SURE) == ()


def test_of_rows_on_several_gpus_those_in_use_count_and_no_other() -> None:
    rows = [row for name in ("h100-sxm-llama-3.1-8b", "h100-sxm-other-models") for row in shipped(name)]
    many = [row for row in rows if row.cell.setup.tensor_parallel > 1]
    assert Counter(row.cell.setup.tensor_parallel for row in many) == {2: 5, 4: 6}
    for row, checked in zip(many, check_rows(many), strict=True):
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
    assert len(found) == 537
    assert median(errors for errors, _ in found) == pytest.approx(0.320, abs=0.005)
    assert sum(errors < 2 for errors, _ in found) / len(found) == pytest.approx(0.953, abs=0.001)
    assert sum(errors > 2 and far > 0.05 for errors, far in found) == 2


def test_a_check_tells_the_intervals_that_an_estimate_carries() -> None:
    rows = shipped("h200-llama-3.1-8b")
    told = [one.uncertainty for one in check_rows(rows)]
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
            "clocks of GPU 1 (GPU-b) were lowered by hw_slowdown",
        ),
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


def test_energy_that_rises_while_seconds_stay_is_a_drift() -> None:
    rising = tuple(
        build_row(energy_j=1000.0 + 10.0 * place, duration_s=2.0, batches=2).windows[0] for place in range(4)
    )
    facts = find_facts(good(windows=rising))
    assert facts is not None
    assert facts.energy_drift == pytest.approx(1025 / 1005 - 1)
    assert facts.batch_time_drift == pytest.approx(0.0)


@pytest.mark.parametrize(("name", "factor", "expected"), [("energy_j", 2.0, ["changed"]), ("power_w", 1.001, [])])
def test_figures_that_do_not_follow_from_the_raw_facts_are_flagged(
    name: str, factor: float, expected: list[str]
) -> None:
    row = build_row()
    assert row.result is not None
    assert codes(replace(row, result=replace(row.result, **{name: factor * getattr(row.result, name)}))) == expected
