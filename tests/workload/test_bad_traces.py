"""What is wrong with a trace is told with its place, what was wanted, and the option that helps; never a traceback."""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from infergy.errors import DataError
from infergy.workload import Columns, open_trace
from infergy.workload.bins import LONGEST_TOKENS
from raising import raises

AZURE = "ContextTokens,GeneratedTokens\n"
MOONCAKE_LINE = '{"timestamp": 0, "input_length": 1, "output_length": 2}\n'


def histogram_error(path: Path, text: str | bytes, **options: Any) -> str:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(DataError) as told:
        open_trace(path, **options).histogram()
    assert str(path) in str(told.value)
    return str(told.value)


def test_bad_tokens_are_counted_and_their_first_rows_shown(tmp_path: Path) -> None:
    rows = "1,1\n-4,1\n5,2.5\nabc,1\n,1\n7,1e30\n-8,1\n"
    message = histogram_error(tmp_path / "log.csv", AZURE + rows)
    assert "4 of 7 rows: input tokens in column 'ContextTokens'" in message
    assert "(row 2: '-4', row 4: 'abc', row 5: missing, …)" in message
    assert "2 of 7 rows: output tokens in column 'GeneratedTokens'" in message
    assert "(row 3: '2.5', row 6: '1e30')" in message
    assert "--input-column NAME --output-column NAME" in message


