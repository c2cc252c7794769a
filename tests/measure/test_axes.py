"""Axes of the grid beyond lengths and batches: decoding and compiling, from the grid to the rows."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from infergy.catalog import get_gpu, get_model, model_config
from infergy.engines.vllm import VllmEngine
from infergy.engines.vllm_options import sampling_options
from infergy.estimates.build import entries_of_rows
from infergy.measure.grid import parse_grid
from infergy.measure.sweep import sweep
from infergy.records import Decoding, EngineSetup, Measurement, result_of
from infergy.records.store import read_store
from measure.test_measure import tiny_plan
from raising import keys_of, raises

SAMPLED = [{"input_tokens": [64], "output_tokens": [8], "batch": [4], "decoding": ["greedy", "beam4", "t0.8"]}]


def test_each_decoding_is_a_cell_of_its_own_and_greedy_keeps_its_id() -> None:
    plan = tiny_plan(engines=[{"engine": "transformers"}], cells=SAMPLED)
    assert [planned.cell.label for planned in plan.cells] == ["transformers", "transformers-beam4", "transformers-t0.8"]
    plain = tiny_plan(
        engines=[{"engine": "transformers"}], cells=[{key: SAMPLED[0][key] for key in list(SAMPLED[0])[:3]}]
    )
    assert plan.cells[0].cell.id == plain.cells[0].cell.id
    assert len({planned.cell.id for planned in plan.cells}) == 3


def test_a_decoding_that_means_nothing_is_told_with_its_place() -> None:
    grid = {"name": "g", "gpu": "h200", "model": "llama-3.1-8b", "engines": [{"engine": "vllm"}]}
    with raises("bad-grid", place="g") as error:
        parse_grid(grid | {"cells": [{"input_tokens": [1], "output_tokens": [1], "decoding": ["greedy", "hot"]}]}, "g")
    assert keys_of(error.value) == ["cells.0.decoding.1"]


def test_beams_leave_room_for_fewer_requests_and_are_forecast_as_many_sequences() -> None:
    cells = [{"input_tokens": [2048], "output_tokens": [64], "decoding": ["greedy", "beam4"]}]
    greedy, beams = tiny_plan(engines=[{"engine": "transformers"}], cells=cells).cells
    assert beams.cell.load.batch <= greedy.cell.load.batch // 4 + 1
    small = [{"input_tokens": [512], "output_tokens": [64], "batch": [8, 32], "decoding": ["greedy", "beam4"]}]
    planned = {
        (one.cell.load.batch, one.cell.load.decoding.beams): one.forecast_batch_s
        for one in tiny_plan(engines=[{"engine": "transformers"}], cells=small).cells
    }
    assert planned[8, 4] == pytest.approx(planned[32, 1])


def test_rows_of_a_sweep_name_their_decoding_and_only_greedy_ones_enter_a_table(tmp_path: Path) -> None:
    plan = tiny_plan(engines=[{"engine": "transformers"}], cells=SAMPLED)
    list(sweep(plan, tmp_path / "rows.jsonl", simulate=True))
    rows = read_store(tmp_path / "rows.jsonl").rows
    assert [row.cell.load.decoding for row in rows] == [Decoding(), Decoding(beams=4), Decoding(temperature=0.8)]
    labels = ["transformers", "transformers-beam4", "transformers-t0.8"]
    assert [row.cell.label for row in rows] == labels
    entries, _ = entries_of_rows([tmp_path / "rows.jsonl"], {}, allow_simulated=True)
    assert [entry.origin.cell_id for entry in entries] == [rows[0].cell_id]
    joules = {row.cell.label: result_of(row).energy_per_request_j for row in rows}
    # Four sequences share the reading of the weights.
    assert joules["transformers-beam4"] > 1.2 * joules["transformers"]


@pytest.mark.parametrize(
    ("engine", "cell", "fields"),
    [
        ({"engine": "vllm"}, {"decoding": ["beam4"]}, {"engine": "vllm", "option": "decoding"}),
        ({"engine": "vllm", "compiled": True}, {}, {"engine": "vllm", "option": "compiled"}),
        ({"engine": "transformers", "dtype": "fp8"}, {}, {"engine": "transformers", "option": "dtype"}),
    ],
)
def test_what_an_engine_lacks_is_refused_before_anything_runs(
    engine: dict[str, object], cell: dict[str, object], fields: dict[str, object], tmp_path: Path
) -> None:
    cells = [{"input_tokens": [64], "output_tokens": [8], "batch": [4], **cell}]
    with raises("engine-lacks", **fields):
        list(sweep(tiny_plan(engines=[engine], cells=cells), tmp_path / "rows.jsonl", simulate=True))
    assert not (tmp_path / "rows.jsonl").exists()


def test_vllm_refuses_beams_before_it_is_looked_for() -> None:
    with raises("engine-lacks", engine="vllm", option="decoding", value="beam4"):
        VllmEngine().check(EngineSetup(engine="vllm", model="m"), Decoding(beams=4))


@pytest.mark.parametrize(
    ("decoding", "options"),
    [
        (Decoding(), {"temperature": 0.0}),
        (Decoding(temperature=0.8), {"temperature": 0.8, "top_p": 1.0}),
        (Decoding(temperature=0.8, top_p=0.9, top_k=50), {"temperature": 0.8, "top_p": 0.9, "top_k": 50}),
    ],
)
def test_vllm_is_asked_for_the_decoding(decoding: Decoding, options: dict[str, float]) -> None:
    assert sampling_options(decoding) == options


def test_what_is_compiled_is_warmed_up_by_the_work_itself(tmp_path: Path) -> None:
    """Its first run at a batch and a length compiles; a shorter warm-up would leave that to the window."""
    cells = [{"input_tokens": [64], "output_tokens": [64], "batch": [4]}]
    rows: list[Measurement] = []
    for compiled in (False, True):
        path = tmp_path / f"{compiled}.jsonl"
        list(
            sweep(
                tiny_plan(engines=[{"engine": "transformers", "compiled": compiled}], cells=cells), path, simulate=True
            )
        )
        rows += read_store(path).rows
    plain, compiled_row = rows
    assert plain.warmup_s is not None
    assert compiled_row.warmup_s is not None
    assert compiled_row.result is not None
    assert compiled_row.warmup_s == pytest.approx(compiled_row.result.duration_s)
    assert plain.warmup_s < plain.windows[0].batches[0].duration_s / 2


def test_fp8_moves_and_multiplies_less_than_sixteen_bits_but_keeps_the_cache(tmp_path: Path) -> None:
    cells = [{"input_tokens": [512], "output_tokens": [64], "batch": [1, 128]}]
    path = tmp_path / "rows.jsonl"
    engines = [{"engine": "vllm"}, {"engine": "vllm", "dtype": "fp8"}]
    list(sweep(tiny_plan(engines=engines, cells=cells), path, simulate=True))
    found = {(row.cell.label, row.cell.load.batch): row.result for row in read_store(path).rows}
    for batch in (1, 128):
        wide, narrow = found["vllm", batch], found["vllm-fp8", batch]
        assert wide is not None
        assert narrow is not None
        assert 0.45 < narrow.energy_j / wide.energy_j < 0.95
        assert narrow.power_w < get_gpu("h200").tdp_w * 1.05
    shape = get_model("llama-3.1-8b")
    assert shape.weight_bytes("fp8") < 0.6 * shape.weight_bytes("bfloat16")
    assert shape.kv_bytes(512, "fp8") == shape.kv_bytes(512, "bfloat16")
    assert EngineSetup.parse_label("vllm-fp8") == {"engine": "vllm", "dtype": "fp8"}


def test_fp8_without_units_for_it_reads_fewer_bytes_and_computes_in_16_bits() -> None:
    cells = [{"input_tokens": [2048], "output_tokens": [64], "batch": [1]}]
    engines = [{"engine": "vllm"}, {"engine": "vllm", "dtype": "fp8"}]
    plan = tiny_plan(gpu="a100-80gb-sxm", engines=engines, cells=cells)
    wide, narrow = (
        next(one for one in plan.cells if one.cell.setup.dtype == dtype and one.cell.load.input_tokens == 2048)
        for dtype in ("bfloat16", "fp8")
    )
    assert narrow.forecast_batch_s < wide.forecast_batch_s
    assert narrow.forecast_prefill_s > 0.9 * wide.forecast_prefill_s


def test_fp8_is_quantised_by_vllm_while_it_loads_and_told_in_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    class Llm:
        def __init__(self, **options: Any) -> None:
            asked.append(options)
            model = SimpleNamespace(
                dtype="torch.bfloat16", max_model_len=1, enforce_eager=False, quantization=options["quantization"]
            )
            self.llm_engine = SimpleNamespace(
                engine_core=SimpleNamespace(shutdown=lambda: None),
                vllm_config=SimpleNamespace(
                    model_config=model,
                    scheduler_config=SimpleNamespace(max_num_seqs=1, max_num_batched_tokens=1),
                    cache_config=SimpleNamespace(
                        gpu_memory_utilization=0.9, num_gpu_blocks=1, block_size=16, enable_prefix_caching=False
                    ),
                    compilation_config=SimpleNamespace(cudagraph_mode=None, mode=None),
                ),
            )

        def apply_model(self, function: Any) -> list[None]:
            return [None]

    module = ModuleType("vllm")
    module.LLM = Llm  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)
    told = {}
    for dtype in ("bfloat16", "float16", "fp8"):
        setup = EngineSetup(engine="vllm", model="llama-3.1-8b", dtype=dtype)
        session = VllmEngine().open(setup, model_config("llama-3.1-8b"), 0)
        told[dtype] = session.facts().get("quantization", "nothing")
        session.close()
    assert [(one["dtype"], one["quantization"]) for one in asked] == [
        ("bfloat16", None),
        ("float16", None),
        ("bfloat16", "fp8_per_tensor"),
    ]
    assert told == {"bfloat16": "nothing", "float16": "nothing", "fp8": "fp8_per_tensor"}


TWO_MODELS = [{"engine": "vllm", "model": "olmoe-1b-7b"}, {"engine": "vllm"}]


def test_a_grid_may_hold_several_models_each_with_its_own_shape(tmp_path: Path) -> None:
    cells = [{"input_tokens": [512], "output_tokens": [64], "batch": [1, 32]}]
    plan = tiny_plan(model="olmo-1b", engines=TWO_MODELS, cells=cells)
    assert set(plan.models) == {"olmo-1b", "olmoe-1b-7b"}
    path = tmp_path / "rows.jsonl"
    list(sweep(plan, path, simulate=True))
    joules = {(row.cell.setup.model, row.cell.load.batch): row.result for row in read_store(path).rows}
    assert len(joules) == 4
    experts, dense = joules["olmoe-1b-7b", 32], joules["olmo-1b", 32]
    assert experts is not None
    assert dense is not None
    # Alone a token visits as many weights in either; a batch visits nearly all experts.
    assert experts.energy_j > 1.5 * dense.energy_j


def test_an_unknown_model_of_one_engine_is_told_with_all_other_reasons() -> None:
    engines = [{"engine": "vllm", "model": "olmo-2b"}, {"engine": "vllm", "compiled": True}]
    with raises("grid-rejected") as error:
        tiny_plan(engines=engines)
    assert [reason["code"] for reason in error.value.fields["reasons"]] == ["unknown-model", "engine-lacks"]


def test_rows_of_a_mixture_tell_which_share_of_experts_a_step_visits_where_the_engine_does(tmp_path: Path) -> None:
    cells = [{"input_tokens": [512], "output_tokens": [64], "batch": [1, 32, 256]}]
    path = tmp_path / "rows.jsonl"
    engines = [{"engine": engine, "model": "olmoe-1b-7b"} for engine in ("transformers", "vllm")]
    list(sweep(tiny_plan(engines=[*engines, {"engine": "transformers"}], cells=cells), path, simulate=True))
    found = {(str(row.cell), row.cell.load.batch): row.experts_touched for row in read_store(path).rows}
    experts = get_model("olmoe-1b-7b").experts
    assert experts is not None
    for batch in (1, 32):
        assert found[f"transformers olmoe-1b-7b 512→64 × {batch}", batch] == experts.expected_coverage(batch)
    others = {cell: share for (cell, _), share in found.items() if not cell.startswith("transformers olmoe")}
    assert set(others.values()) == {None}
