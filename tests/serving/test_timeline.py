"""A run over time adds up to the run."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infergy.serving.config import StaticConfig
from infergy.serving.run import timeline_of
from infergy.serving.simulate import simulate
from serving.doubles import Affine, ask, engine, llama_on_h200


@st.composite
def lengths_and_arrivals(draw: st.DrawFn) -> tuple[list[tuple[int, int]], list[float]]:
    lengths = draw(st.lists(st.tuples(st.integers(1, 3000), st.integers(1, 200)), min_size=1, max_size=15))
    gaps = draw(st.lists(st.floats(0.0, 5.0), min_size=len(lengths), max_size=len(lengths)))
    return lengths, np.cumsum(gaps).tolist()


@settings(max_examples=40, deadline=None)
@given(lengths_and_arrivals(), st.integers(1, 3), st.integers(1, 300), st.booleans())
def test_power_over_time_is_the_energy_of_the_run(
    asked: tuple[list[tuple[int, int]], list[float]], replicas: int, bins: int, is_static: bool
) -> None:
    config = StaticConfig(max_num_seqs=4, max_model_len=None) if is_static else engine()
    run = simulate(ask(*asked), config, llama_on_h200(), replicas=replicas)
    over_time = timeline_of(run, bins)
    power_w, running = np.array(over_time.power_w), np.array(over_time.running)
    assert power_w.size == running.size == len(over_time.waiting) == len(over_time.start_s) == bins
    assert over_time.bin_s * bins == pytest.approx(run.duration_s)
    assert power_w.sum() * over_time.bin_s == pytest.approx(run.energy_j, rel=1e-9)
    assert power_w.min() >= replicas * run.idle_w * (1 - 1e-6)
    sequences = run.steps.duration_s @ (run.steps.decodes + run.steps.prefills)
    assert running.sum() * over_time.bin_s == pytest.approx(sequences, rel=1e-9)
    assert min(over_time.waiting) >= -1e-9
    assert max(over_time.waiting) <= run.counts.peak_waiting + 1e-9


def test_a_batch_an_idle_gap_and_a_queue_are_where_they_were() -> None:
    # Steps of 1 s, 500 W, at most one sequence; idle, 100 W. Two requests of two tokens at 0 s, a third at 8 s.
    requests = ask([(10, 2), (10, 2), (10, 2)], [0.0, 0.0, 8.0])
    over_time = timeline_of(simulate(requests, engine(max_num_seqs=1), Affine(base_s=1.0)), 5)
    assert over_time.bin_s == 2.0
    assert over_time.start_s == (0.0, 2.0, 4.0, 6.0, 8.0)
    assert over_time.power_w == pytest.approx((500.0, 500.0, 100.0, 100.0, 500.0))
    assert over_time.running == pytest.approx((1.0, 1.0, 0.0, 0.0, 1.0))
    assert over_time.waiting == pytest.approx((1.0, 0.0, 0.0, 0.0, 0.0))


def test_a_run_without_a_step_has_no_parts() -> None:
    over_time = timeline_of(simulate(ask([]), engine(), Affine()))
    assert (over_time.bin_s, over_time.power_w, over_time.start_s) == (0.0, (), ())
