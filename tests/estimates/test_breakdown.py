"""Breakdowns: three splits of one run that each add up to its energy, with no part below 0."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infergy.estimates.breakdown import MEANINGS, Breakdown, break_down, time_parts
from infergy.estimates.estimate import sample_of, serve_sample
from infergy.estimates.servers import ServerSpec, open_server, shipped_table
from infergy.serving.config import EngineOptions
from infergy.serving.run import steps_of
from infergy.workload.requests import Requests
from served import some_requests

ENGINES = ("vllm", "vllm-fp8", "vllm-eager", "vllm-tp2", "transformers")
MODELS = ("llama-3.1-8b", "qwen3-30b-a3b", "gemma-3-12b")


def by_name(found: Breakdown) -> dict[str, float]:
    return {part.name: part.energy_j for parts in (found.by_time, found.by_source) for part in parts}


@settings(max_examples=25)
@given(
    engine=st.sampled_from(ENGINES),
    model=st.sampled_from(MODELS),
    rate=st.one_of(st.none(), st.floats(0.2, 50)),
    seed=st.integers(0, 100),
)
def test_parts_add_up_and_none_is_negative(engine: str, model: str, rate: float | None, seed: int) -> None:
    requests = some_requests(20, rate_per_s=rate, seed=seed)
    found = break_down(requests, ServerSpec(engine=engine, model=model), shipped_table())
    for parts in (found.by_time, found.by_source, found.by_activity):
        assert sum(part.energy_j for part in parts) == pytest.approx(found.energy_j, rel=1e-9)
        for part in parts:
            assert part.energy_j >= -1e-9 * found.energy_j, part.name
            split = part.prefill_j + part.decode_j + part.mixed_j
            assert part.name == "idle" or split == pytest.approx(part.energy_j, rel=1e-9, abs=1e-9)
    assert found.ideal_j < found.energy_j
    activities = {part.name: part.energy_j for part in found.by_activity}
    run = found.estimate.run.energy
    assert activities == {"prefill": run.prefill_j, "decode": run.decode_j, "mixed": run.mixed_j, "idle": run.idle_j}


@pytest.mark.parametrize("engine", ENGINES)
def test_a_step_takes_the_time_of_its_parts(engine: str) -> None:
    server = open_server(ServerSpec(engine=engine), shipped_table())
    steps = steps_of(serve_sample(sample_of(some_requests()), server))
    parts = time_parts(server.cost, steps)
    assert np.allclose(sum(parts.values()), steps.step_s, rtol=1e-12)
    # Padding to CUDA graphs is computed too, so arithmetic never exceeds what kernels take.
    assert all((seconds >= -1e-12).all() for seconds in parts.values())


def test_padding_and_preemption_are_repeated_arithmetic() -> None:
    requests = some_requests(rate_per_s=None)
    static, continuous = (
        by_name(break_down(requests, ServerSpec(engine=engine), shipped_table())) for engine in ("transformers", "vllm")
    )
    assert continuous["repeated arithmetic"] == pytest.approx(0, abs=1e-6 * continuous["arithmetic"])
    assert static["repeated arithmetic"] > static["arithmetic"] / 4
    few = ServerSpec(options=EngineOptions(num_gpu_blocks=300, max_model_len=4000))
    preempted = break_down(requests, few, shipped_table())
    assert preempted.estimate.run.preemptions > 0
    assert by_name(preempted)["repeated arithmetic"] > 0


def test_the_host_is_what_graphs_save() -> None:
    requests = some_requests()
    graphs, eager = (
        break_down(requests, ServerSpec(engine=engine), shipped_table()) for engine in ("vllm", "vllm-eager")
    )
    assert by_name(eager)["host"] / eager.energy_j > 2 * by_name(graphs)["host"] / graphs.energy_j


def test_the_ideal_depends_on_the_requests_alone() -> None:
    requests = some_requests()
    found = [break_down(requests, ServerSpec(engine=engine), shipped_table()) for engine in ("vllm", "transformers")]
    assert found[0].ideal_j == pytest.approx(found[1].ideal_j, rel=1e-9)


def test_a_server_that_waits_spends_on_idling() -> None:
    pair = Requests(
        source="pair",
        input_tokens=np.array([100, 100]),
        output_tokens=np.array([10, 10]),
        arrival_s=np.array([0.0, 1000.0]),
    )
    found = break_down(pair, table=shipped_table())
    assert by_name(found)["idle"] > 0.99 * found.energy_j


def test_each_part_says_what_it_is() -> None:
    found = break_down(some_requests(5), ServerSpec(model="qwen3-30b-a3b"), shipped_table())
    names = [part.name for parts in (found.by_time, found.by_source, found.by_activity) for part in parts]
    assert set(names) == set(MEANINGS)
