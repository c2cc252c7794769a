"""`infergy trace` and `infergy trace --bins` as a user meets them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from infergy.cli import app
from infergy.cli.options import BinSelection, TraceFormat
from infergy.errors import DataError
from infergy.workload import Bins, open_trace
from raising import raises


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def run_json(*arguments: str) -> Any:
    return json.loads(run(*arguments, "--json"))


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log.csv"
    path.write_text("when,p,c,hit\n1000,100,7,36\n2000,20,0,0\n3000,5000,600,0\n")
    return path


COLUMNS = ("--input-column", "p", "--output-column", "c", "--cached-column", "hit")


def test_trace_prints_both_shipped_traces_in_one_table() -> None:
    text = run("trace", "azure-conv-2023", "azure-code-2023")
    assert "19,366" in text
    assert "8,819" in text
    assert "1,154.70 ± 1,108.82" in text
    assert "5.53 /s" in text


def test_trace_credits_shipped_traces_on_stderr() -> None:
    result = CliRunner().invoke(app, ["trace", "azure-code-2023"], catch_exceptions=False)
    assert "CC-BY-4.0" in result.stderr
    assert "CC-BY-4.0" not in result.stdout


def test_trace_as_json_is_one_object_or_one_with_an_item_for_each_source(log: Path) -> None:
    assert [one["source"] for one in run_json("trace", "azure-code-2023", "azure-conv-2023")["traces"]] == [
        "azure-code-2023",
        "azure-conv-2023",
    ]
    one = run_json("trace", str(log), *COLUMNS, "--time-column", "when", "--time-unit", "ms")
    assert (one["requests"], one["failed_requests"], one["cached_input_tokens"]) == (2, 1, 36)
    assert (one["input"]["total"], one["output"]["longest"]) == (5100, 600)
    assert (one["duration_s"], one["arrival_rate_per_s"], one["arrival_reason"]) == (2.0, 0.5, None)


def test_trace_says_on_stderr_why_a_rate_is_unknown(log: Path) -> None:
    result = CliRunner().invoke(app, ["trace", str(log), *COLUMNS], catch_exceptions=False)
    assert "--time-column" in result.stderr
    assert "unknown" in result.stdout


def test_bins_as_json_is_the_histogram_with_its_sums(log: Path) -> None:
    found = run_json("trace", str(log), *COLUMNS, "--bins", "paper")
    assert found["bins"]["input_edges"] == list(Bins.paper().input_edges)
    assert (found["requests"], found["input_tokens"], found["binned_input_tokens"]) == (1, 64, 128)
    assert found["left_out"]["requests"] == 1
    assert found["left_out"]["bin"]["input_tokens"] == 5000
    assert found["failed_requests"] == 1


def test_a_histogram_is_shown_as_one(log: Path, tmp_path: Path) -> None:
    found = run_json("trace", str(log), *COLUMNS, "--bins", "paper")
    path = tmp_path / "histogram.json"
    path.write_text(json.dumps(found))
    assert run_json("trace", str(path)) == found == run_json("trace", str(path), "--bins", "paper")
    for others in (("--batch", "4"), ("--input-edges", "64", "--output-edges", "7")):
        with raises("options-conflict"):
            run("trace", str(path), *others)
    path.write_text(json.dumps(found | {"requests": -1}))
    with raises("bad-field"):
        run("trace", str(path))


def test_other_bins_of_a_histogram_are_an_error_that_names_the_options_given(log: Path, tmp_path: Path) -> None:
    path = tmp_path / "histogram.json"
    path.write_text(run("trace", str(log), "--bins", "paper", *COLUMNS, "--json"), encoding="utf-8")
    assert "paper bins" in run("trace", str(path), "--bins", "paper")
    edges = {"--input-edges": "10,100", "--output-edges": "10,100"}
    for given in ({"--bins": "powers-of-two"}, edges):
        arguments = [part for pair in given.items() for part in pair]
        with raises("options-conflict", options=given):
            run("trace", str(path), *arguments)


def test_no_name_is_no_trace() -> None:
    with raises("bad-value", option="TRACE"):
        run("trace", "")


def test_what_is_assumed_of_a_log_is_said_with_the_option_to_change_it(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("input_tokens,cache_read_tokens,output_tokens\n9,4,3\n", encoding="utf-8")
    option = "--input-column 'input_tokens + cache_read_tokens'"
    assert option in run("trace", str(path))
    assert option in run_json("trace", str(path))["assumed"][0]
    assert option in CliRunner().invoke(app, ["estimate", str(path)]).stderr


def test_bins_prints_the_counts_the_overcount_and_who_is_left_out() -> None:
    text = run("trace", "azure-conv-2023", "--bins", "paper")
    histogram = open_trace("azure-conv-2023").histogram(Bins.paper())
    fullest = max(count.requests for count in histogram.counts)
    assert f"█ {fullest:,}" in text
    assert histogram.left_out is not None
    assert f"{histogram.left_out.requests:,} of 19,366 requests" in text
    over = histogram.binned_input_tokens / histogram.input_tokens - 1
    assert f"({over * 100:+.1f} %)" in text


def test_bins_leaves_nobody_out_by_default() -> None:
    assert "Left out: none." in run("trace", "azure-code-2023", "--bins", "powers-of-two")


def test_bins_takes_edges_of_your_own(log: Path) -> None:
    found = run_json("trace", str(log), *COLUMNS, "--input-edges", "64,8000", "--output-edges", "7,600")
    corners = [(one["bin"]["input_tokens"], one["bin"]["output_tokens"]) for one in found["counts"]]
    assert corners == [(64, 7), (8000, 600)]


def test_edges_of_one_axis_go_with_the_papers_on_the_other() -> None:
    found = BinSelection(bins="paper", input_edges="100,200").grid()
    assert found is not None
    assert (found.input_edges, found.output_edges) == ((100, 200), Bins.paper().output_edges)
    with raises("option-missing", option="--output-edges"):
        BinSelection(bins="powers-of-two", input_edges="100,200").grid()
    with raises("option-missing", option="--input-edges"):
        BinSelection(output_edges="100").grid()


def test_unknown_bins_and_time_units_are_told_with_the_known_ones() -> None:
    with raises("unknown-name", option="--bins", nearest=["powers-of-two"]):
        BinSelection(bins="powers-of-2").grid()
    with raises("unknown-name", option="--time-unit", name="minutes"):
        TraceFormat(time_column="when", time_unit="minutes").reading(None)


def test_options_left_out_name_no_columns() -> None:
    assert not any(TraceFormat().reading(None).values())


def test_a_bad_log_is_an_error_to_act_on(log: Path) -> None:
    result = CliRunner().invoke(app, ["trace", str(log)])
    assert isinstance(result.exception, DataError)
    assert "--input-column NAME --output-column NAME" in str(result.exception)


MOONCAKE_IN_SECONDS = "".join(
    f'{{"timestamp": {n / 2}, "input_length": 200, "output_length": 100}}\n' for n in range(101)
)


def test_trace_says_in_which_unit_it_read_arrivals(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(MOONCAKE_IN_SECONDS)
    text = run("trace", str(path))
    assert "2.00 /s" in text
    assert f"{path}: arrivals in 'timestamp' are read as s, by the rate of requests; another unit: --time-unit" in text
    assert run_json("trace", str(path))["time_unit"] == {"column": "timestamp", "unit": "s", "basis": "rate"}
    text = run("trace", str(path), "--time-unit", "ms")
    assert "2,000 /s" in text
    assert "--time-unit" not in text


def test_each_verb_that_serves_a_trace_says_it_too(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(MOONCAKE_IN_SECONDS)
    result = CliRunner().invoke(app, ["estimate", str(path), "--json"], catch_exceptions=False)
    assert "read as s, by the rate of requests" in result.stderr
    assert json.loads(result.stdout)["trace"]["duration_s"] == 50.0
    result = CliRunner().invoke(app, ["estimate", str(path), "--json", "--time-unit", "s"], catch_exceptions=False)
    assert "read as" not in result.stderr


def test_trace_says_how_many_rows_it_left_out(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("ContextTokens,GeneratedTokens\n" + "10,5\n" * 1999 + "x,5\n")
    assert "1 row that cannot be read left out" in run("trace", str(path))
    assert "Set aside: 1 row that cannot be read" in run("trace", str(path), "--bins", "paper")
    assert run_json("trace", str(path), "--bins", "paper")["unreadable_rows"] == 1
    result = CliRunner().invoke(app, ["trace", str(path), "--bad-rows", "0"])
    assert isinstance(result.exception, DataError)
    assert "--bad-rows 0.1%" in str(result.exception)


@pytest.mark.parametrize("verb", ["trace", "estimate", "recommend", "breakdown", "next", "replay", "report"])
def test_each_verb_that_reads_a_log_takes_the_same_options_of_its_columns(verb: str) -> None:
    shown = CliRunner().invoke(app, [verb, "--help"], env={"COLUMNS": "200"}).output
    for axis in ("input", "output", "time", "cached", "requests"):
        assert f"--{axis}-column" in shown
    for option in ("--format", "--time-unit", "--bad-rows", "--tokenizer"):
        assert option in shown


def test_sums_over_requests_are_spread_where_their_column_is_named(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("date,num_requests,input_tokens,output_tokens\n2026-01-01,4,400,40\n", encoding="utf-8")
    with raises("bucketed", column="num_requests"):
        run_json("trace", str(path))
    found = run_json("trace", str(path), "--requests-column", "num_requests")
    assert (found["requests"], found["input"]["total"], found["input"]["longest"]) == (4, 400, 100)
    estimate = run_json("estimate", str(path), "--requests-column", "num_requests")
    assert estimate["trace"]["requests"] == 4


def test_a_seed_of_random_arrivals_is_of_a_log_too(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("input_tokens,output_tokens\n400,40\n400,40\n", encoding="utf-8")
    spans = [
        run_json("estimate", str(path), "--rate", "2", "--seed", seed)["trace"]["duration_s"]
        for seed in ("1", "2", "1")
    ]
    assert spans[0] == spans[2] != spans[1]
    with raises("option-not-applicable"):
        run_json("estimate", str(path), "--seed", "1")
    with raises("option-not-applicable", options=["--tokenizer"]):
        run_json("trace", str(path), "--tokenizer", "words")
