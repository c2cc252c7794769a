"""Continuous batching, played: what it must keep whatever the costs are."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infergy.hardware import forecast, get_gpu, get_model
from infergy.hardware.serving import Played, play
from infergy.records import Arrivals, EngineSetup
from infergy.workload.arrivals import draw_times

SHAPE, GPU = get_model("llama-3.1-8b"), get_gpu("h200")
VLLM = EngineSetup(engine="vllm", model="llama-3.1-8b")


def played(arrival_s: tuple[float, ...], output: int = 64) -> Played:
    found = play(SHAPE, GPU, VLLM, [(512, output)] * len(arrival_s), arrival_s)
    assert found is not None
    return found


def at_rate(rate: float, count: int = 64, seed: int = 0) -> tuple[float, ...]:
    return draw_times(Arrivals(law="poisson", rate_per_s=rate), count, seed)


def test_requests_that_come_at_once_cost_what_the_forecast_of_their_batch_says() -> None:
    cost = forecast(SHAPE, GPU, 512, 64, 16, engine="vllm")
    found = played((0.0,) * 16)
    assert found.duration_s == pytest.approx(cost.prefill_s + cost.decode_s, rel=1e-3)
    assert found.energy_j(0.0) == pytest.approx(cost.energy_j, rel=1e-3)
    assert found.first_token_s == pytest.approx([cost.prefill_s] * 16)


@settings(deadline=None, max_examples=40)
@given(
    arrival_s=st.lists(st.floats(0, 5), min_size=1, max_size=30).map(tuple),
    output=st.sampled_from([1, 2, 17]),
)
def test_every_request_is_finished_after_its_first_token_and_no_second_is_lost(
    arrival_s: tuple[float, ...], output: int
) -> None:
    found = played(arrival_s, output)
    assert len(found.first_token_s) == len(found.finished_s) == len(arrival_s)
    for first_s, last_s in zip(found.first_token_s, found.finished_s, strict=True):
        assert 0 < first_s <= last_s
        assert (first_s == last_s) == (output == 1)
    ends = [came_s + took_s for came_s, took_s in zip(arrival_s, found.finished_s, strict=True)]
    assert found.duration_s == pytest.approx(max(ends))


def test_a_request_that_comes_while_others_run_joins_at_the_next_step() -> None:
    alone = played((0.0,)).finished_s[0]
    found = played((0.0, alone / 2))
    cost = forecast(SHAPE, GPU, 512, 1, 1, engine="vllm").prefill_s
    step_s = forecast(SHAPE, GPU, 600, 2, 1, engine="vllm").decode_s
    assert cost <= found.first_token_s[1] <= cost + step_s
    assert found.finished_s[0] > alone, "the newcomer's prefill holds it up"


def test_the_lower_the_rate_the_more_joules_a_request_and_the_shorter_the_waits() -> None:
    runs = [played(at_rate(rate)) for rate in (0.5, 2.0, 8.0, 32.0)]
    runs.append(played((0.0,) * 64))
    joules = [run.energy_j(147.0) for run in runs]
    assert joules == sorted(joules, reverse=True)
    waits = [sum(run.finished_s) for run in runs]
    assert waits == sorted(waits)


def test_no_more_run_at_once_than_the_memory_takes() -> None:
    small = get_gpu("a6000")
    found = play(SHAPE, small, VLLM, [(8192, 64)] * 60, (0.0,) * 60)
    assert found is not None
    assert len(set(found.first_token_s)) > 1, "some waited for others to end"
    assert play(get_model("llama-3.1-70b"), small, VLLM, [(512, 64)] * 2, (0.0, 1.0)) is None


def test_static_batches_take_what_their_longest_prompt_and_answer_take_one_after_the_other() -> None:
    lengths = [(512, 64), (32, 8), (128, 16)]
    bound = EngineSetup(engine="transformers", model="llama-3.1-8b", max_sequences=2)
    found = play(SHAPE, GPU, bound, lengths, (0.0,) * 3)
    assert found is not None
    first = forecast(SHAPE, GPU, 512, 64, 2, engine="transformers")
    second = forecast(SHAPE, GPU, 128, 16, 1, engine="transformers")
    assert found.energy_j(0.0) == pytest.approx(first.energy_j + second.energy_j)
    ends = first.prefill_s + first.decode_s
    assert found.first_token_s == pytest.approx([first.prefill_s] * 2 + [ends + second.prefill_s])
    assert found.finished_s == pytest.approx([ends] * 2 + [ends + second.prefill_s + second.decode_s])
    sorted_lengths = sorted(lengths)
    by_length = play(SHAPE, GPU, bound, sorted_lengths, (0.0,) * 3)
    assert by_length is not None
    assert by_length.energy_j(0.0) != found.energy_j(0.0)


def test_a_static_batch_that_does_not_fit_is_not_cut() -> None:
    whole = EngineSetup(engine="transformers", model="llama-3.1-8b")
    assert play(SHAPE, GPU, whole, [(8192, 64)] * 1000, (0.0,) * 1000) is None
