"""Traces read from every format and frame; each request counted once, in 64 bits, where it belongs."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import runpy
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infergy.workload import Bin, Bins, Columns, Histogram, open_trace, shipped_traces
from raising import raises

Requests = list[tuple[int, int]]
requests = st.lists(st.tuples(st.integers(0, 70_000), st.integers(0, 5_000)), min_size=1, max_size=60).filter(
    lambda rows: any(output for _, output in rows)
)


def frame_of(rows: Requests) -> pl.DataFrame:
    return pl.DataFrame(rows, schema={"input_tokens": pl.Int32, "output_tokens": pl.Int32}, orient="row")


def counted_by_hand(rows: Requests, bins: Bins) -> dict[Bin | None, tuple[int, int, int]]:
    sums: dict[Bin | None, list[int]] = defaultdict(lambda: [0, 0, 0])
    for given_tokens, output_tokens in rows:
        if output_tokens:
            place = sums[bins.find(given_tokens, output_tokens)]
            for axis, value in enumerate((1, given_tokens, output_tokens)):
                place[axis] += value
    return {one: (n, i, o) for one, (n, i, o) in sums.items()}


def counted(histogram: Histogram) -> dict[Bin | None, tuple[int, int, int]]:
    found: dict[Bin | None, tuple[int, int, int]] = {
        count.bin: (count.requests, count.input_tokens, count.output_tokens) for count in histogram.counts
    }
    if histogram.left_out:
        left = histogram.left_out
        found[None] = (left.requests, left.input_tokens, left.output_tokens)
    return found


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def jsonl(path: Path, *records: dict[str, Any]) -> Path:
    return write(path, "".join(json.dumps(record) + "\n" for record in records))


@given(requests)
def test_default_bins_are_powers_of_two_that_leave_nobody_out(rows: Requests) -> None:
    histogram = open_trace(frame_of(rows)).histogram()
    served = [row for row in rows if row[1]]
    longest = max(i for i, _ in served), max(o for _, o in served)
    assert histogram.bins == Bins.powers_of_two(*longest)
    assert counted(histogram) == counted_by_hand(rows, histogram.bins)
    assert histogram.left_out is None
    assert histogram.failed_requests == len(rows) - len(served)


edges = st.lists(st.integers(1, 80_000), min_size=1, max_size=6, unique=True).map(lambda values: tuple(sorted(values)))


@given(requests, edges, edges)
def test_bins_of_any_edges_agree_with_a_count_by_hand(
    rows: Requests, input_edges: tuple[int, ...], output_edges: tuple[int, ...]
) -> None:
    bins = Bins(name="custom", input_edges=input_edges, output_edges=output_edges)
    assert counted(open_trace(frame_of(rows)).histogram(bins)) == counted_by_hand(rows, bins)


@given(requests)
def test_the_papers_bins_leave_out_what_is_past_the_last_edge_and_say_how_long_it_is(rows: Requests) -> None:
    histogram = open_trace(frame_of(rows)).histogram(Bins.paper())
    assert counted(histogram) == counted_by_hand(rows, Bins.paper())
    past = [row for row in rows if row[1] and Bins.paper().find(*row) is None]
    if past:
        assert histogram.left_out is not None
        corner = histogram.left_out.bin
        assert (corner.input_tokens, corner.output_tokens) == (max(i for i, _ in past), max(o for _, o in past))


@given(requests, requests)
@settings(max_examples=30)
def test_counts_of_two_traces_add_up_to_those_of_both(first: Requests, second: Requests) -> None:
    parts = [counted(open_trace(frame_of(rows)).histogram(Bins.paper())) for rows in (first, second)]
    whole = counted(open_trace(frame_of(first + second)).histogram(Bins.paper()))
    places = set(parts[0]) | set(parts[1])
    nothing = (0, 0, 0)
    added = {
        place: tuple(a + b for a, b in zip(*(part.get(place, nothing) for part in parts), strict=True))
        for place in places
    }
    assert whole == added


@pytest.mark.parametrize("edge", [32, 64, 1024, 2**31])
def test_a_length_on_an_edge_belongs_below_it_and_one_more_above(edge: int) -> None:
    rows = pl.DataFrame({"input_tokens": [edge, edge + 1], "output_tokens": [8, 9]})
    histogram = open_trace(rows).histogram()
    assert [count.bin.input_tokens for count in histogram.counts] == [edge, 2 * edge]
    assert [count.bin.output_tokens for count in histogram.counts] == [8, 16]


@pytest.mark.parametrize("bins", [None, Bins.paper()])
def test_32_bit_columns_are_summed_in_64_bits(tmp_path: Path, bins: Bins | None) -> None:
    rows = frame_of([(2_000_000_000, 1_500_000_000)] * 4)
    rows.write_parquet(tmp_path / "long.parquet")
    # What this guards against: polars' own sum of the column wraps.
    assert rows["input_tokens"].sum() != 8_000_000_000
    for source in (rows, tmp_path / "long.parquet", rows.to_pandas(), rows.to_arrow()):
        histogram = open_trace(source).histogram(bins)
        one = histogram.counts[0] if bins is None else histogram.left_out
        assert one is not None
        assert (one.input_tokens, one.output_tokens) == (8_000_000_000, 6_000_000_000)
        assert open_trace(source).describe().input.total == 8_000_000_000


def save(rows: pl.DataFrame, path: Path) -> None:
    writers: dict[str, Callable[[Path], Any]] = {
        ".csv": rows.write_csv,
        ".jsonl": rows.write_ndjson,
        ".parquet": rows.write_parquet,
    }
    writers[path.suffix](path)


AZURE_2023 = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\r\n2023-11-16 18:17:03.9799600,4808,10\r\n2023-11-16 18:17:05.9799600,30,8"
)
AZURE_2024 = (
    "\ufeffTIMESTAMP,ContextTokens,GeneratedTokens\n"
    "2024-05-10 00:00:00.009930+00:00,4808,10\n2024-05-10 00:00:02.009930+00:00,30,8\n"
)
BURSTGPT_1 = (
    "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "5,ChatGPT,4808,10,4818,Conversation log\n6,GPT-4,100,0,100,API log\n7,ChatGPT,30,8,38,API log\n"
)
BURSTGPT_2 = (
    "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "5.0,1,0.4,ChatGPT,4808,10,4818,Conversation log\n6,,,GPT-4,100,0,100,API log\n7,2,1,ChatGPT,30,8,38,API log\n"
)
MOONCAKE = (
    '{"timestamp": 0, "input_length": 4808, "output_length": 10, "hash_ids": [0, 1]}\n'
    '{"timestamp": 2000, "input_length": 30, "output_length": 8, "hash_ids": []}\n'
)


@pytest.mark.parametrize(
    ("text", "format_name", "failed"),
    [
        (AZURE_2023, "azure", 0),
        (AZURE_2024, "azure", 0),
        (BURSTGPT_1, "burstgpt", 1),
        (BURSTGPT_2, "burstgpt", 1),
        (MOONCAKE, "mooncake", 0),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_public_traces_are_read_as_published(
    tmp_path: Path, text: str, format_name: str, failed: int, zipped: bool
) -> None:
    content = text.encode()
    path = write(tmp_path / "trace", gzip.compress(content) if zipped else content)
    trace = open_trace(path)
    histogram, summary = trace.histogram(), trace.describe()
    assert trace.format == format_name
    assert counted(histogram) == counted_by_hand([(4808, 10), (30, 8)], histogram.bins)
    assert histogram.failed_requests == summary.failed_requests == failed
    assert summary.requests == 2
    assert summary.duration_s == pytest.approx(2.0, abs=1e-6)
    assert summary.arrival_rate_per_s == pytest.approx(0.5)


USAGE = {"prompt_tokens": 1000, "completion_tokens": 10, "prompt_tokens_details": {"cached_tokens": 900, "audio": 0}}
PLAIN = {"prompt_tokens": 50, "completion_tokens": 20, "prompt_tokens_details": None}
RESPONSES = {"input_tokens": 1000, "output_tokens": 10, "input_tokens_details": {"cached_tokens": 900}}


@pytest.mark.parametrize(
    "records",
    [
        [{"created": 5, "usage": USAGE}, {"error": {"code": 500}, "usage": None}, {"created": 7.5, "usage": PLAIN}],
        [
            {"created_at": 5, "usage": RESPONSES},
            {"error": "late"},
            {"created_at": 7.5, "usage": {"input_tokens": 50, "output_tokens": 20}},
        ],
        [
            {"response": {"status_code": 200, "body": {"created": 5, "usage": USAGE}}, "error": None},
            {"response": None, "error": {"code": "expired"}},
            {"response": {"status_code": 200, "body": {"created": 7.5, "usage": PLAIN}}},
        ],
        [
            {"created": 5, "usage": {"prompt_tokens": 1000, "completion_tokens": 10, "cached_tokens": 900}},
            {"error": "late"},
            {"created": 7.5, "usage": PLAIN},
        ],
        [{"created": 5, "cached_tokens": 900, **USAGE}, {"error": "late"}, {"created": 7.5, **PLAIN}],
        [
            {"usage.prompt_tokens": 1000, "usage.completion_tokens": 10, "created": 5,
             "usage.prompt_tokens_details.cached_tokens": 900},
            {"error": "late"},
            {"usage.prompt_tokens": 50, "usage.completion_tokens": 20, "created": 7.5},
        ],
    ],
    ids=["chat", "responses", "batch-output", "cached-in-usage", "flat", "flattened"],
)  # fmt: skip
def test_usage_logs_count_uncached_prefill_and_set_errors_aside(tmp_path: Path, records: list[dict[str, Any]]) -> None:
    trace = open_trace(jsonl(tmp_path / "usage.jsonl", *records))
    histogram, summary = trace.histogram(), trace.describe()
    assert trace.format == "openai"
    assert counted(histogram) == counted_by_hand([(100, 10), (50, 20)], histogram.bins)
    assert (histogram.cached_input_tokens, histogram.failed_requests) == (900, 1)
    assert (summary.input.total, summary.cached_input_tokens, summary.failed_requests) == (1050, 900, 1)
    assert summary.cached_share == pytest.approx(900 / 1050)
    assert summary.duration_s == 2.5


def test_cached_tokens_that_no_record_reports_are_unknown_not_zero(tmp_path: Path) -> None:
    summary = open_trace(jsonl(tmp_path / "usage.jsonl", {"usage": PLAIN})).describe()
    assert summary.cached_input_tokens is None
    assert summary.cached_share is None


def test_cached_tokens_that_appear_only_late_in_a_log_are_seen(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "usage.jsonl", *[{"usage": PLAIN}] * 100, {"usage": USAGE})
    assert open_trace(path).histogram().cached_input_tokens == 900


def test_a_log_that_begins_with_errors_is_recognised(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "usage.jsonl", *[{"error": "late"}] * 100, {"usage": USAGE})
    histogram = open_trace(path).histogram()
    assert (histogram.requests, histogram.failed_requests) == (1, 100)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("name", ["log[1]", "log*", "lo?"])
def test_a_name_with_a_wildcard_is_one_file(tmp_path: Path, name: str, suffix: str) -> None:
    for stem, count in ((name, 1), ("log1", 5)):
        rows = frame_of([(1, 1)] * count)
        save(rows, tmp_path / f"{stem}.{suffix}")
    assert open_trace(tmp_path / f"{name}.{suffix}").histogram().requests == 1


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_any_log_is_read_by_named_columns(tmp_path: Path, suffix: str) -> None:
    rows = pl.DataFrame({"p": [100, 20], "c": [7, 9], "when": [1000, 3000], "hit": [36, 0]})
    path = tmp_path / f"log.{suffix}"
    save(rows, path)
    columns = Columns(input="p", output="c", time="when", cached="hit", time_unit_s=1e-3)
    trace = open_trace(path, columns=columns)
    assert counted(trace.histogram()) == counted_by_hand([(64, 7), (20, 9)], trace.histogram().bins)
    assert trace.describe().duration_s == 2.0
    assert trace.format == "columns"


def test_struct_columns_of_parquet_are_read_by_their_paths(tmp_path: Path) -> None:
    rows = pl.DataFrame({"usage": [{"prompt_tokens": 9, "completion_tokens": 3}, None], "created": [1, 2]})
    rows.write_parquet(tmp_path / "usage.parquet")
    histogram = open_trace(tmp_path / "usage.parquet").histogram()
    assert (histogram.requests, histogram.input_tokens, histogram.failed_requests) == (1, 9, 1)


def test_semicolons_and_whole_numbers_with_a_point_are_understood(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", "prompt_tokens;completion_tokens\n40.0;8.0\n 50 ;9\n")
    histogram = open_trace(path).histogram()
    assert (histogram.input_tokens, histogram.output_tokens, histogram.requests) == (90, 17, 2)


@pytest.mark.parametrize("kind", [pl.Int8, pl.UInt16, pl.UInt64, pl.Float32, pl.Float64, pl.String, pl.Decimal(20, 0)])
def test_numbers_of_any_type_are_counted_alike(kind: Any) -> None:
    rows = pl.DataFrame({"input_tokens": [1, 33, 100], "output_tokens": [0, 8, 9]}).select(pl.all().cast(kind))
    histogram = open_trace(rows).histogram()
    assert counted(histogram) == counted_by_hand([(33, 8), (100, 9)], histogram.bins)
    assert histogram.failed_requests == 1


def as_duckdb(rows: pl.DataFrame) -> Any:
    duckdb = pytest.importorskip("duckdb")
    connection = duckdb.connect()
    connection.register("held", rows.to_arrow())
    return connection.sql("SELECT * FROM held")


FRAMES = {
    "polars": lambda rows: rows,
    "polars-lazy": lambda rows: rows.lazy(),
    "pandas": lambda rows: rows.to_pandas(),
    "pandas-nullable": lambda rows: rows.to_pandas().convert_dtypes(),
    "pandas-arrow": lambda rows: rows.to_pandas(use_pyarrow_extension_array=True),
    "pyarrow": lambda rows: rows.to_arrow(),
    "duckdb": as_duckdb,
}


@pytest.fixture(params=FRAMES)
def held(request: pytest.FixtureRequest) -> Any:
    return FRAMES[request.param]


def held_rows() -> pl.DataFrame:
    return pl.DataFrame(
        {
            "input_tokens": [5000, 40, 33, 1],
            "output_tokens": [600, 0, 8, 300],
            "cached_tokens": [4000, None, 0, None],
            "arrival_s": pl.Series(["2024-05-10 00:00:00", "2024-05-10 00:00:01"] * 2).str.to_datetime(),
        }
    )


@pytest.mark.parametrize("bins", [None, Bins.paper(), Bins(name="custom", input_edges=(35,), output_edges=(8, 1000))])
def test_a_frame_is_counted_alike_by_whichever_library_holds_it(held: Any, bins: Bins | None) -> None:
    histogram = open_trace(held(held_rows())).histogram(bins)
    expected = [(1000, 600), (33, 8), (1, 300)]
    assert counted(histogram) == counted_by_hand(expected, histogram.bins)
    assert (histogram.failed_requests, histogram.cached_input_tokens) == (1, 4000)


def test_a_frame_is_described_alike_by_whichever_library_holds_it(held: Any) -> None:
    summary = open_trace(held(held_rows())).describe()
    assert (summary.requests, summary.failed_requests, summary.cached_input_tokens) == (3, 1, 4000)
    assert (summary.input.total, summary.input.median, summary.output.longest) == (5034, 33, 600)
    assert (summary.duration_s, summary.arrival_rate_per_s) == (1.0, 2.0)


def test_a_frame_with_bad_tokens_is_refused_whichever_library_holds_it(held: Any) -> None:
    rows = pl.DataFrame({"input_tokens": [5.0, 7.5, None, -1.0], "output_tokens": [1, 1, 1, 1]})
    with raises("bad-trace", rows={"input": 3}) as told:
        open_trace(held(rows)).histogram()
    assert re.search(r"3 of 4 rows: input tokens.*7\.5.*missing.*-1.*--input-column", str(told.value))
    with raises("bad-trace", rows={"input": 3}):
        open_trace(held(rows)).describe()


@pytest.mark.parametrize("library", ["pandas", "pandas-nullable", "pandas-arrow", "pyarrow", "duckdb"])
def test_frames_of_other_libraries_are_counted_without_polars(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = FRAMES[library](held_rows())
    monkeypatch.setitem(sys.modules, "polars", None)
    assert open_trace(frame).histogram().requests == 3
    assert open_trace(frame).describe().input.total == 5034


def test_only_counts_leave_a_database(monkeypatch: pytest.MonkeyPatch) -> None:
    narwhals = pytest.importorskip("narwhals")
    collect, fetched = narwhals.LazyFrame.collect, []

    def watch(query: Any) -> Any:
        fetched.append(collect(query))
        return fetched[-1]

    monkeypatch.setattr(narwhals.LazyFrame, "collect", watch)
    assert open_trace(as_duckdb(frame_of([(40, 8), (900, 70)] * 5_000))).histogram().requests == 10_000
    assert [len(rows) for rows in fetched] == [2]


RECORDED = sorted(name for name, about in shipped_traces().items() if "lengths_from" not in about)


@pytest.mark.parametrize("name", sorted(shipped_traces()))
def test_a_shipped_trace_is_the_file_its_notes_describe(name: str) -> None:
    about = shipped_traces()[name]
    content = (resources.files("infergy") / "data" / "traces" / about["file"]).read_bytes()
    assert hashlib.sha256(content).hexdigest() == about["sha256"]
    trace = open_trace(name)
    assert about["license"] in str(trace.attribution)
    assert about["citation"] in str(trace.attribution)


def test_burstgpt_synthetic_is_drawn_with_the_published_moments() -> None:
    name = "burstgpt-synthetic"
    made = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "burstgpt_synthetic.py"))
    requests = open_trace(name).requests()
    for column, tokens in made["columns"]().items():
        assert getattr(requests, column).tolist() == tokens.tolist()
        mean, sd, median, p99 = made["PUBLISHED"][column]
        assert tokens.mean() == pytest.approx(mean, abs=0.005)
        assert tokens.std() == pytest.approx(sd, abs=0.02)
        assert np.median(tokens) == median
        assert np.quantile(tokens, 0.99) == pytest.approx(p99, rel=0.005)
    assert requests.arrival_s is None
    assert "assumed, not recorded" in str(requests.lengths_from)


@pytest.mark.parametrize("name", RECORDED)
def test_a_shipped_trace_holds_every_byte_of_the_published_one(name: str) -> None:
    about = shipped_traces()[name]
    rows = pl.read_parquet(str(resources.files("infergy") / "data" / "traces" / about["file"]))
    published = rows.with_columns(pl.col("TIMESTAMP").dt.strftime("%Y-%m-%d %H:%M:%S%.9f").str.head(27))
    text = published.write_csv(line_terminator="\r\n").removesuffix("\r\n")
    assert hashlib.sha256(text.encode()).hexdigest() == about["original_sha256"]


@pytest.mark.parametrize("name", RECORDED)
def test_the_columns_of_a_shipped_trace_are_its_requests(name: str) -> None:
    about = shipped_traces()[name]
    path = resources.files("infergy") / "data" / "traces" / about["file"]
    assert about["fields"].split() == list(pl.read_parquet_schema(str(path)))
    shipped, read = open_trace(name).requests(), open_trace(str(path)).requests()
    assert (shipped.source, shipped.set_aside, shipped.order_reason) == (name, read.set_aside, read.order_reason)
    for column in ("input_tokens", "output_tokens", "arrival_s"):
        ours, theirs = getattr(shipped, column), getattr(read, column)
        assert ours.dtype == theirs.dtype
        assert ours.tolist() == theirs.tolist()
    assert shipped.origin_unix_s == pytest.approx(read.origin_unix_s, abs=1e-5)
    assert (read.cached_tokens, read.prefix_blocks, read.after, read.lengths_from) == (None, None, None, None)
    assert open_trace(name).sample().windows[0].requests.output_tokens.tolist() == read.output_tokens.tolist()


def test_the_shipped_conversation_trace_has_the_published_size() -> None:
    summary = open_trace("azure-conv-2023").describe()
    assert (summary.requests, summary.input.total, summary.output.total) == (19_366, 22_361_870, 4_088_665)
    histogram = open_trace("azure-conv-2023").histogram()
    assert (histogram.requests, histogram.input_tokens, histogram.output_tokens) == (19_366, 22_361_870, 4_088_665)


def test_a_log_without_arrivals_has_no_rate_and_says_why(tmp_path: Path) -> None:
    summary = open_trace(frame_of([(1, 1), (2, 2)])).describe()
    assert summary.duration_s is None
    assert summary.arrival_rate_per_s is None
    assert "--time-column" in str(summary.arrival_reason)
    path = write(tmp_path / "log.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-10 00:00:00,1,1\nnoon,1,1\n")
    assert "1 of 2 requests have no arrival in 'TIMESTAMP'" in str(open_trace(path).describe().arrival_reason)


def test_requests_at_one_instant_have_a_duration_but_no_rate() -> None:
    summary = open_trace(frame_of([(1, 1)]).with_columns(arrival_s=5.0)).describe()
    assert (summary.duration_s, summary.arrival_rate_per_s) == (0.0, None)
    assert "same instant" in str(summary.arrival_reason)


def test_the_declared_frame_is_lazy_and_nulls_what_cannot_be_meant() -> None:
    rows = pl.DataFrame({"input_tokens": ["5", "x"], "output_tokens": ["1", "2.5"], "cached_tokens": ["2", None]})
    frame = open_trace(rows).frame
    assert isinstance(frame, pl.LazyFrame)
    assert frame.collect().to_dicts() == [
        {"input_tokens": 5, "output_tokens": 1, "cached_tokens": 2, "uncached_tokens": 3},
        {"input_tokens": None, "output_tokens": None, "cached_tokens": None, "uncached_tokens": None},
    ]


def test_importing_the_workload_loads_no_data_library() -> None:
    code = (
        "import sys, infergy.workload as w; w.shipped_traces(); "
        "print(sorted({'polars', 'narwhals', 'pydantic', 'numpy', 'pandas', 'torch'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
