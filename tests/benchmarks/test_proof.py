"""The proof: drawn counters and loads, whose truth is known, measured by the instrument that knows nothing of them."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from infergy.errors import MeterError
from infergy.meters.simulated import Sensors
from infergy.records import MeasureOptions
from proof import (
    Outcome,
    draw_outcomes,
    draw_rounds_outcomes,
    draw_series_outcomes,
    measure_scenario,
    prove,
)
from random_gpus import STRATA, draw, draw_scenarios

RUNS = 1000
OPTIONS = MeasureOptions()
SEED = 1


def check(outcomes: list[Outcome]) -> None:
    found = prove(outcomes, OPTIONS.target)
    assert found.runs == RUNS
    assert 0.93 <= found.coverage <= 0.97
    assert abs(found.bias) < 0.005
    # The others end at --max-time, and say so.
    assert found.within_target >= 0.97


@pytest.mark.slow
@pytest.mark.parametrize("name", STRATA)
def test_intervals_hold_the_truth_whatever_the_counter_does(name: str) -> None:
    check(draw_outcomes(name, RUNS, SEED, OPTIONS))


@pytest.mark.slow
def test_intervals_hold_the_truth_where_like_cells_tell_the_spread() -> None:
    outcomes = draw_series_outcomes(RUNS, SEED, OPTIONS)
    check(outcomes)
    assert sum(outcome.windows == 1 for outcome in outcomes) > RUNS / 10


@pytest.mark.slow
@pytest.mark.parametrize("memory_s", [10.0, 30.0])
def test_visits_apart_hold_the_truth_where_noise_outlasts_a_window(memory_s: float) -> None:
    """Windows of one visit are alike then: without visits the intervals are far too narrow."""
    once, twice = (
        prove(draw_rounds_outcomes(400, SEED, replace(OPTIONS, repeats=repeats), memory_s), OPTIONS.target)
        for repeats in (1, 2)
    )
    assert once.coverage < 0.8
    # 91 % of 400 draws are 3.7 standard errors from 95 %.
    assert twice.coverage >= 0.91
    assert abs(twice.bias) < 0.005


@pytest.mark.slow
def test_visits_widen_intervals_little_where_noise_does_not_last() -> None:
    once, twice = (
        prove(draw_rounds_outcomes(400, SEED, replace(OPTIONS, repeats=repeats), 0.0), OPTIONS.target)
        for repeats in (1, 2)
    )
    assert twice.coverage >= 0.93
    assert twice.median_half_width < 1.2 * once.median_half_width


@pytest.mark.parametrize("name", ["late counter", "part-time counter"])
def test_one_window_of_three_seconds_is_not_biased(name: str) -> None:
    once = replace(OPTIONS, max_time_s=0.0)
    errors = [
        measure_scenario(one, replace(once, seed=i))[1].error for i, one in enumerate(draw_scenarios(name, RUNS, 3))
    ]
    assert abs(sum(errors) / RUNS) < 0.005


def test_strata_differ_in_what_they_draw() -> None:
    late, part = (draw_scenarios(name, 20, 0) for name in ("late counter", "part-time counter"))
    assert max(one.sensors.counter.delay_s for one in late) > 0.05
    assert all(one.sensors.counter.share == 1 for one in late)
    assert min(one.sensors.counter.share for one in part) < 0.5


@pytest.mark.slow
def test_a_proof_would_fail_an_instrument_that_errs() -> None:
    outcomes = [
        replace(one, measured_j=one.measured_j * 1.02, low_j=one.low_j * 1.02, high_j=one.high_j * 1.02)
        for one in draw_outcomes("prompt counter", RUNS, SEED, OPTIONS)
    ]
    with pytest.raises(AssertionError):
        check(outcomes)


def test_a_counter_that_starts_again_costs_its_window_not_a_wrong_joule() -> None:
    rng = random.Random(5)
    kept = failed = 0
    for _ in range(100):
        scenario = draw(rng, noise=(0.02, 0.05))
        # The idle window and the warm-up end after some 3 s; all but the shortest cells last 12 s and more.
        counter = replace(scenario.sensors.counter, start_j=1e6, reset_s=rng.uniform(8.0, 14.0))
        sensors: Sensors = replace(scenario.sensors, counter=counter)
        try:
            row, outcome = measure_scenario(replace(scenario, sensors=sensors), OPTIONS)
        except MeterError:
            failed += 1
            continue
        if row.interrupted is not None:
            kept += 1
            assert row.interrupted.code == "meter"
            assert "moved by -" in row.interrupted.message
        assert abs(outcome.error) < 0.15
    assert kept > 20
    assert failed > 5
