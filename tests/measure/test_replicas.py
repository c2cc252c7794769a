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

SETUP = EngineSetup(engine="vllm", model="llama-3.1-8b", usage_context="server")


def plan_of(count: int, requests: int = 40) -> Plan:
    chosen = open_trace("azure-code-2023").requests().slice(0, requests)
    parts = [Arrivals(law="replay", trace="azure-code-2023", replica=k + 1, replicas=count) for k in range(count)]
    return plan_replays([(SETUP, replay_run(chosen.slice(part.replica, 20), part)) for part in parts], gpu="h200")


def test_each_replica_has_its_part_and_a_part_is_not_split_again() -> None:
    plan = plan_of(3)
    parts = split_replicas(plan, simulate=True)
    assert [cell for part in parts for cell in part.cells] == list(plan.cells)
    assert [split_replicas(part, simulate=True) for part in parts] == [[part] for part in parts]
    assert split_replicas(plan_of(1), simulate=True) == [plan_of(1)]


def test_replicas_beside_other_cells_are_measured_one_after_the_other() -> None:
    plan = plan_of(2)
    mixed = replace(plan, cells=(*plan.cells, *plan_of(1).cells))
    assert split_replicas(mixed, simulate=True) == [mixed]


def test_a_replica_that_fails_leaves_the_rows_of_all(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    first, second = split_replicas(plan_of(2), simulate=True)
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

        def terminate(self) -> None:
            pass

    monkeypatch.setattr("infergy.measure.replicas.subprocess.Popen", Ended)
    monkeypatch.setattr(replicas, "merge", lambda *_: None)
    two = replace(SETUP, tensor_parallel=2)
    parts = [replace(part, cells=_on(part, two)) for part in split_replicas(plan_of(2), simulate=True)]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1,2,0,5")
    measure_replicas(parts, tmp_path / "rows.jsonl")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    measure_replicas(split_replicas(plan_of(2), simulate=True), tmp_path / "rows.jsonl")
    assert [devices for _, devices in seen] == ["3,1", "2,0", "0", "1"]


def _on(part: Plan, setup: EngineSetup) -> tuple[Any, ...]:
    return tuple(replace(planned, cell=replace(planned.cell, setup=setup)) for planned in part.cells)


def test_too_few_gpus_measure_them_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    class Meter:
        def close(self) -> None:
            pass

    def open_few(name: str, count: int) -> Meter:
        if count > 2:
            raise MissingError("GPUs wanted: 3, visible: 2", code="gpu-missing", wanted=count, found=2)
        return Meter()

    monkeypatch.setattr(replicas, "open_meter", open_few)
    assert len(split_replicas(plan_of(2))) == 2
    assert split_replicas(plan_of(3)) == [plan_of(3)]
