"""What a load sends and when: arrival processes, rates, traces, prompts."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infergy.records import Arrivals, Load
from infergy.workload.load_generator import (
    draw_times,
    hash_times,
    make_prompts,
    trace_times,
)
from raising import raises

POISSON = Arrivals(law="poisson", rate_per_s=4.0)
RATES = st.floats(0.01, 1e4)


@given(rate=RATES, burstiness=st.floats(0.2, 50), count=st.integers(2, 300), seed=st.integers(0, 5))
def test_a_run_has_exactly_its_rate_and_its_times_ascend(rate: float, burstiness: float, count: int, seed: int) -> None:
    times = draw_times(Arrivals(law="gamma", rate_per_s=rate, burstiness=burstiness), count, seed)
    assert len(times) == count
    assert times[0] == 0
    assert times[-1] == pytest.approx((count - 1) / rate, abs=1e-6)
    assert all(earlier <= later for earlier, later in pairwise(times))


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0, 100.0])
def test_gaps_scatter_as_the_gamma_law_says(burstiness: float) -> None:
    times = draw_times(Arrivals(law="gamma", rate_per_s=8.0, burstiness=burstiness), 20_000, 0)
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert fmean(gaps) == pytest.approx(1 / 8, rel=1e-6)
    assert pstdev(gaps) / fmean(gaps) == pytest.approx(burstiness**-0.5, rel=0.05)


def test_the_seed_alone_draws_them_and_another_rate_stretches_them() -> None:
    times = draw_times(POISSON, 50, 0)
    assert times == draw_times(POISSON, 50, 0)
    assert times != draw_times(POISSON, 50, 1)
    slow = draw_times(replace(POISSON, rate_per_s=1.0), 50, 0)
    assert slow == pytest.approx([4 * time_s for time_s in times], abs=1e-5)


def test_a_hash_is_equal_if_and_only_if_the_times_are() -> None:
    times = draw_times(POISSON, 50, 0)
    assert hash_times(times) == hash_times(tuple(times))
    assert hash_times(times) != hash_times((*times[:-1], times[-1] + 2e-6))


def test_the_times_of_a_trace_are_its_own_or_at_a_rate() -> None:
    own = trace_times("azure-conv-2023", 100, Arrivals(law="trace", trace="azure-conv-2023"))
    assert own[0] == 0
    assert len(own) == 100
    scaled = trace_times("azure-conv-2023", 100, Arrivals(law="trace", trace="azure-conv-2023", rate_per_s=2.0))
    assert scaled[-1] == pytest.approx(99 / 2)
    assert scaled == pytest.approx([one * scaled[-1] / own[-1] for one in own], abs=1e-5)


def test_a_trace_without_times_with_too_few_or_with_one_instant_is_told(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    named = Arrivals(law="trace", trace="log.csv", rate_per_s=1.0)
    log.write_text("input_tokens,output_tokens\n10,5\n20,5\n")
    with raises("no-arrivals", trace=str(log)):
        trace_times(str(log), 2, named)
    log.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + "2023-11-16 18:01:00,10,5\n" * 2)
    with raises("too-few-requests", trace=str(log), found=2, expected=3):
        trace_times(str(log), 3, named)
    with raises("bad-trace", reason="one instant"):
        trace_times(str(log), 2, named)


@pytest.mark.parametrize(
    "label",
    [
        *("poisson4", "poisson0.5", "gamma4-b0.5", "trace:azure-conv-2023", "trace:azure-conv-2023@4"),
        *("replay:azure-conv-2023", "replay:azure-conv-2023+500"),
    ],
)
def test_a_label_stands_for_one_law(label: str) -> None:
    found = Arrivals.parse_label(label)
    assert found is not None
    assert found.label == label


def test_offline_is_no_arrivals_and_gamma_of_shape_one_is_poisson() -> None:
    assert Arrivals.parse_label("offline") is None
    assert Arrivals.parse_label("gamma4-b1") == POISSON


@pytest.mark.parametrize(
    ("label", "option"),
    [
        ("poisson", "arrivals"),
        ("poisson-4", "arrivals"),
        ("poisson0", "rate_per_s"),
        ("gamma4-b0", "burstiness"),
        ("trace:log@0", "rate_per_s"),
        ("replay:", "arrivals"),
    ],
)
def test_a_label_that_means_nothing_is_told(label: str, option: str) -> None:
    with raises("bad-value", option=option):
        Arrivals.parse_label(label)


@pytest.mark.parametrize(
    ("fields", "code", "values"),
    [
        (
            {"law": "replay", "trace": "log", "rate_per_s": 4.0},
            "options-conflict",
            {"options": {"law": "replay", "rate_per_s": 4.0}},
        ),
        ({"law": "replay", "trace": "log", "first": -1}, "bad-value", {"option": "first", "value": -1}),
        ({"law": "poisson", "rate_per_s": 1.0, "first": 3}, "bad-value", {"option": "first", "value": 3}),
        ({"law": "replay"}, "options-conflict", {"options": {"law": "replay", "trace": None}}),
    ],
)
def test_a_replay_that_cannot_be_is_told(fields: dict[str, Any], code: str, values: dict[str, Any]) -> None:
    with raises(code, **values):
        Arrivals(**fields)


def test_a_replayed_prompt_is_as_long_as_its_own_and_the_same_as_in_any_cell_of_its_length() -> None:
    lengths = ((3, 1), (5, 1), (3, 1))
    prompts = make_prompts(Load(input_tokens=5, output_tokens=1, batch=3), 100, 7, lengths)
    assert [len(prompt) for prompt in prompts] == [3, 5, 3]
    alone = make_prompts(Load(input_tokens=3, output_tokens=1, batch=2), 100, 7)
    assert (prompts[0], prompts[2]) == alone
    assert prompts[0] != prompts[2]
