"""Units of time: dates and relative numbers in s, ms, us and ns are told apart; what cannot be meant names the option."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infergy.workload import Columns, open_trace
from infergy.workload.clock import DATES, DEFAULT, FORMAT, NAME, RATE, find_unit
from infergy.workload.formats import UNITS_S
from raising import raises

UNITS = sorted(set(UNITS_S) - {"d"})
START_S = 1_759_813_207
NAMED = Columns(input="i", output="o", time="t")


def arrivals(count: int = 200, rate_per_s: float = 2.0, seed: int = 1) -> list[float]:
    """Of a Poisson process, in seconds from 0."""
    draw = random.Random(seed)
    times = [0.0]
    for _ in range(count - 1):
        times.append(times[-1] + draw.expovariate(rate_per_s))
    return times


def records(path: Path, names: tuple[str, str, str], times: list[Any], **more: Any) -> Path:
    rows = ({names[0]: time, names[1]: 10, names[2]: 5, **more} for time in times)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("names", [("t", "i", "o"), ("timestamp", "input_length", "output_length")])
@pytest.mark.parametrize("is_date", [True, False])
def test_units_are_recognised_of_dates_and_of_relative_numbers(
    tmp_path: Path, unit: str, names: tuple[str, str, str], is_date: bool
) -> None:
    times = arrivals()
    given = [round((time + START_S * is_date) / UNITS_S[unit]) for time in times]
    path = records(tmp_path / "log.jsonl", names, given)
    columns = NAMED if names[0] == "t" else None
    trace = open_trace(path, columns=columns)
    summary = trace.describe()
    assert summary.duration_s == pytest.approx(times[-1], abs=1.01)
    duration_s = trace.requests().duration_s
    assert duration_s == pytest.approx(summary.duration_s, rel=1e-6)
    if (columns is None and unit == "ms") or (columns is not None and is_date and unit == "s"):
        assert summary.time_unit is None
    else:
        assert summary.time_unit is not None
        assert summary.time_unit.unit == unit
        assert summary.time_unit.column == names[0]
        assert summary.time_unit.basis == DATES if is_date else summary.time_unit.basis in (RATE, DEFAULT)


@pytest.mark.parametrize("names", [("created", "usage.prompt_tokens", "usage.completion_tokens")])
@pytest.mark.parametrize("unit", UNITS)
def test_dates_of_a_format_in_another_unit_than_its_own(tmp_path: Path, names: tuple[str, str, str], unit: str) -> None:
    path = records(tmp_path / "log.jsonl", names, [round((START_S + time) / UNITS_S[unit]) for time in arrivals()])
    summary = open_trace(path).describe()
    assert summary.arrival_rate_per_s == pytest.approx(2.0, rel=0.2)
    assert (summary.time_unit is None) == (unit == "s")


def test_the_ids_of_a_bailian_trace_say_seconds_and_a_burst_says_nothing(tmp_path: Path) -> None:
    names = "timestamp", "input_length", "output_length"
    ids = {"chat_id": 1, "parent_chat_id": -1}
    bailian = open_trace(records(tmp_path / "a.jsonl", names, [n / 2000 for n in range(101)], **ids)).describe()
    assert (bailian.duration_s, bailian.time_unit) == (0.05, None)
    burst = [n // 2 for n in range(1200)] + [1000 * n for n in range(1, 1000)]
    mooncake = open_trace(records(tmp_path / "b.jsonl", names, burst)).describe()
    assert (mooncake.duration_s, mooncake.time_unit) == (999.0, None)


@pytest.mark.parametrize(
    ("column", "unit"),
    [("start_ns", "ns"), ("startTimeUnixNano", "ns"), ("t (ms)", "ms"), ("a.epochMillis", "ms"), ("startUs", "us")],
)
def test_a_column_that_names_its_unit(tmp_path: Path, column: str, unit: str) -> None:
    path = records(tmp_path / "log.jsonl", (column, "i", "o"), [0, 1, 2, 3])
    trace = open_trace(path, columns=Columns(input="i", output="o", time=column))
    assert trace.time_unit is not None
    assert (trace.time_unit.unit, trace.time_unit.basis) == (unit, NAME)


@pytest.mark.parametrize("column", ["timestamp", "requests", "status", "created", "times", "t"])
def test_a_column_that_names_none(column: str) -> None:
    unit = find_unit(column, 0.0, 10.0, 11, declared_s=None)
    assert unit is not None
    assert (unit.unit, unit.basis) == ("s", DEFAULT)


@pytest.mark.parametrize("kind", ["csv", "parquet", "polars", "pandas", "pyarrow"])
def test_frames_and_files_agree_on_the_unit(tmp_path: Path, kind: str) -> None:
    times = [round((START_S + time) * 1e3) for time in arrivals()]
    frame = pl.DataFrame({"t": times, "i": [10] * len(times), "o": [5] * len(times)})
    source: Any = tmp_path / f"log.{kind}"
    if kind == "csv":
        frame.write_csv(source)
    elif kind == "parquet":
        frame.write_parquet(source)
    else:
        source = {"polars": frame, "pandas": frame.to_pandas(), "pyarrow": frame.to_arrow()}[kind]
    trace = open_trace(source, columns=NAMED)
    assert trace.time_unit is not None
    assert trace.time_unit.unit == "ms"
    assert trace.describe().duration_s == pytest.approx((times[-1] - times[0]) / 1e3)


def test_datetimes_of_any_precision_have_their_own_unit() -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    times = pl.Series([start + timedelta(seconds=n) for n in range(5)])
    for precision in ("ms", "us", "ns"):
        frame = pl.DataFrame({"t": times.dt.cast_time_unit(precision), "i": [1] * 5, "o": [1] * 5})
        for held in (frame, frame.to_pandas()):
            trace = open_trace(held, columns=NAMED)
            assert (trace.describe().duration_s, trace.time_unit) == (4.0, None)


@given(
    st.sampled_from(UNITS),
    st.floats(1.3e9, 4.0e9),
    st.floats(0.0, 1e8),
    st.integers(1, 10**6),
    st.sampled_from([None, 1.0, 1e-3]),
)
def test_a_date_is_a_date_in_one_unit(
    unit: str, start_s: float, span_s: float, requests: int, declared_s: float | None
) -> None:
    low, high = start_s / UNITS_S[unit], (start_s + span_s) / UNITS_S[unit]
    found = find_unit("t", low, high, requests, declared_s=declared_s)
    assert (declared_s or 1.0 if found is None else found.seconds) == UNITS_S[unit]


@given(st.sampled_from(UNITS), st.floats(0.2, 150.0), st.integers(10, 10**5))
def test_relative_numbers_of_a_server_are_never_off_by_a_million(unit: str, rate_per_s: float, requests: int) -> None:
    high = (requests - 1) / rate_per_s / UNITS_S[unit]
    found = find_unit("t", 0.0, high, requests, declared_s=None)
    assert found is not None
    assert 0.9e-3 <= UNITS_S[found.unit] / UNITS_S[unit] <= 1.1e3


@pytest.mark.parametrize(
    ("unit", "times"), [("ns", [0, 1000, 2000, 3000]), ("s", [1.76e12, 1.77e12]), ("ms", [7.4e12])]
)
def test_what_cannot_be_meant_names_the_option(tmp_path: Path, unit: str, times: list[float]) -> None:
    path = records(tmp_path / "log.jsonl", ("t", "i", "o"), times)
    trace = open_trace(path, columns=Columns(input="i", output="o", time="t", time_unit_s=UNITS_S[unit]))
    for read in (trace.describe, trace.requests, lambda: trace.sample(whole_requests=1)):
        with raises("bad-trace", column="t") as error:
            read()
        assert "--time-unit" in str(error.value)
    assert len(trace.requests(arrivals=False)) == len(times)


def test_dates_in_two_units_are_an_error(tmp_path: Path) -> None:
    times = [(START_S + n) * (1000 if n % 2 else 1) for n in range(100)]
    path = records(tmp_path / "log.jsonl", ("created", "prompt_tokens", "completion_tokens"), times)
    with raises("bad-trace", column="created"):
        open_trace(path)
    assert open_trace(path, columns=Columns(time_unit_s=1.0)).histogram().requests == 100


def test_a_bailian_trace_in_milliseconds_is_one(tmp_path: Path) -> None:
    ids = {"chat_id": 1, "parent_chat_id": -1}
    path = records(
        tmp_path / "a.jsonl", ("timestamp", "input_length", "output_length"), [500 * n for n in range(101)], **ids
    )
    assert open_trace(path).describe().duration_s == 50.0


def test_a_log_that_is_slow_in_the_unit_of_its_format_says_so(tmp_path: Path) -> None:
    names = "arrived_at", "num_prefill_tokens", "num_decode_tokens"
    slow = open_trace(records(tmp_path / "a.jsonl", names, [500 * n for n in range(50)])).describe()
    assert slow.duration_s == 500 * 49
    assert slow.time_unit is not None
    assert (slow.time_unit.unit, slow.time_unit.basis) == ("s", FORMAT)
    assert open_trace(records(tmp_path / "b.jsonl", names, [5 * n for n in range(50)])).time_unit is None


def test_relative_numbers_that_no_unit_explains_are_an_error(tmp_path: Path) -> None:
    names = "arrival_s", "input_tokens", "output_tokens"
    with raises("bad-trace", column="arrival_s"):
        open_trace(records(tmp_path / "log.jsonl", names, [n * 1e-7 for n in range(100)])).describe()


SPELLINGS = [
    "%Y-%m-%d %H:%M:%S UTC",
    "%Y-%m-%d %H:%M:%S.%f UTC",
    "%Y-%m-%dT%H:%M:%S,%fZ",
    "%Y-%m-%d %H:%M:%S,%f",
    "%Y-%m-%d, %H:%M:%S gmt",
    "%Y-%m-%dT%H:%M:%S.%f+00:00[UTC]",
    "%Y/%m/%d %H:%M:%S",
    "%Y.%m.%d %H:%M:%S.%f",
    "%Y%m%dT%H%M%SZ",
    "%d.%m.%Y %H:%M:%S",
    "%d/%m/%Y %H:%M:%S",
    "%m/%d/%Y %H:%M:%S",
    "%d/%b/%Y:%H:%M:%S +0000",
    "%a, %d %b %Y %H:%M:%S GMT",
    "%Y-%m-%d %I:%M:%S %p",
    "%m/%d/%Y %I:%M:%S %p",
    "%d/%m/%Y, %I:%M:%S %p",
    "[%Y-%m-%d %H:%M:%S]",
    "%Y-%m-%d %H:%M:%S.%f +0000 UTC",
    "%Y-%m-%dt%H:%M:%Sz",
    "%b %d, %Y @ %H:%M:%S.%f",
    "%b %d %Y %H:%M:%S",
    "%B %d, %Y at %I:%M:%S %p",
    "%d %B %Y %H:%M:%S",
    "%d-%b-%Y %H:%M:%S.%f",
    "%a %b %d %H:%M:%S UTC %Y",
    "%a %b %d %Y %H:%M:%S GMT+0000 (Coordinated Universal Time)",
]


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_times_in_the_spellings_that_logs_have(tmp_path: Path, spelling: str, kind: str) -> None:
    start = datetime(2024, 5, 10, 11, 59, 58, tzinfo=UTC)
    times = [(start + timedelta(hours=11 * n)).strftime(spelling) for n in range(5)]
    frame = pl.DataFrame({"t": times, "i": [10] * 5, "o": [5] * 5})
    path = tmp_path / f"log.{kind}"
    write: dict[str, Any] = {"csv": frame.write_csv, "jsonl": frame.write_ndjson, "parquet": frame.write_parquet}
    write[kind](path)
    trace = open_trace(path, columns=NAMED)
    assert trace.describe().duration_s == 44 * 3600
    requests = trace.requests()
    assert requests.duration_s == 44 * 3600
    assert requests.origin_unix_s == start.timestamp()
    assert trace.time_unit is None


def test_commas_are_points_where_semicolons_are_commas(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("t;i;o\n0,5;1;1\n2,25;1;1\n", encoding="utf-8")
    assert open_trace(path, columns=NAMED).describe().duration_s == 1.75


@pytest.mark.parametrize(
    ("text", "utc"),
    [("2025-03-09 10:00:02 PST", 18), ("Sun Mar 09 10:00:02 PDT 2025", 17), ("2025-03-09T10:00:02 CEST", 8)],
)
def test_names_of_zones_with_one_meaning_are_read(tmp_path: Path, text: str, utc: int) -> None:
    path = tmp_path / "log.csv"
    path.write_text(f"t;i;o\n{text};9;3\n", encoding="utf-8")
    columns = Columns(input="i", output="o", time="t")
    requests = open_trace(path, columns=columns).requests()
    assert requests.origin_unix_s == datetime(2025, 3, 9, utc, 0, 2, tzinfo=UTC).timestamp()
    # CST is of China, too.
    path.write_text("t;i;o\n2025-03-09 10:00:02 CST;9;3\n", encoding="utf-8")
    assert "--time-column" in str(open_trace(path, columns=columns).requests().order_reason)


def test_days_as_of_a_spreadsheet_are_dates(tmp_path: Path) -> None:
    start = datetime(2025, 3, 9, 10, tzinfo=UTC)
    path = tmp_path / "log.csv"
    days = [(start + timedelta(minutes=n) - datetime(1899, 12, 30, tzinfo=UTC)) / timedelta(days=1) for n in range(300)]
    path.write_text("t,i,o\n" + "".join(f"{day:.8f},9,3\n" for day in days), encoding="utf-8")
    trace = open_trace(path, columns=Columns(input="i", output="o", time="t"))
    requests = trace.requests()
    assert trace.time_unit is not None
    assert (trace.time_unit.unit, trace.time_unit.basis) == ("d", DATES)
    assert requests.duration_s == pytest.approx(299 * 60, abs=0.01)
    assert requests.origin_unix_s == pytest.approx(start.timestamp(), abs=0.01)
    seconds = open_trace(path, columns=Columns(input="i", output="o", time="t", time_unit_s=1.0))
    assert seconds.requests().duration_s == pytest.approx(299 / 1440, abs=0.01)


@pytest.mark.parametrize("bad", ["yesterday", None, "NaN"])
@pytest.mark.parametrize("kind", ["csv", "jsonl", "polars", "pandas"])
def test_few_requests_without_an_arrival_are_left_out_and_counted(tmp_path: Path, bad: str | None, kind: str) -> None:
    times = [str(START_S + n) for n in range(999)]
    frame = pl.DataFrame({"t": [*times[:7], bad, *times[7:]], "i": [10] * 1000, "o": [5] * 1000})
    source: Any = tmp_path / f"log.{kind}"
    if kind == "csv":
        frame.write_csv(source)
    elif kind == "jsonl":
        frame.write_ndjson(source)
    else:
        frame = frame.with_columns(pl.col("t").cast(pl.Float64, strict=False))
        source = frame if kind == "polars" else frame.to_pandas()
    trace = open_trace(source, columns=NAMED)
    summary, requests = trace.describe(), trace.requests()
    assert (summary.requests, summary.unreadable_rows, summary.duration_s) == (999, 1, 998.0)
    assert (len(requests), requests.set_aside.unreadable, requests.duration_s) == (999, 1, 998.0)
    assert trace.histogram().requests == len(trace.requests(arrivals=False)) == 1000
    strict = open_trace(source, columns=NAMED, bad_rows=0)
    assert "1 of 1,000 requests have no arrival" in str(strict.describe().arrival_reason)
    with raises("no-arrivals", untimed=1):
        strict.requests()
