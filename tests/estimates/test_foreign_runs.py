"""`infergy table import`: runs of other tools as entries of a table, or what they lack."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from infergy.cli import app
from infergy.cost.table import read_table, shipped_table
from infergy.errors import DataError
from infergy.estimates.foreign_runs import import_runs
from infergy.estimates.servers import ServerSpec, open_server
from infergy.serving.config import EngineOptions
from infergy.serving.simulate import requests_of_lengths
from raising import raises

runner = CliRunner()
LENGTHS = [(200 + 13 * k % 300, 150 + 37 * k % 400) for k in range(64)]
SERVER = open_server(ServerSpec(gpu="h100-sxm", options=EngineOptions(max_num_seqs=16)))
RUN = SERVER.serve(requests_of_lengths("truth", LENGTHS))


def ml_energy(**changes: Any) -> dict[str, Any]:
    """A results.json whose energy and seconds are those of a simulated run."""
    return {
        "date": "20251125-162658",
        "model_id": "meta-llama/Llama-3.1-8B-Instruct",
        "gpu_model": "H100",
        "num_gpus": 1,
        "max_num_seqs": 16,
        "request_rate": "inf",
        "num_request_repeats": 1,
        "completed": 64,
        "steady_state_energy": 1.0,
        "entire_benchmark_measurement": {"time": RUN.duration_s, "gpu_energy": {"0": RUN.energy_j}, "cpu_energy": None},
        "results": [{"input_len": a, "output_len": b, "error": "", "prompt": "", "itl": [0.1]} for a, b in LENGTHS],
    } | changes


def inference_x(**changes: Any) -> dict[str, Any]:
    run = open_server(ServerSpec(options=EngineOptions(max_num_seqs=4))).serve(
        requests_of_lengths("x", [(1024, 256)] * 40)
    )
    return {
        "hw": "h200-cw",
        "framework": "vllm",
        "model": "meta-llama/Llama-3.1-8B-Instruct",
        "precision": "bf16",
        "tp": 1,
        "ep": 1,
        "dp_attention": "false",
        "conc": 4,
        "isl": 1024,
        "osl": 256,
        "power_valid": 1,
        "total_gpu_energy_j": run.energy_j,
        "avg_total_gpu_power_w": run.energy_j / run.duration_s,
        "joules_per_successful_query": run.energy_j / 40,
        "joules_per_input_token": run.energy_j / 40 / 1024,
        "joules_per_output_token": run.energy_j / 40 / 256,
    } | changes


def written(folder: Path, content: Any, name: str = "results.json") -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_runs_that_the_model_made_leave_it_as_it_was(tmp_path: Path) -> None:
    paths = [written(tmp_path, ml_energy()), written(tmp_path, inference_x(), "agg_x.json")]
    table, done = import_runs(paths, shipped_table())
    assert [one.missing for one in done] == [None, None]
    first, second = table.entries
    assert first.requests == 64
    assert second.requests == 40
    assert first.energy_j == pytest.approx(RUN.energy_j)
    assert first.origin.weights == "real weights: meta-llama/Llama-3.1-8B-Instruct"
    assert first.origin.source == "results.json"
    assert float(first.steps[:, 0].sum()) == pytest.approx(float(RUN.steps.count.sum()))
    after = open_server(SERVER.spec, table).serve(requests_of_lengths("truth", LENGTHS))
    assert after.energy_j == pytest.approx(RUN.energy_j, rel=0.01)
    assert table.outliers == ()


def test_dearer_runs_make_estimates_dearer(tmp_path: Path) -> None:
    measurement = {"time": RUN.duration_s, "gpu_energy": {"0": 1.15 * RUN.energy_j}}
    paths = [
        written(tmp_path, ml_energy(entire_benchmark_measurement=measurement, date=f"{day}"), f"{day}.json")
        for day in range(4)
    ]
    table, _ = import_runs(paths, shipped_table())
    after = open_server(SERVER.spec, table).serve(requests_of_lengths("truth", LENGTHS))
    assert 1.03 < after.energy_j / RUN.energy_j < 1.2


CODECARBON = (
    "timestamp,project_name,run_id,duration,emissions,emissions_rate,cpu_power,gpu_power,ram_power,cpu_energy,"
    "gpu_energy,ram_energy,energy_consumed,gpu_count,gpu_model\n"
    "2024-07-19T15:57:43,codecarbon,9adda612,554.2,0.00015,2.7e-07,42.5,0.0,377.7,0.0065,0.01,0.058,0.0746,1,1 x A100\n"
)


@pytest.mark.parametrize(
    ("content", "name", "lacks"),
    [
        (CODECARBON, "emissions.csv", "requests with their tokens"),
        (inference_x(framework="sglang"), "agg.json", "sglang"),
        (inference_x(power_valid=0), "agg.json", "valid power"),
        (inference_x(ep=8), "agg.json", "divided"),
        (inference_x(precision="fp4"), "agg.json", "4-bit"),
        (inference_x(hw="mi300x"), "agg.json", "GPU"),
        (ml_energy(model_id="someone/unknown-7b"), "results.json", "model"),
        (ml_energy(request_rate=4.0), "results.json", "arrival times"),
        (ml_energy(num_request_repeats=2), "results.json", "prefix cache"),
        (ml_energy(results=[{"input_len": 3, "output_len": 4, "error": "x"}] * 2), "results.json", "failed"),
        (ml_energy(entire_benchmark_measurement={"time": 1.0, "gpu_energy": {"0": 1e6}}), "results.json", "power"),
        (ml_energy(entire_benchmark_measurement={"time": 1.0}), "results.json", "gpu_energy"),
        (ml_energy(num_gpus=0), "results.json", "num_gpus"),
        (ml_energy(num_gpus=4), "results.json", "each of its 4 GPUs"),
        (inference_x(joules_per_output_token=1e9), "agg.json", "tokens of its requests"),
        (inference_x(joules_per_successful_query=1e-300), "agg.json", "e+"),
        ("a,b\n1,2,3\n", "wide.csv", "none of"),
        ("a,b\n", "empty.csv", "no run"),
        ({"model_id": "a", "energy_per_token_joules": 0.1, "avg_output_len": 3}, "gpqa.json", "input tokens"),
        ({"a": 1}, "x.json", "none of"),
    ],
)
def test_what_is_missing_is_named(content: Any, name: str, lacks: str, tmp_path: Path) -> None:
    with raises("no-rows") as caught:
        import_runs([written(tmp_path, content, name)], shipped_table())
    assert lacks in str(caught.value)


def test_a_csv_with_more_fields_than_names(tmp_path: Path) -> None:
    names, values = zip(*inference_x().items(), strict=True)
    text = f"{','.join(names)}\n{','.join(map(str, values))},more,and more\n"
    table, _ = import_runs([written(tmp_path, text, "agg.csv")], shipped_table())
    assert table.entries


def test_a_run_that_lacks_something_leaves_the_others(tmp_path: Path) -> None:
    path, output = written(tmp_path, [inference_x(), inference_x(power_valid=0)], "agg.json"), tmp_path / "table.jsonl"
    done = runner.invoke(app, ["table", "import", str(path), "-o", str(output), "--json"])
    assert done.exit_code == 0, done.output
    missing = [run["missing"] for run in json.loads(done.stdout)["runs"]]
    assert missing[0] is None
    assert missing[1]
    assert len(read_table(output, entries=True).entries) == 1
    estimated = runner.invoke(
        app, ["estimate", "azure-code-2023", "--requests", "50", "--table", str(output), "--json"]
    )
    assert estimated.exit_code == 0, estimated.output
    shown = runner.invoke(app, ["table", "import", str(path), "-o", str(output)])
    assert "left out: it lacks valid power" in shown.stdout


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), whole=st.sampled_from([ml_energy(), inference_x()]))
def test_damaged_files_are_errors_of_data(data: st.DataObject, whole: dict[str, Any], tmp_path_factory: Any) -> None:
    key = data.draw(st.sampled_from(sorted(whole)))
    damaged = whole | {key: data.draw(JSON)}
    path = written(tmp_path_factory.mktemp("damaged"), damaged)
    try:
        table, _ = import_runs([path], shipped_table())
    except DataError:
        return
    assert all(entry.energy_j > 0 for entry in table.entries)


def test_what_is_no_json(tmp_path: Path) -> None:
    with raises("bad-syntax"):
        import_runs([written(tmp_path, "{")], shipped_table())
    with raises("bad-syntax"):
        import_runs([written(tmp_path, "a,b\n" + "x" * 200_000, "long.csv")], shipped_table())
    with raises("unknown-format"):
        import_runs([written(tmp_path, "[1]")], shipped_table())
