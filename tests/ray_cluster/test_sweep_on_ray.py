"""Sweeps on a real Ray cluster of several nodes on this machine, with the simulated GPU: nodes die, drivers die."""

from __future__ import annotations

import json
import platform
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray")

import ray

from infergy.errors import MissingError, UsageError
from infergy.measure import cluster_nodes
from infergy.measure.cluster import sweep_on_ray
from infergy.measure.grid import make_plan, parse_grid
from infergy.measure.sweep import NODE_LOST
from infergy.records import Plan
from infergy.records.store import read_store
from infergy.version import VERSION
from waiting import PATIENCE_S, wait_until

# Ray's own threads and sockets are its own affair.
pytestmark = pytest.mark.filterwarnings("default")

SMALL: dict[str, Any] = {"object_store_memory": 100 * 2**20}
SRC = Path(__file__).parents[2] / "src"
CELLS_BEFORE = 2

GATED = """
import os, sys
if sys.argv and "infergy.measure.worker" in " ".join(sys.orig_argv):
    import time
    import infergy.measure.worker as worker
    real, begun = worker.attempt, []
    def attempt(*arguments):
        while len(begun) >= {cells} and not os.path.exists({gate!r}):
            time.sleep(0.01)
        begun.append(True)
        return real(*arguments)
    worker.attempt = attempt
    os._exit(worker.main())
"""


