"""Timelines: their joules, what is kept of them, and what a counter that errs shows beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infergy.records import Measurement, Tick, Window, derive
from infergy.records.flags import find_flags
from infergy.records.timeline import PowerTimeline, make_timeline, ratio, ratio_by_gpu
from infergy.records.uncertainty import find_uncertainties
from rows import UUID, build_row


def timeline(looks: list[tuple[float, float]], end_s: float, start_s: float | None = None) -> PowerTimeline:
    found = make_timeline("a", looks, looks[0][0] if start_s is None else start_s, end_s, 0.02)
    assert found is not None
    return found


def test_each_value_holds_until_the_next() -> None:
    found = timeline([(0.0, 100.0), (1.0, 700.0), (3.0, 200.0)], end_s=4.0)
    assert found.energy_j(0.0, 4.0) == pytest.approx(100.0 + 2 * 700.0 + 200.0)
    assert found.energy_j(0.5, 2.0) == pytest.approx(50.0 + 700.0)
    assert found.energy_j(3.5, 4.0) == pytest.approx(100.0)


def test_what_it_did_not_see_is_unknown() -> None:
    found = timeline([(0.0, 100.0), (1.0, 700.0)], end_s=2.0)
    assert found.energy_j(-0.1, 1.0) is None
    assert found.energy_j(0.0, 2.1) is None
    assert make_timeline("a", [], 0.0, 1.0, 0.02) is None
    assert make_timeline("a", [(5.0, 1.0)], 0.0, 1.0, 0.02) is None


def test_only_changes_are_kept_and_the_last_look_before_the_begin() -> None:
    looks = [(0.0, 50.0), (1.0, 100.0), (1.02, 100.04), (1.04, 100.0), (1.06, 300.0), (1.08, 300.0), (1.3, 300.0)]
    found = timeline(looks, start_s=1.01, end_s=1.4)
    assert found.start_s == 1.0
    assert found.offsets_ms == (0, 60)
    assert found.power_w == (100.0, 300.0)
    assert found.longest_gap_s == pytest.approx(0.22)


@given(st.lists(st.floats(0.0, 1000.0), min_size=1, max_size=50), st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_joules_of_two_parts_add_up(watts: list[float], first: float, second: float) -> None:
    looks = [(place * 0.02, power_w) for place, power_w in enumerate(watts)]
    end_s = len(watts) * 0.02
    found = timeline(looks, end_s=end_s)
    low_s, high_s = sorted((first * end_s, second * end_s))
    parts = [found.energy_j(*part) for part in ((0.0, low_s), (low_s, high_s), (high_s, end_s))]
    whole = found.energy_j(0.0, end_s)
    assert whole is not None
    assert sum(part for part in parts if part is not None) == pytest.approx(whole, abs=1e-6)
    # Kept to a tenth of a watt and a millisecond.
    truth = sum(power_w * 0.02 for power_w in watts)
    assert whole == pytest.approx(truth, abs=0.06 * end_s + 1e-6)


def with_timeline(power_w: float, uuid: str = UUID) -> Measurement:
    """A row of 500 W in 10.0 to 14.05 s, and a sensor that shows a steady power."""
    row = build_row(energy_j=1000.0, duration_s=2.0, batches=2, idle_w=500.0)
    looks = [(9.8 + 0.02 * place, power_w) for place in range(214)]
    seen = make_timeline(uuid, looks, 9.8, 14.06, 0.02)
    assert seen is not None
    return replace(row, timeline=(seen,))


def test_the_ratio_is_that_of_the_counter_over_the_timeline() -> None:
    row = with_timeline(400.0)
    assert ratio_by_gpu(row) == pytest.approx({UUID: 1.25})
    assert ratio(row) == pytest.approx(1.25)
    assert ratio(build_row()) is None
    assert ratio_by_gpu(with_timeline(400.0, uuid="another")) == {}
    assert ratio(with_timeline(0.0)) is None


@pytest.mark.parametrize(("power_w", "codes"), [(500.0, []), (480.0, []), (470.0, ["disagree"]), (540.0, ["disagree"])])
def test_two_witnesses_that_disagree_are_a_flag(power_w: float, codes: list[str]) -> None:
    row = with_timeline(power_w)
    (uncertainty,) = find_uncertainties([row])
    flags = find_flags(row, uncertainty, target=1.0)
    assert [flag.code for flag in flags] == codes
    assert all("infergy doctor --meter" in flag.fix for flag in flags)


def test_a_hole_in_the_looks_tells_no_joules() -> None:
    row = with_timeline(470.0)
    (seen,) = row.timeline
    assert seen.is_whole
    holed = make_timeline(UUID, [(9.8, 470.0), (11.0, 470.0), (14.06, 470.0)], 9.8, 14.06, 0.02)
    assert holed is not None
    assert not holed.is_whole
    assert ratio(replace(row, timeline=(holed,))) is None
    early = make_timeline(UUID, [(9.8 + 0.02 * place, 470.0) for place in range(100)], 9.8, 14.06, 0.02)
    assert early is not None
    assert not early.is_whole


def test_one_window_that_lost_joules_does_not_hide_among_others() -> None:
    row = with_timeline(500.0)
    (window,) = row.windows
    looks = [(9.8 + 0.02 * place, 500.0) for place in range(1020)]
    seen = make_timeline(UUID, looks, 9.8, 30.1, 0.02)
    assert seen is not None

    def later(seconds: float, lost_j: float) -> Window:
        def move(ticks: Mapping[str, Tick], less_j: float) -> dict[str, Tick]:
            return {
                uuid: Tick(time_s=tick.time_s + seconds, energy_j=tick.energy_j + 500.0 * seconds - less_j)
                for uuid, tick in ticks.items()
            }

        return replace(window, open=move(window.open, 0.0), close=move(window.close, lost_j))

    whole = replace(row, timeline=(seen,), windows=tuple(later(5.0 * place, 0.0) for place in range(4)))
    lossy = replace(whole, windows=(*whole.windows[:3], later(15.0, 250.0)))
    codes = [[flag.code for flag in find_flags(one, None)] for one in (whole, lossy)]
    assert ("disagree" in codes[0], "disagree" in codes[1]) == (False, True)
    assert abs(ratio_by_gpu(lossy)[UUID] - 1) < 0.05


def test_a_row_with_a_timeline_survives_json() -> None:
    row = with_timeline(480.0)
    assert Measurement.from_json(json.loads(json.dumps(row.to_json()))) == row


def test_batches_that_keep_time_with_the_meter_are_told_as_the_likely_reason() -> None:
    row = with_timeline(400.0)
    assert row.windows[0].batches[0].duration_s == 2.0
    reasons = {}
    for period_s in (0.1, 0.68, 0.5, 2.0, 2.08, None):
        beside = replace(row, environment=replace(row.environment, counter_period_s=period_s))
        (flag,) = (flag for flag in find_flags(beside, None) if flag.code == "disagree")
        reasons[period_s] = "last a multiple of its period" in flag.reason
    # Twenty periods are too many to stay in step, and 2.9 are no whole number.
    assert reasons == {0.1: False, 0.68: False, 0.5: True, 2.0: True, 2.08: True, None: False}


def test_a_window_that_lost_joules_shows_against_the_watched_one() -> None:
    row = with_timeline(500.0)
    (window,) = row.windows
    ((uuid, tick),) = window.close.items()

    def codes(lost_j: float, requests: int | None = None) -> list[str]:
        lossy = replace(window, close={uuid: replace(tick, energy_j=tick.energy_j - lost_j)})
        if requests is not None:
            lossy = replace(lossy, batches=tuple(replace(batch, requests=requests) for batch in lossy.batches))
        beside = replace(row, watched=window, windows=(lossy,))
        return [flag.code for flag in find_flags(beside, None) if flag.code == "disagree"]

    assert codes(0.0) == codes(450.0) == []
    assert codes(550.0) == ["disagree"]
    # Other work was watched than measured: nothing can be said.
    assert codes(550.0, requests=1) == []


def test_a_window_that_a_slow_host_drew_out_is_no_fault_of_its_counter() -> None:
    row = with_timeline(500.0)
    (window,) = row.windows
    more_s = 3.0
    last = window.batches[-1]
    batches = (*window.batches[:-1], replace(last, end_s=last.end_s + more_s))
    close = {
        uuid: Tick(time_s=tick.time_s + more_s, energy_j=tick.energy_j + 150.0 * more_s + 100.0)
        for uuid, tick in window.close.items()
    }
    slow = replace(window, batches=batches, close=close)
    beside = replace(row, watched=window, windows=(slow,))
    assert beside.loaded_idle is not None
    was, now = (derive([one], beside.loaded_idle) for one in (window, slow))
    assert now.energy_j > 1.25 * was.energy_j
    assert now.power_w < 0.75 * was.power_w
    assert "disagree" not in [flag.code for flag in find_flags(beside, None)]
