"""Forecasts of cells: by the one model, carried by plans, so that where plans are measured nothing computes them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import pytest

from infergy.catalog import get_gpu, get_model
from infergy.catalog.models import Draft
from infergy.cost.table import SHIPPED_TABLE, read_table, shipped_table
from infergy.errors import UsageError
from infergy.estimates.servers import ServerSpec, open_server
from infergy.measure.forecast import total_j
from infergy.measure.grid import make_plan, parse_grid
from infergy.measure.planner import Planner, Run
from infergy.records import Decoding, EngineSetup, Load, Plan
from infergy.serving.config import EngineOptions
from infergy.workload.requests import Requests

SRC = str(Path(__file__).parents[2] / "src")
LLAMA, H200 = get_model("llama-3.1-8b"), get_gpu("h200")
VLLM = EngineSetup(engine="vllm", model="llama-3.1-8b")


def plan_of(**cells: object) -> Plan:
    grid = {
        "name": "forecasts",
        "gpu": "h200",
        "model": "llama-3.1-8b",
        "engines": [{"engine": "vllm"}],
        "cells": [{"input_tokens": [512], "output_tokens": [64], "batch": [8]} | cells],
    }
    return make_plan(parse_grid(grid, "test"))


def test_a_forecast_is_what_an_estimate_says_of_the_same_requests() -> None:
    setup = replace(VLLM, usage_context="server", max_sequences=16)
    lengths = [(512, 64), (100, 200), (2000, 10), (64, 64)]
    arrival_s = (0.0, 0.1, 0.15, 2.0)
    spec = ServerSpec(options=EngineOptions(max_num_seqs=16, enable_prefix_caching=False))
    inputs, outputs = np.array(lengths).T
    requests = Requests(source="test", input_tokens=inputs, output_tokens=outputs, arrival_s=np.array(arrival_s))
    run = open_server(spec, shipped_table()).serve(requests)
    found = Planner(setup, LLAMA, H200).forecast(lengths, arrival_s)
    assert (found.batch_s, found.batch_j) == pytest.approx((run.duration_s, run.energy_j), rel=1e-9)


@pytest.mark.parametrize(("engine", "energy", "seconds"), [("vllm", 0.025, 0.035), ("transformers", 0.07, 0.05)])
def test_forecasts_of_the_shipped_h200_cells_are_near_what_was_measured(
    engine: str, energy: float, seconds: float
) -> None:
    errors = []
    for entry in read_table(SHIPPED_TABLE, entries=True).entries:
        cell = re.fullmatch(rf"{engine} llama-3.1-8b (\d+)→(\d+) × (\d+)", entry.origin.cell)
        if cell is None or entry.served_by.gpu != "h200" or entry.duration_s is None:
            continue
        inputs, outputs, batch = map(int, cell.groups())
        load = Load(input_tokens=inputs, output_tokens=outputs, batch=batch)
        found = Planner(replace(VLLM, engine=engine), LLAMA, H200).forecast([load.lengths] * batch)
        errors.append((abs(found.batch_j / entry.energy_j - 1), abs(found.batch_s / entry.duration_s - 1)))
    assert len(errors) > 40
    by_energy, by_seconds = zip(*errors, strict=True)
    assert median(by_energy) < energy
    assert median(by_seconds) < seconds


def test_each_beam_is_a_sequence() -> None:
    beams = Load(input_tokens=512, output_tokens=8, batch=2, decoding=Decoding(beams=4))
    plain = Load(input_tokens=512, output_tokens=8, batch=8)
    setup = replace(VLLM, engine="transformers")
    planner = Planner(setup, LLAMA, H200)
    forecasts = [planner.plan(Run(load=load), "given").forecast_batch_s for load in (beams, plain)]
    assert forecasts[0] == forecasts[1]


def test_launching_kernels_is_no_work_of_the_gpu() -> None:
    load = Load(input_tokens=512, output_tokens=64, batch=1)
    eager = replace(VLLM, cuda_graphs=False)
    planner = Planner(eager, LLAMA, H200)
    assert planner.gpu_s(load) == Planner(VLLM, LLAMA, H200).gpu_s(load)
    assert planner.gpu_s(load) < planner.plan(Run(load=load), "given").forecast_batch_s / 2


def test_gpu_work_grows_with_the_batch_and_with_a_draft() -> None:
    loads = [Load(input_tokens=512, output_tokens=64, batch=size) for size in range(1, 300, 7)]
    draft = Draft(shape=get_model("llama-3.2-1b"), look_ahead=4, acceptance=0.0)
    plain, drafted = (Planner(VLLM, LLAMA, H200, one) for one in (None, draft))
    seconds = [plain.gpu_s(load) for load in loads]
    assert seconds == sorted(set(seconds))
    assert all(drafted.gpu_s(load) > seconds[place] for place, load in enumerate(loads))


def test_a_plan_carries_its_forecasts_through_its_file(tmp_path: Path) -> None:
    plan = plan_of()
    plan.save(tmp_path / "plan.json")
    again = Plan.load(tmp_path / "plan.json")
    assert again == plan
    assert total_j(again) > 0
    (planned,) = plan.cells
    assert planned.forecast_batch_j is not None
    with pytest.raises(UsageError):
        total_j(replace(plan, cells=(replace(planned, forecast_batch_j=None),)))


def test_measuring_computes_no_forecast() -> None:
    code = (
        "import sys, infergy.measure.__main__, infergy.measure.worker, infergy.measure.shards, infergy.engines;"
        "heavy = [m for m in sys.modules if m.startswith(('infergy.cost', 'infergy.serving', 'infergy.estimates'))"
        " or m in ('numpy', 'polars', 'pydantic')];"
        "print(heavy)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": SRC}, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