@contextmanager
def start_cluster() -> Iterator[Any]:
    """A head that runs nothing, and two nodes of one CPU each, on ports that are free."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as slow:
        # However slow this machine is, and however full its memory: neither is what is tested.
        slow.setenv("RAY_gcs_server_port_wait_time_s", str(round(PATIENCE_S)))
        slow.setenv("RAY_memory_monitor_refresh_ms", "0")
        head = {"num_cpus": 0, "include_dashboard": False, "dashboard_agent_listen_port": 0, **SMALL}
        made = Cluster(initialize_head=True, head_node_args=head)
        try:
            made.workers = [made.add_node(num_cpus=1, **SMALL) for _ in range(2)]
            yield made
        finally:
            made.shutdown()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """For tests that leave it as it is."""
    with start_cluster() as made:
        yield made


@pytest.fixture
def gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """On nodes that are started after this, each set-up measures two cells, and the others once this file is there.

    So a sweep is in its midst until a test wants it otherwise, however fast or slow the nodes are.
    """
    path, site = tmp_path / "gate", tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(GATED.format(cells=CELLS_BEFORE, gate=str(path)))
    monkeypatch.setenv("PYTHONPATH", f"{site}:{SRC}")
    yield path
    # What outlived its node waits no longer.
    path.touch()


@pytest.fixture
def mortal(gate: Path) -> Iterator[Any]:
    """For tests that kill nodes or drivers; gated."""
    with start_cluster() as made:
        yield made


def plan_of(inputs: int = 12, engines: tuple[str, ...] = ("vllm", "transformers")) -> Plan:
    return make_plan(
        parse_grid(
            {
                "name": "tiny",
                "gpu": "h200",
                "model": "llama-3.1-8b",
                "engines": [{"engine": engine} for engine in engines],
                "cells": [{"input_tokens": [64 + 8 * i for i in range(inputs)], "output_tokens": [8], "batch": [1, 4]}],
            },
            "test",
        )
    )


def keys(path: Path) -> Counter[str]:
    return Counter(row.key for row in read_store(path).rows)


def once(plan: Plan) -> Counter[str]:
    return Counter(planned.key for planned in plan.cells)


def test_a_killed_node_costs_no_finished_row_and_its_cells_are_measured_elsewhere(
    mortal: Any, gate: Path, tmp_path: Path
) -> None:
    plan, path, told = plan_of(), tmp_path / "rows.jsonl", []
    before = b""
    for event in sweep_on_ray(plan, path, mortal.address, simulate=True):
        told.append(event)
        # Both nodes are at work, and neither can have finished.
        if not before and len({one.setup for one in told if one.kind == "row"}) == 2:
            before = path.read_bytes()
            mortal.remove_node(mortal.workers[0], allow_graceful=False)
            gate.touch()
    assert [event.kind for event in told].count("lost") == 1
    assert path.read_bytes().startswith(before)
    assert keys(path) == once(plan)
    assert all(row.is_ok for row in read_store(path).rows)
    again = [event.kind for event in sweep_on_ray(plan, path, mortal.address, simulate=True)]
    assert set(again) - {"waiting"} == {"resumed"}


def test_without_a_node_cells_are_recorded_with_the_reason_and_tried_again_on_the_next_one(
    mortal: Any, gate: Path, tmp_path: Path
) -> None:
    plan, path = plan_of(engines=("vllm",)), tmp_path / "rows.jsonl"
    is_killed = False
    for event in sweep_on_ray(plan, path, mortal.address, simulate=True):
        if event.kind == "row" and not is_killed:
            is_killed = True
            for node in mortal.workers:
                mortal.remove_node(node, allow_graceful=False)
    gate.touch()
    rows = read_store(path).rows
    assert keys(path) == once(plan)
    measured = [row for row in rows if row.is_ok]
    lost = [row.failure for row in rows if row.failure is not None]
    assert measured
    assert len(measured) <= CELLS_BEFORE
    assert {failure.code for failure in lost} == {NODE_LOST}
    assert "no node of the cluster has 1 CPU" in lost[0].message
    mortal.add_node(num_cpus=1, **SMALL)
    list(sweep_on_ray(plan, path, mortal.address, simulate=True))
    again = read_store(path).rows
    assert again[: len(rows)] == rows
    assert {row.key for row in again if row.is_ok} == set(once(plan))
    assert len(again) == len(rows) + len(lost)


def test_a_driver_killed_in_mid_sweep_is_resumed_by_the_same_command(mortal: Any, gate: Path, tmp_path: Path) -> None:
    plan, path = plan_of(), tmp_path / "rows.jsonl"
    plan.save(tmp_path / "plan.json")
    command = [sys.executable, "-m", "infergy", "measure", str(tmp_path / "plan.json"), "-o", str(path)]
    command += ["--simulate", "--ray", mortal.address]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    wait_until(lambda: process.poll() is not None or (path.exists() and path.read_bytes().count(b"\n") >= 3))
    process.kill()
    assert process.wait() == -signal.SIGKILL
    before = read_store(path).rows
    assert 3 <= len(before) <= 2 * CELLS_BEFORE
    gate.touch()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"resuming: {len(before)} of {len(plan.cells)} cells are already measured" in done.stderr
    assert read_store(path).rows[: len(before)] == before
    assert keys(path) == once(plan)


def test_a_type_that_is_not_there_is_refused_with_those_that_are(cluster: Any, tmp_path: Path) -> None:
    cluster.add_node(num_cpus=1, num_gpus=2, resources={"accelerator_type:H100": 1}, **SMALL)
    with pytest.raises(MissingError, match=r"1 GPU of type H200\. There: 2 × H100 on"):
        list(sweep_on_ray(plan_of(1), tmp_path / "rows.jsonl", cluster.address))


def test_a_node_with_another_infergy_is_refused_by_name(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_nodes, "VERSION", "0.0")
    with pytest.raises(MissingError, match=r"has other versions than this machine: infergy .* against 0\.0"):
        list(sweep_on_ray(plan_of(1), tmp_path / "rows.jsonl", cluster.address, simulate=True))


@pytest.mark.parametrize(
    ("there", "words"),
    [
        ((None, "3.11.0", "2.0"), r"infergy is missing on far\. On it: pip install"),
        ((VERSION, "3.99.0", version("ray")), r"far has other versions than this machine: Python 3\.99\.0 against"),
        ((VERSION, platform.python_version(), "1.0"), r"Ray 1\.0 against .*Install the same on both"),
    ],
)
def test_a_node_is_refused_by_what_is_installed_there(there: tuple[str | None, str, str], words: str) -> None:
    with pytest.raises(MissingError, match=words):
        cluster_nodes.refuse_versions("far", there)


def test_a_node_that_is_slow_to_answer_is_named_while_it_is_waited_for(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait, looks = ray.wait, []

    def late(asked: list[Any], **options: Any) -> Any:
        looks.append(options)
        return ([], asked) if len(looks) == 1 else wait(asked, **options)

    monkeypatch.setattr(ray, "wait", late)
    kinds = [event.kind for event in sweep_on_ray(plan_of(1), tmp_path / "rows.jsonl", cluster.address, simulate=True)]
    assert looks[0] == {"timeout": cluster_nodes.PATIENCE_S}
    assert kinds[0] == "waiting"
    assert "row" in kinds


def test_a_node_that_never_answers_ends_the_wait(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "wait", lambda asked, **_: ([], asked))
    monkeypatch.setattr(cluster_nodes, "PROBE_S", 0.0)
    with pytest.raises(MissingError, match="did not answer within 0 s"):
        list(sweep_on_ray(plan_of(1), tmp_path / "rows.jsonl", cluster.address, simulate=True))


def test_no_cluster_says_how_to_start_one(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"no Ray cluster at 127\.0\.0\.1:1: .*ray start --head"):
        list(sweep_on_ray(plan_of(1), tmp_path / "rows.jsonl", "127.0.0.1:1", simulate=True))
    with pytest.raises(UsageError, match="auto or HOST:PORT"):
        list(sweep_on_ray(plan_of(1), tmp_path / "rows.jsonl", "ray://head:10001", simulate=True))


def test_a_store_written_on_ray_is_a_store(cluster: Any, tmp_path: Path) -> None:
    plan, path = plan_of(2), tmp_path / "rows.jsonl"
    kinds = Counter(event.kind for event in sweep_on_ray(plan, path, cluster.address, simulate=True))
    # On a slow machine Ray takes its time to start a first worker.
    del kinds["waiting"]
    assert kinds == {"loading": 2, "ready": 2, "begin": len(plan.cells), "row": len(plan.cells)}
    for line in path.read_text(encoding="utf-8").splitlines():
        assert json.loads(line)["simulated"] is True
