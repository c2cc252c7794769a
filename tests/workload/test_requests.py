"""Requests as columns: windows, slices and choices keep each request whole and every link in place."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infergy.errors import UsageError
from infergy.workload import Bins, PrefixBlocks, Requests, SetAside, open_trace, requests_of_histogram
from raising import raises


def drawn(draw: st.DrawFn) -> Requests:
    count = draw(st.integers(1, 30))
    whole = st.lists(st.integers(1, 9_000), min_size=count, max_size=count)
    gaps = draw(st.lists(st.floats(0, 50), min_size=count, max_size=count))
    blocks = draw(st.lists(st.lists(st.integers(0, 9), max_size=5), min_size=count, max_size=count))
    after = [draw(st.integers(-1, own - 1)) for own in range(count)]
    return Requests(
        source="drawn",
        input_tokens=np.array(draw(whole)),
        output_tokens=np.array(draw(whole)),
        arrival_s=np.cumsum(gaps) - gaps[0],
        cached_tokens=np.zeros(count, dtype=np.int64),
        prefix_blocks=PrefixBlocks(
            ids=np.array([one for ids in blocks for one in ids], dtype=np.int64),
            offsets=np.concatenate(([0], np.cumsum([len(ids) for ids in blocks]))),
            block_tokens=16,
        ),
        after=np.array(after),
        gap_s=np.where(np.array(after) < 0, 0.0, 1.5),
    )


requests_drawn = st.composite(drawn)()


def ids_of(requests: Requests) -> list[list[int]]:
    assert requests.prefix_blocks is not None
    return [requests.prefix_blocks.of(place).tolist() for place in range(len(requests))]


@pytest.mark.parametrize(
    ("trace", "start_s", "duration_s", "wanted"),
    [
        ("azure-conv-2023", 600, 75, (379, 489_047, 95_514)),
        ("azure-code-2023", 180, 75, (531, 1_121_290, 14_293)),
        ("azure-conv-2023", 1800, 45, (330, 435_820, 44_146)),
    ],
)
def test_a_window_holds_the_requests_of_the_measured_run(
    trace: str, start_s: float, duration_s: float, wanted: tuple[int, int, int]
) -> None:
    window = open_trace(trace).requests().window(start_s=start_s, duration_s=duration_s)
    assert (len(window), window.input_tokens.sum(), window.output_tokens.sum()) == wanted
    assert window.arrival_s is not None
    assert 0 <= window.arrival_s[0] <= window.arrival_s[-1] < duration_s


def test_a_window_at_three_times_the_speed_covers_three_times_the_trace() -> None:
    whole = open_trace("azure-conv-2023").requests()
    fast = whole.window(start_s=600, duration_s=75, speed=3)
    slow = whole.window(start_s=600, duration_s=225)
    assert fast.arrival_s is not None
    assert slow.arrival_s is not None
    np.testing.assert_array_equal(fast.input_tokens, slow.input_tokens)
    np.testing.assert_allclose(fast.arrival_s * 3, slow.arrival_s)


@given(requests_drawn, st.floats(0, 400), st.floats(0.1, 400), st.floats(0.1, 10))
def test_a_window_takes_who_arrives_in_it_and_nobody_else(
    requests: Requests, start_s: float, duration_s: float, speed: float
) -> None:
    times = requests.arrival_s
    assert times is not None
    inside = (times >= start_s) & (times < start_s + duration_s * speed)
    if not inside.any():
        with pytest.raises(UsageError):
            requests.window(start_s=start_s, duration_s=duration_s, speed=speed)
        return
    window = requests.window(start_s=start_s, duration_s=duration_s, speed=speed)
    assert window.arrival_s is not None
    np.testing.assert_array_equal(window.output_tokens, requests.output_tokens[inside])
    np.testing.assert_allclose(window.arrival_s, (times[inside] - start_s) / speed)


def test_parts_of_a_trace_know_the_date_of_their_first_second() -> None:
    whole = open_trace("azure-conv-2023").requests()
    assert whole.arrival_s is not None
    assert whole.origin_unix_s is not None
    assert datetime.fromtimestamp(whole.origin_unix_s, UTC).isoformat().startswith("2023-11-16T18:15:46.68")
    assert whole.window(start_s=600, speed=3).origin_unix_s == whole.origin_unix_s + 600
    first_s = whole.arrival_s[100]
    assert whole.slice(100, 10).origin_unix_s == pytest.approx(whole.origin_unix_s + first_s)
    assert whole.take(np.arange(100, 110)).origin_unix_s == whole.origin_unix_s


@pytest.mark.parametrize(
    ("times", "origin"), [(["2024-05-10 00:00:01", "2024-05-10 00:00:00"], 1715299200.0), (["5.0", "4.0"], None)]
)
def test_arrivals_that_are_dates_have_an_origin(tmp_path: Path, times: list[str], origin: float | None) -> None:
    path = tmp_path / "log.csv"
    path.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *(f"{time},1,1" for time in times)]))
    assert open_trace(path).requests().origin_unix_s == origin


@given(requests_drawn, st.data())
def test_chosen_requests_keep_their_columns_and_the_links_among_them(requests: Requests, data: st.DataObject) -> None:
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=len(requests), max_size=len(requests))))
    taken = requests.take(mask)
    index = np.flatnonzero(mask).tolist()
    assert taken.input_tokens.tolist() == [int(requests.input_tokens[place]) for place in index]
    assert ids_of(taken) == [ids_of(requests)[place] for place in index]
    assert requests.after is not None
    assert taken.after is not None
    assert taken.gap_s is not None
    for own, place in enumerate(index):
        previous = int(requests.after[place])
        assert taken.after[own] == (index.index(previous) if previous in index else -1)
        assert taken.gap_s[own] == (1.5 if previous in index else 0.0)


@given(requests_drawn, st.data())
def test_a_slice_begins_at_its_first_request(requests: Requests, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, len(requests) - 1))
    count = data.draw(st.integers(1, len(requests) - first))
    part = requests.slice(first, count)
    assert part.arrival_s is not None
    assert part.arrival_s[0] == 0
    assert len(part) == count
    np.testing.assert_array_equal(part.input_tokens, requests.input_tokens[first : first + count])


@pytest.mark.parametrize(("first", "count"), [(0, 4), (3, 1), (3, None), (0, 0), (-1, 1)])
def test_a_slice_of_more_requests_than_there_are_is_rejected(first: int, count: int | None) -> None:
    with raises("too-few-requests", found=3):
        three().slice(first, count)


@pytest.mark.parametrize(
    "options", [{"speed": 0}, {"speed": np.inf}, {"start_s": -1}, {"start_s": np.nan}, {"duration_s": 0}]
)
def test_a_window_that_cannot_be_is_rejected_with_its_option(options: dict[str, float]) -> None:
    with raises("bad-value", value=next(iter(options.values()))):
        three().window(**options)


def test_a_window_without_arrivals_says_why_there_are_none() -> None:
    with raises("no-arrivals"):
        open_trace("task:translation").requests().window(start_s=1)


def test_all_at_once_nobody_waits_for_another() -> None:
    requests = three().all_at_once()
    assert requests.arrival_s is None
    assert requests.after is None
    assert requests.gap_s is None
    assert requests.order_reason
    assert not requests.is_timed
    assert requests.duration_s is None
    assert requests.rate_per_s is None


def test_the_rate_counts_requests_after_the_first() -> None:
    assert three().duration_s == 2.0
    assert three().rate_per_s == 1.0


def three(**changed: Any) -> Requests:
    columns: dict[str, Any] = {
        "input_tokens": np.array([5, 6, 7]),
        "output_tokens": np.array([1, 2, 3]),
        "arrival_s": np.array([0.0, 0.5, 2.0]),
        "after": np.array([-1, 0, -1]),
        "gap_s": np.array([0.0, 0.25, 0.0]),
    }
    return Requests(source="three", **{**columns, **changed})


@pytest.mark.parametrize(
    "changed",
    [
        {"input_tokens": np.array([5, 0, 7])},
        {"output_tokens": np.array([5, 0, 7])},
        {"output_tokens": np.array([5, 1])},
        {"arrival_s": np.array([0.0, 2.0, 1.0])},
        {"arrival_s": np.array([-1.0, 2.0, 3.0])},
        {"arrival_s": np.array([0.0, np.nan, 3.0])},
        {"arrival_s": np.array([0.0, 1.0, np.inf])},
        {"gap_s": np.array([0.0, -0.1, 0.0])},
        {"gap_s": np.array([0.0, np.nan, 0.0])},
        {"after": np.array([-1, 1, -1])},
        {"after": np.array([-1, -2, -1])},
        {"after": None},
        {"prefix_blocks": PrefixBlocks(ids=np.array([1, 2]), offsets=np.array([0, 1, 2]), block_tokens=16)},
    ],
)
def test_columns_that_cannot_be_are_rejected(changed: dict[str, Any]) -> None:
    with raises("bad-trace", trace="three"):
        three(**changed)


lengths = st.lists(st.tuples(st.integers(0, 9_000), st.integers(1, 900)), min_size=1, max_size=50)


@given(lengths)
def test_requests_of_a_histogram_keep_the_sums_of_each_bin(rows: list[tuple[int, int]]) -> None:
    import polars as pl

    frame = pl.DataFrame(rows, schema={"input_tokens": pl.Int64, "output_tokens": pl.Int64}, orient="row")
    trace = open_trace(frame)
    for bins in (None, Bins.paper()):
        requests = requests_of_histogram(trace.histogram(bins))
        assert len(requests) == len(rows)
        assert requests.output_tokens.sum() == sum(output for _, output in rows)
        empty = sum(given_tokens == 0 for given_tokens, _ in rows)
        total = sum(given_tokens for given_tokens, _ in rows)
        assert total <= requests.input_tokens.sum() <= total + max(empty, 0) * len(rows)
        assert requests.arrival_s is None
        assert requests.order_reason


def test_requests_of_a_histogram_mix_its_bins() -> None:
    import polars as pl

    frame = pl.DataFrame({"input_tokens": [10] * 50 + [5000] * 50, "output_tokens": [100] * 100})
    long = requests_of_histogram(open_trace(frame).histogram()).input_tokens > 1000
    assert 20 <= long[:50].sum() <= 30


def test_a_histogram_of_many_requests_keeps_each_bins_share() -> None:
    histogram = open_trace("azure-conv-2023").histogram()
    thinned = requests_of_histogram(histogram, at_most=2000)
    assert len(thinned) == pytest.approx(2000, abs=len(histogram.counts))
    mean = histogram.output_tokens / histogram.requests
    assert thinned.output_tokens.mean() == pytest.approx(mean, rel=0.02)


def test_what_was_set_aside_goes_with_a_histograms_requests() -> None:
    import polars as pl

    frame = pl.DataFrame({"input_tokens": [10, 20], "output_tokens": [0, 5]})
    assert requests_of_histogram(open_trace(frame).histogram()).set_aside == SetAside(failed=1)
