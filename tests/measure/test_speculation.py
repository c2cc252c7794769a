"""Speculative decoding, from the grid to the rows: an axis of engine configs, refused where it could not be right."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from infergy.cli import app
from infergy.estimates.build import entries_of_rows
from infergy.measure.grid import parse_grid
from infergy.measure.sweep import sweep
from infergy.records import EngineSetup, Measurement, Plan, derive
from infergy.records.engine_setup import Speculation, tokens_per_round
from infergy.records.store import read_store
from infergy.records.window import Drafts, sum_drafts
from measure.test_measure import tiny_plan
from raising import keys_of, raises, rejects

DRAFT = {"draft": "llama-3.2-1b", "look_ahead": 4, "acceptance": 0.8}
SPEC = "spec4:llama-3.2-1b:0.8"
CELLS = [{"input_tokens": [512], "output_tokens": [64], "batch": [1, 128]}]


def plan_of(*speculations: dict[str, Any] | None, engine: str = "vllm", cells: Any = CELLS, **axis: Any) -> Plan:
    engines = [{"engine": engine, **axis} | ({} if one is None else {"speculation": one}) for one in speculations]
    return tiny_plan(model="llama-3.1-8b", engines=engines, cells=cells)


def measured(path: Path, *speculations: dict[str, Any] | None) -> dict[tuple[str, int], Measurement]:
    list(sweep(plan_of(*speculations), path, simulate=True))
    return {(row.cell.setup.label, row.cell.load.batch): row for row in read_store(path).rows}


@pytest.mark.parametrize(
    "speculation",
    [
        Speculation(draft="llama-3.2-1b", look_ahead=4, acceptance=0.8),
        Speculation(draft="llama-3.2-1b", look_ahead=12, acceptance=0.0),
        Speculation(draft="a-spec3-b", look_ahead=1, acceptance=1.0),
        Speculation(draft="qwen3-8b", look_ahead=2),
    ],
)
def test_a_label_parses_to_what_it_stands_for_whatever_the_name_of_the_draft(speculation: Speculation) -> None:
    setup = EngineSetup(engine="vllm", model="m", cuda_graphs=False, tensor_parallel=2, speculation=speculation)
    assert setup.label == f"vllm-eager-tp2-{speculation.label}"
    assert EngineSetup(model="m", **EngineSetup.parse_label(setup.label)) == setup


@pytest.mark.parametrize("label", ["vllm-spec:llama:0.8", "vllm-spec4:", "vllm-spec4:m:often", "vllm-spec4:m:0.8:x"])
def test_a_label_of_speculation_that_means_nothing_is_told_with_one_that_does(label: str) -> None:
    with raises("bad-value", option="speculation"):
        EngineSetup.parse_label(label)


def test_set_ups_without_a_draft_keep_their_ids_and_others_differ_by_each_of_its_fields() -> None:
    plain = EngineSetup(engine="vllm", model="llama-3.1-8b")
    assert replace(plain, speculation=None).id == plain.id == "43a54e0dfbfc"
    one = Speculation(draft="llama-3.2-1b", look_ahead=4, acceptance=0.8)
    others = [replace(one, look_ahead=5), replace(one, acceptance=0.6), replace(one, draft="llama-3.2-3b")]
    assert len({plain.id, *(replace(plain, speculation=each).id for each in (one, *others))}) == 5


@pytest.mark.parametrize(
    ("change", "code", "fields"),
    [
        ({"look_ahead": 0}, "bad-value", {"option": "look_ahead", "value": 0}),
        ({"acceptance": 1.2}, "bad-value", {"option": "acceptance", "value": 1.2}),
        ({"acceptance": -0.1}, "bad-value", {"option": "acceptance"}),
        ({"acceptance": float("nan")}, "bad-value", {"option": "acceptance"}),
        ({"acceptance": None}, "option-missing", {"option": "acceptance"}),
        ({"draft": "qwen3-8b"}, "wrong-draft", {"draft": "qwen3-8b"}),
        ({"draft": "llama-3.2-9b"}, "unknown-model", {"name": "llama-3.2-9b"}),
        ({"draft": "llama-3.1-8b"}, "wrong-draft", {"draft": "llama-3.1-8b", "model": "llama-3.1-8b"}),
        (
            {"weights": "some/draft"},
            "options-conflict",
            {"options": {"weights": "random", "speculation": "spec4:llama-3.2-1b:0.8"}},
        ),
    ],
)
def test_a_draft_that_cannot_be_right_is_refused_before_anything_runs(
    change: dict[str, Any], code: str, fields: dict[str, Any]
) -> None:
    with rejects(code, **fields):
        plan_of(DRAFT | change)


@pytest.mark.parametrize(
    ("change", "code", "fields"),
    [
        ({"weights": "me/llama"}, "options-conflict", {"options": {"speculation": SPEC, "weights": "me/llama"}}),
        ({"compiled": True}, "options-conflict", {"options": {"compiled": True, "speculation": SPEC}}),
        ({"dtype": "fp8"}, "options-conflict", {"options": {"dtype": "fp8", "speculation": SPEC}}),
        (
            {"cells": [CELLS[0] | {"decoding": ["beam4"]}]},
            "options-conflict",
            {"options": {"decoding": "beam4", "speculation": SPEC}},
        ),
        ({"engine": "transformers"}, "engine-lacks", {"engine": "transformers", "option": "speculation"}),
        ({"tensor_parallel": 3}, "bad-value", {"option": "tensor_parallel", "value": 3}),
        ({"cells": [{"input_tokens": [131072], "output_tokens": [8]}]}, "too-long", {"limit": 131072}),
    ],
)
def test_what_no_engine_drafts_for_is_refused_with_its_reason(
    change: dict[str, Any], code: str, fields: dict[str, Any]
) -> None:
    with rejects(code, **fields):
        plan_of(DRAFT, **change)


REAL = {"draft": "llama-3.2-1b", "look_ahead": 4, "weights": "me/draft"}


def test_transformers_assists_one_request_and_is_refused_more_before_anything_runs() -> None:
    one = [CELLS[0] | {"batch": [1]}]
    (planned,) = plan_of(REAL, engine="transformers", weights="me/model", cells=one).cells
    assert planned.cell.setup.label == "transformers-spec4:llama-3.2-1b:measured"
    with raises("engine-lacks", engine="transformers", option="batch", value=128):
        plan_of(REAL, engine="transformers", weights="me/model")


def test_assisted_rounds_of_transformers_are_played_and_counted(tmp_path: Path) -> None:
    plan = plan_of(REAL, engine="transformers", weights="me/model", cells=[CELLS[0] | {"batch": [1]}])
    list(sweep(plan, tmp_path / "rows.jsonl", simulate=True))
    (row,) = read_store(tmp_path / "rows.jsonl").rows
    drafts = sum_drafts(batch.drafts for window in row.windows for batch in window.batches)
    assert row.is_ok
    assert drafts is not None
    assert 0 < drafts.accepted_tokens < drafts.drafted_tokens


def test_real_weights_of_both_leave_the_acceptance_to_be_measured() -> None:
    real = {"draft": "llama-3.2-1b", "look_ahead": 4, "weights": "me/draft"}
    (setup,) = plan_of(real, weights="me/model").by_setup()
    assert setup.label == "vllm-spec4:llama-3.2-1b:measured"
    with raises("option-missing", option="speculation.weights"):
        plan_of(real | {"weights": None}, weights="me/model")


def test_a_key_that_means_nothing_is_told_with_its_place() -> None:
    engines = [{"engine": "vllm", "speculation": DRAFT | {"lookahead": 4}}]
    with raises("bad-grid", place="g") as error:
        parse_grid({"name": "g", "gpu": "h200", "model": "llama-3.1-8b", "engines": engines, "cells": CELLS}, "g")
    assert keys_of(error.value) == ["engines.0.speculation.lookahead"]


def test_a_plan_carries_both_configurations_and_one_without_the_drafts_is_refused(tmp_path: Path) -> None:
    plan = plan_of(DRAFT)
    assert set(plan.models) == {"llama-3.1-8b", "llama-3.2-1b"}
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    without = replace(plan, models={"llama-3.1-8b": plan.models["llama-3.1-8b"]})
    with raises("plan-incomplete", missing="llama-3.2-1b"):
        list(sweep(without, tmp_path / "rows.jsonl", simulate=True))


def test_a_plan_whose_draft_has_another_vocabulary_is_refused(tmp_path: Path) -> None:
    plan = plan_of(DRAFT)
    other = {**plan.models["llama-3.2-1b"], "vocab_size": 32000}
    with raises("wrong-draft", draft="llama-3.2-1b", model="llama-3.1-8b"):
        list(sweep(replace(plan, models={**plan.models, "llama-3.2-1b": other}), tmp_path / "r.jsonl", simulate=True))


def test_rows_keep_what_was_drafted_and_their_figures_follow_from_it(tmp_path: Path) -> None:
    rows = measured(tmp_path / "rows.jsonl", None, DRAFT, DRAFT | {"acceptance": 0.6})
    for label, acceptance in (("vllm-spec4:llama-3.2-1b:0.8", 0.8), ("vllm-spec4:llama-3.2-1b:0.6", 0.6)):
        row = rows[label, 128]
        drafts = row.windows[0].batches[0].drafts
        assert drafts is not None
        assert drafts.drafted_tokens == 4 * drafts.rounds
        # Each token after the first came from a round: drafted and accepted, or the model's own.
        assert drafts.accepted_tokens + drafts.rounds == 128 * 63
        assert row.result is not None
        assert row.loaded_idle is not None
        assert row.result == derive(row.windows, row.loaded_idle)
        assert row.result.tokens_per_round == pytest.approx(tokens_per_round(acceptance, 4), rel=1e-3)
        assert row.result.accepted_share == pytest.approx((tokens_per_round(acceptance, 4) - 1) / 4, rel=1e-3)
        assert row.result.energy_per_output_token_j == pytest.approx(row.result.energy_j / (128 * 64))
    plain = rows["vllm", 128].result
    assert plain is not None
    assert plain.accepted_share is None
    assert plain.tokens_per_round is None
    assert rows["vllm", 128].windows[0].batches[0].drafts is None


def test_drafting_saves_joules_for_one_request_more_so_with_more_accepted_and_enters_no_table(
    tmp_path: Path,
) -> None:
    path = tmp_path / "rows.jsonl"
    rows = measured(path, None, DRAFT, DRAFT | {"acceptance": 0.6})
    joules = {key: row.result.energy_j for key, row in rows.items() if row.result is not None}
    drafted, less = "vllm-spec4:llama-3.2-1b:0.8", "vllm-spec4:llama-3.2-1b:0.6"
    assert joules[drafted, 1] < joules[less, 1] < joules["vllm", 1]
    assert joules[drafted, 128] < joules[less, 128]
    entries, _ = entries_of_rows([path], {}, allow_simulated=True)
    assert {entry.origin.cell_id for entry in entries} == {rows["vllm", batch].cell_id for batch in (1, 128)}


def test_rows_from_before_there_were_drafts_are_still_read(tmp_path: Path) -> None:
    row = measured(tmp_path / "rows.jsonl", None)["vllm", 1]
    old = json.loads(json.dumps(row.to_json()))
    del old["cell"]["setup"]["speculation"], old["result"]["accepted_share"], old["result"]["tokens_per_round"]
    for window in (*old["windows"], old["loaded_idle"]):
        for batch in window["batches"]:
            del batch["drafts"]
    assert Measurement.from_json(old) == Measurement.from_json(row.to_json())


def test_a_batch_that_does_not_tell_leaves_the_share_unknown() -> None:
    one = Drafts(rounds=2, drafted_tokens=8, accepted_tokens=4)
    assert sum_drafts([one, one]) == Drafts(rounds=4, drafted_tokens=16, accepted_tokens=8)
    assert sum_drafts([one, None]) is sum_drafts([]) is None
    nothing = Drafts(rounds=0, drafted_tokens=0, accepted_tokens=0)
    assert nothing.accepted_share is nothing.tokens_per_round is None


def test_a_draft_is_served_online_too(tmp_path: Path) -> None:
    cells = [{"input_tokens": [512], "output_tokens": [16], "batch": [8], "arrivals": ["poisson4"]}]
    list(sweep(plan_of(DRAFT, cells=cells), tmp_path / "rows.jsonl", simulate=True))
    (row,) = read_store(tmp_path / "rows.jsonl").rows
    assert row.cell.label == "vllm-spec4:llama-3.2-1b:0.8-poisson4"
    assert row.result is not None
    assert row.result.tokens_per_round is not None


def test_the_command_line_asks_by_label(tmp_path: Path) -> None:
    store = tmp_path / "rows.jsonl"
    asked = ["measure", "--engine", "vllm-spec2:llama-3.2-1b:0.7", "--input", "64", "--output", "8", "--batch", "2"]
    done = CliRunner().invoke(app, [*asked, "--simulate", "-o", str(store)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    (row,) = read_store(store).rows
    assert row.cell.setup.speculation == Speculation(draft="llama-3.2-1b", look_ahead=2, acceptance=0.7)
