"""The uncertainty of a ratio of energies: what both runs have in common is left out."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infergy.cost.model import CostedRun, log_ratio_sd, unseen_sd
from infergy.cost.table import ServedBy
from infergy.estimates.servers import ServerSpec, open_server, shipped_table
from infergy.serving.config import EngineOptions
from served import some_requests

SPECS = {
    "vllm": ServerSpec(),
    "64": ServerSpec(options=EngineOptions(max_num_seqs=64)),
    "4": ServerSpec(options=EngineOptions(max_num_seqs=4)),
    "fp8": ServerSpec(engine="vllm-fp8"),
    "eager": ServerSpec(engine="vllm-eager"),
    "tp4": ServerSpec(engine="vllm-tp4"),
    "transformers": ServerSpec(engine="transformers"),
}


def costed(spec: ServerSpec, seed: int = 0) -> CostedRun:
    server = open_server(spec, shipped_table())
    run = server.serve(some_requests(20, seed=seed))
    return CostedRun.of(server.cost, run.steps, run.energy.idle_j, 0.0)


@settings(max_examples=15)
@given(first=st.sampled_from(sorted(SPECS)), second=st.sampled_from(sorted(SPECS)), seed=st.integers(0, 20))
def test_a_ratio_is_known_at_least_as_well_as_its_parts(first: str, second: str, seed: int) -> None:
    one, other = costed(SPECS[first], seed), costed(SPECS[second], seed)
    sd = log_ratio_sd(one, other)
    assert sd == pytest.approx(log_ratio_sd(other, one))
    assert sd <= sum(run.cost.log_sd(run.steps, run.idle_j)[0] for run in (one, other))
    if first == second:
        assert sd == pytest.approx(0, abs=1e-9)


def test_like_runs_are_closer_than_unlike_ones() -> None:
    runs = {name: costed(spec) for name, spec in SPECS.items()}
    like, unlike = log_ratio_sd(runs["vllm"], runs["64"]), log_ratio_sd(runs["vllm"], runs["4"])
    assert like < unlike < log_ratio_sd(runs["vllm"], runs["fp8"])


def test_engines_have_fits_of_their_own_and_one_gpu() -> None:
    one, other = costed(SPECS["vllm"]), costed(SPECS["transformers"])
    parts = [run.cost.log_sd(run.steps, run.idle_j)[0] ** 2 - run.cost.fit.unit_energy_sd**2 for run in (one, other)]
    assert log_ratio_sd(one, other) == pytest.approx(math.sqrt(sum(parts)), rel=1e-6)


def test_what_no_row_is_of_counts_once_for_each_unlike_server() -> None:
    seen, unseen = costed(SPECS["vllm"]), costed(SPECS["tp4"])
    assert unseen.cost.unseen_server_variance > 0 == seen.cost.unseen_server_variance
    assert log_ratio_sd(seen, unseen) > math.sqrt(unseen.cost.unseen_server_variance)
    other = costed(ServerSpec(engine="vllm-tp4", options=EngineOptions(max_num_seqs=64)))
    assert log_ratio_sd(unseen, other) < 0.01


def test_a_server_is_the_less_certain_the_less_of_it_was_measured() -> None:
    own = ServedBy(engine="vllm", model="llama-3.1-8b", dtype="bfloat16", gpu="h200", gpus=1)
    measured = [own, replace(own, dtype="fp8")]

    def sd(has_experts: bool = False, **other: Any) -> float:
        return unseen_sd(replace(own, **other), has_experts=has_experts, measured=measured)

    assert sd() == sd(is_api=True) == sd(dtype="fp8") == 0.0
    model = sd(model="qwen3-32b")
    assert 0 < model < sd(model="qwen3-32b", gpus=4) < sd(model="qwen3-32b", gpus=8)
    assert model < sd(model="qwen3-32b", dtype="int4")
    assert model < sd(model="qwen3-30b-a3b", has_experts=True)
    assert model < sd(engine="transformers", dtype="float16", model="qwen3-32b")
