"""Flags: each is raised by what it names, and a good row has none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from infergy.records import Failure, GpuState, Measurement, Window
from infergy.records.check import check_rows
from infergy.records.flags import CODES, TARGET, find_flags
from infergy.records.uncertainty import Uncertainty, find_uncertainties
from infergy.records.unlike import find_unlike
from infergy.records.visits import join_visits
from rows import UUID, build_row, spread_over

SURE = Uncertainty(
    low_j=990.0, high_j=1010.0, half_width=0.01, spread=0.005, edges=0.0, tail=0.0, degrees_of_freedom=9.0
)
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
    from infergy.energy.load import shipped_tables
    from infergy.records.store import read_store

    rows = read_store(shipped_tables()[0]).rows
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
    from infergy.energy.load import shipped_tables
    from infergy.records.store import read_store

    (path,) = (path for path in shipped_tables() if path.stem.endswith("_axes"))
    checked = check_rows(read_store(path).rows, target=TARGET)
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


def test_a_check_tells_the_intervals_that_an_estimate_carries() -> None:
    from infergy.energy.load import shipped_tables
    from infergy.records.store import read_store

    rows = read_store(shipped_tables()[0]).rows
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
