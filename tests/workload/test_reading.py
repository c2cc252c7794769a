"""Rows of a log become requests in order of arrival, with the links that the log states; what is left out is counted."""

from __future__ import annotations

import itertools
import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infergy.workload import Columns, Requests, SetAside, open_trace
from raising import raises


def jsonl(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def record(second: float, **more: Any) -> dict[str, Any]:
    return {"timestamp": second, "input_length": 40, "output_length": 7, **more}


def chat(own: int, parent: int, second: float, **more: Any) -> dict[str, Any]:
    return record(second, chat_id=own, parent_chat_id=parent, type="text", turn=1, **more)


def blocks_of(requests: Requests) -> list[list[int]]:
    assert requests.prefix_blocks is not None
    return [requests.prefix_blocks.of(place).tolist() for place in range(len(requests))]


def listed(column: Any) -> list[float]:
    assert column is not None
    return [float(value) for value in column]


rows_drawn = st.lists(
    st.tuples(st.integers(0, 5_000), st.integers(0, 500), st.integers(0, 90)), min_size=1, max_size=40
).filter(lambda rows: any(prompt and output for prompt, output, _ in rows))


@given(rows_drawn)
def test_requests_are_sorted_by_arrival_and_none_is_lost(rows: list[tuple[int, int, int]]) -> None:
    frame = pl.DataFrame(rows, schema=["input_tokens", "output_tokens", "arrival_s"], orient="row")
    requests = open_trace(frame).requests()
    served = [row for row in rows if row[0] and row[1]]
    ordered = sorted(served, key=lambda row: row[2])
    assert requests.input_tokens.tolist() == [row[0] for row in ordered]
    assert requests.output_tokens.tolist() == [row[1] for row in ordered]
    assert listed(requests.arrival_s) == [row[2] - ordered[0][2] for row in ordered]
    assert requests.set_aside == SetAside(
        failed=sum(row[1] == 0 for row in rows),
        without_input=sum(row[0] == 0 < row[1] for row in rows),
        out_of_order=sum(b[2] < a[2] for a, b in itertools.pairwise(served)),
    )


def test_every_library_that_holds_a_frame_gives_the_same_requests() -> None:
    start = datetime(2024, 5, 10)
    held = {
        "input_tokens": [10, 20, 30],
        "output_tokens": [1, 0, 3],
        "cached_tokens": [5, 0, 0],
        "arrival_s": [start + timedelta(seconds=second) for second in (3, 1, 0.5)],
    }
    frames: list[Any] = [pl.DataFrame(held), pd.DataFrame(held), pl.DataFrame(held).to_arrow()]
    frames.append(duckdb.from_arrow(frames[2]))
    for frame in frames:
        requests = open_trace(frame).requests()
        assert requests.input_tokens.tolist() == [30, 10]
        assert listed(requests.cached_tokens) == [0, 5]
        assert listed(requests.arrival_s) == [0, 2.5]
        assert requests.set_aside == SetAside(failed=1, out_of_order=1)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_files_of_every_kind_give_the_same_requests(tmp_path: Path, suffix: str) -> None:
    frame = pl.DataFrame({"input_tokens": [10, 20], "output_tokens": [1, 2], "arrival_s": [0.25, 1.0]})
    path = tmp_path / f"log.{suffix}"
    writers: dict[str, Any] = {"csv": frame.write_csv, "jsonl": frame.write_ndjson, "parquet": frame.write_parquet}
    writers[suffix](path)
    requests = open_trace(path).requests()
    assert requests.source == str(path)
    assert requests.output_tokens.tolist() == [1, 2]
    assert listed(requests.arrival_s) == [0, 0.75]
    assert requests.cached_tokens is None
    assert requests.after is None
    assert requests.prefix_blocks is None


def test_text_that_is_a_whole_number_is_read_as_one(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("input_tokens,output_tokens\n 12.0 ,3\n5,4\n")
    assert open_trace(path).requests().input_tokens.tolist() == [12, 5]


def test_tokens_that_cannot_be_read_are_reported_with_their_row(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("input_tokens,output_tokens\n12,3\n-5,4\n")
    with raises("bad-trace", trace=str(path), rows={"input": 1}):
        open_trace(path).requests()


def test_a_log_of_failed_requests_alone_is_rejected() -> None:
    with raises("no-requests", column="output_tokens"):
        open_trace(pl.DataFrame({"input_tokens": [1, 2], "output_tokens": [0, 0]})).requests()


def test_a_log_of_empty_prompts_alone_is_rejected() -> None:
    with raises("no-requests", column="input_tokens"):
        open_trace(pl.DataFrame({"input_tokens": [0, 0], "output_tokens": [1, 0]})).requests()


def test_an_empty_log_is_rejected() -> None:
    frame = pl.DataFrame(schema={"input_tokens": pl.Int64, "output_tokens": pl.Int64})
    with raises("no-requests"):
        open_trace(frame).requests()


@pytest.mark.parametrize("missing", ["", "nan", "inf", "yesterday"])
def test_arrivals_missing_in_part_are_an_error_that_says_what_to_do(tmp_path: Path, missing: str) -> None:
    path = tmp_path / "log.csv"
    path.write_text(f"input_tokens,output_tokens,arrival_s\n1,1,0\n1,1,{missing}\n1,1,5\n")
    with raises("no-arrivals", trace=str(path), untimed=1):
        open_trace(path).requests()
    requests = open_trace(path).requests(arrivals=False)
    assert len(requests) == 3
    assert requests.arrival_s is None


def test_a_failed_row_needs_no_arrival() -> None:
    frame = pl.DataFrame({"input_tokens": [1, 1], "output_tokens": [0, 1], "arrival_s": [None, 4.0]})
    assert listed(open_trace(frame).requests().arrival_s) == [0]


@pytest.mark.parametrize("arrivals", [None, [None, None]])
def test_without_arrivals_requests_come_all_at_once_in_the_logs_order(arrivals: Any) -> None:
    frame = pl.DataFrame({"input_tokens": [9, 4], "output_tokens": [1, 1]})
    if arrivals is not None:
        frame = frame.with_columns(arrival_s=pl.Series(arrivals, dtype=pl.Float64))
    requests = open_trace(frame).requests()
    assert requests.input_tokens.tolist() == [9, 4]
    assert requests.arrival_s is None
    assert "--time-column NAME" in str(requests.order_reason)


def test_a_task_comes_all_at_once() -> None:
    requests = open_trace("task:translation").requests()
    assert len(requests) == 1024
    assert (requests.arrival_s, requests.order_reason) == (None, "its lengths are drawn, without arrivals")
    assert requests.lengths_from is not None


# --- blocks of prompts


def test_mooncakes_blocks_are_read_and_its_times_are_milliseconds(tmp_path: Path) -> None:
    records: list[dict[str, Any]] = [
        {"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [0, 1]},
        {"timestamp": 1500, "input_length": 1200, "output_length": 0, "hash_ids": [0, 1, 2]},
        {"timestamp": 1000, "input_length": 1100, "output_length": 5, "hash_ids": [0, 7, 8, 9]},
        {"timestamp": 2000, "input_length": 30, "output_length": 5, "hash_ids": []},
        {"timestamp": 2500, "input_length": 30, "output_length": 5},
    ]
    requests = open_trace(jsonl(tmp_path / "log.jsonl", records)).requests()
    assert listed(requests.arrival_s) == [0, 1, 2, 2.5]
    # 1,100 tokens are three blocks of 512; the fourth hash lies past the prompt.
    assert blocks_of(requests) == [[0, 1], [0, 7, 8], [], []]
    assert requests.prefix_blocks is not None
    assert requests.prefix_blocks.block_tokens == 512


def test_blocks_go_with_their_request_when_arrivals_are_sorted(tmp_path: Path) -> None:
    records = [record(2000, hash_ids=[3]), record(0, hash_ids=[1]), record(1000, hash_ids=[2])]
    requests = open_trace(jsonl(tmp_path / "log.jsonl", records)).requests()
    assert blocks_of(requests) == [[1], [2], [3]]
    assert requests.set_aside.out_of_order == 1


def test_blocks_are_read_from_parquet_frames_and_text(tmp_path: Path) -> None:
    frame = pl.DataFrame([record(0, hash_ids=[4, 5]), record(1, hash_ids=[4])])
    frame.write_parquet(tmp_path / "log.parquet")
    text = frame.with_columns(hash_ids=pl.Series(["[4, 5]", "[4]"]))
    text.write_csv(tmp_path / "log.csv")
    for source in (frame, tmp_path / "log.parquet", tmp_path / "log.csv", text):
        requests = open_trace(source).requests()
        assert blocks_of(requests) == [[4], [4]]


def test_hashes_that_are_no_whole_numbers_are_rejected(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    pl.DataFrame([record(0, hash_ids=["a"]), record(1, hash_ids=["b"])]).write_parquet(path)
    with raises("bad-trace", column="hash_ids"):
        open_trace(path).requests()


# --- sessions


def test_bailians_times_are_seconds_and_its_chats_are_linked(tmp_path: Path) -> None:
    records = [
        chat(7, -1, 10.0, hash_ids=[0, 1, 2]),
        chat(9, -1, 10.5, hash_ids=[5]),
        chat(3, 7, 61.0, hash_ids=[0, 1, 4]),
        chat(4, 3, 99.0, hash_ids=[0]),
        chat(5, 77, 100.0, hash_ids=[0]),
    ]
    trace = open_trace(jsonl(tmp_path / "log.jsonl", records))
    requests = trace.requests()
    assert trace.format == "bailian"
    assert listed(requests.arrival_s) == [0, 0.5, 51, 89, 90]
    assert requests.after is not None
    assert requests.after.tolist() == [-1, -1, 0, 2, -1]
    assert requests.gap_s is None
    assert requests.prefix_blocks is not None
    assert requests.prefix_blocks.block_tokens == 16


def test_a_parent_that_comes_no_earlier_is_no_link(tmp_path: Path) -> None:
    records = [chat(1, 2, 0.0), chat(2, 1, 1.0), chat(3, 3, 2.0), chat(4, 5, 3.0), chat(5, -1, 4.0)]
    requests = open_trace(jsonl(tmp_path / "log.jsonl", records)).requests()
    assert requests.after is not None
    assert requests.after.tolist() == [-1, 0, -1, -1, -1]
    assert requests.set_aside.without_session == 3, "they are counted"


def test_bailians_trace_is_still_mooncakes_if_asked_for(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "log.jsonl", [chat(1, -1, 0), chat(2, -1, 500)])
    assert open_trace(path).describe().duration_s == 500
    assert open_trace(path, format="mooncake").describe().duration_s == 0.5


def session(name: str | None, gap: Any, **more: Any) -> dict[str, Any]:
    return {"session_id": name, "pre_gap": gap, "input_length": 40, "output_length": 7, **more}


def test_sessions_with_gaps_need_no_arrivals(tmp_path: Path) -> None:
    records = [
        session("a", 0.0),
        session("b", None),
        session("a", 1.5),
        session(None, 3),
        session("b", 2),
        session("a", 0),
    ]
    trace = open_trace(jsonl(tmp_path / "log.jsonl", records))
    requests = trace.requests()
    assert trace.format == "agentic"
    assert requests.arrival_s is None
    assert requests.is_timed
    assert requests.after is not None
    assert requests.after.tolist() == [-1, -1, 0, -1, 1, 2]
    assert listed(requests.gap_s) == [0, 0, 1.5, 0, 2, 0]


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_sessions_with_gaps_begin_at_their_times(tmp_path: Path, kind: str) -> None:
    records = [session("a", 0, timestamp=100), session("b", 0, timestamp=107.5), session("a", 2, timestamp=103)]
    path = jsonl(tmp_path / "log.jsonl", records)
    if kind == "csv":
        path = tmp_path / "log.csv"
        pl.DataFrame(records).write_csv(path)
    requests = open_trace(path).requests()
    assert listed(requests.arrival_s) == [0, 3, 7.5]
    assert requests.after is not None
    assert requests.after.tolist() == [-1, 0, -1]
    assert listed(requests.gap_s) == [0, 2, 0]
    assert open_trace(path, columns=Columns(time_unit_s=1e-3)).describe().duration_s == pytest.approx(7.5e-3)


def test_sessions_of_logs_with_other_columns_are_linked_in_order_of_arrival(tmp_path: Path) -> None:
    records = [
        {"session_id": 1, "pre_gap": gap, "prompt": 5, "answer": 2, "at": at} for gap, at in ((4.0, 9.0), (0.0, 1.0))
    ]
    path = jsonl(tmp_path / "log.jsonl", records)
    requests = open_trace(path, columns=Columns(input="prompt", output="answer", time="at")).requests()
    assert requests.after is not None
    assert requests.after.tolist() == [-1, 0]
    assert listed(requests.gap_s) == [0, 4]


@pytest.mark.parametrize("gap", [-1.0, None, "soon"])
def test_a_gap_that_is_negative_or_missing_is_an_error(tmp_path: Path, gap: Any) -> None:
    path = jsonl(tmp_path / "log.jsonl", [session("a", 0), session("a", gap)])
    with raises("bad-trace", column="pre_gap", rows=1):
        open_trace(path).requests()
    assert open_trace(path).requests(arrivals=False).gap_s is None


def test_the_histogram_of_a_log_with_links_reads_none_of_them(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "log.jsonl", [session("a", -5), session("a", "never", hash_ids="none")])
    assert open_trace(path).histogram().requests == 2


def test_the_shipped_traces_are_whole() -> None:
    requests = open_trace("azure-conv-2023").requests()
    assert len(requests) == 19_366
    assert requests.output_tokens.sum() == 4_088_665
    assert requests.output_tokens.dtype == np.int64
    assert requests.rate_per_s == pytest.approx(5.53, abs=0.01)
