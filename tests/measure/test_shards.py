"""A plan in parts: nothing is lost, nothing moves, and what the machines measured becomes one store again."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infergy.errors import UsageError
from infergy.measure.grid import make_plan, parse_grid
from infergy.measure.shards import parse_shard, shard
from infergy.measure.sweep import sweep
from infergy.records import GRID_VISIT, Plan
from infergy.records.merge import merge
from infergy.records.store import read_store
from raising import raises

LABELS = ("vllm", "vllm-eager", "transformers")


def plan_of(**changes: Any) -> Plan:
    grid = {
        "name": "tiny",
        "gpu": "h200",
        "model": "llama-3.1-8b",
        "engines": [{"engine": "vllm"}, {"engine": "vllm", "cuda_graphs": False}, {"engine": "transformers"}],
        "cells": [{"input_tokens": [64, 128, 256], "output_tokens": [8, 16], "batch": [1, 4]}],
    }
    return make_plan(parse_grid(grid | changes, "test"))


def parts_of(plan: Plan, count: int) -> list[Plan]:
    return [shard(plan, index, count) for index in range(1, count + 1)]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_set_ups_stay_whole_while_there_are_enough(count: int) -> None:
    plan = plan_of()
    parts = parts_of(plan, count)
    assert Counter(planned.key for part in parts for planned in part.cells) == Counter(one.key for one in plan.cells)
    homes = [set(part.by_setup()) for part in parts]
    assert sum(map(len, homes)) == len(set.union(*homes)) == len(LABELS)
    assert all(part.cells for part in parts)


@pytest.mark.parametrize("count", [4, 7, 20])
def test_divided_set_ups_keep_each_cell_once_and_their_control_cells_in_each_part(count: int) -> None:
    plan = plan_of(options={"repeats": 2})
    parts = parts_of(plan, count)
    assert any(planned.visit != GRID_VISIT for planned in plan.cells)
    grid = Counter(one.key for part in parts for one in part.cells if one.visit.startswith(GRID_VISIT))
    assert grid == Counter(one.key for one in plan.cells if one.visit.startswith(GRID_VISIT))
    for part in parts:
        for setup, cells in part.by_setup().items():
            assert any(one.visit.startswith(GRID_VISIT) for one in cells)
            controls = [one.key for one in plan.by_setup()[setup] if not one.visit.startswith(GRID_VISIT)]
            assert [one.key for one in cells if not one.visit.startswith(GRID_VISIT)] == controls
            visits = Counter(one.cell.id for one in cells if one.visit.startswith(GRID_VISIT))
            assert set(visits.values()) == {2}


@pytest.mark.parametrize("count", [2, 5])
def test_which_cell_goes_where_does_not_depend_on_the_plans_order(count: int) -> None:
    plan = plan_of()
    shuffled = list(plan.cells)
    random.Random(1).shuffle(shuffled)
    other = replace(plan, cells=tuple(shuffled))
    for one, same in zip(parts_of(plan, count), parts_of(other, count), strict=True):
        assert {planned.key for planned in one.cells} == {planned.key for planned in same.cells}


@settings(deadline=None, max_examples=40)
@given(
    engines=st.lists(st.sampled_from(["vllm", "transformers"]), min_size=1, max_size=2, unique=True),
    inputs=st.sets(st.sampled_from([32, 64, 128, 256, 512]), min_size=1, max_size=5),
    batches=st.sets(st.sampled_from([1, 2, 4]), min_size=1, max_size=3),
    repeats=st.integers(1, 2),
    count=st.integers(1, 6),
    seed=st.integers(0, 99),
)
def test_parts_of_any_grid_hold_every_visit_and_no_grid_visit_twice_in_whatever_order_it_was_written(
    engines: list[str], inputs: set[int], batches: set[int], repeats: int, count: int, seed: int
) -> None:
    plan = plan_of(
        engines=[{"engine": engine} for engine in engines],
        cells=[{"input_tokens": sorted(inputs), "output_tokens": [8], "batch": sorted(batches)}],
        options={"repeats": repeats},
    )
    try:
        parts = parts_of(plan, count)
    except UsageError:
        assert count > len({planned.cell.id for planned in plan.cells if planned.visit.startswith(GRID_VISIT)})
        return
    held = Counter(planned.key for part in parts for planned in part.cells)
    assert set(held) == {planned.key for planned in plan.cells}
    assert {held[planned.key] for planned in plan.cells if planned.visit.startswith(GRID_VISIT)} <= {1}
    shuffled = list(plan.cells)
    random.Random(seed).shuffle(shuffled)
    others = parts_of(replace(plan, cells=tuple(shuffled)), count)
    assert [{one.key for one in part.cells} for part in parts] == [{one.key for one in part.cells} for part in others]


def test_more_parts_than_cells_are_refused_with_how_many_there_can_be() -> None:
    plan = plan_of(engines=[{"engine": "vllm"}], cells=[{"input_tokens": [64], "output_tokens": [8, 16], "batch": [1]}])
    assert len(parts_of(plan, 2)) == 2
    with raises("bad-value", option="--shard", value="1/3"):
        shard(plan, 1, 3)


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "a/b", "1/0", "-1/3"])
def test_what_is_no_part_is_refused(text: str) -> None:
    with raises("bad-value", option="--shard", value=text):
        parse_shard(text)


def test_parts_measured_apart_and_merged_leave_nothing_to_measure(tmp_path: Path) -> None:
    plan = plan_of(cells=[{"input_tokens": [64], "output_tokens": [8], "batch": [1, 4]}])
    stores = []
    for number, part in enumerate(parts_of(plan, 4)):
        stores.append(tmp_path / f"{number}.jsonl")
        list(sweep(part, stores[-1], simulate=True))
    merge(tmp_path / "all.jsonl", stores)
    assert {row.key for row in read_store(tmp_path / "all.jsonl").rows} == {planned.key for planned in plan.cells}
    assert [event.kind for event in sweep(plan, tmp_path / "all.jsonl", simulate=True)] == ["resumed"]
