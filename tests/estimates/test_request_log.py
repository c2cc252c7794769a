"""`--request-log`: a line for each request, whose energies add up to that of the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from infergy.cli import app
from infergy.cost.table import shipped_table
from infergy.estimates.estimate import estimate, sample_of
from infergy.estimates.replay import measured, measured_groups
from infergy.estimates.request_log import log_of_replay, log_of_sample, write_log
from infergy.estimates.servers import ServerSpec, open_server
from infergy.records.store import read_store
from infergy.workload import open_trace
from raising import raises

runner = CliRunner()
ENERGY = ("infergy.energy_j", "infergy.idle_energy_j")
ROWS = Path(__file__).parents[2] / "src/infergy/data/tables/h200-llama-3.1-8b_replays.jsonl"


def total_j(lines: list[dict[str, Any]]) -> float:
    return sum(float(line[name]) for line in lines for name in ENERGY)


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_add_up_to_the_estimate() -> None:
    requests = open_trace("azure-conv-2023").requests().slice(0, 400)
    lines = list(log_of_sample(sample_of(requests), open_server(ServerSpec())))
    (one,) = estimate(requests, offline=False, paper=False).estimates
    assert one.served is not None
    assert total_j(lines) == pytest.approx(one.served.energy_j, rel=1e-9)
    assert sum(line["infergy.idle_energy_j"] for line in lines) == pytest.approx(one.served.energy.idle_j, rel=1e-6)
    assert [line["gen_ai.usage.input_tokens"] for line in lines] == requests.input_tokens.tolist()
    assert [line["infergy.request"] for line in lines] == list(range(400))
    assert all(0 < line["infergy.time_to_first_token_s"] <= line["infergy.duration_s"] for line in lines)


def test_a_rejected_request_has_no_times_and_no_energy() -> None:
    requests = open_trace("azure-code-2023").requests().slice(0, 50)
    from infergy.serving.config import EngineOptions

    server = open_server(ServerSpec(options=EngineOptions(max_model_len=3000)))
    lines = list(log_of_sample(sample_of(requests), server))
    rejected = [line for line in lines if line["infergy.time_to_first_token_s"] is None]
    assert rejected
    assert total_j(rejected) == 0
    assert {line["gen_ai.usage.output_tokens"] for line in rejected} == {0}


def test_lines_of_measured_replays_add_up_to_the_counter() -> None:
    group = measured_groups(read_store(ROWS).rows)[1]
    lines = list(log_of_replay(group, "h200", shipped_table()))
    assert total_j(lines) == pytest.approx(measured(group).energy_j, rel=1e-9)
    times = group[0].windows[0].batches[0].times
    assert times is not None
    assert [line["infergy.duration_s"] for line in lines] == list(times.finished_s)
    assert {line["infergy.energy_method"] for line in lines} == {"measured"}


def test_from_the_command_line(tmp_path: Path) -> None:
    path, store = tmp_path / "log.jsonl", tmp_path / "rows.jsonl"
    few = ("azure-code-2023", "--requests", "30", "--gpu", "h200")
    done = runner.invoke(app, ["estimate", *few, "--request-log", str(path), "--json"])
    assert done.exit_code == 0, done.output
    assert len(lines_of(path)) == 30
    asked = ["replay", *few, "--speed", "4", "--request-log", str(path), "--json"]
    predicted = json.loads(runner.invoke(app, asked).stdout)["predicted"]["energy_j"]
    assert total_j(lines_of(path)) == pytest.approx(predicted, rel=1e-9)
    done = runner.invoke(app, [*asked, "--simulate", "-o", str(store)])
    found = {one["name"]: one["measured"] for one in json.loads(done.stdout)["compared"]}
    assert total_j(lines_of(path)) == pytest.approx(found["energy_j"], rel=1e-9)
    assert {line["infergy.energy_method"] for line in lines_of(path)} == {"simulated GPU"}
    was = lines_of(path)
    assert runner.invoke(app, ["replay", str(store), "--gpu", "h200", "--request-log", str(path)]).exit_code == 0
    assert lines_of(path) == was


def test_several_servers_have_no_log_in_common(tmp_path: Path) -> None:
    log = ["--request-log", str(tmp_path / "log.jsonl")]
    for extra in (["--engine", "vllm", "--engine", "vllm-fp8"], ["--method", "ceiling"]):
        done = runner.invoke(app, ["estimate", "azure-code-2023", "--requests", "30", *extra, *log])
        assert getattr(done.exception, "code", None) == "options-conflict"


def test_no_other_file_is_written_over(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("mine")
    with raises("file-exists"):
        write_log(path, [{"infergy.energy_j": 1.0}])
