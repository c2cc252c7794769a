"""The law of a replay: its window, its speed, its label."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infergy.errors import UsageError
from infergy.records import Arrivals

NUMBERS = st.integers(1, 10_000).map(lambda number: number / 4)


@given(NUMBERS, NUMBERS, NUMBERS, st.booleans())
def test_a_label_keeps_the_window_and_the_speed(from_s: float, for_s: float, speed: float, timed: bool) -> None:
    arrivals = Arrivals(
        law="replay", trace="azure-conv-2023", from_s=from_s, for_s=for_s, timed=timed, speed=speed if timed else 1.0
    )
    assert Arrivals.parse_label(arrivals.label) == arrivals


@pytest.mark.parametrize(
    ("label", "fields"),
    [
        ("replay:azure-conv-2023", {}),
        ("replay:azure-conv-2023+5000", {"first": 5000}),
        ("replay:azure-conv-2023@1x", {"timed": True}),
        ("replay:azure-conv-2023@2.5x+7", {"timed": True, "speed": 2.5, "first": 7}),
        ("replay:azure-conv-2023@1x+600s/75s", {"timed": True, "from_s": 600.0, "for_s": 75.0}),
        ("replay:azure-conv-2023+0s/75.5s", {"for_s": 75.5}),
        ("replay:azure-conv-2023#2/3", {"replica": 2, "replicas": 3}),
        ("replay:azure-conv-2023@1x+600s/75s#1/2", {"timed": True, "from_s": 600.0, "for_s": 75.0, "replicas": 2}),
    ],
)
def test_labels_of_replays(label: str, fields: dict[str, Any]) -> None:
    arrivals = Arrivals(law="replay", trace="azure-conv-2023", **fields)
    assert arrivals.label == label
    assert Arrivals.parse_label(label) == arrivals


@pytest.mark.parametrize(
    "fields",
    [
        {"law": "poisson", "rate_per_s": 4.0, "timed": True},
        {"law": "trace", "trace": "t", "for_s": 75.0},
        {"law": "replay", "trace": "t", "speed": 2.0},
        {"law": "replay", "trace": "t", "timed": True, "speed": 0.0},
        {"law": "replay", "trace": "t", "from_s": 5.0},
        {"law": "replay", "trace": "t", "from_s": -5.0, "for_s": 75.0},
        {"law": "replay", "trace": "t", "for_s": 0.0},
        {"law": "replay", "trace": "t", "for_s": float("inf")},
        {"law": "replay", "trace": "t", "for_s": 75.0, "first": 3},
        {"law": "replay", "trace": "t", "timed": True, "rate_per_s": 4.0},
        {"law": "replay", "trace": "t", "replica": 3, "replicas": 2},
        {"law": "replay", "trace": "t", "replica": 0},
        {"law": "trace", "trace": "t", "replicas": 2},
    ],
)
def test_a_window_or_a_speed_that_cannot_be_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Arrivals(**fields)