def test_describe_refuses_the_same_rows_as_histogram(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    told_by_histogram = histogram_error(path, AZURE + "1,1\n-4,1\n")
    with pytest.raises(DataError) as told:
        open_trace(path).describe()
    assert str(told.value) == told_by_histogram


def test_a_failed_request_must_still_have_an_input(tmp_path: Path) -> None:
    assert "row 2: 'x'" in histogram_error(tmp_path / "log.csv", AZURE + "1,1\nx,0\n")


def test_a_bad_row_far_down_is_found_by_its_number(tmp_path: Path) -> None:
    message = histogram_error(tmp_path / "log.csv", AZURE + "1,1\n" * 50_000 + "1,-1\n" * 51)
    assert "51 of 50,051 rows: output tokens" in message
    assert "row 50001: '-1'" in message


@pytest.mark.parametrize(
    ("cached", "shown"), [(11, "row 2: 11 of 10"), (-1, "row 2: -1 of 10"), ("much", "row 2: 'much' of '10'")]
)
def test_cached_tokens_must_be_a_part_of_the_input(cached: Any, shown: str) -> None:
    values = pl.DataFrame({"input_tokens": [10, 10], "output_tokens": [1, 1], "cached_tokens": [10, 0]})
    if isinstance(cached, str):
        values = values.cast(pl.String)
    rows = values.with_columns(
        cached_tokens=pl.when(pl.int_range(pl.len()) == 1).then(pl.lit(cached)).otherwise(pl.col("cached_tokens"))
    )
    with raises("bad-trace", rows={"cached": 1}) as told:
        open_trace(rows).histogram()
    assert shown in str(told.value)
    assert "--cached-column" in str(told.value)


def test_a_request_longer_than_any_can_be_is_a_broken_log() -> None:
    rows = pl.DataFrame({"input_tokens": [2**32 - 1, 2**32], "output_tokens": [1, 1]})
    with raises("bad-trace", rows={"input": 1}):
        open_trace(rows).histogram()
    assert open_trace(rows.head(1)).histogram().bins.input_edges[-1] == 2**32


@pytest.mark.parametrize("text", ["", "\n\n", "\ufeff"])
def test_an_empty_file_is_told(tmp_path: Path, text: str) -> None:
    assert "empty" in histogram_error(tmp_path / "log.csv", text)


def test_a_header_alone_is_no_trace(tmp_path: Path) -> None:
    assert "no requests" in histogram_error(tmp_path / "log.csv", AZURE)
    with raises("no-requests", trace=tmp_path / "log.csv"):
        open_trace(tmp_path / "log.csv").describe()


def test_a_trace_without_any_output_names_the_column_to_change(tmp_path: Path) -> None:
    message = histogram_error(tmp_path / "log.csv", AZURE + "1,0\n2,0\n")
    assert "none of 2 requests" in message
    assert "--output-column" in message


def test_a_missing_file_is_told_with_the_nearest_shipped_names(tmp_path: Path) -> None:
    with raises("unknown-trace", name="azure-conv-2032"):
        open_trace("azure-conv-2032")
    with raises("unknown-trace"):
        open_trace(tmp_path / "nothing.csv")


def test_a_folder_is_no_trace(tmp_path: Path) -> None:
    for folder in (tmp_path, "."):
        with raises("file-not-readable", reason="a directory"):
            open_trace(folder)
    with raises("bad-value", option="TRACE"):
        open_trace("")


def test_a_pipe_is_told_before_it_is_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with raises("file-not-readable", path=tmp_path / "pipe", reason="a pipe or a device"):
        open_trace(tmp_path / "pipe")


@pytest.mark.parametrize(("name", "zipped"), [("log.jsonl", False), ("log.jsonl.gz", True)])
def test_a_half_written_line_is_reported_by_its_number(tmp_path: Path, name: str, zipped: bool) -> None:
    text = (MOONCAKE_LINE * 400 + '{"input_length": 1, "ou').encode()
    message = histogram_error(tmp_path / name, gzip.compress(text) if zipped else text)
    assert "line 401 is not JSON" in message
    assert "--bad-rows 0.5%" in message


@pytest.mark.parametrize("number", ["9" * 39, "9" * 5000, "1e400", "NaN", "-Infinity"])
@pytest.mark.parametrize("before", [1, 400])
def test_a_number_that_cannot_be_read_is_told_by_its_row(tmp_path: Path, number: str, before: int) -> None:
    text = MOONCAKE_LINE * before + f'{{"input_length": {number}, "output_length": 1}}\n'
    message = histogram_error(tmp_path / "log.jsonl", text)
    assert f"1 of {before + 1} rows: input tokens" in message
    assert f"row {before + 1}: " in message


def test_cached_tokens_are_shown_from_the_column_that_reports_them(tmp_path: Path) -> None:
    usage = '{"usage": {"prompt_tokens": 12, "completion_tokens": 3, "cached_tokens": 13}}\n'
    message = histogram_error(tmp_path / "usage.jsonl", usage)
    assert "'usage.cached_tokens' are not at most the input tokens (row 1: '13' of '12')" in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (bytes(range(256)), "neither Parquet nor UTF-8"),
        (AZURE.encode("utf-16"), "iconv -f UTF-16"),
        (MOONCAKE_LINE.encode("utf-16"), "iconv -f UTF-16"),
        (MOONCAKE_LINE.encode("utf-16-le"), "neither Parquet nor UTF-8"),
        (b"PAR1 and then nothing", "damaged Parquet"),
        (b"\x28\xb5\x2f\xfd....", "zstd -d"),
        (b"\x1f\x8b but no more", "cannot be read"),
        (b'[{"input_length": 1}]', "found: input_length."),
        (b'[{"input_length": 1}, ', "not JSON"),
        (b'{"input_length": 1, "outp', "line 1 is not JSON"),
        (b'{\n"input_length": 1,\n"output_length": -2\n}\n', "row 1: '-2'"),
        (MOONCAKE_LINE.encode() + b"[1]\n", "row 2: missing"),
        (MOONCAKE_LINE.encode() + b'[1]\n{"a": NaN}\n', "line 2 is not a JSON object"),
        (b'{"a":' * 100_000, "line 1 is not JSON"),
        (MOONCAKE_LINE.encode() * 400 + b'{"input_length": 1, "ou', "line 401 is not JSON"),
        (MOONCAKE_LINE.encode() * 400 + b'{"m": "\xff"}\n', "line 401 is not UTF-8"),
        (b"PK\x03\x04" + bytes(100), "neither Parquet nor UTF-8"),
        (b"\x1f\x8b\x08\x00" + b"x" * 50, "cannot be read"),
        (AZURE.encode() + b"1,2\n1,2,3\n", "line 3 is of 3 fields, more than the 2 of the header"),
        (b"m," + AZURE.encode() + b'x,1,2\n"y,3,4\nx,5,6\n', "a quote before line 4 is not closed"),
        (AZURE.encode() + b"1,2\n1\n", "row 2: missing"),
        (b"x," + AZURE.encode() + b"0,1,2\n" * 9000 + b"\xff,1,2\n" * 90, "90 of 9,090 rows: cached tokens"),
    ],
)
def test_files_that_are_no_trace_are_told_as_such(tmp_path: Path, content: bytes, words: str) -> None:
    if b"\xff,1" in content:
        # Only columns that are read are decoded, so the broken one must be named.
        message = histogram_error(tmp_path / "file", content, columns=Columns(cached="x"))
    else:
        message = histogram_error(tmp_path / "file", content)
    assert words in message


