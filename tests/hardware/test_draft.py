"""What a draft model adds to memory and forecast, by the law of Leviathan et al. 2023."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infergy.hardware import forecast, get_gpu, get_model, largest_batch
from infergy.hardware.draft import Draft
from infergy.hardware.forecast import HOST_S_PER_LAYER
from infergy.records.speculation import tokens_per_round

LLAMA, SMALL, H200 = get_model("llama-3.1-8b"), get_model("llama-3.2-1b"), get_gpu("h200")


def drafted(acceptance: float, look_ahead: int = 4) -> Draft:
    return Draft(shape=SMALL, look_ahead=look_ahead, acceptance=acceptance)


@given(st.floats(0, 0.99), st.integers(1, 16))
def test_a_round_yields_what_equation_1_says(acceptance: float, look_ahead: int) -> None:
    expected = (1 - acceptance ** (look_ahead + 1)) / (1 - acceptance)
    assert tokens_per_round(acceptance, look_ahead) == pytest.approx(expected)


def test_all_accepted_is_one_more_than_drafted_and_none_is_the_models_own() -> None:
    assert tokens_per_round(1.0, 4) == 5
    assert tokens_per_round(0.0, 4) == 1


def test_seconds_and_joules_of_decoding_are_those_of_a_round_over_its_tokens() -> None:
    sure, never = (forecast(LLAMA, H200, 512, 64, 8, engine="vllm", draft=drafted(a)) for a in (1.0, 0.0))
    assert never.decode_s == pytest.approx(5 * sure.decode_s)
    assert never.decode_energy_j == pytest.approx(5 * sure.decode_energy_j)
    assert never.prefill_s == sure.prefill_s
    plain = forecast(LLAMA, H200, 512, 64, 8, engine="vllm")
    # Nothing accepted is all the work of greedy decoding, and the draft's on top.
    assert sure.decode_s < plain.decode_s < never.decode_s
    assert sure.decode_energy_j < plain.decode_energy_j < never.decode_energy_j
    assert plain.prefill_s < sure.prefill_s
    assert plain.prefill_energy_j < sure.prefill_energy_j


def test_without_graphs_each_step_of_the_draft_is_launched() -> None:
    one, two = (
        forecast(LLAMA, H200, 64, 64, 1, engine="vllm", cuda_graphs=False, draft=drafted(0.0, count))
        for count in (1, 2)
    )
    assert two.decode_s - one.decode_s == pytest.approx(63 * HOST_S_PER_LAYER["vllm-eager"] * SMALL.layers)


def test_the_drafts_weights_and_cache_take_room_from_the_batch() -> None:
    plain = largest_batch(LLAMA, H200, 1000, 20, engine="vllm")
    with_draft = largest_batch(LLAMA, H200, 1000, 20, engine="vllm", draft=drafted(0.8))
    assert with_draft.weight_bytes == plain.weight_bytes + SMALL.weight_bytes("bfloat16")
    # 1020 tokens and 4 slots past them: 64 blocks of 16.
    assert with_draft.kv_bytes_per_request == LLAMA.kv_bytes(1024, "bfloat16") + SMALL.kv_bytes(1024, "bfloat16")
    assert with_draft.batch < plain.batch


def test_slots_for_drafted_tokens_can_take_one_more_block() -> None:
    tiny = replace(drafted(0.8), look_ahead=5)
    more = largest_batch(LLAMA, H200, 1000, 20, engine="vllm", draft=tiny).kv_bytes_per_request
    assert more == LLAMA.kv_bytes(1040, "bfloat16") + SMALL.kv_bytes(1040, "bfloat16")
