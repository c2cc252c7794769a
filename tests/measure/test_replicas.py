"""Replicas of a replay: their parts of a plan, and a process for each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from infergy.errors import MissingError
from infergy.measure import replicas
from infergy.measure.planner import replay_run
from infergy.measure.replays import plan_replays
from infergy.measure.replicas import measure_replicas, split_replicas
from infergy.records import Arrivals, EngineSetup, Plan
from infergy.records.store import read_store
from infergy.workload import open_trace
from raising import rejects

SETUP = EngineSetup(engine="vllm", model="llama-3.1-8b", usage_context="server")


def plan_of(count: int, requests: int = 40) -> Plan:
    chosen = open_trace("azure-code-2023").requests().slice(0, requests)
    parts = [Arrivals(law="replay", trace="azure-code-2023", replica=k + 1, replicas=count) for k in range(count)]
    return plan_replays([(SETUP, replay_run(chosen.slice(part.replica, 20), part)) for part in parts], gpu="h200")


def test_each_replica_has_its_part_and_a_part_is_not_split_again() -> None:
    plan = plan_of(3)
    parts = split_replicas(plan)
    assert [cell for part in parts for cell in part.cells] == list(plan.cells)
    assert [split_replicas(part) for part in parts] == [[part] for part in parts]
    assert split_replicas(plan_of(1)) == [plan_of(1)]


def test_a_plan_of_two_numbers_of_replicas_is_rejected() -> None:
    plan = plan_of(2)
    with rejects("not-supported", replicas=[1, 2]):
        split_replicas(replace(plan, cells=(*plan.cells, *plan_of(1).cells)))


def test_a_replica_that_fails_leaves_the_rows_of_all(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    first, second = split_replicas(plan_of(2))
    store = tmp_path / "rows.jsonl"
    with pytest.raises(SystemExit) as ended:
        measure_replicas([first, replace(second, models={})], store, simulate=True)
    assert ended.value.code == 2
    kept = tmp_path / "rows-1of2.jsonl"
    assert str(kept) in capfd.readouterr().err
    assert len(read_store(kept).rows) == 1
    assert not store.exists()
    assert measure_replicas([first, second], store, simulate=True) == 0
    assert {row.cell_id for row in read_store(store).rows} == {first.cells[0].cell.id, second.cells[0].cell.id}
    assert not list(tmp_path.glob("*of2.jsonl"))


def test_each_replica_sees_gpus_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, str | None]] = []

    class Ended:
        def __init__(self, command: list[str], env: dict[str, str]) -> None:
            seen.append((len(command), env.get("CUDA_VISIBLE_DEVICES")))

        def wait(self) -> int:
            return 0

    class Meter:
        def close(self) -> None:
            pass

    wanted: list[Any] = []
    monkeypatch.setattr(replicas, "open_meter", lambda name, count: wanted.append((name, count)) or Meter())
    monkeypatch.setattr(replicas.subprocess, "Popen", Ended)
    monkeypatch.setattr(replicas, "merge", lambda *_: None)
    two = replace(SETUP, tensor_parallel=2)
    parts = [replace(part, cells=_on(part, two)) for part in split_replicas(plan_of(2))]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1,2,0,5")
    measure_replicas(parts, tmp_path / "rows.jsonl")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    measure_replicas(split_replicas(plan_of(2)), tmp_path / "rows.jsonl")
    assert [devices for _, devices in seen] == ["3,1", "2,0", "0", "1"]
    assert wanted == [("nvml", 4), ("nvml", 2)]


def _on(part: Plan, setup: EngineSetup) -> tuple[Any, ...]:
    return tuple(replace(planned, cell=replace(planned.cell, setup=setup)) for planned in part.cells)


def test_too_few_gpus_are_found_before_any_process_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_here(name: str, count: int) -> None:
        raise MissingError("GPUs wanted: 2, visible: 1", code="gpu-missing", wanted=count, found=1)

    monkeypatch.setattr(replicas, "open_meter", none_here)
    monkeypatch.setattr(replicas.subprocess, "Popen", None)
    with pytest.raises(MissingError):
        measure_replicas(split_replicas(plan_of(2)), tmp_path / "rows.jsonl")
