"""Times to tokens and paired cells, on the simulated GPU, whose phases are known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from infergy.engines import Completion, Work
from infergy.measure.cell import count_batch
from infergy.measure.grid import make_plan, parse_grid
from infergy.measure.sweep import sweep
from infergy.quality.phases import find_phases
from infergy.records import Plan
from infergy.records.store import read_store
from simulated_truth import truth_of


def plan_of(*blocks: dict[str, Any]) -> Plan:
    grid = {
        "name": "pairs",
        "gpu": "h200",
        "model": "llama-3.1-8b",
        "engines": [{"engine": "vllm"}],
        "cells": list(blocks),
        "options": {"shuffle": False, "anchors": 0},
    }
    return make_plan(parse_grid(grid, "test"))


def loads(plan: Plan) -> list[tuple[int, int, int]]:
    return [(one.cell.load.input_tokens, one.cell.load.output_tokens, one.cell.load.batch) for one in plan.cells]


def test_a_paired_block_adds_one_output_token_at_the_batch_of_each_cell_and_no_cell_twice() -> None:
    block = {"input_tokens": [512], "output_tokens": [8, 64], "batch": [1, 4]}
    assert loads(plan_of(block)) == [(512, 8, 1), (512, 8, 4), (512, 64, 1), (512, 64, 4)]
    paired = plan_of(block | {"paired": True})
    assert sorted(loads(paired)) == sorted([*loads(plan_of(block)), (512, 1, 1), (512, 1, 4)])
    twice = plan_of(block | {"paired": True}, {"input_tokens": [512], "output_tokens": [1], "batch": [4]})
    assert loads(twice) == loads(paired)


def test_a_pair_has_the_batch_that_was_chosen_for_its_cell_and_says_so() -> None:
    block = {"input_tokens": [512], "output_tokens": [512], "max_batch_s": 5.0, "paired": True}
    cell, pair = plan_of(block).cells
    alone = plan_of(block | {"output_tokens": [1], "paired": False}).cells[0]
    assert pair.cell.load == replace(cell.cell.load, output_tokens=1)
    assert pair.cell.load.batch != alone.cell.load.batch
    assert pair.batch_choice == "that of the pair with 512 output tokens"
    assert 0 < pair.forecast_batch_s < cell.forecast_batch_s


def test_pairs_are_no_control_cells() -> None:
    grid = {
        "name": "pairs",
        "gpu": "h200",
        "model": "llama-3.1-8b",
        "engines": [{"engine": "vllm"}],
        "cells": [{"input_tokens": [64, 512], "output_tokens": [8, 64], "batch": [1, 8], "paired": True}],
    }
    visits = [one for one in make_plan(parse_grid(grid, "test")).cells if one.visit != "grid"]
    assert len(visits) == 6
    assert all(one.cell.load.output_tokens > 1 for one in visits)


def test_a_simulated_sweep_tells_the_times_and_the_joules_of_both_phases(tmp_path: Path) -> None:
    plan = plan_of({"input_tokens": [512], "output_tokens": [64], "batch": [1, 32], "paired": True})
    list(sweep(plan, tmp_path / "rows.jsonl", simulate=True))
    rows = read_store(tmp_path / "rows.jsonl").rows
    (setup,) = find_phases(rows).setups
    assert len(setup.cells) == 4
    for cell in setup.cells:
        truth = truth_of(512, cell.output_tokens, cell.batch)
        assert cell.time_to_first_token_s == pytest.approx(truth.first_token_s)
        if cell.output_tokens == 1:
            assert cell.time_per_output_token_s is None
            continue
        assert cell.time_per_output_token_s == pytest.approx((truth.finished_s - truth.first_token_s) / 63)
        assert cell.pair is not None
        assert cell.pair.prefill.value_j == pytest.approx(truth.prefill_energy_j, rel=0.01)
        assert cell.pair.decode.value_j == pytest.approx(truth.decode_energy_j, rel=0.01)


def test_a_batch_keeps_the_mean_of_its_requests_and_the_longest_wait() -> None:
    work = Work(prompts=((1, 2), (3, 4)), output_tokens=(5, 5), arrival_s=(0.0, 0.0))
    done = Completion(input_tokens=(2, 2), output_tokens=(5, 5), first_token_s=(0.1, 0.3), finished_s=(0.8, 0.9))
    batch = count_batch(work, done, 10.0, 11.0)
    assert batch.first_token_s == pytest.approx(0.2)
    assert batch.last_first_token_s == 0.3
    assert batch.finished_s == pytest.approx(0.85)
    silent = count_batch(work, replace(done, first_token_s=None, finished_s=None), 10.0, 11.0)
    assert (silent.first_token_s, silent.last_first_token_s, silent.finished_s) == (None, None, None)
