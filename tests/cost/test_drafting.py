"""Speculative decoding as a factor on plain steps."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infergy.catalog import get_gpu, get_model
from infergy.catalog.models import Draft
from infergy.cost.drafting import DraftedCost
from infergy.records import EngineSetup
from infergy.serving.setups import cost_of_setup
from simulated_truth import play, truth_of

LLAMA, SMALL, H200 = get_model("llama-3.1-8b"), get_model("llama-3.2-1b"), get_gpu("h200")
VLLM = EngineSetup(engine="vllm", model="llama-3.1-8b")


def drafted(acceptance: float, look_ahead: int = 4) -> Draft:
    return Draft(shape=SMALL, look_ahead=look_ahead, acceptance=acceptance)


def test_decoding_takes_a_round_over_its_tokens() -> None:
    sure, never = (truth_of(512, 64, 8, draft=drafted(acceptance)) for acceptance in (1.0, 0.0))
    # Five tokens per round against one: the steps that mix prompts and decodes aside.
    assert never.duration_s - never.prefill_s == pytest.approx(5 * (sure.duration_s - sure.prefill_s), rel=0.02)
    assert never.decode_energy_j == pytest.approx(5 * sure.decode_energy_j, rel=0.02)
    assert never.prefill_s == sure.prefill_s
    plain = truth_of(512, 64, 8)
    assert sure.duration_s < plain.duration_s < never.duration_s
    assert sure.energy_j < plain.energy_j < never.energy_j
    assert plain.prefill_s < sure.prefill_s
    assert plain.prefill_energy_j < sure.prefill_energy_j


def test_without_graphs_each_step_of_the_draft_waits_for_its_host() -> None:
    one, two = (truth_of(64, 64, 1, cuda_graphs=False, draft=drafted(0.0, count)) for count in (1, 2))
    cost = cost_of_setup(VLLM, LLAMA, H200, draft=drafted(0.0))
    assert isinstance(cost, DraftedCost)
    assert two.duration_s - one.duration_s > 63 * cost.draft.rates.host.eager


@settings(deadline=None, max_examples=30)
@given(
    acceptance=st.floats(0, 1),
    look_ahead=st.integers(1, 8),
    arrivals=st.lists(st.floats(0, 2), min_size=1, max_size=8),
    output=st.integers(1, 40),
)
def test_a_decode_step_costs_between_a_plain_one_over_its_tokens_and_one_with_all_drafts(
    acceptance: float, look_ahead: int, arrivals: list[float], output: int
) -> None:
    draft = drafted(acceptance, look_ahead)
    lengths = ((256, output),) * len(arrivals)
    run = play(lengths, tuple(sorted(arrivals)), draft=draft)
    assert run.counts.finished_requests == len(arrivals)
    decodes = run.steps.prefills == 0
    plain = cost_of_setup(VLLM, LLAMA, H200)
    for index in decodes.nonzero()[0].tolist():
        s = run.steps
        step_s = plain.start().step(
            int(s.decodes[index]), s.context[index], 0, 0.0, 0, int(s.sampled[index]), int(s.padded[index])
        )
        assert step_s / draft.tokens_per_round < s.step_s[index] * 1.001
        assert s.step_s[index] < step_s * (1 + look_ahead) * 1.05
