"""Moments and quantiles from counts of distinct lengths agree with those from all values."""

from __future__ import annotations

import statistics
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infergy.workload import LengthSummary


@given(st.lists(st.integers(0, 2**32), min_size=1, max_size=200))
def test_a_summary_from_counts_is_that_of_the_values(values: list[int]) -> None:
    summary = LengthSummary.from_counts(Counter(values).items())
    assert summary.mean == pytest.approx(statistics.fmean(values))
    assert summary.median == statistics.median(values)
    assert summary.longest == max(values)
    assert summary.total == sum(values)
    if len(values) > 1:
        assert summary.std == pytest.approx(statistics.stdev(values))
        # The inclusive method is numpy's default, linear between neighbours.
        assert summary.p99 == pytest.approx(statistics.quantiles(values, n=100, method="inclusive")[98])


def test_the_deviation_of_one_request_is_unknown() -> None:
    summary = LengthSummary.from_counts([(7, 1)])
    assert summary.std is None
    assert (summary.mean, summary.median, summary.p99, summary.longest, summary.total) == (7, 7, 7, 7, 7)


def test_a_small_spread_over_long_lengths_keeps_its_digits() -> None:
    summary = LengthSummary.from_counts([(2**32 - 1, 10**9), (2**32, 10**9)])
    assert summary.std == pytest.approx(0.5, rel=1e-8)
