"""An engine config on one node of a cluster: what it tells, which controls it repeats, and whom it waits for. No Ray needed."""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from infergy.measure import node
from infergy.measure.grid import make_plan, parse_grid
from infergy.measure.node import measure_here, unpack
from infergy.records import START_VISIT, GpuIdentity, Measurement, Plan
from infergy.records.codec import to_json
from raising import raises


def plan_of() -> Plan:
    grid = {
        "name": "tiny",
        "gpu": "h200",
        "model": "llama-3.1-8b",
        "engines": [{"engine": "vllm"}],
        "cells": [{"input_tokens": [64, 96, 128, 160, 192], "output_tokens": [8], "batch": [1, 4]}],
    }
    return make_plan(parse_grid(grid, "test"))


def told(plan: Plan, controls: list[Any], earlier: list[Measurement]) -> list[dict[str, Any]]:
    events = measure_here(
        to_json(plan), [to_json(one) for one in controls], [row.to_json() for row in earlier], True, "nvml"
    )
    return [unpack(event) for event in events]


def rows_of(events: list[dict[str, Any]]) -> list[Measurement]:
    return [Measurement.from_json(event["row"], "test") for event in events if event["kind"] == "row"]


def on(gpu: str, row: Measurement) -> Measurement:
    """The row as measured on another GPU."""
    text = json.dumps(row.to_json()).replace(row.environment.gpus[0].uuid, gpu)
    moved = Measurement.from_json(json.loads(text))
    return replace(moved, environment=replace(row.environment, gpus=(GpuIdentity(uuid=gpu, name="NVIDIA H200"),)))


@pytest.fixture(scope="module")
def begun() -> tuple[Plan, list[Any], list[Measurement]]:
    """A plan, its controls at the start, and their rows: what a driver knows when a node is lost after them."""
    plan = plan_of()
    controls = [planned for planned in plan.cells if planned.visit == START_VISIT]
    assert controls
    return plan, controls, rows_of(told(replace(plan, cells=tuple(controls)), [], []))


def test_other_gpus_measure_the_control_cells_of_a_set_up_again_before_what_is_left(
    begun: tuple[Plan, list[Any], list[Measurement]],
) -> None:
    plan, controls, rows = begun
    left = replace(plan, cells=tuple(one for one in plan.cells if one not in controls))
    events = told(left, controls, [on("GPU-elsewhere", row) for row in rows])
    assert [row.key for row in rows_of(events)] == [one.key for one in (*controls, *left.cells)]


def test_the_same_gpus_do_not(begun: tuple[Plan, list[Any], list[Measurement]]) -> None:
    plan, controls, rows = begun
    left = replace(plan, cells=tuple(one for one in plan.cells if one not in controls))
    assert [row.key for row in rows_of(told(left, controls, rows))] == [one.key for one in left.cells]


def test_a_disk_that_takes_nothing_is_told_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(node, "create_store", full)
    last = told(plan_of(), [], [])[-1]
    assert (last["kind"], last["error"]) == ("refused", "EngineError")
    assert "No space left on device" in last["reason"]


@pytest.mark.parametrize(("before", "now"), [("0", "0"), ("0,1", "1"), ("2", "3,2"), ("GPU-a-1,GPU-b-2", "GPU-b-2")])
def test_a_sweep_waits_for_the_engine_of_a_dead_driver_on_any_of_its_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str, now: str
) -> None:
    order = watch(tmp_path, monkeypatch, before, now)
    assert order == ["asked", "ended", "begun"]


def test_a_sweep_on_other_gpus_waits_for_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert watch(tmp_path, monkeypatch, "0,1", "10") == ["begun", "ended"]


def watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str, now: str) -> list[str]:
    """In which order an engine of a dead driver ends and the next sweep begins."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", before)
    order: list[str] = []
    is_waiting = threading.Event()
    with node._folder(simulate=False) as folder:
        (folder / "rows.jsonl").touch()
    flock: Callable[..., None] = fcntl.flock

    def asked(*arguments: Any) -> None:
        order.append("asked")
        is_waiting.set()
        flock(*arguments)

    def begin() -> None:
        with node._folder(simulate=False) as mine:
            order.append("begun")
            assert not (mine / "rows.jsonl").exists()
        is_waiting.set()

    with (folder / "rows.jsonl").open("ab") as held:
        flock(held, fcntl.LOCK_EX)
        monkeypatch.setattr(fcntl, "flock", asked)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", now)
        thread = threading.Thread(target=begin)
        thread.start()
        is_waiting.wait()
        order.append("ended")
    thread.join()
    return order


@pytest.mark.parametrize("way", ["link", "shared", "file"])
@pytest.mark.parametrize("gpus", ["0", "0,1"])
def test_a_folder_that_another_may_have_made_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str, gpus: str
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    folder = tmp_path / f"infergy-ray-{os.getuid()}-gpu-{'+'.join(gpus.split(','))}"
    (tmp_path / "theirs").mkdir()
    if way == "link":
        folder.symlink_to(tmp_path / "theirs")
    elif way == "file":
        folder.write_text("theirs")
    else:
        folder.mkdir()
        folder.chmod(0o777)
    (tmp_path / "theirs" / "rows.jsonl").write_text("theirs")
    with raises("folder-not-ours", path=folder), node._folder(simulate=False):
        pass
    assert (tmp_path / "theirs" / "rows.jsonl").read_text() == "theirs"


def test_its_own_folder_is_for_this_user_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    for _ in range(2):
        with node._folder(simulate=False) as folder:
            assert folder.stat().st_mode & 0o077 == 0