def test_a_cut_off_gzip_is_told(tmp_path: Path) -> None:
    whole = gzip.compress((AZURE + "".join(f"{i},{i * 7 % 90}\n" for i in range(50_000))).encode())
    assert "cannot be read" in histogram_error(tmp_path / "log.csv.gz", whole[: len(whole) // 2])


def test_a_column_of_a_type_that_holds_no_numbers_is_refused_when_opened() -> None:
    rows = pl.DataFrame({"input_tokens": [[1]], "output_tokens": [1]})
    with raises("bad-column", column="input_tokens"):
        open_trace(rows)
    with raises("bad-column", column="input_tokens"):
        open_trace(pl.DataFrame({"input_tokens": ["7"], "output_tokens": [1]}).to_pandas())


@pytest.mark.parametrize("source", [[1, 2], 7, None, {"input_tokens": [1]}])
def test_what_is_no_trace_at_all_is_a_usage_error(source: Any) -> None:
    with raises("not-supported", type=type(source).__name__):
        open_trace(source)


def test_a_column_that_is_read_stands_once_in_the_header(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("input_tokens,output_tokens,x,input_tokens,x\n1,2,3,4,5\n", encoding="utf-8")
    with pytest.raises(DataError) as told:
        open_trace(path)
    assert str(path) in str(told.value)
    assert "'input_tokens'" in str(told.value)
    # Which of two columns is meant is no matter where neither is read.
    path.write_text("input_tokens,output_tokens,x,x\n1,2,3,5\n", encoding="utf-8")
    assert len(open_trace(path).requests()) == 1


def test_tokens_past_the_limit_name_it(tmp_path: Path) -> None:
    assert f"{LONGEST_TOKENS:,}" in histogram_error(tmp_path / "log.csv", AZURE + f"1,1\n{LONGEST_TOKENS + 1},1\n")


@pytest.mark.parametrize("arrival", ["1e300", "-1e300", "1715299200000", "2260-01-01 00:00:00"])
def test_arrivals_that_no_clock_shows_are_named_by_their_row(tmp_path: Path, arrival: str) -> None:
    path = tmp_path / "log.csv"
    path.write_text(f"input_tokens,output_tokens,arrival_s\n1,1,0\n1,0,1e300\n1,1,{arrival}\n", encoding="utf-8")
    trace = open_trace(path)
    for read in (trace.requests, trace.describe, lambda: trace.sample(whole_requests=1)):
        with pytest.raises(DataError) as told:
            read()
        assert "row 3" in str(told.value)
        assert "row 2" not in str(told.value)
        assert "--time-unit" in str(told.value)
    frame = pl.DataFrame({"input_tokens": [1, 1], "output_tokens": [1, 1], "arrival_s": [0.0, 1e300]})
    for held in (frame, frame.to_pandas()):
        with raises("bad-trace", column="arrival_s") as error:
            open_trace(held).requests()
        assert "row 2" in str(error.value)
        with raises("bad-trace", column="arrival_s") as error:
            open_trace(held).describe()
        assert "row 2" in str(error.value)


def test_the_unit_of_arrivals_decides_whether_a_clock_shows_them(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("input_tokens,output_tokens,arrival_s\n1,1,1715299200000\n1,1,1715299201000\n", encoding="utf-8")
    requests = open_trace(path, columns=Columns(time_unit_s=1e-3)).requests()
    assert requests.duration_s == pytest.approx(1.0)


BLOCKS = '{"timestamp": 0, "input_length": 1000, "output_length": 2, "hash_ids": [1, 2]}\n'


@pytest.mark.parametrize("hashes", ['[1, "x"]', "[1, 1e30]", "[1.5, 2]"])
def test_hashes_that_are_no_numbers_are_named_by_their_row(tmp_path: Path, hashes: str) -> None:
    path, table = tmp_path / "log.jsonl", tmp_path / "log.csv"
    path.write_text(BLOCKS * 2 + BLOCKS.replace("[1, 2]", hashes), encoding="utf-8")
    quoted = hashes.replace('"', '""')
    table.write_text(
        f'timestamp,input_length,output_length,hash_ids\n0,1,1,"[1]"\n1,1,1,"{quoted}"\n', encoding="utf-8"
    )
    for source, row in ((path, "row 3"), (table, "row 2")):
        with pytest.raises(DataError) as told:
            open_trace(source).requests()
        assert row in str(told.value)
        assert "'hash_ids'" in str(told.value)


def test_requests_without_hashes_are_counted(tmp_path: Path) -> None:
    path, table = tmp_path / "log.jsonl", tmp_path / "log.csv"
    path.write_text(BLOCKS + "".join(BLOCKS.replace("[1, 2]", ids) for ids in ('"x"', "null", "[]")), encoding="utf-8")
    rows = "".join(f'{k},1,1,"{ids}"\n' for k, ids in enumerate(("[ 1, 2 ]", "x", "", "[]")))
    table.write_text("timestamp,input_length,output_length,hash_ids\n" + rows, encoding="utf-8")
    for source in (path, table):
        requests = open_trace(source).requests()
        assert requests.set_aside.without_blocks == 3
        assert requests.prefix_blocks is not None
        assert requests.prefix_blocks.of(0).tolist()[0] == 1


SESSIONS = "session_id,pre_gap,input_length,output_length\na,0,1,1\n,5,1,1\na,2,1,1\n,7,1,1\n"


def test_requests_without_a_session_are_counted_and_stand_alone(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text(SESSIONS, encoding="utf-8")
    trace = open_trace(path)
    requests = trace.requests()
    assert requests.after is not None
    assert requests.after.tolist() == [-1, -1, 0, -1]
    assert requests.set_aside.without_session == 2
    assert trace.sample(whole_requests=1).set_aside.without_session == 2
    # Where sessions are left out, none is missing.
    assert trace.requests(arrivals=False).set_aside.without_session == 0


def test_an_empty_id_is_no_session(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    line = '{"session_id": "%s", "pre_gap": 1, "input_length": 1, "output_length": 1}\n'
    path.write_text("".join(line % session for session in ("a", "", "", "a")), encoding="utf-8")
    requests = open_trace(path).requests()
    assert requests.after is not None
    assert requests.after.tolist() == [-1, -1, -1, 0]
    assert requests.set_aside.without_session == 2
