"""Traces: every format, every kind of frame, and what is told of bad ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infergy.errors import DataError, UsageError
from infergy.workload import Bins, Columns, open_trace

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


@pytest.fixture
def log(tmp_path: Path) -> Callable[[str, str], Path]:
    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


Log = Callable[[str, str], Path]


def test_the_shipped_conversation_trace_is_the_2023_release() -> None:
    summary = open_trace("azure-conv-2023").describe()
    assert (summary.requests, summary.input.total, summary.output.total) == (19366, 22361870, 4088665)
    assert summary.input.longest == 14050
    assert summary.duration_s == pytest.approx(3501.72, abs=0.01)


def test_the_shipped_code_trace_counts_as_the_paper_bins_count_it() -> None:
    histogram = open_trace("azure-code-2023").histogram(Bins.paper())
    assert histogram.requests == 8792
    assert histogram.left_out is not None
    assert histogram.left_out.requests == 27
    assert histogram.requests + histogram.left_out.requests == 8819


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.csv", AZURE + "2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109\n", "azure"),
        ("bom.csv", "\ufeff" + AZURE + "2024-05-10 00:00:00.009930+00:00,374,44\n2024-05-10 00:00:04.3+00:00,396,109\n", "azure"),
        ("b.csv", "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,ChatGPT,374,44,418,API log\n45,GPT-4,396,109,505,API log\n", "burstgpt"),
        ("b2.csv", "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,,1.2,ChatGPT,374,44,418,API log\n45,7,2.0,GPT-4,396,109,505,API log\n", "burstgpt"),
        ("m.jsonl", '{"timestamp": 0, "input_length": 374, "output_length": 44, "hash_ids": [0]}\n{"timestamp": 27482, "input_length": 396, "output_length": 109, "hash_ids": [1]}\n', "mooncake"),
        ("o.jsonl", '{"created": 10, "usage": {"prompt_tokens": 374, "completion_tokens": 44}}\n{"created": 12, "usage": {"prompt_tokens": 396, "completion_tokens": 109}}\n', "openai"),
        ("r.jsonl", '{"created_at": 1, "usage": {"input_tokens": 374, "output_tokens": 44}}\n{"created_at": 2, "usage": {"input_tokens": 396, "output_tokens": 109}}\n', "responses"),
        ("f.jsonl", '{"prompt_tokens": 374, "completion_tokens": 44}\n{"prompt_tokens": 396, "completion_tokens": 109}\n', "flat"),
    ],
)  # fmt: skip
def test_each_format_is_recognised_from_its_header(log: Log, name: str, text: str, expected: str) -> None:
    trace = open_trace(log(name, text))
    assert trace.format == expected
    histogram = trace.histogram()
    assert (histogram.requests, histogram.input_tokens, histogram.output_tokens) == (2, 770, 153)
    summary = trace.describe()
    assert (summary.duration_s is not None) == (expected != "flat")


def test_timestamps_become_seconds(log: Log) -> None:
    text = AZURE + "2023-11-16 18:15:46.5,1,1\n2023-11-16 18:15:50.0000000,1,1\n"
    assert open_trace(log("a.csv", text)).describe().duration_s == pytest.approx(3.5)
    mooncake = "".join(json.dumps({"timestamp": t, "input_length": 1, "output_length": 1}) + "\n" for t in (0, 2500))
    assert open_trace(log("m.jsonl", mooncake)).describe().duration_s == pytest.approx(2.5)


def test_failed_requests_are_set_aside_and_counted(log: Log) -> None:
    text = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n1,a,10,0,10,x\n2,a,10,5,15,x\n"
    trace = open_trace(log("b.csv", text))
    assert trace.histogram().failed_requests == 1
    assert trace.histogram().requests == 1
    assert trace.describe().failed_requests == 1


def test_cached_tokens_are_taken_off_the_input(log: Log) -> None:
    usage = {"prompt_tokens": 1000, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 960}}
    histogram = open_trace(log("o.jsonl", json.dumps({"usage": usage}) + "\n")).histogram()
    assert histogram.input_tokens == 40
    assert histogram.cached_input_tokens == 960
    assert histogram.counts[0].bin.input_tokens == 64


def test_more_cached_than_input_is_an_error(log: Log) -> None:
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 11}}
    with pytest.raises(DataError, match="row 1"):
        open_trace(log("o.jsonl", json.dumps({"usage": usage}) + "\n")).histogram()


def frames() -> list[Any]:
    data = {"prompt": [100, 200, 3000], "answer": [7, 8, 9]}
    return [pl.DataFrame(data), pl.LazyFrame(data), pd.DataFrame(data), pa.table(data)]


@pytest.mark.parametrize("frame", frames(), ids=lambda frame: type(frame).__module__.split(".")[0])
def test_any_frame_is_taken(frame: Any) -> None:
    histogram = open_trace(frame, columns=Columns(input="prompt", output="answer")).histogram()
    assert (histogram.requests, histogram.input_tokens, histogram.output_tokens) == (3, 3300, 24)


def test_a_duckdb_relation_is_taken() -> None:
    duckdb = pytest.importorskip("duckdb")
    relation = duckdb.sql("select 100 as prompt, 7 as answer union all select 300, 9")
    assert open_trace(relation, columns=Columns(input="prompt", output="answer")).histogram().input_tokens == 400


def test_sums_are_64_bit_although_columns_are_32(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {"prompt_tokens": [2_000_000_000, 2_000_000_000], "completion_tokens": [1, 1]},
        schema={"prompt_tokens": pl.Int32, "completion_tokens": pl.Int32},
    )
    frame.write_parquet(tmp_path / "t.parquet")
    assert open_trace(tmp_path / "t.parquet").histogram().input_tokens == 4_000_000_000


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("t,-5,3\nt,4,4\n", r"1 requests whose tokens are .*row 1: input -5, output 3"),
        ("t,5,3\nt,1.5,4\n", r"row 2: input None, output 4"),
        ("t,5,3\nt,many,4\n", r"column 'ContextTokens' holds String, expected whole numbers \(row 2: 'many'\)"),
        ("t,5,3\nt,,4\n", r"row 2: input None"),
        ("", "no request with output tokens|holds String"),
        ("t,5,0\n", "no request with output tokens"),
    ],
)
def test_bad_rows_are_told_with_their_numbers(log: Log, rows: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        open_trace(log("a.csv", AZURE + rows)).histogram()


def test_an_empty_file_is_told(log: Log) -> None:
    with pytest.raises(DataError, match="empty"):
        open_trace(log("a.csv", ""))


def test_unknown_columns_say_what_was_found_and_what_to_type(log: Log) -> None:
    path = log("a.csv", "when,in,out\n1,2,3\n")
    with pytest.raises(DataError, match="found in, out, when.*--input-column NAME --output-column NAME"):
        open_trace(path)
    with pytest.raises(DataError, match="no column 'inn'; found in, out, when.*--input-column NAME"):
        open_trace(path, columns=Columns(input="inn", output="out"))
    assert open_trace(path, columns=Columns(input="in", output="out")).histogram().input_tokens == 2


def test_an_unknown_name_gives_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean azure-conv-2023"):
        open_trace("azure-conv-2032")


def test_an_unknown_format_gives_the_nearest(log: Log) -> None:
    with pytest.raises(UsageError, match="did you mean mooncake"):
        open_trace(log("a.csv", AZURE), format="moncake")


PAIRS = st.lists(st.tuples(st.integers(1, 40_000), st.integers(1, 5_000)), min_size=1, max_size=60)


@given(PAIRS)
def test_a_histogram_is_what_counting_one_by_one_gives(pairs: list[tuple[int, int]]) -> None:
    frame = pl.DataFrame({"prompt_tokens": [i for i, _ in pairs], "completion_tokens": [o for _, o in pairs]})
    trace = open_trace(frame)
    for bins in (None, Bins.paper()):
        histogram = trace.histogram(bins)
        for count in histogram.counts:
            inside = [(i, o) for i, o in pairs if histogram.bins.find(i, o) == count.bin]
            assert (count.requests, count.input_tokens, count.output_tokens) == (
                len(inside),
                sum(i for i, _ in inside),
                sum(o for _, o in inside),
            )
        left = histogram.left_out.requests if histogram.left_out else 0
        assert histogram.requests + left == len(pairs)


@given(PAIRS)
def test_quantiles_and_moments_are_numpys(pairs: list[tuple[int, int]]) -> None:
    frame = pl.DataFrame({"prompt_tokens": [i for i, _ in pairs], "completion_tokens": [o for _, o in pairs]})
    summary = open_trace(frame).describe()
    inputs = np.array([i for i, _ in pairs])
    assert summary.input.mean == pytest.approx(inputs.mean())
    assert summary.input.median == pytest.approx(np.median(inputs))
    assert summary.input.p99 == pytest.approx(np.quantile(inputs, 0.99))
    if len(pairs) > 1:
        assert summary.input.std == pytest.approx(inputs.std(ddof=1))
