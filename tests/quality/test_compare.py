"""Comparisons: paired by cell, with honest intervals."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import replace

import pytest
from scipy.stats import ttest_1samp

from infergy.quality.compare import Ratio, compare
from infergy.records import GpuIdentity, Measurement, Tick
from known_tables import power_law, rows_of, with_environment
from raising import raises
from rows import UUID, build_row


def noisy(rng: random.Random, *, scale: float = 1.0, sd: float = 0.002, windows: int = 3) -> Measurement:
    """A row of several windows whose joules scatter by `sd`."""
    parts = [build_row(energy_j=1000.0 * scale * (1 + rng.gauss(0, sd)), tail_s=0.0) for _ in range(windows)]
    return replace(parts[0], windows=tuple(part.windows[0] for part in parts))


def test_cells_are_paired_by_id_and_the_others_named() -> None:
    a = rows_of(power_law, inputs=[32, 128], outputs=[8])
    b = rows_of(power_law, inputs=[128, 512], outputs=[8], scale=2.0)
    found = compare(a, b)
    (cell,) = found.cells
    assert cell.cell.endswith("128→8 × 16")
    assert cell.ratio.value == pytest.approx(2.0)
    assert cell.a_j == pytest.approx(power_law(128, 8))
    assert cell.b_j == pytest.approx(2 * power_law(128, 8))
    assert [name.split()[-3] for name in (*found.only_a, *found.only_b)] == ["32→8", "512→8"]


def test_whole_processes_of_a_real_gpu_may_differ_by_more_than_their_rows_know() -> None:
    """Windows that agree within each process, and 1 % between the two: so differ processes of the same."""
    rng = random.Random(1)
    a, b = ([noisy(rng, scale=scale, sd=0.0005, windows=8)] for scale in (1.0, 1.01))
    (real,) = compare(a, b).cells
    assert not real.ratio.is_significant
    (pretended,) = compare(
        [replace(row, simulated=True) for row in a], [replace(row, simulated=True) for row in b]
    ).cells
    assert pretended.ratio.value == real.ratio.value
    assert pretended.ratio.is_significant


def test_the_mean_is_geometric_and_its_interval_students_over_the_cells() -> None:
    a = rows_of(power_law, inputs=[32, 128, 512], outputs=[8])
    scales = [1.10, 1.05, 0.98]
    b = [
        row
        for scale, i in zip(scales, (32, 128, 512), strict=True)
        for row in rows_of(power_law, inputs=[i], outputs=[8], scale=scale)
    ]
    found = compare(a, b).overall
    logs = [math.log(scale) for scale in scales]
    interval = ttest_1samp(logs, 0.0).confidence_interval(0.95)
    assert found.value == pytest.approx(math.exp(sum(logs) / 3))
    assert found.low == pytest.approx(math.exp(interval.low), rel=1e-5)
    assert found.high == pytest.approx(math.exp(interval.high), rel=1e-5)
    assert not found.is_significant


def test_rows_of_a_cell_are_visits_and_of_two_chips_the_last_counts() -> None:
    (before,), (old,), (new,) = (
        rows_of(power_law, inputs=[32], outputs=[8], scale=scale) for scale in (1.0, 1.0001, 2.9999)
    )
    found = compare([before], [old, new]).cells[0].ratio
    assert found.value == pytest.approx(2.0)
    assert found.high is not None
    assert found.high > 2.9999

    def move(ticks: Mapping[str, Tick]) -> dict[str, Tick]:
        return dict.fromkeys(["GPU-another"], next(iter(ticks.values())))

    windows = tuple(replace(window, open=move(window.open), close=move(window.close)) for window in new.windows)
    assert new.loaded_idle is not None
    idle = replace(new.loaded_idle, open=move(new.loaded_idle.open), close=move(new.loaded_idle.close))
    elsewhere = replace(new, windows=windows, loaded_idle=idle)
    assert compare([before], [old, elsewhere]).cells[0].ratio.value == pytest.approx(2.9999)


def test_a_ratio_without_a_known_spread_claims_nothing() -> None:
    row, other = (build_row(batches=1, duration_s=10.0, energy_j=energy_j) for energy_j in (1000.0, 1100.0))
    ratio = compare([row], [other]).cells[0].ratio
    assert ratio == Ratio(value=ratio.value, low=None, high=None)
    assert ratio.value > 1.05
    assert not ratio.is_significant


def test_equal_cells_rarely_seem_different_and_a_real_difference_is_found() -> None:
    rng = random.Random(5)
    alarms = found = 0
    for _ in range(400):
        alarms += compare([noisy(rng)], [noisy(rng)]).cells[0].ratio.is_significant
        found += compare([noisy(rng)], [noisy(rng, scale=1.03)]).cells[0].ratio.is_significant
    assert alarms <= 400 * 0.06
    assert found >= 400 * 0.95


def test_what_differs_in_the_environments_is_told() -> None:
    a = rows_of(inputs=[32], outputs=[8], scale=1.01)
    other = GpuIdentity(uuid=UUID, name="NVIDIA H200", power_limit_w=350.0)
    b = [
        with_environment(row, driver="2", gpus=(other,), packages={"vllm": "0.25.0"})
        for row in rows_of(inputs=[32], outputs=[8])
    ]
    assert compare(a, b).differences == (
        "driver: 1 against 2",
        "power limit: unknown against 350 W",
        "package vllm: unknown against 0.25.0",
    )
    assert compare(a, rows_of(inputs=[32], outputs=[8])).differences == ()


def test_cells_that_were_served_other_token_ids_are_told() -> None:
    a = replace(build_row(), prompt_sha256="aa")
    b = replace(build_row(energy_j=1010.0), prompt_sha256="bb", seed=7)
    assert compare([a], [b]).differences == (f"token ids of 1 of 1 cell: seed {a.seed} against 7",)
    assert not compare([a], [replace(b, prompt_sha256="aa")]).differences
    # Rows from before it was told say nothing.
    assert not compare([a], [replace(b, prompt_sha256=None)]).differences


def test_nothing_in_common_is_an_error_that_says_what_must_agree() -> None:
    with raises("no-common-cells"):
        compare(rows_of(inputs=[32]), rows_of(inputs=[128]))


def test_a_cell_of_which_both_hold_the_same_row_tells_nothing_and_is_left_out() -> None:
    lengths = [32, 128, 512]
    a = rows_of(power_law, inputs=lengths, outputs=[8])
    # Of the first the same row, of the second the same row as one of two visits, of the third another one.
    again = rows_of(power_law, inputs=lengths, outputs=[8], scale=1.05)
    found = compare(a, [a[0], a[1], again[1], again[2]])
    assert [name.split()[-3] for name in found.same] == ["32→8", "128→8"]
    assert [cell.cell.split()[-3] for cell in found.cells] == ["512→8"]
    assert found.overall == found.cells[0].ratio
    assert found.overall.value == pytest.approx(1.05)
    assert (found.only_a, found.only_b) == ((), ())
    assert compare(a, again).same == ()


def test_where_both_hold_the_same_rows_only_an_error_says_so() -> None:
    rows = rows_of(power_law, inputs=[32, 128], outputs=[8])
    with raises("same-rows", cells=2):
        compare(rows, [*rows, *rows_of(inputs=[512], outputs=[8])])
