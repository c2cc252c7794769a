"""The energy of each request: shares of the steps that it was in."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infergy.estimates.servers import OpenServer, ServerSpec, open_server
from infergy.serving.config import EngineOptions
from infergy.serving.run import Floats, Run
from infergy.serving.shares import LoggedReplica
from infergy.serving.simulate import requests_of_lengths
from infergy.workload import open_trace

SERVER = open_server(ServerSpec())
SMALL = open_server(ServerSpec(options=EngineOptions(max_num_seqs=8, max_num_batched_tokens=64, num_gpu_blocks=40)))
STATIC = open_server(ServerSpec(engine="transformers", options=EngineOptions(max_num_seqs=4)))
HYBRID = open_server(ServerSpec(model="gpt-oss-20b"))
LENGTHS = st.lists(st.tuples(st.integers(1, 300), st.integers(1, 60)), min_size=1, max_size=25)


def served(server: OpenServer, lengths: list[tuple[int, int]], gap_s: float = 0.0) -> Run:
    arrivals = [gap_s * index for index in range(len(lengths))]
    return server.serve(requests_of_lengths("test", lengths, arrivals), shares=True)


def shares_of(run: Run) -> Floats:
    assert run.request_energy_j is not None
    return run.request_energy_j


@pytest.mark.parametrize("server", [SERVER, SMALL, STATIC, HYBRID], ids=["vllm", "small", "static", "window"])
@settings(max_examples=25, deadline=None)
@given(lengths=LENGTHS, gap_s=st.sampled_from([0.0, 0.004, 0.3]))
def test_shares_add_up_to_the_energy_of_the_steps(
    server: OpenServer, lengths: list[tuple[int, int]], gap_s: float
) -> None:
    run = served(server, lengths, gap_s)
    energy_j = shares_of(run)
    assert energy_j.sum() == pytest.approx(run.energy_j - run.energy.idle_j, rel=1e-9)
    assert (energy_j >= 0).all()
    assert ((energy_j > 0) == np.isfinite(run.requests.finished_s)).all()


def test_a_request_alone_takes_all() -> None:
    run = served(SERVER, [(700, 90)])
    assert shares_of(run)[0] == pytest.approx(run.energy_j - run.energy.idle_j, rel=1e-9)


@settings(max_examples=20, deadline=None)
@given(short=st.integers(1, 500), longer=st.integers(1, 3000), output=st.integers(2, 50), seq=st.integers(2, 20))
def test_a_longer_prompt_takes_more(short: int, longer: int, output: int, seq: int) -> None:
    energy_j = shares_of(served(SERVER, [(short + longer, output), *[(short, output)] * seq]))
    assert energy_j[0] > energy_j[1:].max()


def test_a_longer_context_takes_more_of_the_same_decode_steps() -> None:
    long = requests_of_lengths("test", [(4000, 200), (100, 200)])
    # Its prompt is cached but for one block: only its context is longer.
    cached = np.array([3984, 80])
    run = SERVER.serve(replace(long, cached_tokens=cached), shares=True)
    energy_j = shares_of(run)
    assert energy_j[0] > 1.02 * energy_j[1]


@pytest.mark.parametrize(
    "options", [EngineOptions(), EngineOptions(max_num_seqs=16), EngineOptions(num_gpu_blocks=1500)]
)
def test_who_is_in_a_step_is_what_the_step_says(options: EngineOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    servers: list[LoggedReplica] = []
    original = LoggedReplica.__init__

    def note(self: LoggedReplica, *arguments: Any, **options: Any) -> None:
        original(self, *arguments, **options)
        servers.append(self)

    monkeypatch.setattr(LoggedReplica, "__init__", note)
    server = open_server(ServerSpec(options=options))
    run = server.serve(open_trace("azure-conv-2023").requests().slice(0, 1500), shares=True)
    steps, logged = run.steps, servers[0]
    decodes, context = np.zeros(len(steps)), np.zeros(len(steps))
    ticks = np.array(logged.ticks) - (steps.count - 1) / 2
    for _, first, last, origin in logged.spans:
        decodes[first : last + 1] += 1
        context[first : last + 1] += origin + ticks[first : last + 1]
    assert np.array_equal(decodes, steps.decodes)
    assert np.allclose(context, steps.context, rtol=1e-12)
    tokens, pairs = np.zeros(len(steps)), np.zeros(len(steps))
    for entry, _, size, positions, _ in logged.chunks:
        tokens[entry] += size
        pairs[entry] += positions
    assert np.array_equal(tokens, steps.prefill_tokens)
    assert np.array_equal(pairs, steps.prefill_pairs)
    assert run.energy_j == server.serve(open_trace("azure-conv-2023").requests().slice(0, 1500)).energy_j


def test_replicas_share_what_each_served() -> None:
    server = open_server(ServerSpec(replicas=3))
    run = server.serve(open_trace("azure-code-2023").requests().slice(0, 300), shares=True)
    assert shares_of(run).sum() == pytest.approx(run.energy_j - run.energy.idle_j, rel=1e-9)


def test_a_rejected_request_takes_nothing() -> None:
    run = served(open_server(ServerSpec(options=EngineOptions(max_model_len=500))), [(600, 10), (100, 10)])
    assert shares_of(run)[0] == 0
    assert shares_of(run)[1] > 0


def test_without_asking_there_are_none() -> None:
    assert SERVER.serve(requests_of_lengths("test", [(5, 5)])).request_energy_j is None
