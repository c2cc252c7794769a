"""Padding of static batches: against counts by hand, in order of arrival and sorted by length."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from infergy.cli import app
from infergy.workload import open_trace
from infergy.workload.padding import find_padding, padded_tokens
from raising import raises

lengths = st.lists(st.integers(1, 1000), min_size=1, max_size=60)


def frame_of(**columns: list[Any]) -> pl.DataFrame:
    return pl.DataFrame(columns)


def test_each_prompt_is_as_long_as_the_longest_of_its_batch() -> None:
    found = find_padding([10, 1, 1, 10, 5], 2, by_arrival=True)
    assert (found.batches, found.real_tokens) == (3, 27)
    assert found.padded_tokens == 10 * 2 + 10 * 2 + 5
    assert found.waste == pytest.approx(1 - 27 / 45)
    # [10, 10], [5], [1, 1]: the batch that is not full stands where it costs least.
    assert (found.sorted_padded_tokens, found.sorted_waste) == (27, 0)


@given(lengths, st.integers(1, 70))
def test_padding_adds_and_sorting_takes_off(prompts: list[int], batch: int) -> None:
    found = find_padding(prompts, batch, by_arrival=True)
    assert sum(prompts) <= found.sorted_padded_tokens <= found.padded_tokens
    assert found.padded_tokens <= max(prompts) * len(prompts)
    assert 0 <= found.sorted_waste <= found.waste < 1


@given(st.lists(st.integers(1, 20), min_size=1, max_size=6), st.integers(1, 7))
@settings(max_examples=60, deadline=None)
def test_no_order_of_the_requests_pads_less_than_the_sorted_one(prompts: list[int], batch: int) -> None:
    """Any order, and the batch that is not full at any place among the others."""
    rest = len(prompts) % batch
    costs = []
    for order in itertools.permutations(prompts):
        for place in range(0, len(prompts) + 1, batch):
            head, middle, tail = order[:place], order[place : place + rest], order[place + rest :]
            costs.append(sum(padded_tokens(part, batch) for part in (head, middle, tail)))
    assert find_padding(prompts, batch, by_arrival=True).sorted_padded_tokens == min(costs)


@pytest.mark.parametrize(("batch", "waste"), [(1, 0.0), (1000, 1 - 4 / 7.0)])
def test_alone_nothing_is_padded_and_all_together_every_prompt_to_the_longest(batch: int, waste: float) -> None:
    assert find_padding([1, 4, 7], batch, by_arrival=True).waste == pytest.approx(waste)


def test_arrivals_give_the_order_where_every_request_tells_its_own() -> None:
    rows = {"input_tokens": [8, 1, 8, 1], "output_tokens": [1] * 4}
    timed = open_trace(frame_of(**rows, arrival_s=[0.0, 2.0, 1.0, 3.0])).padding(2)
    assert (timed.by_arrival, timed.padded_tokens) == (True, 18)
    for found in (
        open_trace(frame_of(**rows)).padding(2),
        open_trace(frame_of(**rows, arrival_s=[0.0, 2.0, None, 3.0])).padding(2),
    ):
        assert (found.by_arrival, found.padded_tokens) == (False, 32)


@pytest.mark.parametrize("kind", ["polars", "pandas", "arrow", "csv"])
def test_any_source_is_padded_alike_and_requests_without_output_are_set_aside(kind: str, tmp_path: Path) -> None:
    rows = frame_of(input_tokens=[8, 99, 1, 2], output_tokens=[1, 0, 3, 1])
    rows.write_csv(tmp_path / "log.csv")
    sources = {"polars": rows, "pandas": rows.to_pandas(), "arrow": rows.to_arrow(), "csv": tmp_path / "log.csv"}
    found = open_trace(sources[kind]).padding(2)
    assert (found.real_tokens, found.padded_tokens, found.sorted_padded_tokens) == (11, 18, 12)


def test_a_batch_that_cannot_be_is_refused_and_so_is_a_trace_without_requests() -> None:
    with raises("bad-value", option="--batch", value=0):
        open_trace("azure-code-2023").padding(0)
    with raises("no-requests", column="output_tokens"):
        open_trace(frame_of(input_tokens=[3], output_tokens=[0])).padding(2)
    with raises("bad-trace", rows={"input": 1}):
        open_trace(frame_of(input_tokens=[3, -5], output_tokens=[1, 1])).padding(2)


def test_trace_shows_padding_in_both_orders_where_it_is_asked_for() -> None:
    runner = CliRunner()
    plain = runner.invoke(app, ["trace", "task:translation", "--json"], catch_exceptions=False)
    assert json.loads(plain.stdout)["padding"] is None
    asked = ["trace", "task:translation", "azure-code-2023", "--batch", "32"]
    told = json.loads(runner.invoke(app, [*asked, "--json"], catch_exceptions=False).stdout)["traces"]
    assert [one["padding"]["by_arrival"] for one in told] == [False, True]
    text = runner.invoke(app, asked, catch_exceptions=False).stdout
    for one in told:
        assert one["padding"]["batch"] == 32
        assert f"{one['padding']['padded_tokens']:,}" in text
        assert f"{one['padding']['sorted_padded_tokens']:,}" in text
        assert one["padding"]["sorted_waste"] < one["padding"]["waste"]
    assert "Continuous batching (vllm) pads nothing." in text
