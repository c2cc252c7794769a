"""The shipped studies: each can be measured or says why not, and its quick grid is a small part of it."""

from __future__ import annotations

import json
import tomllib
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from infergy.catalog import get_gpu, get_model, model_config
from infergy.catalog.memory import largest_batch
from infergy.catalog.models import find_draft
from infergy.cli import app
from infergy.measure.forecast import total_j
from infergy.measure.grid import Grid, make_plan, parse_grid, read_toml, shrink
from infergy.measure.studies import describe_study, size_of, study_names, study_path
from infergy.records import Plan
from infergy.records.store import read_store
from measure.test_measure import tiny_plan
from raising import keys_of, raises, seen

FIGURES = [
    "Figure 1",
    "Figures 2, 10, 11",
    "Figure 3",
    "Figure 4",
    "Figure 5",
    "Figure 6",
    "Figure 8",
    "Figure 9",
    "Table 4",
]


def data_of(name: str) -> dict[str, Any]:
    return read_toml(study_path(name))


def grid_of(name: str) -> Grid:
    return parse_grid(data_of(name), name)


RUNNABLE = [name for name in study_names() if not grid_of(name).needs]
WAITING = [name for name in study_names() if grid_of(name).needs]


@cache
def plan_of(name: str, *, quick: bool) -> Plan:
    data = data_of(name)
    return make_plan(parse_grid(shrink(data, name) if quick else data, name))


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def test_every_figure_and_table_of_the_paper_that_rests_on_measuring_has_a_study() -> None:
    told = " ".join(grid_of(name).figure for name in study_names())
    for figure in FIGURES:
        assert figure in told
    assert all(grid_of(name).title and grid_of(name).description for name in study_names())


def test_the_claims_of_studies_are_those_that_ship() -> None:
    shipped = tomllib.loads((study_path("engines").parents[1] / "claims.toml").read_text(encoding="utf-8"))
    named = {claim for name in study_names() for claim in grid_of(name).claims}
    assert named == {claim["study"] for claim in shipped["claims"]}


@pytest.mark.parametrize("name", study_names())
def test_a_study_has_the_name_of_its_file(name: str) -> None:
    assert grid_of(name).name == name


@pytest.mark.parametrize("name", [name for name in RUNNABLE if grid_of(name).quick is not None])
def test_each_study_resolves_and_its_quick_grid_is_a_smaller_part_of_it(name: str) -> None:
    full, quick = plan_of(name, quick=False), plan_of(name, quick=True)
    assert full.gpu == "h200"
    cells = {planned.cell.id for planned in full.cells}
    few = {planned.cell.id for planned in quick.cells}
    assert few < cells, "a store of the quick grid is resumed by the full one"
    assert quick.by_setup().keys() == full.by_setup().keys()
    assert quick.options == full.options
    assert size_of(quick).forecast_s < size_of(full).forecast_s
    assert size_of(quick).forecast_energy_j < size_of(full).forecast_energy_j
    assert size_of(quick).forecast_s < 600


@pytest.mark.parametrize("name", RUNNABLE)
def test_what_a_study_gives_as_a_batch_fits_the_gpu(name: str) -> None:
    plan = plan_of(name, quick=False)
    for planned in plan.cells:
        load, setup = planned.cell.load, planned.cell.setup
        limit = largest_batch(
            get_model(setup.model),
            get_gpu("h200"),
            load.input_tokens,
            load.output_tokens,
            engine=setup.engine,
            tensor_parallel=setup.tensor_parallel,
            draft=find_draft(setup, plan.models),
        )
        at_once = min(load.batch, setup.max_sequences or load.batch)
        assert at_once * load.decoding.beams <= limit.batch, str(planned.cell)


def test_a_study_whose_axis_is_missing_is_refused_before_anything_runs(tmp_path: Path) -> None:
    store, file = tmp_path / "rows.jsonl", tmp_path / "mine.toml"
    text = study_path("engines").read_text(encoding="utf-8")
    file.write_text(f'needs = ["an axis of colours"]\n{text}', encoding="utf-8")
    for command in (["measure", str(file), "--quick"], ["measure", str(file)]):
        refused = invoke(*command, "--simulate", "-o", str(store))
        assert seen(refused.exception, "needs") == ("not-supported", {"needs": ["an axis of colours"]})
    assert not store.exists()


