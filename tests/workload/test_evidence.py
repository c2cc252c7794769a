"""What only rows say: copies and chunks of answers wherever they begin, and whether cached tokens are in the input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infergy.workload import Columns, Trace, open_trace
from raising import raises


def log(path: Path, *records: dict[str, Any]) -> Trace:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return open_trace(path)


def table(path: Path, text: str) -> Trace:
    path.write_text(text, encoding="utf-8")
    return open_trace(path)


def answer(own: str | None, prompt: int, output: int, kind: str = "chat.completion") -> dict[str, Any]:
    usage = {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}
    return {"id": own, "object": kind, "usage": usage}


# --- rows that repeat an answer


def test_chunks_are_joined_wherever_they_begin(tmp_path: Path) -> None:
    whole = [answer(f"a{n}", 9, 3) for n in range(1500)]
    chunks = [answer(f"b{n}", 9, tokens, "chat.completion.chunk") for n in range(20) for tokens in range(1, 6)]
    summary = log(tmp_path / "log.jsonl", *whole, *chunks).describe()
    assert (summary.requests, summary.output.total, summary.stream_chunks) == (1520, 1500 * 3 + 20 * 5, 80)
    with raises("bad-trace"):
        log(tmp_path / "log.jsonl", *whole, *(chunk | {"id": None} for chunk in chunks)).requests()


def test_an_answer_that_is_logged_twice_is_one_request(tmp_path: Path) -> None:
    def response(own: int, status: str) -> dict[str, Any]:
        usage = {"input_tokens": 9, "output_tokens": 3} if status == "completed" else None
        return {"response": {"id": f"resp_{own}", "object": "response", "status": status, "usage": usage}}

    twice = [response(own, "completed") for own in range(5) for _ in range(2)]
    events = [response(own, status) for own in range(5) for status in ("created", "in_progress", "completed")]
    for records, others in ((twice, 5), (events, 10)):
        summary = log(tmp_path / "log.jsonl", *records).describe()
        assert (summary.requests, summary.input.total, summary.stream_chunks) == (5, 45, others)
        assert summary.failed_requests == 0
    with_table = "request_id,input_tokens,output_tokens\na,9,3\nb,8,2\na,9,3\n"
    assert table(tmp_path / "log.csv", with_table).describe().requests == 2


def test_an_id_of_something_else_joins_nothing(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    of_users = [answer(f"user {n % 2}", 9 + n, 3) for n in range(30)]
    assert log(path, *of_users).histogram().requests == 30
    # One id of all, or of rows without an end, is that of no answer.
    assert log(path, *[answer("m", 9, 3)] * 50).histogram().requests == 50
    some = log(path, *of_users, *[answer("a", 9, 3)] * 2)
    assert some.histogram().requests == 32
    assert "1 of the 3 ids" in some.describe().assumed[0]


def test_an_id_in_hundreds_may_be_used_twice(tmp_path: Path) -> None:
    copies = [answer(f"a{n}", 9, 3) for n in range(300) for _ in range(2)]
    used = [answer("b", 9, 3), answer("b", 10, 3)]
    assert log(tmp_path / "log.jsonl", *copies, *used).histogram().requests == 301


def test_frames_whose_rows_repeat_an_answer_need_polars(tmp_path: Path) -> None:
    frame = pl.DataFrame({"id": ["a", "a", "b"], "input_tokens": [9, 9, 8], "output_tokens": [3, 3, 2]})
    assert open_trace(frame).histogram().requests == 2
    for held in (frame.to_pandas(), frame.to_arrow()):
        with raises("not-supported"):
            open_trace(held).histogram()
    assert open_trace(frame[1:].to_pandas()).histogram().requests == 2


# --- what the input includes

CACHED = "input_tokens,cache_read_tokens,cache_write_tokens,output_tokens,total_tokens\n"


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        (CACHED + "9,4,2,3,18\n9,4,0,3,16\n", (28, 8)),
        (CACHED + "9,4,2,3,12\n9,4,0,3,12\n", (18, 8)),
        ("input_tokens,cache_read_tokens,output_tokens\n" + "90,4,3\n" * 3000 + "5,9000,3\n", (291_005, 21_000)),
        ("prompt_tokens,cache_read_tokens,completion_tokens\n9,4,3\n5,9000,3\n", (9018, 9004)),
        ("prompt_tokens,prompt_cache_read_tokens,completion_tokens\n9,4,3\n5,9000,3\n", (9018, 9004)),
    ],
    ids=["beside, by the total", "within, by the total", "beside, in one row of many", "openai", "helicone"],
)
def test_rows_say_whether_the_input_includes_what_was_cached(
    text: str, tokens: tuple[int, int], tmp_path: Path
) -> None:
    trace = table(tmp_path / "log.csv", text)
    summary, requests = trace.describe(), trace.requests()
    assert (summary.input.total, summary.cached_input_tokens) == tokens
    assert (summary.assumed, summary.unreadable_rows) == ((), 0)
    assert requests.cached_tokens is not None
    assert (requests.input_tokens.sum(), requests.cached_tokens.sum()) == tokens


def test_what_no_row_says_is_assumed_with_the_option_to_change_it(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    trace = table(path, "input_tokens,cache_read_tokens,output_tokens\n9,4,3\n")
    (assumed,) = trace.assumed
    assert trace.describe().assumed == (assumed,)
    assert "--input-column 'input_tokens + cache_read_tokens'" in assumed
    named = open_trace(path, columns=Columns(input="input_tokens + cache_read_tokens"))
    assert (named.describe().input.total, named.assumed) == (13, ())
    assert table(path, "input_tokens,cache_read_tokens,output_tokens\n9,0,3\n").assumed == ()


def test_a_row_in_thousands_may_contradict_the_others(tmp_path: Path) -> None:
    trace = table(tmp_path / "log.csv", CACHED + "9,4,0,3,12\n" * 2000 + "3,4,0,3,6\n")
    summary = trace.describe()
    assert (summary.requests, summary.input.total, summary.unreadable_rows) == (2000, 18_000, 1)


def test_two_spellings_of_one_count_are_one(tmp_path: Path) -> None:
    usage = {f"gen_ai.usage.{name}": 9000 for name in ("cache_read.input_tokens", "cache_read_input_tokens")}
    usage |= {"gen_ai.usage.input_tokens": 5, "gen_ai.usage.output_tokens": 3}
    summary = log(tmp_path / "log.jsonl", {"attributes": usage}).describe()
    assert (summary.input.total, summary.cached_input_tokens) == (9005, 9000)


@pytest.mark.parametrize("rest", [4, 12])
def test_frames_of_other_libraries_say_it_too(rest: int) -> None:
    frame = pl.DataFrame({"input_tokens": [9, rest], "cache_read_tokens": [4, 5], "output_tokens": [3, 3]})
    expected = 9 + rest + (9 if rest < 5 else 0)
    for held in (frame.to_pandas(), frame.to_arrow(), duckdb.from_arrow(frame.to_arrow())):
        trace = open_trace(held)
        assert trace.describe().input.total == expected
        assert len(trace.assumed) == (rest >= 5)


def test_rows_that_contradict_each_other_are_rejected(tmp_path: Path) -> None:
    with raises("bad-trace", beside=1, within=1):
        table(tmp_path / "log.csv", CACHED + "9,4,0,3,12\n9,4,0,3,16\n")


@given(
    st.booleans(),
    st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99), st.integers(1, 99)), min_size=1, max_size=9),
)
def test_a_total_decides_for_any_counts(is_beside: bool, rows: list[tuple[int, int, int]]) -> None:
    columns = {"input_tokens": [1], "cache_read_tokens": [1], "output_tokens": [1], "total_tokens": [2 + is_beside]}
    for fresh, cached, output in rows:
        columns["input_tokens"].append(fresh if is_beside else fresh + cached)
        columns["cache_read_tokens"].append(cached)
        columns["output_tokens"].append(output)
        columns["total_tokens"].append(fresh + cached + output)
    frame = pl.DataFrame(columns)
    prompts = open_trace(frame).frame.collect()["input_tokens"].sum()
    assert prompts == 1 + is_beside + sum(fresh + cached for fresh, cached, _ in rows)


def test_a_total_is_no_output_where_it_counts_the_cached_tokens(tmp_path: Path) -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 3, "cached_tokens": 4, "total_tokens": 16}
    assert log(tmp_path / "log.jsonl", {"usage": usage}).describe().output.total == 3
    usage |= {"total_tokens": 112}
    assert log(tmp_path / "log.jsonl", {"usage": usage}).describe().output.total == 103
