"""Facts of a row: idle power, three ways, and energy above it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from infergy.records import Tick, Window
from infergy.records.check import IdlePower, find_idle_power, net_energy_j
from rows import UUID, build_row


def later(window: Window, seconds: float, joules: float) -> Window:
    """The same window, so many seconds and joules later."""

    def moved(ticks: dict[str, Tick]) -> dict[str, Tick]:
        return {u: Tick(time_s=t.time_s + seconds, energy_j=t.energy_j + joules) for u, t in ticks.items()}

    return replace(window, open=moved(dict(window.open)), close=moved(dict(window.close)))


def test_each_idle_power_comes_from_its_own_window() -> None:
    row = build_row(idle_w=100.0, energy_j=1000.0, duration_s=2.0, batches=2, tail_s=0.0)
    (window,) = row.windows
    bare = Window(
        open={UUID: Tick(time_s=0.0, energy_j=0.0)},
        close={UUID: Tick(time_s=2.0, energy_j=140.0)},
        edge_uncertainty_s=0.0,
    )
    # The first window lasts 4 s and 2,000 J; then 0.5 s at 160 W pass.
    row = replace(row, windows=(window, later(window, 4.5, 2080.0)), bare_idle=bare)
    found = find_idle_power(row)
    assert found.bare_w == pytest.approx(70.0)
    assert found.loaded_w == pytest.approx(100.0)
    assert found.between_w == pytest.approx(160.0)


def test_what_was_not_taken_is_unknown() -> None:
    row = replace(build_row(), loaded_idle=None)
    assert find_idle_power(row) == IdlePower(bare_w=None, loaded_w=None, between_w=None)
    assert net_energy_j(row) is None


def test_net_joules_are_those_above_loaded_idle() -> None:
    row = build_row(energy_j=1000.0, duration_s=2.0, idle_w=100.0)
    assert net_energy_j(row) == pytest.approx(1000.0 - 2.0 * 100.0)


def test_a_counter_that_starts_again_between_windows_tells_no_power_there() -> None:
    row = build_row(idle_w=100.0)
    (window,) = row.windows
    reset = replace(row, windows=(window, later(window, 4.5, -6000.0)))
    assert find_idle_power(reset).between_w is None
