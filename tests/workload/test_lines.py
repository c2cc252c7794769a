"""Logs as other programs write them: byte order marks, NaN, late fields, names with dots, a bad row in a thousand."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from infergy.errors import DataError, UsageError
from infergy.workload import Columns, Trace, open_trace
from infergy.workload.lines import values_in
from infergy.workload.source import Source
from raising import raises

FIRST = '{"id": "a", "created": 1700000000, "usage": {"prompt_tokens": 10, "completion_tokens": 5}}\n'
SECOND = '{"id": "b", "created": 1700000010, "usage": {"prompt_tokens": 20, "completion_tokens": 5}}\n'
AZURE = "ContextTokens,GeneratedTokens\n"


def trace_of(path: Path, text: str | bytes, **options: Any) -> Trace:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return open_trace(path, **options)


def totals(trace: Trace) -> tuple[int, int, int, int]:
    """Requests, input and output tokens, unreadable rows: as the trace, its histogram and its requests count them."""
    summary, histogram, requests = trace.describe(), trace.histogram(), trace.requests()
    found = summary.requests, summary.input.total, summary.output.total, summary.unreadable_rows
    assert found == (
        histogram.requests,
        histogram.input_tokens + histogram.cached_input_tokens,
        histogram.output_tokens,
        histogram.unreadable_rows,
    )
    lengths = int(requests.input_tokens.sum()), int(requests.output_tokens.sum())
    assert found == (len(requests), *lengths, requests.set_aside.unreadable)
    return found


@pytest.mark.parametrize(
    "text",
    [
        "\ufeff" + FIRST + SECOND,
        "\n\r\n" + FIRST.replace("\n", "\r\n") + "  \r\n\r\n" + SECOND.replace("\n", "\r\n") + "\n",
        FIRST.replace('"a"', "NaN") + SECOND,
        FIRST + SECOND.replace('"b"', "-Infinity"),
        FIRST + SECOND.replace('"b"', '[1e999, {"cost": Infinity}]'),
        FIRST + SECOND.replace('"b"', "1" * 45),
        FIRST + SECOND.replace('"b"', "1" * 5000),
        FIRST + SECOND.rstrip(),
    ],
    ids=["bom", "crlf", "nan", "infinity", "nested", "45 digits", "5000 digits", "no end of line"],
)
@pytest.mark.parametrize("is_packed", [False, True])
def test_what_stands_in_fields_that_are_not_read_does_not_matter(tmp_path: Path, text: str, is_packed: bool) -> None:
    content = gzip.compress(text.encode()) if is_packed else text
    trace = trace_of(tmp_path / "log.jsonl", content)
    assert totals(trace) == (2, 30, 10, 0)
    assert trace.describe().duration_s == 10.0


def test_blocks_of_a_file_read_by_line_are_those_of_one_that_polars_reads(tmp_path: Path) -> None:
    row = '{"timestamp": %d, "input_length": 600, "output_length": 2, "hash_ids": [%d, 2]%s}\n'
    plain = trace_of(tmp_path / "a.jsonl", row % (0, 1, "") + row % (9, 7, "")).requests().prefix_blocks
    with_nan = trace_of(tmp_path / "b.jsonl", row % (0, 1, "") + row % (9, 7, ', "x": NaN')).requests().prefix_blocks
    assert plain is not None
    assert with_nan is not None
    assert plain.ids.tolist() == with_nan.ids.tolist() == [1, 2, 7, 2]


@pytest.mark.parametrize(
    "text",
    [
        "sep=;\nContextTokens;GeneratedTokens\n10;5\n20;5\n",
        '\ufeff"sep=;"\r\nContextTokens;GeneratedTokens\r\n10;5\r\n20;5\r\n',
        "sep=\t\nContextTokens\tGeneratedTokens\n10\t5\n20\t5\n",
        "ContextTokens\tGeneratedTokens\n10\t5\n20\t5\n",
        "ContextTokens\rGeneratedTokens\r".replace("s\rG", "s,G") + "10,5\r20,5\r",
        "ContextTokens,GeneratedTokens\n\n10,5\n,\n20,5\n\n,\n\n",
        "ContextTokens,GeneratedTokens\n10,5,\n\n20,5,,\n,,,\n",
        '"ContextTokens","GeneratedTokens","m"\n"10","5","\xe9"\n"20","5",""\n',
    ],
    ids=["sep", "sep-crlf", "sep-tab", "tab", "cr", "blank", "more separators", "quoted"],
)
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_csv_of_spreadsheets(tmp_path: Path, text: str, encoding: str) -> None:
    content = text.encode(encoding, errors="ignore")
    assert totals(trace_of(tmp_path / "log.csv", content)) == (2, 30, 10, 0)


@pytest.mark.parametrize("start", ['{"created": 1, "error": "x"}\n', '{"created": 1, "usage": null}\n'])
def test_counts_first_seen_after_many_records_are_found(tmp_path: Path, start: str) -> None:
    path = tmp_path / "log.jsonl"
    text = start * 2_500 + FIRST + SECOND
    for options in ({}, {"format": "openai"}):
        trace = trace_of(path, text, **options)
        assert trace.format == "openai"
        assert totals(trace) == (2, 30, 10, 0)
        assert trace.describe().failed_requests == 2_500
    named = Columns(input="usage.prompt_tokens", output="usage.completion_tokens")
    assert totals(trace_of(path, text, columns=named)) == (2, 30, 10, 0)
    with raises("no-column", column="usage.nothing"):
        open_trace(path, columns=Columns(input="usage.nothing", output="usage.completion_tokens"))


SPAN = {"name": "chat", "attributes": {"gen_ai.usage.input_tokens": 120, "gen_ai.usage.output_tokens": 30}}
NAMED = Columns(input="attributes.gen_ai.usage.input_tokens", output="attributes.gen_ai.usage.output_tokens")


@pytest.mark.parametrize("kind", ["jsonl", "nan", "parquet", "polars", "pyarrow"])
def test_names_that_hold_dots_are_reached_wherever_they_stand(tmp_path: Path, kind: str) -> None:
    frame = pl.DataFrame([SPAN, SPAN])
    source: Any = tmp_path / f"log.{kind}"
    if kind in ("jsonl", "nan"):
        text = json.dumps(SPAN) + "\n"
        source.write_text(text + (text if kind == "jsonl" else text.replace('"chat"', "NaN")))
    elif kind == "parquet":
        frame.write_parquet(source)
    else:
        source = frame if kind == "polars" else frame.to_arrow()
    histogram = open_trace(source, columns=NAMED).histogram()
    assert (histogram.requests, histogram.input_tokens, histogram.output_tokens) == (2, 240, 60)


@pytest.mark.parametrize(
    ("record", "path", "names"),
    [
        ({"a": {"b.c": 1}}, "a.b.c", ("a", "b.c")),
        ({"a": {"b.c": 1}}, "a.b.d", ("a", "b.d")),
        ({"a": {"b.c": 1}}, "a.d.e", ("a", "d", "e")),
        ({"a.b": 1}, "a.b", ("a.b",)),
        ({"a.b": 1}, "a.c.d", ("a.c.d",)),
        ({"a": {"b": 1}}, "a.c.d", ("a", "c", "d")),
        ({"a": None}, "a.b", ("a", "b")),
        ({"x": 1}, "a.b", ("a", "b")),
        ({}, "a.b", ("a", "b")),
    ],
)
def test_a_field_not_seen_yet_is_nested_as_its_neighbours(record: Any, path: str, names: tuple[str, ...]) -> None:
    assert Source(name="log", kind="jsonl", names=tuple(own for own, _ in values_in(record))).names_of(path) == names


@pytest.mark.parametrize("bad", ["-1,1", "x,1", "1,2,3", '1,"2,3"'])
def test_one_bad_row_in_a_thousand_is_left_out_and_counted(tmp_path: Path, bad: str) -> None:
    text = AZURE + "10,5\n" * 999 + bad + "\n"
    assert totals(trace_of(tmp_path / "log.csv", text)) == (999, 9990, 4995, 1)
    assert trace_of(tmp_path / "log.csv", text).sample(whole_requests=10).set_aside.unreadable == 1
    with pytest.raises(DataError, match=r"1 of 1,000 rows?"):
        trace_of(tmp_path / "log.csv", text, bad_rows=0).describe()
    with pytest.raises(DataError, match=r"--bad-rows 0\.5%"):
        trace_of(tmp_path / "log.csv", AZURE + "10,5\n" * 300 + bad + "\n").describe()
    assert totals(trace_of(tmp_path / "log.csv", AZURE + f"10,5\n{bad}\n", bad_rows=0.5)) == (1, 10, 5, 1)


@pytest.mark.parametrize("bad", ['{"usage": {"prompt_tokens"', "[1]", "\xff", '{"usage": {"completion_tokens": 3}}'])
def test_one_bad_record_in_a_thousand_is_left_out_and_counted(tmp_path: Path, bad: str) -> None:
    text = (FIRST * 998).encode() + bad.encode("latin-1") + b'\n{"usage": NaN}\n' + SECOND.encode()
    trace = trace_of(tmp_path / "log.jsonl", text)
    assert totals(trace) == (999, 998 * 10 + 20, 999 * 5, 1)
    assert trace.describe().failed_requests == 1
    with raises("bad-trace"):
        trace_of(tmp_path / "log.jsonl", text, bad_rows=0).describe()


def test_a_share_of_bad_rows_is_below_one(tmp_path: Path) -> None:
    for share in (-0.1, 1.0, float("nan")):
        with pytest.raises(UsageError):
            trace_of(tmp_path / "log.csv", AZURE + "1,1\n", bad_rows=share)


def test_a_broken_line_among_records_that_hold_rows_is_counted(tmp_path: Path) -> None:
    attributes = [{"key": f"gen_ai.usage.{axis}_tokens", "value": {"intValue": "9"}} for axis in ("input", "output")]
    spans = [{"name": "chat", "startTimeUnixNano": "1700000000000000000", "attributes": attributes}] * 10
    line = json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": spans}]}]}) + "\n"
    trace = trace_of(tmp_path / "log.jsonl", line * 60 + line[:50] + "\n" + line * 60)
    assert totals(trace) == (1200, 10_800, 10_800, 1)
    with pytest.raises(DataError, match="line 61 is not JSON"):
        trace_of(tmp_path / "log.jsonl", line * 60 + line[:50] + "\n", bad_rows=0).describe()


def test_server_sent_events_are_the_records_of_their_data(tmp_path: Path) -> None:
    chunk = {"id": "a", "object": "chat.completion.chunk", "created": 1700000000, "choices": [{}], "usage": None}
    usage = {"prompt_tokens": 10, "completion_tokens": 5}
    lines = []
    for name in ("a", "b"):
        answer = [{**chunk, "id": name}] * 3 + [{**chunk, "id": name, "usage": usage}]
        lines += [": ping", "", "event: chunk", *(f"data: {json.dumps(one)}\n" for one in answer), "data: [DONE]", ""]
    assert totals(trace_of(tmp_path / "log.txt", "\n".join(lines))) == (2, 20, 10, 0)
