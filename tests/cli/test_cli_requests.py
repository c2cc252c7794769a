"""The options that choose requests mean the same to every verb that takes a trace."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from infergy.cli.options import TraceArg, TraceSelection, with_options
from infergy.cli.trace import trace
from infergy.workload import Histogram, Trace, requests_of_histogram
from raising import raises

app = typer.Typer()
app.command()(trace)


@app.command()
@with_options
def serve(source: TraceArg, selection: TraceSelection) -> None:
    chosen = selection.choose(source)
    found = requests_of_histogram(chosen) if isinstance(chosen, Histogram) else chosen
    found = found.requests() if isinstance(found, Trace) else found
    cached = found.cached_tokens
    facts = {
        "requests": len(found),
        "input": found.input_tokens.tolist(),
        "output": int(found.output_tokens.sum()),
        "arrivals": None if found.arrival_s is None else found.arrival_s.tolist(),
        "cached": None if cached is None else int(cached.sum()),
    }
    typer.echo(json.dumps(facts))


def run(*arguments: str) -> Any:
    result = CliRunner().invoke(app, ["serve", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture
def log(tmp_path: Path) -> str:
    path = tmp_path / "log.csv"
    path.write_text("when,p,c,hit\n0,100,7,36\n1000,20,2,0\n61000,5000,600,0\n90000,40,4,0\n")
    return str(path)


COLUMNS = ("--input-column", "p", "--output-column", "c", "--time-column", "when", "--time-unit", "ms")


def test_a_part_of_the_time_is_chosen() -> None:
    found = run("azure-conv-2023", "--from", "10m", "--for", "75s")
    assert (found["requests"], found["output"]) == (379, 95_514)


def test_a_window_of_columns_that_the_user_names(log: str) -> None:
    found = run(log, *COLUMNS, "--cached-column", "hit", "--from", "1s", "--for", "30s", "--speed", "2")
    assert found["input"] == [20]
    found = run(log, *COLUMNS, "--cached-column", "hit", "--speed", "2")
    assert found["arrivals"] == [0, 0.5, 30.5, 45]
    assert found["cached"] == 36


def test_a_part_of_the_order_is_chosen_within_the_window(log: str) -> None:
    assert run(log, *COLUMNS, "--requests", "2")["input"] == [100, 20]
    assert run(log, *COLUMNS, "--from", "1s", "--requests", "2")["arrivals"] == [0, 60]
    assert run(log, *COLUMNS, "--from", "1s", "--requests", "1")["input"] == [20]


def test_all_at_once_needs_no_arrivals(log: str, tmp_path: Path) -> None:
    assert run(log, *COLUMNS, "--from", "1s", "--all-at-once") == {
        "requests": 3,
        "input": [20, 5000, 40],
        "output": 606,
        "arrivals": None,
        "cached": None,
    }
    broken = tmp_path / "broken.csv"
    broken.write_text("when,p,c\n0,100,7\n,20,2\n")
    with raises("no-arrivals", untimed=1):
        run(str(broken), *COLUMNS)
    assert run(str(broken), *COLUMNS, "--all-at-once")["input"] == [100, 20]


def test_requests_of_a_task_are_made_as_many_as_asked_for() -> None:
    assert run("task:translation", "--requests", "7", "--seed", "3")["requests"] == 7
    with raises("no-arrivals"):
        run("task:translation", "--from", "1s")


def test_a_histogram_serves_its_requests_all_at_once(log: str, tmp_path: Path) -> None:
    path = tmp_path / "bins.json"
    result = CliRunner().invoke(
        app, ["trace", log, *COLUMNS[:4], "--bins", "powers-of-two", "--json"], catch_exceptions=False
    )
    path.write_text(result.stdout)
    found = run(str(path))
    assert (found["requests"], found["output"], found["arrivals"]) == (4, 613, None)
    with raises("no-arrivals"):
        run(str(path), "--for", "75s")


@pytest.mark.parametrize(
    ("options", "code", "fields"),
    [
        (("--from", "soon"), "bad-value", {"option": "--from", "value": "soon"}),
        (("--for", "0"), "bad-value", {"option": "--for", "value": 0}),
        (("--speed", "-1"), "bad-value", {"option": "--speed", "value": -1}),
        (("--requests", "5"), "too-few-requests", {"expected": 5}),
        (("--time-unit", "years"), "unknown-name", {"option": "--time-unit", "name": "years"}),
    ],
)
def test_an_option_out_of_range_is_named(
    log: str, options: tuple[str, ...], code: str, fields: dict[str, object]
) -> None:
    with raises(code, **fields):
        run(log, *COLUMNS, *options)
