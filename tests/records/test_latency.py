"""How long requests took, and whether a queue grew."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infergy.records import Arrivals, Cell, EngineSetup, Load
from infergy.records.latency import RequestTimes, find_backlog, percentiles
from infergy.workload.load_generator import draw_times


def test_percentiles_are_values_that_were_seen() -> None:
    found = percentiles([float(value) for value in range(1, 101)])
    assert (found.p50_s, found.p90_s, found.p99_s) == (50, 90, 99)
    alone = percentiles([0.25])
    assert (alone.p50_s, alone.p90_s, alone.p99_s) == (0.25, 0.25, 0.25)


@given(st.lists(st.floats(0, 1e3), min_size=1))
def test_no_more_requests_lie_above_a_percentile_than_it_says(values: list[float]) -> None:
    found = percentiles(values)
    for share, value in ((0.5, found.p50_s), (0.9, found.p90_s), (0.99, found.p99_s)):
        assert sum(one > value for one in values) <= (1 - share) * len(values) + 1e-9
        assert value in values


def one_server(rate: float, count: int, service_s: float) -> tuple[tuple[float, ...], RequestTimes]:
    """A queue before one server, whose truth is known: Lindley's recursion."""
    arrival_s = draw_times(Arrivals(law="poisson", rate_per_s=rate), count, 0)
    free_s, finished = 0.0, []
    for came_s in arrival_s:
        free_s = max(free_s, came_s) + service_s
        finished.append(free_s - came_s)
    return arrival_s, RequestTimes(first_token_s=tuple(finished), finished_s=tuple(finished))


@pytest.mark.parametrize(
    ("count", "load", "grows"),
    [(count, load, load > 1) for count in (256, 1024) for load in (0.1, 0.5, 1.5, 3.0, 100.0)]
    # So few requests tell of a large excess only.
    + [(64, 0.1, False), (64, 0.5, False), (64, 3.0, True), (64, 100.0, True)],
)
def test_a_queue_grows_if_and_only_if_more_come_than_are_served(count: int, load: float, grows: bool) -> None:
    arrival_s, times = one_server(load, count, 1.0)
    backlog = find_backlog(arrival_s, [times, times])
    assert backlog is not None
    assert backlog.grows is grows


def test_without_runs_nothing_is_said_of_a_queue() -> None:
    assert find_backlog((0.0, 1.0), []) is None


def test_arrivals_are_another_cell_and_offline_keeps_its_id() -> None:
    setup = EngineSetup(engine="vllm", model="llama-3.1-8b")

    def cell(arrivals: Arrivals | None) -> Cell:
        return Cell(setup=setup, load=Load(input_tokens=512, output_tokens=64, batch=8, arrivals=arrivals))

    assert cell(None).id == Cell(setup=setup, load=Load(input_tokens=512, output_tokens=64, batch=8)).id
    kinds = [None, *(Arrivals.parse_label(one) for one in ("poisson1", "poisson4", "gamma4-b0.5", "trace:a"))]
    ids = sorted(cell(one).id for one in kinds)
    assert all(earlier != later for earlier, later in pairwise(ids))
    assert cell(kinds[1]).label == "vllm-poisson1"
    assert cell(None).label == "vllm"
