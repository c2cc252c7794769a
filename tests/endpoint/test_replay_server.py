"""`infergy replay --server`: from a trace to a row, its flags, and what is done without a meter."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("httpx")

from typer.testing import CliRunner

from infergy.cli import app
from infergy.cost.table import shipped_table
from infergy.estimates.build import _is_usable
from infergy.estimates.replay import compare_rows
from infergy.measure.replays import REPLAY_OPTIONS
from infergy.measure.sweep import sweep
from infergy.records import Measurement, Plan
from infergy.records.flags import find_flags
from infergy.records.store import read_store
from openai_server import Behaviour, running

runner = CliRunner()
FEW = ("replay", "azure-conv-2023", "--requests", "6", "--speed", "40", "--max-tokens", "900", "--gpu", "h200")


def measured(tmp_path: Path, behaviour: Behaviour, *options: str) -> Measurement:
    """The row of a short replay, by the counter of a steady GPU."""
    plan, store = tmp_path / "plan.json", tmp_path / "rows.jsonl"
    with running(behaviour) as url:
        done = runner.invoke(app, [*FEW, "--server", url, "--plan", str(plan), *options])
        assert done.exit_code == 0, done.output
        resolved = Plan.load(plan)
        fast = replace(resolved, options=replace(REPLAY_OPTIONS, idle_s=0.3))
        list(sweep(fast, store, simulate=True))
    (row,) = read_store(store).rows
    return row


def test_a_replay_on_a_server_is_a_row_beside_its_prediction(tmp_path: Path) -> None:
    behaviour = Behaviour(cached=3)
    row = measured(tmp_path, behaviour, "--max-concurrency", "4")
    assert row.is_ok, row.failure
    assert row.cell.setup.weights == "tiny"
    assert row.loading is None
    assert row.environment.engine["software"] == "vllm"
    assert row.environment.engine["concurrency"] == "4"
    assert row.is_of_endpoint
    assert not [flag for flag in find_flags(row, None) if flag.code == "token-counts"]
    (found,) = compare_rows([row], "h200", shipped_table())
    figures = {one.name: one.measured for one in found.compared}
    assert {"energy_j", "duration_s", "ttft_s_p50", "tpot_s_p99", "e2e_s_p99"} <= set(figures)
    assert found.output_tokens == sum(output for _, output in row.lengths)
    assert found.notes == ()
    power_w = row.result.power_w if row.result else 0.0
    assert 40 < power_w < 200  # of 100 W, over few ticks


def test_lengths_that_were_served_are_those_of_the_row(tmp_path: Path) -> None:
    behaviour = Behaviour(
        takes_ids=False, takes_forced=False, stops_after=2, models=[{"id": "x", "owned_by": "sglang"}]
    )
    row = measured(tmp_path, behaviour)
    assert row.is_ok, row.failure
    assert {output for _, output in row.lengths} == {2}
    tokens = 2 * row.cell.load.batch
    assert row.windows[0].batches[0].output_tokens == tokens
    (found,) = compare_rows([row], "h200", shipped_table())
    assert found.output_tokens == tokens
    assert len(found.notes) == 2
    assert not _is_usable(row), "the cost model does not know other servers"


def test_counts_that_cannot_be_are_flagged(tmp_path: Path) -> None:
    row = measured(tmp_path, Behaviour(output_lie=1))
    (flag,) = (flag for flag in find_flags(row, None) if flag.code == "token-counts")
    (found,) = compare_rows([row], "h200", shipped_table())
    assert f"{flag.reason}: {flag.fix}" in found.notes


def test_a_failed_request_fails_the_cell_and_leaves_no_energy(tmp_path: Path) -> None:
    row = measured(tmp_path, Behaviour(half_stream=True), "--timeout", "2")
    assert row.failure is not None
    assert row.result is None


def invoked(behaviour: Behaviour, tmp_path: Path, *options: str) -> Any:
    with running(behaviour) as url:
        return runner.invoke(app, [*FEW, "--server", url, "-o", str(tmp_path / "rows.jsonl"), *options])


def test_without_a_meter_there_are_latencies_and_no_row(tmp_path: Path) -> None:
    done = invoked(Behaviour(), tmp_path, "--meter", "none", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    figures = {one["name"]: one["measured"] for one in found["compared"]}
    assert figures["energy_j"] is None
    assert figures["ttft_s_p50"] > 0
    assert found["is_inside"] is None
    assert not (tmp_path / "rows.jsonl").exists()


def test_a_machine_without_a_counter_says_so(tmp_path: Path) -> None:
    done = invoked(Behaviour(), tmp_path, "--meter", "http://127.0.0.1:9/metrics")
    assert done.exit_code == 3
    assert "no energy, and no row" in done.stderr
    assert "its energy was not measured" in done.stdout


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (("--engine", "transformers"), "engine-lacks"),
        (("--engine", "vllm", "--engine", "vllm-fp8"), "options-conflict"),
        (("--replicas", "2"), "options-conflict"),
        (("--timeout", "0"), "bad-value"),
    ],
)
def test_options_that_are_none_of_a_server(options: tuple[str, ...], code: str, tmp_path: Path) -> None:
    done = invoked(Behaviour(), tmp_path, *options)
    assert getattr(done.exception, "code", None) == code


def test_a_rate_gives_arrivals_to_requests_without(tmp_path: Path) -> None:
    behaviour = Behaviour()
    with running(behaviour) as url:
        asked = ["replay", "task:classification", "--requests", "8", "--rate", "40", "--gpu", "h200", "--server", url]
        done = runner.invoke(app, [*asked, "--meter", "none", "-o", str(tmp_path / "rows.jsonl"), "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["requests"] == 8
    assert 0.1 < next(one["measured"] for one in found["compared"] if one["name"] == "duration_s") < 2


def test_options_of_a_server_need_one() -> None:
    done = runner.invoke(app, [*FEW, "--max-concurrency", "4"])
    assert getattr(done.exception, "code", None) == "option-missing"
