"""What a draft model adds to memory, and the tokens of a round by Leviathan et al. 2023."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infergy.catalog import get_gpu, get_model
from infergy.catalog.memory import largest_batch
from infergy.catalog.models import Draft
from infergy.records.engine_setup import tokens_per_round

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
