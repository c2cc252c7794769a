"""`infergy replay` from the command line: foretold, measured, held against each other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from infergy.cli import app
from infergy.errors import DataError, UsageError
from infergy.records.store import read_store
from infergy.workload.arrivals import hash_lengths, trace_lengths

runner = CliRunner()
FEW = ("replay", "azure-code-2023", "--requests", "40", "--gpu", "h200")


def told(*arguments: str) -> dict[str, Any]:
    done = runner.invoke(app, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_it_is_foretold_measured_and_held_against_each_other(tmp_path: Path) -> None:
    store = tmp_path / "replay.jsonl"
    before = told(*FEW)
    assert before["measured"] is None
    after = told(*FEW, "--simulate", "-o", str(store))
    measured = after.pop("measured")
    assert {**after, "measured": None} == before, "measuring must not move what was foretold"
    assert measured["simulated"] is True
    assert measured["off"] == pytest.approx(before["energy_j"] / measured["energy_j"] - 1)
    assert measured["is_inside"] == (before["low_j"] <= measured["energy_j"] <= before["high_j"])
    assert told(*FEW, "--rows", str(store))["measured"] == measured


def test_each_request_has_its_own_lengths_and_the_row_holds_them(tmp_path: Path) -> None:
    store, plan = tmp_path / "replay.jsonl", tmp_path / "plan.json"
    wanted = trace_lengths("azure-code-2023", 7, 40)
    runner.invoke(app, [*FEW, "--first", "7", "--plan", str(plan)])
    done = runner.invoke(app, ["measure", str(plan), "--simulate", "-o", str(store)])
    assert done.exit_code == 0, done.output
    (row,) = read_store(store).rows
    assert row.lengths == wanted
    assert row.cell.load.arrivals is not None
    assert row.cell.load.arrivals.digest == hash_lengths(wanted)[:12]
    batch = row.windows[0].batches[0]
    assert (batch.requests, batch.input_tokens) == (40, sum(i for i, _ in wanted))
    assert batch.output_tokens == sum(o for _, o in wanted)
    # It is no cell of a table: its requests are not alike.
    table = load_table(store, allow_simulated=True)
    assert table.setups == ()
    assert any("replayed" in note.text for note in table.notes)


def test_the_first_requests_are_passed_by() -> None:
    whole = trace_lengths("azure-conv-2023", 0, 20)
    assert trace_lengths("azure-conv-2023", 5, 15) == whole[5:]
    assert told(*FEW, "--first", "3")["trace"]["input_tokens"] == sum(
        i for i, _ in trace_lengths("azure-code-2023", 3, 40)
    )


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (["--requests", "9000"], DataError, "8819 requests from 0 on, 9000 are asked for"),
        (["--engine", "transformers"], UsageError, "infergy study run tasks-mixed"),
        (["--rows", "nothing.jsonl"], DataError, "nothing.jsonl"),
        (["--engine", "vllm-spec4:llama-3.2-1b:0.8"], UsageError, "spec4"),
    ],
)
def test_what_cannot_be_replayed_is_refused_in_words(arguments: list[str], error: type[Exception], words: str) -> None:
    done = runner.invoke(app, ["replay", "azure-code-2023", *arguments])
    assert isinstance(done.exception, error), done.output
    assert words in str(done.exception)
