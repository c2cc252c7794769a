"""Windows drawn over a trace's time: their weighted sums are the trace's, as exactly as they say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infergy.errors import UsageError
from infergy.workload import Sample, open_trace
from infergy.workload.formats import Columns
from infergy.workload.requests import PrefixBlocks, Requests, join_requests
from infergy.workload.sampling import divide, draw_slots, sample_histogram
from raising import raises

Z_90 = 1.6449


def long_trace(count: int, *, seed: int = 0, hours: float = 48.0) -> pl.DataFrame:
    """Requests that come faster by day than by night, of lengths that vary from hour to hour."""
    source = np.random.default_rng(seed)
    times = np.sort(source.uniform(0, hours * 3600, 3 * count))
    busy = source.uniform(size=len(times)) < 0.6 + 0.4 * np.sin(times / 86_400 * 2 * np.pi)
    times = times[busy][:count]
    scale = np.exp(source.normal(0, 0.3, int(hours) + 1))[(times // 3600).astype(int)]
    inputs = np.ceil(source.lognormal(6, 1, len(times)) * scale)
    outputs = np.ceil(source.lognormal(5, 1, len(times)))
    return pl.DataFrame({"input_tokens": inputs, "output_tokens": outputs, "arrival_s": 1e6 + times})


def sums_of(sample: Sample) -> tuple[float, float]:
    inputs = sum(window.weight * window.requests.input_tokens.sum() for window in sample.windows)
    outputs = sum(window.weight * window.requests.output_tokens.sum() for window in sample.windows)
    return float(inputs), float(outputs)


def test_a_trace_of_up_to_the_limit_is_whole() -> None:
    sample = open_trace("azure-conv-2023").sample()
    assert sample.is_whole
    assert sample.relative_se == 0
    assert len(sample.windows[0].requests) == sample.requests == 19_366
    assert sample.duration_s == sample.windows[0].duration_s == sample.windows[0].requests.duration_s


def test_a_longer_trace_is_sampled_and_knows_its_error() -> None:
    frame = long_trace(60_000)
    sample = open_trace(frame).sample(error=0.1, whole_requests=10_000)
    assert not sample.is_whole
    drawn = sum(len(window.requests) for window in sample.windows)
    assert drawn < len(frame) / 2
    assert Z_90 * sample.relative_se <= 0.1
    assert (sample.requests, sample.input_tokens) == (len(frame), frame["input_tokens"].sum())
    assert sample.output_tokens == frame["output_tokens"].sum()
    inputs, outputs = sums_of(sample)
    assert all(window.requests.origin_unix_s is None for window in sample.windows)
    assert inputs == pytest.approx(sample.input_tokens, rel=4 * sample.relative_se)
    assert outputs == pytest.approx(sample.output_tokens, rel=4 * sample.relative_se)


def test_windows_hold_just_what_arrives_in_them() -> None:
    frame = long_trace(20_000)
    sample = open_trace(frame).sample(error=0.1, whole_requests=1000)
    first_s = frame["arrival_s"].min()
    for window in sample.windows:
        assert window.start_s is not None
        assert window.duration_s is not None
        since = pl.col("arrival_s") - first_s - window.start_s
        inside = frame.filter(since >= 0, since < window.duration_s)
        assert window.requests.input_tokens.tolist() == inside["input_tokens"].cast(pl.Int64).to_list()
        assert window.requests.arrival_s is not None
        np.testing.assert_allclose(window.requests.arrival_s, inside.select(since).to_series(), atol=1e-6)


def test_a_frame_of_another_library_is_sampled_as_one_of_polars() -> None:
    frame = long_trace(20_000).sample(fraction=1.0, shuffle=True, seed=1)
    options: dict[str, Any] = {"error": 0.1, "whole_requests": 1000, "seed": 3}
    ours, theirs = (open_trace(held).sample(**options) for held in (frame, frame.to_pandas()))
    assert ours.set_aside.out_of_order == theirs.set_aside.out_of_order > 0
    for one, other in zip(ours.windows, theirs.windows, strict=True):
        assert (one.start_s, one.duration_s, one.weight) == (other.start_s, other.duration_s, other.weight)
        np.testing.assert_array_equal(one.requests.output_tokens, other.requests.output_tokens)
        assert one.requests.arrival_s is not None
        assert other.requests.arrival_s is not None
        np.testing.assert_allclose(one.requests.arrival_s, other.requests.arrival_s, atol=1e-6)


def test_the_stated_error_is_the_error_over_many_draws() -> None:
    frame = long_trace(20_000)
    slot = (pl.col("arrival_s") - pl.col("arrival_s").min()) // 675
    sums = frame.group_by(slot).agg(pl.col("input_tokens", "output_tokens").sum()).sort("arrival_s").drop("arrival_s")
    population = sums.to_numpy()
    draws = [draw_slots(population, error=0.05, seed=seed) for seed in range(300)]
    drawn = [draw for draw in draws if draw is not None]
    assert len(drawn) == 300
    estimates = np.array([draw.weights @ population[draw.slots] for draw in drawn])
    errors = estimates / population.sum(axis=0) - 1
    largest = np.sqrt((errors**2).mean(axis=0)).max()
    assert largest == pytest.approx(drawn[0].relative_se, rel=0.15)
    assert abs(errors.mean(axis=0)).max() < 4 * largest / np.sqrt(len(drawn))


def test_windows_all_at_once_are_one_that_stands_for_the_tokens_of_the_trace() -> None:
    frame = long_trace(20_000).with_columns(cached=pl.col("input_tokens") // 2)
    sample = open_trace(frame, columns=Columns(cached="cached")).sample(error=0.1, whole_requests=1000)
    together = sample.all_at_once()
    (window,) = together.windows
    assert not together.is_timed
    assert window.requests.arrival_s is None
    for name in ("input_tokens", "output_tokens", "cached_tokens"):
        parts = [getattr(part.requests, name) for part in sample.windows]
        np.testing.assert_array_equal(getattr(window.requests, name), np.concatenate(parts))
    inputs, outputs = sums_of(together)
    assert inputs / sample.input_tokens + outputs / sample.output_tokens == pytest.approx(2)


def test_parts_without_hashes_or_hits_among_those_with_them_are_joined() -> None:
    ids, offsets = np.array([7, 8, 9]), np.array([0, 2, 3])
    blocks = PrefixBlocks(ids=ids, offsets=offsets, block_tokens=16)
    lengths: dict[str, Any] = {"input_tokens": np.array([20, 10]), "output_tokens": np.array([1, 2])}
    part = Requests(source="a", **lengths, prefix_blocks=blocks, cached_tokens=np.array([16, 0]))
    joined = join_requests([part, part.take(np.array([1])), part.take(np.zeros(2, dtype=bool))])
    assert joined.prefix_blocks is not None
    assert [joined.prefix_blocks.of(k).tolist() for k in range(3)] == [[7, 8], [9], [9]]
    joined = join_requests([replace(part, prefix_blocks=None), replace(part, prefix_blocks=None, cached_tokens=None)])
    assert joined.cached_tokens is not None
    assert joined.cached_tokens.tolist() == [16, 0, 0, 0]


def test_a_draw_is_made_again_by_its_seed() -> None:
    trace = open_trace(long_trace(20_000))
    starts = [
        [window.start_s for window in trace.sample(error=0.1, whole_requests=1000, seed=seed).windows]
        for seed in (1, 1, 2)
    ]
    assert starts[0] == starts[1] != starts[2]


populations = st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1e6)), min_size=1, max_size=300).map(
    lambda rows: np.array(rows)
)


@given(populations, st.floats(0.001, 0.5), st.integers(0, 99))
def test_weights_stand_for_every_slot_and_each_slot_is_drawn_once(sums: Any, error: float, seed: int) -> None:
    draw = draw_slots(sums, error=error, seed=seed)
    if draw is None:
        return
    assert draw.weights.sum() == pytest.approx(len(sums))
    assert (np.diff(draw.slots) > 0).all()
    assert (draw.weights >= 1).all()
    assert Z_90 * draw.relative_se <= error


def test_equal_slots_leave_no_error() -> None:
    draw = draw_slots(np.full((200, 2), 7.0), error=0.01, seed=0)
    assert draw is not None
    assert draw.relative_se == pytest.approx(0, abs=1e-9)


def test_a_trace_that_varies_too_much_is_taken_whole() -> None:
    sums = np.ones((100, 2))
    sums[50] = 1e6
    assert draw_slots(sums, error=0.01, seed=0) is None
    times = np.concatenate((np.linspace(0, 6000, 200), np.full(5000, 3000.0)))
    frame = pl.DataFrame({"input_tokens": 9, "output_tokens": 9, "arrival_s": times})
    assert open_trace(frame).sample(whole_requests=1000).is_whole


def test_without_arrivals_windows_are_parts_of_the_order() -> None:
    sample = open_trace(long_trace(20_000).drop("arrival_s")).sample(error=0.1, whole_requests=1000)
    assert not sample.is_whole
    assert sample.duration_s is None
    for window in sample.windows:
        assert (window.start_s, window.duration_s, window.requests.arrival_s) == (None, None, None)
        assert window.requests.order_reason
    assert sums_of(sample)[0] == pytest.approx(sample.input_tokens, rel=4 * sample.relative_se)


def test_a_histogram_of_too_many_requests_is_one_window_with_a_weight() -> None:
    histogram = open_trace("azure-conv-2023").histogram()
    assert sample_histogram(histogram).is_whole
    sample = sample_histogram(histogram, whole_requests=2000)
    (window,) = sample.windows
    assert window.weight * len(window.requests) == pytest.approx(sample.requests) == pytest.approx(19_366)
    inputs, outputs = sums_of(sample)
    errors = abs(inputs / histogram.input_tokens - 1), abs(outputs / histogram.output_tokens - 1)
    assert max(errors) == pytest.approx(sample.relative_se)
    assert sample.relative_se < 0.02


def test_a_log_too_long_to_hold_is_validated_as_any(tmp_path: Path) -> None:
    frame = long_trace(3000).cast({"input_tokens": pl.Int64, "output_tokens": pl.Int64})
    part = frame.with_columns(arrival_s=pl.when(pl.int_range(pl.len()) != 7).then(pl.col("arrival_s")))
    with raises("no-arrivals", untimed=1):
        open_trace(part, bad_rows=0).sample(whole_requests=1000)
    assert open_trace(part).sample(error=0.3, whole_requests=1000).set_aside.unreadable == 1
    wrong = frame.with_columns(input_tokens=pl.when(pl.int_range(pl.len()) != 7).then(pl.col("input_tokens")))
    with raises("bad-trace", rows={"input": 1}):
        open_trace(wrong, bad_rows=0).sample(whole_requests=1000)
    assert open_trace(wrong).sample(error=0.3, whole_requests=1000).set_aside.unreadable == 1
    with raises("no-requests", column="output_tokens"):
        open_trace(frame.with_columns(output_tokens=0)).sample(whole_requests=1000)
    aside = frame.with_columns(
        output_tokens=pl.when(pl.int_range(pl.len()) >= 5).then(pl.col("output_tokens")).otherwise(0)
    )
    assert open_trace(aside).sample(error=0.3, whole_requests=1000).set_aside.failed == 5


@pytest.mark.parametrize("error", [0.0, 1.5])
def test_an_error_that_cannot_be_is_rejected(error: float) -> None:
    for source in ("task:translation", "azure-code-2023"):
        with pytest.raises(UsageError):
            open_trace(source).sample(error=error)


@given(st.integers(1, 10**8), st.one_of(st.none(), st.floats(0, 1e9)))
def test_slots_cover_the_trace(requests: int, duration_s: float | None) -> None:
    slots = divide(requests, duration_s)
    if slots.is_timed:
        assert duration_s is not None
        assert slots.count * slots.size == pytest.approx(duration_s)
        assert slots.size <= max(600, duration_s / 10_000) * (1 + 1e-9)
    else:
        assert (slots.count - 1) * slots.size < requests <= slots.count * slots.size
