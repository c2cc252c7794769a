"""Requests that arrive one after the other: from the grid to the rows, and what stands on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from infergy.catalog.gpus import IDLE_SHARE, get_gpu
from infergy.cli import app
from infergy.estimates.build import entries_of_rows
from infergy.measure.control_cells import plan_again, plan_control_cells
from infergy.measure.forecast import total_j
from infergy.measure.studies import size_of
from infergy.measure.sweep import sweep
from infergy.quality.phases import find_phases
from infergy.records import Measurement, MeasureOptions, Plan, result_of
from infergy.records.latency import backlog_of
from infergy.records.store import read_store
from infergy.workload.load_generator import draw_times, hash_times
from measure.test_measure import tiny_plan
from raising import keys_of, raises

VLLM = [{"engine": "vllm"}]
BLOCK: dict[str, Any] = {"input_tokens": [512], "output_tokens": [64], "batch": [32]}
MIXED = [BLOCK | {"arrivals": ["offline", "poisson1", "poisson4", "poisson16", "gamma4-b0.25"]}]


def measured(plan: Plan, path: Path) -> tuple[Measurement, ...]:
    list(sweep(plan, path, simulate=True))
    return read_store(path).rows


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Measurement]:
    path = tmp_path_factory.mktemp("online") / "rows.jsonl"
    return {row.cell.label: row for row in measured(tiny_plan(engines=VLLM, cells=MIXED), path)}


def test_rates_are_arrivals_of_poisson_or_of_gamma() -> None:
    def labels(**axes: Any) -> list[str]:
        return [one.cell.label for one in tiny_plan(engines=VLLM, cells=[BLOCK | axes]).cells]

    assert labels(rate=[1, 4]) == ["vllm-poisson1", "vllm-poisson4"]
    assert labels(rate=[4], burstiness=0.5) == ["vllm-gamma4-b0.5"]
    assert labels(rate=[4], arrivals=["offline"]) == ["vllm", "vllm-poisson4"]


def test_the_plan_holds_when_requests_arrive_the_same_for_every_engine() -> None:
    plan = tiny_plan(engines=[*VLLM, {"engine": "vllm", "cuda_graphs": False}], cells=[BLOCK | {"rate": [4]}])
    graphs, eager = plan.cells
    assert graphs.arrival_s == eager.arrival_s
    assert graphs.cell.load.arrivals is not None
    assert graphs.arrival_s == draw_times(graphs.cell.load.arrivals, 32, plan.options.seed)
    other = tiny_plan(engines=VLLM, cells=[BLOCK | {"rate": [4]}], options={"shuffle": False, "seed": 1}).cells[0]
    assert other.arrival_s != graphs.arrival_s
    assert other.cell.id == graphs.cell.id


def test_rows_tell_their_arrivals_and_each_requests_times(rows: dict[str, Measurement]) -> None:
    row = rows["vllm-poisson4"]
    assert row.arrival_sha256 == hash_times(row.arrival_s)
    batch = row.windows[0].batches[0]
    assert batch.requests == 32
    assert batch.times is not None
    assert len(batch.times.finished_s) == 32
    assert batch.finished_s == pytest.approx(sum(batch.times.finished_s) / 32, abs=1e-6)
    ends = [came_s + took_s for came_s, took_s in zip(row.arrival_s, batch.times.finished_s, strict=True)]
    assert batch.duration_s == pytest.approx(max(ends), abs=1e-5)
    offline = rows["vllm"]
    assert (offline.arrival_s, offline.arrival_sha256) == ((), None)
    assert offline.windows[0].batches[0].times is None
    assert result_of(offline).latency is None


def test_power_is_looked_at_over_the_begin_of_a_long_run(rows: dict[str, Measurement]) -> None:
    row = rows["vllm-poisson1"]
    assert row.watched is not None
    came = sum(time_s <= MeasureOptions().long_batch_s for time_s in row.arrival_s)
    assert {batch.requests for batch in row.watched.batches} == {came}
    assert 1 < came < 32


def test_the_joules_of_a_run_hold_those_of_its_gaps(rows: dict[str, Measurement]) -> None:
    result = result_of(rows["vllm-poisson1"])
    assert result.duration_s > 30, "31 gaps of a second on average"
    # No second of the run may be missing, idle ones neither.
    idle_w = IDLE_SHARE * get_gpu("h200").tdp_w
    assert result.energy_j > idle_w * result.duration_s
    gap_j = idle_w * result.duration_s / 32
    assert result.energy_per_request_j > gap_j > result_of(rows["vllm"]).energy_per_request_j


def test_the_lower_the_rate_the_more_joules_a_request(rows: dict[str, Measurement]) -> None:
    order = ["vllm-poisson1", "vllm-poisson4", "vllm-poisson16", "vllm"]
    joules = [result_of(rows[label]).energy_per_request_j for label in order]
    assert joules == sorted(joules, reverse=True)
    # Bursts share the weights that are read, but wait for each other.
    bursts, even = result_of(rows["vllm-gamma4-b0.25"]), result_of(rows["vllm-poisson4"])
    assert bursts.latency is not None
    assert even.latency is not None
    assert bursts.latency.first_token.p90_s > even.latency.first_token.p90_s


def test_what_was_reached_is_told(rows: dict[str, Measurement]) -> None:
    result = result_of(rows["vllm-poisson4"])
    assert result.requests_per_s == pytest.approx(32 / result.duration_s)
    assert result.output_tokens_per_s == pytest.approx(64 * 32 / result.duration_s)
    assert result.latency is not None
    assert result.latency.per_output_token is not None
    for told in (result.latency.first_token, result.latency.per_output_token, result.latency.end_to_end):
        assert 0 < told.p50_s <= told.p90_s <= told.p99_s
    assert result.latency.first_token.p50_s < result.latency.end_to_end.p50_s


def test_the_backlog_of_an_engine_that_falls_behind_grows_and_of_one_that_keeps_up_does_not(tmp_path: Path) -> None:
    cells = [BLOCK | {"batch": [128], "rate": [4, 5000]}]
    slow, fast = (backlog_of(row) for row in measured(tiny_plan(engines=VLLM, cells=cells), tmp_path / "rows.jsonl"))
    assert slow is not None
    assert fast is not None
    assert (slow.grows, fast.grows) == (False, True)


def test_online_rows_enter_a_table_as_whole_runs_and_phases_leave_them_out(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    stored = measured(tiny_plan(engines=VLLM, cells=[BLOCK | {"arrivals": ["offline", "poisson16"]}]), path)
    entries, _ = entries_of_rows([path], {}, allow_simulated=True)
    by_cell = {entry.origin.cell_id: entry for entry in entries}
    assert set(by_cell) == {row.cell_id for row in stored}
    for row in stored:
        entry = by_cell[row.cell_id]
        assert entry.energy_j == pytest.approx(result_of(row).energy_j)
        # Arrivals set the time of an online run, so it has nothing to say of the seconds of a step.
        assert (entry.duration_s is None) == (entry.calls == 0) == row.cell.load.is_online
    (phases,) = find_phases(stored).setups
    assert [cell.cell_id for cell in phases.cells] == [row.cell_id for row in stored if not row.cell.load.is_online]


def test_online_cells_are_no_control_cells_and_are_measured_again_at_the_same_times(
    rows: dict[str, Measurement],
) -> None:
    stored = list(rows.values())
    assert [one.cell.label for one in plan_control_cells(stored, "vllm").cells] == ["vllm"]
    online = rows["vllm-poisson4"]
    again = plan_again(stored, [online.cell_id], target=0.02)
    assert online.arrival_s in [one.arrival_s for one in again.cells]


def test_the_forecast_of_an_online_cell_is_its_arrivals_and_the_tail() -> None:
    plan = tiny_plan(engines=VLLM, cells=[BLOCK | {"rate": [1]}])
    (planned,) = plan.cells
    assert 31 < planned.forecast_batch_s < 32
    idle = tiny_plan(engines=VLLM, cells=[BLOCK | {"rate": [0.1]}])
    assert total_j(idle) / size_of(idle).forecast_s < total_j(plan) / size_of(plan).forecast_s
    assert total_j(idle) > total_j(plan)


def test_what_cannot_be_is_refused_before_anything_runs() -> None:
    with raises("engine-lacks", engine="transformers", option="arrivals", value="poisson4"):
        tiny_plan(engines=[{"engine": "transformers"}], cells=[BLOCK | {"rate": [4]}])
    with raises("grid-rejected") as error:
        tiny_plan(engines=[*VLLM, {"engine": "transformers"}], cells=[BLOCK | {"rate": [4], "decoding": ["beam4"]}])
    lacks = [(reason["fields"]["engine"], reason["fields"]["value"]) for reason in error.value.fields["reasons"]]
    assert lacks == [("vllm", "beam4"), ("transformers", "poisson4")]
    with raises("options-conflict", options={"arrivals": "poisson4", "batch": "largest"}):
        tiny_plan(engines=VLLM, cells=[{key: BLOCK[key] for key in ("input_tokens", "output_tokens")} | {"rate": [4]}])
    with raises("options-conflict", options={"arrivals": "poisson4", "paired": True}):
        tiny_plan(engines=VLLM, cells=[BLOCK | {"rate": [4], "paired": True}])
    with raises("bad-value", option="batch", value=1, arrivals="poisson4"):
        tiny_plan(engines=VLLM, cells=[BLOCK | {"rate": [4], "batch": [1]}])


@pytest.mark.parametrize(
    ("axes", "place"),
    [
        ({"rate": [0]}, "cells.0.rate.0"),
        ({"rate": [-1.0]}, "cells.0.rate.0"),
        ({"rate": [4], "burstiness": 0}, "cells.0.burstiness"),
        ({"arrivals": ["poisson0"]}, "cells.0.arrivals.0"),
        ({"arrivals": ["offline", "often"]}, "cells.0.arrivals.1"),
    ],
)
def test_rates_that_mean_nothing_are_told_with_their_place(axes: dict[str, Any], place: str) -> None:
    with raises("bad-grid") as error:
        tiny_plan(engines=VLLM, cells=[BLOCK | axes])
    assert keys_of(error.value) == [place]


def test_a_plan_without_its_times_is_refused(tmp_path: Path) -> None:
    plan = tiny_plan(engines=VLLM, cells=[BLOCK | {"rate": [4]}])
    plan.save(tmp_path / "plan.json")
    data = json.loads((tmp_path / "plan.json").read_text())
    data["cells"][0]["arrival_s"] = data["cells"][0]["arrival_s"][:5]
    (tmp_path / "plan.json").write_text(json.dumps(data))
    with raises("plan-incomplete", missing="arrival_s", found=5):
        measured(Plan.load(tmp_path / "plan.json"), tmp_path / "rows.jsonl")


def test_a_trace_gives_its_own_times_and_two_logs_of_one_name_are_two_cells(tmp_path: Path) -> None:
    rows = [f"2023-11-16 18:00:{second:02},10,5\n" for second in range(40)]
    ids = set()
    for place, kept in (("one", rows), ("two", rows[::2] + rows[1::2][:20] + ["2023-11-16 18:00:00,10,5\n"] * 9)):
        (tmp_path / place).mkdir()
        log = tmp_path / place / "log.csv"
        log.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(kept))
        (planned,) = tiny_plan(engines=VLLM, cells=[BLOCK | {"arrivals": [f"trace:{log}"]}]).cells
        assert planned.cell.label == "vllm-trace:log.csv", "no path of this machine"
        ids.add(planned.cell.id)
        if place == "one":
            assert planned.arrival_s == tuple(float(second) for second in range(32))
    assert len(ids) == 2


def test_the_command_line_measures_checks_and_draws_online_cells(tmp_path: Path) -> None:
    store = str(tmp_path / "rows.jsonl")

    def invoke(*arguments: str) -> Any:
        done = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done

    lengths = ["--input", "512", "--output", "64", "--batch", "16"]
    told = invoke("measure", "-e", "vllm", *lengths, "--arrivals", "offline,poisson8", "--simulate", "-o", store)
    assert "of 8.00 requests/s" in told.stderr
    checked = invoke("check", store, "--rows")
    assert "p50 / p90 / p99: first token" in checked.stdout
    assert "backlog did not grow" in checked.stdout
    row = next(one for one in json.loads(invoke("check", store, "--json").stdout)["files"][0]["rows"] if one["serving"])
    assert row["latency"]["end_to_end"]["p50_s"] > 0
    assert row["backlog"]["arrived"] == 7
    plan = invoke("measure", "-e", "vllm", *lengths, "--arrivals", "poisson8", "--dry-run", "--json").stdout
    assert len(json.loads(plan)["cells"][0]["arrival_s"]) == 16
    invoke("report", store, "--allow-simulated", "-o", str(tmp_path / "page"))
    assert (tmp_path / "page" / "online.svg").exists()
    text = (tmp_path / "page" / "report.md").read_text()
    assert "energy per request by arrival rate, 512 tokens in, 64 out" in text
    assert "vllm, 16 requests, offline" in text
    assert "95 % interval of 512→64 × 16 poisson8" in text
