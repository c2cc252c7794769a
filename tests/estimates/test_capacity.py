"""Capacity: what is served at the rate that was found keeps the limits, and more does not; hours take what they need."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from infergy.estimates.capacity import LOAD_J, WITHIN, Capacity, capacity_of
from infergy.estimates.latency import Limits
from infergy.estimates.recommend import recommend
from infergy.estimates.search import Pool, Whole
from infergy.estimates.servers import ServerSpec, shipped_table
from infergy.workload.requests import Requests, Sample, whole
from served import some_requests

BUSY = some_requests(400, rate_per_s=1.0)
LIMITS = Limits(tpot_p99_s=0.012)


def capacity(requests: Requests, limits: Limits = LIMITS, spec: ServerSpec | None = None) -> Capacity:
    return capacity_of(whole(requests), spec or ServerSpec(), shipped_table(), limits)


def breaks(requests: Requests, factor: float) -> bool:
    with Pool(whole(requests.window(speed=factor)), shipped_table(), LIMITS) as pool:
        (found,) = pool.serve([ServerSpec()])
    assert isinstance(found, Whole)
    return bool(LIMITS.excess(found.estimate.run.latency)) or found.estimate.run.overload is not None


def test_the_highest_rate_keeps_the_limits_and_a_higher_one_does_not() -> None:
    found = capacity(BUSY)
    assert found.rate_per_s is not None
    assert BUSY.rate_per_s is not None
    factor = found.rate_per_s / BUSY.rate_per_s
    assert not breaks(BUSY, factor)
    assert breaks(BUSY, factor * (1 + 2 * WITHIN))
    assert found.binds == ("tpot_p99_s",)
    rates = [point.rate_per_s for point in found.curve]
    assert rates == sorted(rates)
    assert {point.rate_per_s for point in found.curve if not point.breaks} == {
        rate for rate in rates if rate <= found.rate_per_s
    }
    lowest, highest = found.curve[0], found.curve[-1]
    assert lowest.energy_per_request_j > highest.energy_per_request_j
    assert lowest.power_w < highest.power_w


def test_looser_limits_and_more_replicas_allow_a_higher_rate() -> None:
    rates = [
        capacity(BUSY, limits, spec).rate_per_s or 0.0
        for limits, spec in (
            (LIMITS, None),
            (Limits(tpot_p99_s=0.02), None),
            (LIMITS, ServerSpec(replicas=2)),
        )
    ]
    assert rates[0] < rates[1]
    assert rates[0] * 1.5 < rates[2]


def test_a_slow_trace_is_sped_up_and_a_hot_one_is_slowed_down() -> None:
    rates = [capacity(BUSY.window(speed=speed)).rate_per_s for speed in (0.1, 1.0, 18.0)]
    assert rates == pytest.approx([rates[1]] * 3, rel=2 * WITHIN)


def test_what_has_no_rate_gets_a_reason() -> None:
    sampled = replace(whole(BUSY), windows=tuple(replace(own, weight=2.0) for own in whole(BUSY).windows))
    at_once = replace(BUSY, arrival_s=np.zeros(len(BUSY)))
    sessions = replace(BUSY, after=np.full(len(BUSY), -1), gap_s=np.zeros(len(BUSY)))
    samples: list[Sample] = [sampled, *map(whole, (BUSY.all_at_once(), at_once, sessions))]
    reasons = [capacity_of(sample, ServerSpec(), shipped_table(), LIMITS).reason for sample in samples]
    assert None not in reasons
    assert len(set(reasons)) == len(samples)


def test_limits_that_no_rate_keeps_have_a_reason() -> None:
    found = capacity(BUSY, Limits(tpot_p99_s=0.001))
    assert (found.rate_per_s, found.binds) == (None, ("tpot_p99_s",))
    assert found.reason is not None
    assert found.reason.startswith("tpot p99 even at ")


def test_a_trace_too_short_for_a_higher_rate_has_no_binding_limit() -> None:
    found = capacity(some_requests(60, rate_per_s=1.0), Limits())
    assert found.rate_per_s is not None
    assert found.binds == ()


def day(*rates_per_s: float) -> Requests:
    """Hours at these rates, arrivals at random."""
    draw = np.random.default_rng(0)
    arrival_s = np.concatenate(
        [3600 * hour + np.sort(draw.uniform(0, 3600, int(3600 * rate))) for hour, rate in enumerate(rates_per_s)]
    )
    return replace(some_requests(len(arrival_s)), arrival_s=arrival_s - arrival_s[0])


def test_a_quiet_night_needs_fewer_replicas() -> None:
    spec, evening_to_noon = ServerSpec(replicas=2, router="least_loaded"), day(1.0, 0.02, 0.0, 0.02, 1.0)
    found = capacity(evening_to_noon, Limits(tpot_p99_s=0.0063), spec)
    schedule = found.schedule
    assert schedule is not None
    assert [hour.replicas for hour in schedule.hours] == [2, 1, 0, 1, 2]
    assert schedule.loading_j == 2 * LOAD_J
    busy = (schedule.hours[0], schedule.hours[-1])
    assert all(hour.energy_j == hour.constant_j for hour in busy)
    empty = schedule.hours[2]
    assert (empty.energy_j, empty.rate_per_s) == (0.0, 0.0)
    assert empty.constant_j > 0
    assert schedule.energy_j == pytest.approx(sum(hour.energy_j for hour in schedule.hours) + schedule.loading_j)
    assert schedule.energy_j < schedule.constant_j
    with Pool(whole(evening_to_noon), shipped_table(), Limits()) as pool:
        (served,) = pool.serve([spec])
    assert isinstance(served, Whole)
    assert schedule.constant_j == pytest.approx(served.estimate.run.energy_j, rel=0.03)


def test_a_short_trace_has_no_hours() -> None:
    found = capacity(BUSY)
    assert found.schedule is None
    assert found.schedule_reason == "the trace is shorter than 2 hours"


def test_it_is_part_of_a_recommendation_where_asked_for() -> None:
    specs = [ServerSpec(precision="fp8")]
    found = recommend(BUSY, specs, present=ServerSpec(), limits=LIMITS, capacity=True)
    assert [own.label for own in found.capacity] == [found.present, found.recommended]
    assert found.capacity[1].rate_per_s == capacity(BUSY, spec=specs[0]).rate_per_s
    assert recommend(BUSY, specs, present=ServerSpec(), limits=LIMITS).capacity == ()
