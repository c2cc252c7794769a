"""Visits: windows of one cell that lie apart, joined into one row and judged by what differs between them."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from statistics import fmean, variance

import pytest

from infergy.records import Measurement, Window
from infergy.records.measurement import Failure
from infergy.records.uncertainty import find_uncertainties, find_uncertainty
from infergy.records.visits import (
    join_visits,
    number_visits,
    scatter_of,
    share_of_one_visit,
    sum_visits,
    variance_between,
)
from rows import build_row


def visit_of(joules: list[float], visit: str = "grid") -> Measurement:
    """A row with a window of 4 s a figure."""
    rows = [build_row(energy_j=one, duration_s=2.0, batches=2, idle_w=100.0, tail_s=0.0) for one in joules]
    windows = tuple(replace(row.windows[0], edge_uncertainty_s=0.0) for row in rows)
    return replace(
        build_row(energy_j=fmean(joules), duration_s=2.0, batches=2, idle_w=100.0), windows=windows, visit=visit
    )


def windows_of(*visits: list[float]) -> tuple[Window, ...]:
    return number_visits(visit_of(visit).windows for visit in visits)


def idle() -> Window:
    found = build_row(idle_w=100.0).loaded_idle
    assert found is not None
    return found


IDLE = idle()


def test_visits_are_joined_in_the_place_of_the_first_and_know_their_windows() -> None:
    first, second, third = visit_of([1000.0, 1002.0], visit="start"), build_row(output_tokens=8), visit_of([1010.0])
    joined, other = join_visits([first, second, third])
    assert other == second
    assert joined.cell_id == first.cell_id
    assert joined.visit == "grid"
    assert [window.visit for window in joined.windows] == [1, 1, 2]
    assert joined.result is not None
    assert joined.result.energy_j == pytest.approx((1000.0 + 1002.0 + 1010.0) / 3)
    assert Measurement.from_json(json.loads(json.dumps(joined.to_json()))) == joined
    assert join_visits([joined]) == [joined]


def test_failed_rows_other_chips_and_other_drivers_are_not_joined() -> None:
    row = visit_of([1000.0])
    failed = replace(row, windows=(), status="failed", result=None)
    driver = replace(row, environment=replace(row.environment, driver="another"))
    assert join_visits([row, failed, failed, driver]) == [row, failed, failed, driver]


def test_scatter_is_that_of_the_visits_means_by_their_seconds() -> None:
    windows = windows_of([1000.0, 1010.0], [1020.0])
    found = scatter_of(sum_visits(windows, IDLE))
    assert found is not None
    mean = fmean([1000.0, 1010.0, 1020.0])
    assert found.squares_s == pytest.approx(8 * (1005.0 / mean - 1) ** 2 + 4 * (1020.0 / mean - 1) ** 2)
    assert found.degrees_of_freedom == 1
    assert found.weight_s == pytest.approx(12 - (8**2 + 4**2) / 12)
    assert share_of_one_visit(windows) == pytest.approx((8**2 + 4**2) / 12**2)
    assert scatter_of(sum_visits(windows_of([1000.0, 1010.0]), IDLE)) is None
    assert share_of_one_visit(windows_of([1000.0, 1010.0])) == 1


def test_the_variance_between_visits_is_found_however_windows_scatter() -> None:
    """Mean over many cells: of independent windows nothing, else what was put in; each is drawn without a floor at 0."""
    rng = random.Random(3)
    within = 0.01
    for between in (0.0, 0.02):
        scatters = []
        for _ in range(2000):
            visits = []
            for count in (2, 3):
                offset = rng.gauss(0, between)
                visits.append([1000.0 * (1 + offset + rng.gauss(0, within)) for _ in range(count)])
            scatters.append(scatter_of(sum_visits(windows_of(*visits), IDLE)))
        found, degrees = variance_between(scatters, 4.0 * within**2)
        assert degrees == 2000
        assert found == pytest.approx(between**2, rel=0.1, abs=0.05 * within**2)


def test_runs_whose_requests_came_at_other_times_are_not_visits_of_one_cell() -> None:
    one = replace(visit_of([1000.0]), arrival_s=(0.0, 1.0), arrival_sha256="one")
    other = replace(visit_of([1010.0]), arrival_s=(0.0, 9.0), arrival_sha256="other")
    assert join_visits([one, other]) == [one, other]


def test_a_joined_row_tells_what_any_of_its_visits_told() -> None:
    broken = Failure(code="meter", message="the counter went backwards")
    first = replace(visit_of([1000.0]), interrupted=broken, experts_touched=0.5)
    (joined,) = join_visits([first, visit_of([1010.0])])
    assert joined.interrupted == broken
    assert joined.experts_touched == 0.5


def test_two_visits_alone_are_not_believed_where_they_agree_by_chance() -> None:
    """Visits that scatter three times as much as their windows, of a cell that no other is like."""
    rng = random.Random(0)
    held = 0
    for _ in range(600):
        offsets = [rng.gauss(0, 0.01) for _ in range(2)]
        visits = [[1000.0 * (1 + offset + rng.gauss(0, 0.003)) for _ in range(4)] for offset in offsets]
        found = find_uncertainty(windows_of(*visits), IDLE)
        assert found is not None
        held += found.low_j <= 1000.0 <= found.high_j
    # 87 % where the variance between visits alone is asked, and 0 of it taken for an answer.
    assert held / 600 > 0.93


def test_visits_that_differ_more_than_their_windows_widen_the_interval() -> None:
    alike = find_uncertainty(windows_of([1000.0, 1004.0], [1002.0, 998.0]), IDLE)
    apart = find_uncertainty(windows_of([1000.0, 1004.0], [1042.0, 1038.0]), IDLE)
    assert alike is not None
    assert apart is not None
    assert alike.visits == 0
    assert apart.visits > apart.spread / 2
    assert apart.standard_error == pytest.approx(math.hypot(apart.spread, apart.edges, apart.tail, apart.visits))
    assert apart.half_width > 4 * alike.half_width


def test_a_cell_visited_once_bears_what_visits_of_like_cells_differ_by() -> None:
    once = visit_of([2000.0, 2004.0])
    others = [
        replace(build_row(input_tokens=2**place, idle_w=100.0, duration_s=2.0, energy_j=2000.0), windows=windows)
        for place in range(10, 16)
        for windows in (visit_of([2000.0, 2004.0]).windows, visit_of([2100.0, 2104.0]).windows)
    ]
    alone = find_uncertainties([once])[0]
    beside = find_uncertainties([once, *others])[0]
    joined = find_uncertainties(join_visits([once, *others]))[0]
    assert alone is not None
    assert beside is not None
    assert alone.visits == 0
    means = [2000.0, 2100.0]
    assert beside.visits == pytest.approx(math.sqrt(variance(means)) / fmean(means), rel=0.05)
    assert joined is not None
    assert joined.half_width == pytest.approx(beside.half_width, rel=0.02)


def test_intervals_hold_the_truth_where_visits_differ() -> None:
    """Engine configs of eight cells, two visits of two windows each; visits differ by twice what windows do."""
    rng = random.Random(9)
    held = total = 0
    for _ in range(125):
        rows = []
        for cell in range(8):
            for _ in range(2):
                offset = rng.gauss(0, 0.01)
                joules = [1000.0 * (1 + offset + rng.gauss(0, 0.005)) for _ in range(2)]
                row = build_row(input_tokens=2 ** (cell + 4), idle_w=100.0, duration_s=2.0, energy_j=1000.0)
                rows.append(replace(row, windows=visit_of(joules).windows))
        joined = join_visits(rows)
        for found in find_uncertainties(joined):
            assert found is not None
            held += found.low_j <= 1000.0 <= found.high_j
            total += 1
    assert 0.93 <= held / total <= 0.98