def test_the_list_tells_sizes_what_is_measured_and_what_waits() -> None:
    found = json.loads(invoke("list", "studies", "--json").stdout)
    studies = {one["name"]: one for one in found["studies"]}
    assert list(studies) == list(study_names())
    for name in RUNNABLE:
        assert studies[name]["reason"] is None
        assert studies[name]["quick_reason"] is None
        quick = studies[name]["quick"]
        assert quick is None or quick["cells"] < studies[name]["full"]["cells"]
        assert studies[name]["full"]["forecast_energy_j"] > 0
    assert studies["weights-law"]["full"]["measured"] == studies["weights-law"]["full"]["cells"] == 16
    assert 0 < studies["paper-bins"]["full"]["measured"] < studies["paper-bins"]["full"]["cells"]
    assert studies["tensor-parallel-4"]["full"]["gpus"] == 4
    for name in WAITING:
        assert studies[name]["full"] is None
        assert studies[name]["needs"]


def test_every_study_and_every_figure_and_table_of_results_of_the_paper_is_in_the_list() -> None:
    done = CliRunner().invoke(app, ["list", "studies"], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    for figure in ("Figure 1, Table 4", "Figures 2, 10, 11", *(f"Figure {number}" for number in range(3, 10))):
        assert figure in done.stdout, figure
    assert all(name in done.stdout for name in study_names())
    assert done.stdout.count("not runnable yet: needs") == len(WAITING)


def test_the_list_is_for_another_gpu_where_nothing_is_measured_and_less_fits() -> None:
    studies = json.loads(invoke("list", "studies", "--gpu", "a6000", "--json").stdout)["studies"]
    assert {one["gpu"] for one in studies} == {get_gpu("a6000").name}
    assert all(one["full"]["measured"] == 0 for one in studies if one["full"])
    assert any(one["full"] for one in studies)
    with raises("unknown-gpu", name="h2000"):
        CliRunner().invoke(app, ["list", "studies", "--gpu", "h2000"], catch_exceptions=False)


def test_a_quick_study_runs_end_to_end_and_the_full_one_resumes_it(tmp_path: Path) -> None:
    store = tmp_path / "rows.jsonl"
    done = invoke("measure", "engines", "--quick", "--simulate", "--json", "-o", str(store))
    assert done.exit_code == 0, done.output
    rows = read_store(store).rows
    assert [json.loads(line)["cell_id"] for line in done.stdout.splitlines()] == [row.cell_id for row in rows]
    assert {row.cell.label for row in rows} == {"transformers", "transformers-compiled", "vllm", "vllm-eager"}
    assert all(row.is_ok and row.simulated for row in rows)
    assert len(rows) == 8
    assert "engines: 8 cells, about" in done.stderr
    full = invoke("measure", "engines", "--simulate", "-o", str(store))
    assert "resuming: 8 of 16 cells are already measured" in " ".join(full.stderr.split())
    assert len(read_store(store).rows) == 16


def test_several_studies_make_one_plan_in_which_what_they_share_is_loaded_and_measured_once(tmp_path: Path) -> None:
    names = ("engines", "precision", "input-lengths")
    file = tmp_path / "plan.json"
    file.write_text(invoke("measure", *names, "--quick", "--simulate", "--dry-run", "--json").stdout, "utf-8")
    joint = Plan.load(file)
    alone = [plan_of(name, quick=True) for name in names]
    wanted = {planned.cell.id for plan in alone for planned in plan.cells}
    assert {planned.cell.id for planned in joint.cells} == wanted
    assert len(wanted) < sum(len(plan.cells) for plan in alone)
    assert len(joint.by_setup()) == len({planned.cell.setup for plan in alone for planned in plan.cells})
    # Each engine config in one piece, its controls at both ends where it has become large enough for them.
    setups = [planned.cell.setup for planned in joint.cells]
    assert sum(one != other for one, other in pairwise(setups)) == len(joint.by_setup()) - 1
    vllm = next(cells for setup, cells in joint.by_setup().items() if setup.label == "vllm")
    assert [planned.visit for planned in vllm[:3]] == ["start"] * 3
    assert [planned.visit for planned in vllm[-3:]] == ["end"] * 3
    assert joint.name == "engines + precision + input-lengths"


def test_studies_that_cannot_be_measured_together_say_why(tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    other.write_text(study_path("engines").read_text(encoding="utf-8") + "[options]\nseed = 3\n", encoding="utf-8")
    slow = tmp_path / "slow.toml"
    text = study_path("precision").read_text(encoding="utf-8").replace('gpu = "h200"', 'gpu = "h100-sxm"')
    slow.write_text(text, encoding="utf-8")
    plan = tmp_path / "plan.json"
    plan.write_text("{}", encoding="utf-8")
    cases: list[tuple[tuple[str, ...], str, dict[str, object]]] = [
        ((str(other), "precision"), "grids-differ", {"grids": ["engines", "precision"]}),
        (("engines", str(slow)), "several-gpus", {"gpus": ["h100-sxm", "h200"]}),
        (("engines", str(plan)), "plan-is-resolved", {"plan": str(plan)}),
        ((str(plan), "--batch", "4", "-e", "vllm"), "plan-is-resolved", {"options": ["--engine", "--batch"]}),
    ]
    for given, code, fields in cases:
        refused = invoke("measure", *given, "--dry-run", "--simulate")
        assert seen(refused.exception, *fields) == (code, fields)


def test_two_models_of_one_name_are_not_taken_for_each_other(tmp_path: Path) -> None:
    names = []
    for size, shipped in (("small", "llama-3.2-1b"), ("large", "llama-3.1-8b")):
        config = tmp_path / size / "mine" / "config.json"
        config.parent.mkdir(parents=True)
        config.write_text(json.dumps(model_config(shipped)), encoding="utf-8")
        grid = tmp_path / f"{size}.toml"
        text = study_path("precision").read_text(encoding="utf-8")
        grid.write_text(text.replace('model = "llama-3.1-8b"', f'model = "{config}"'), encoding="utf-8")
        names.append(str(grid))
    refused = invoke("measure", *names, "--dry-run", "--simulate")
    assert seen(refused.exception, "model") == ("grids-differ", {"model": "mine"})
    assert invoke("measure", names[0], names[0], "--dry-run", "--simulate").exit_code == 0


def test_a_batch_that_one_study_asks_for_and_another_seeks_was_sought() -> None:
    def grid(batch: str | list[int]) -> Grid:
        cells = [{"input_tokens": [512], "output_tokens": [64], "batch": batch}]
        engines = [{"engine": "vllm"}]
        data = {"name": "one", "gpu": "h200", "model": "llama-3.1-8b", "engines": engines, "cells": cells}
        return parse_grid(data, "one")

    sought = make_plan(grid("largest")).cells[0]
    asked = grid([sought.cell.load.batch])
    assert make_plan(asked).cells[0].batch_choice == "given"
    for grids in ((asked, grid("largest")), (grid("largest"), asked)):
        assert make_plan(*grids).cells == (sought,)


def test_a_study_can_be_held_to_a_time_for_each_cell() -> None:
    plan = json.loads(invoke("measure", "engines", "--max-time", "12", "--simulate", "--dry-run", "--json").stdout)
    assert plan["options"]["max_time_s"] == 12.0


def test_a_study_and_measure_make_the_same_plan() -> None:
    by_study = invoke("measure", "tasks", "--simulate", "--dry-run", "--json").stdout
    assert json.loads(by_study) == json.loads(invoke("measure", "tasks", "--simulate", "--dry-run", "--json").stdout)


def test_the_forecast_joules_of_a_plan_lie_between_base_power_and_tdp_and_grow_with_its_windows() -> None:
    plan = tiny_plan(engines=[{"engine": "vllm"}])
    power_w = total_j(plan) / size_of(plan).forecast_s
    gpu = get_gpu("h200")
    assert 0.2 * gpu.tdp_w < power_w < gpu.tdp_w
    twice = tiny_plan(engines=[{"engine": "vllm"}], options={"shuffle": False, "min_window_s": 6.0})
    assert total_j(twice) > 1.3 * total_j(plan)


def test_a_grid_of_your_own_may_have_a_quick_grid_and_is_told_if_it_has_none(tmp_path: Path) -> None:
    text = study_path("engines").read_text(encoding="utf-8")
    (tmp_path / "own.toml").write_text(text)
    (tmp_path / "plain.toml").write_text(text.split("[[quick.cells]]")[0])
    done = invoke("measure", str(tmp_path / "own.toml"), "--quick", "--simulate", "--dry-run")
    assert "engines on h200: 8 cells" in done.stdout
    refused = invoke("measure", str(tmp_path / "plain.toml"), "--quick", "--simulate", "--dry-run")
    assert seen(refused.exception, "keys") == ("missing-field", {"keys": ["quick"]})


def test_a_study_without_a_quick_grid_is_listed_without_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "lone.toml").write_text(study_path("engines").read_text(encoding="utf-8").split("[[quick.cells]]")[0])
    monkeypatch.setattr("infergy.measure.studies._folder", lambda: tmp_path)
    found = describe_study("lone", {}, {})
    assert found.full is not None
    assert (found.quick, found.quick_reason) == (None, None)


def test_an_unknown_study_gives_the_nearest() -> None:
    refused = invoke("measure", "engine", "--simulate")
    assert seen(refused.exception, "kind", "nearest") == (
        "unknown-name",
        {"kind": "study", "nearest": ["engines", "online"]},
    )


def test_unknown_axes_are_told_all_at_once_with_their_places() -> None:
    data = data_of("engines")
    data["speed"] = "high"
    data["engines"] = [{"engine": "vllm", "experts": 8}]
    data["quick"] = {"cells": [{"input_tokens": [], "output_tokens": [64], "drafts": 4}]}
    with raises("bad-grid", place="mine.toml") as error:
        parse_grid(data, "mine.toml")
    keys = {"speed", "engines.0.experts", "quick.cells.0.drafts", "quick.cells.0.input_tokens"}
    assert keys <= set(keys_of(error.value))
    assert all(f"\n  {key}: " in str(error.value) for key in keys)


def test_impossible_combinations_are_told_all_at_once() -> None:
    engines = [
        {"engine": "vllm", "compiled": True, "tensor_parallel": 3},
        {"engine": "transformers", "cuda_graphs": True, "tensor_parallel": 2},
        {"engine": "vlm"},
    ]
    cells = [{"input_tokens": [512], "output_tokens": [64], "batch": [1], "decoding": ["greedy", "beam4"]}]
    with raises("grid-rejected", grid="tiny") as error:
        tiny_plan(engines=engines, cells=cells, gpu="h2000", options={})
    reasons = error.value.fields["reasons"]
    told = [(one["code"], one["fields"].get("option", one["fields"].get("name"))) for one in reasons]
    assert sorted(told) == [
        ("bad-value", "tensor_parallel"),
        ("engine-lacks", "compiled"),
        ("engine-lacks", "cuda_graphs"),
        ("engine-lacks", "decoding"),
        ("engine-lacks", "tensor_parallel"),
        ("unknown-engine", "vlm"),
        ("unknown-gpu", "h2000"),
    ]
    assert all(f"\n  - {one['message']}" in str(error.value) for one in reasons)


def test_requests_too_long_for_the_model_or_the_gpu_are_told_all_at_once() -> None:
    cells = [{"input_tokens": [1024, 4096], "output_tokens": [2048]}]
    with raises("grid-rejected") as error:
        tiny_plan(engines=[{"engine": "vllm"}], cells=cells, model="olmo-1b")
    told = [(reason["code"], reason["fields"]) for reason in error.value.fields["reasons"]]
    assert told == [("too-long", {"tokens": tokens + 2048, "limit": 2048}) for tokens in (1024, 4096)]
    big = [{"input_tokens": [512, 1024], "output_tokens": [64]}]
    with raises("grid-rejected") as error:
        tiny_plan(cells=big, model="llama-3.1-70b", gpu="a6000")
    assert [reason["code"] for reason in error.value.fields["reasons"]] == ["does-not-fit"] * 4


def test_one_reason_alone_is_told_as_it_is() -> None:
    with raises("unknown-model", name="lama"):
        tiny_plan(model="lama")
    assert tiny_plan(engines=[{"engine": "transformers"}], model="olmo-1b", cells=[
        {"input_tokens": [2048], "output_tokens": [64], "batch": [1]}
    ]).cells, "transformers goes on past the positions"  # fmt: skip
