"""Engine configs served in simulation: what forecasts and the simulated engine play."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infergy.catalog import get_gpu, get_model
from infergy.catalog.gpus import IDLE_SHARE
from infergy.errors import UsageError
from infergy.records import SERVER, Arrivals, EngineSetup
from infergy.serving.setups import cost_of_setup, memory_fault, serve_setup
from infergy.serving.simulate import requests_of_lengths
from infergy.workload.load_generator import draw_times
from infergy.workload.requests import Requests
from simulated_truth import play, truth_of

SHAPE, GPU = get_model("llama-3.1-8b"), get_gpu("h200")
VLLM = EngineSetup(engine="vllm", model="llama-3.1-8b")
STATIC = EngineSetup(engine="transformers", model="llama-3.1-8b")


def asked(lengths: Sequence[tuple[int, int]]) -> Requests:
    return requests_of_lengths("asked", lengths)


@settings(deadline=None, max_examples=40)
@given(
    arrivals=st.lists(st.floats(0, 5), min_size=1, max_size=30),
    output=st.sampled_from([1, 2, 17]),
)
def test_every_request_is_finished_after_its_first_token_and_no_second_is_lost(
    arrivals: list[float], output: int
) -> None:
    run = play(((512, output),) * len(arrivals), tuple(sorted(arrivals)))
    served = run.requests
    assert (served.first_token_s > served.arrival_s).all()
    assert ((served.first_token_s == served.finished_s) == (output == 1)).all()
    assert run.start_s + run.duration_s == pytest.approx(served.finished_s.max())


def test_the_lower_the_rate_the_more_energy_per_request_and_the_shorter_the_waits() -> None:
    runs = [
        play(((512, 64),) * 64, draw_times(Arrivals(law="poisson", rate_per_s=rate), 64, 0))
        for rate in (0.5, 2.0, 8.0, 32.0)
    ]
    runs.append(play(((512, 64),) * 64))
    joules = [run.energy_j for run in runs]
    assert joules == sorted(joules, reverse=True)
    waits = [float(np.sum(run.requests.finished_s - run.requests.arrival_s)) for run in runs]
    assert waits == sorted(waits)


def test_more_tokens_or_requests_take_more() -> None:
    for setup in ({"engine": "vllm"}, {"engine": "transformers"}, {"engine": "vllm", "cuda_graphs": False}):
        base = truth_of(256, 32, 8, **setup)
        for more in (truth_of(512, 32, 8, **setup), truth_of(256, 33, 8, **setup), truth_of(256, 32, 12, **setup)):
            assert more.energy_j > base.energy_j
            assert more.duration_s > base.duration_s


def test_no_more_run_at_once_than_the_memory_takes() -> None:
    small = get_gpu("a6000")
    lengths = ((8192, 64),) * 60
    assert memory_fault(VLLM, SHAPE, small, lengths, together=True) is not None
    assert memory_fault(VLLM, SHAPE, small, lengths, together=False) is None
    run = serve_setup(VLLM, SHAPE, small, cost_of_setup(VLLM, SHAPE, small), asked(lengths))
    assert run.counts.finished_requests == 60
    assert run.counts.peak_running < 60
    large = get_model("llama-3.1-70b")
    assert memory_fault(VLLM, large, small, [(512, 64)] * 2, together=False) is not None


def test_static_batches_run_one_after_the_other_and_are_not_cut() -> None:
    bound = replace(STATIC, max_sequences=2)
    lengths = ((512, 64), (32, 8), (128, 16))
    cost = cost_of_setup(bound, SHAPE, GPU)
    run = serve_setup(bound, SHAPE, GPU, cost, asked(lengths))
    first = serve_setup(bound, SHAPE, GPU, cost, asked(((512, 64), (32, 8))))
    assert run.requests.finished_s[:2].tolist() == pytest.approx([first.duration_s] * 2)
    assert run.requests.first_token_s[2] > first.duration_s
    assert memory_fault(STATIC, SHAPE, GPU, [(8192, 64)] * 1000, together=False) is not None
    assert memory_fault(bound, SHAPE, GPU, [(8192, 64)] * 1000, together=False) is None


def test_weights_that_do_not_fit_are_found_where_memory_is_looked_at() -> None:
    small, large = get_gpu("a6000"), get_model("llama-3.1-70b")
    setup = replace(VLLM, model="llama-3.1-70b")
    run = serve_setup(setup, large, small, cost_of_setup(setup, large, small), asked([(512, 64)] * 2))
    assert run.counts.finished_requests == 2


def test_a_server_takes_requests_in_later_than_a_batch_interface() -> None:
    server, batch = (play(((512, 8),), usage_context=context) for context in (SERVER, "llm"))
    assert server.requests.first_token_s[0] > batch.requests.first_token_s[0]


def test_idle_power_is_a_share_of_the_limit_where_it_is_not_given() -> None:
    pair = replace(VLLM, tensor_parallel=2)
    assert cost_of_setup(pair, SHAPE, GPU).idle_w == pytest.approx(2 * IDLE_SHARE * GPU.tdp_w)
    assert cost_of_setup(pair, SHAPE, GPU, idle_w=100.0).idle_w == 200.0


def test_what_the_gpu_or_the_engine_lacks_is_rejected() -> None:
    with pytest.raises(UsageError):
        cost_of_setup(replace(VLLM, dtype="float64"), SHAPE, GPU)
    odd = replace(VLLM, tensor_parallel=3)
    with pytest.raises(UsageError):
        serve_setup(odd, SHAPE, GPU, cost_of_setup(odd, SHAPE, GPU), asked([(512, 8)]))
