"""Sweeps on a real Ray cluster of several nodes on this machine, with the simulated GPU: nodes die, drivers die."""

from __future__ import annotations

import json
import os
import platform
import signal
import socket
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

from infergy import VERSION
from infergy.catalog import get_gpu, gpu_names
from infergy.measure import cluster as cluster_module
from infergy.measure import cluster_nodes, node
from infergy.measure.cluster import sweep_on_ray
from infergy.measure.grid import make_plan, parse_grid
from infergy.measure.sweep import NODE_LOST
from infergy.records import START_VISIT, Plan
from infergy.records.store import read_store
from raising import raises
from waiting import PATIENCE_S, wait_until

# Ray's own threads and sockets are its own affair.
pytestmark = pytest.mark.filterwarnings("default")

SMALL: dict[str, Any] = {"object_store_memory": 100 * 2**20}
HELD_AFTER = 2

HELD = """
import os, sys, time

if "infergy.measure.worker" in sys.orig_argv:
    from infergy.measure import cell

    measure, begun = cell.measure_cell, []

    def held(*arguments, **named):
        begun.append(1)
        if len(begun) > {rows}:
            open({gate!r} + "-" + str(os.getpid()), "w").close()
        while len(begun) > {rows} and not os.path.exists({gate!r}):
            time.sleep(0.01)
        return measure(*arguments, **named)

    cell.measure_cell = held
"""
"""Each engine's process tells that it is in its third cell, and stays in it until there is a gate."""


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
def gate(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """On nodes that are started after this, each engine measures two cells, and the others once this file is there.

    So who is killed before is killed in mid-cell, however fast or slow the nodes are.
    """
    site = tmp_path_factory.mktemp("site")
    path = site / "gate"
    (site / "sitecustomize.py").write_text(HELD.format(rows=HELD_AFTER, gate=str(path)), encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(site), prepend=os.pathsep)
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


def in_hand(begun: Counter[str], path: Path) -> Counter[str]:
    """What was begun and has no row yet."""
    return begun - keys(path)


def test_a_killed_node_costs_no_finished_row_and_its_running_cell_is_measured_elsewhere(
    mortal: Any, gate: Path, tmp_path: Path
) -> None:
    plan, path = plan_of(), tmp_path / "rows.jsonl"
    lost: list[str] = []
    begun: Counter[str] = Counter()
    before = b""
    for event in sweep_on_ray(plan, path, mortal.address, simulate=True):
        begun.update([event.planned.key] if event.kind == "begin" and event.planned else [])
        if not before and begun.total() == 2 * (HELD_AFTER + 1):
            before, running = path.read_bytes(), in_hand(begun, path)
            mortal.remove_node(mortal.workers[0], allow_graceful=False)
        if event.kind == "lost":
            lost.append(event.detail)
            # Not before: what runs on the dead node may outlive it for a moment.
            gate.touch()
    assert len(lost) == 1
    assert path.read_bytes().startswith(before)
    assert before.count(b"\n") == 2 * HELD_AFTER
    assert keys(path) == once(plan)
    assert all(row.is_ok for row in read_store(path).rows)
    again = begun - once(plan)
    assert again.total() == 1
    assert again <= running
    kinds = [event.kind for event in sweep_on_ray(plan, path, mortal.address, simulate=True)]
    assert set(kinds) - {"waiting"} == {"resumed"}


def test_without_a_node_cells_are_recorded_with_the_reason_and_tried_again_on_the_next_one(
    mortal: Any, gate: Path, tmp_path: Path
) -> None:
    plan, path = plan_of(engines=("vllm",)), tmp_path / "rows.jsonl"
    rows_seen = 0
    for event in sweep_on_ray(plan, path, mortal.address, simulate=True):
        rows_seen += event.kind == "row"
        if event.kind == "begin" and rows_seen == HELD_AFTER:
            for one in mortal.workers:
                mortal.remove_node(one, allow_graceful=False)
    gate.touch()
    rows = read_store(path).rows
    assert keys(path) == once(plan)
    measured = [row for row in rows if row.is_ok]
    lost = [row.failure for row in rows if row.failure is not None]
    assert (len(measured), len(lost)) == (HELD_AFTER, len(plan.cells) - HELD_AFTER)
    assert {failure.code for failure in lost} == {NODE_LOST}
    assert "no node of the cluster has 1 CPU" in lost[0].message
    mortal.add_node(num_cpus=1, **SMALL)
    list(sweep_on_ray(plan, path, mortal.address, simulate=True))
    again = read_store(path).rows
    assert again[: len(rows)] == rows
    assert {row.key for row in again if row.is_ok} == set(once(plan))
    assert len(again) == len(rows) + len(lost)


def start_driver(cluster: Any, gate: Path, plan: Plan, path: Path) -> tuple[list[str], subprocess.Popen[str]]:
    """A command that measures, in mid-cell on both nodes; it and its process."""
    plan.save(path.with_name("plan.json"))
    command = [sys.executable, "-m", "infergy", "measure", str(path.with_name("plan.json")), "-o", str(path)]
    command += ["--simulate", "--ray", cluster.address]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        # Where pytest runs in the background of a shell, an interruption is ignored by all that it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )

    def is_in_mid_cell() -> bool:
        is_kept = path.exists() and path.read_bytes().count(b"\n") == 2 * HELD_AFTER
        return is_kept and len(list(gate.parent.glob(f"{gate.name}-*"))) == 2

    wait_until(lambda: process.poll() is not None or is_in_mid_cell())
    return command, process


@pytest.mark.parametrize(("by", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)])
def test_a_driver_ended_in_mid_sweep_is_resumed_by_the_same_command(
    mortal: Any, gate: Path, tmp_path: Path, by: signal.Signals, code: int
) -> None:
    plan, path = plan_of(), tmp_path / "rows.jsonl"
    command, process = start_driver(mortal, gate, plan, path)
    process.send_signal(by)
    told = process.communicate()[1]
    assert process.returncode == code
    assert told.endswith("interrupted; what was finished is kept\n") == (by == signal.SIGINT)
    gate.touch()
    before = read_store(path).rows
    assert len(before) == 2 * HELD_AFTER
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"resuming: {len(before)} of {len(plan.cells)} cells are already measured" in done.stderr
    assert read_store(path).rows[: len(before)] == before
    assert keys(path) == once(plan)


def test_a_set_up_that_goes_on_elsewhere_begins_with_its_control_cells_and_keeps_what_was_measured(
    cluster: Any, tmp_path: Path
) -> None:
    plan, path = plan_of(engines=("vllm",)), tmp_path / "rows.jsonl"
    controls = [planned.key for planned in plan.cells if planned.visit == START_VISIT]
    assert controls
    events = sweep_on_ray(plan, path, cluster.address, simulate=True)
    while len(keys(path) if path.exists() else ()) < len(controls) + 2:
        next(events)
    del events
    # All simulated GPUs have one name: let these rows be another's.
    path.write_text(path.read_text().replace('"uuid":"', '"uuid":"other-'))
    before = read_store(path).rows
    list(sweep_on_ray(plan, path, cluster.address, simulate=True))
    rows = read_store(path).rows
    assert rows[: len(before)] == before
    assert [row.key for row in rows[len(before) :]][: len(controls)] == controls
    assert keys(path) == once(plan) + Counter(controls)
    assert {event.kind for event in sweep_on_ray(plan, path, cluster.address, simulate=True)} - {"waiting"} == {
        "resumed"
    }


def test_a_type_that_is_not_there_is_refused_with_those_that_are(cluster: Any, tmp_path: Path) -> None:
    cluster.add_node(num_cpus=1, num_gpus=2, resources={"accelerator_type:H100": 1}, **SMALL)
    with raises("gpu-missing", wanted={"CPU": 1.0, "GPU": 1.0, "accelerator_type:H200": 0.001}):
        list(sweep_on_ray(plan_of(1), tmp_path / "rows.jsonl", cluster.address))


def test_a_node_with_another_infergy_is_refused_by_name(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_nodes, "VERSION", "0.0")
    with raises("versions-differ"):
        list(sweep_on_ray(plan_of(1), tmp_path / "rows.jsonl", cluster.address, simulate=True))


@pytest.mark.parametrize(
    ("there", "code", "fields"),
    [
        ((None, "3.11.0", "2.0"), "package-missing", {"package": "infergy"}),
        (
            (VERSION, "3.99.0", version("ray")),
            "versions-differ",
            {"node": "far", "found": [VERSION, "3.99.0", version("ray")]},
        ),
        ((VERSION, platform.python_version(), "1.0"), "versions-differ", {"node": "far"}),
    ],
)
def test_a_node_is_refused_by_what_is_installed_there(
    there: tuple[str | None, str, str], code: str, fields: dict[str, object]
) -> None:
    with raises(code, **fields):
        cluster_nodes.reject_versions("far", there)


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
    with raises("node-silent"):
        list(sweep_on_ray(plan_of(1), tmp_path / "rows.jsonl", cluster.address, simulate=True))


def test_a_node_that_is_lost_while_it_is_asked_is_left_out(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_nodes, "PATIENCE_S", PATIENCE_S)
    with cluster_nodes.connect(cluster.address):
        (gone, *_) = nodes = cluster_nodes.find_nodes([{"CPU": 1.0}])
        missing = {**gone, "NodeID": "ab" * (len(gone["NodeID"]) // 2), "NodeName": "gone"}
        assert list(cluster_nodes.probe_nodes([missing, *nodes])) == []
        # One that the cluster lists, but to which it sends nothing, is refused by its name in the end.
        monkeypatch.setattr(cluster_nodes, "_is_alive", lambda node: True)
        monkeypatch.setattr(cluster_nodes, "SETTLE_S", 0.0)
        with raises("node-silent", node="gone"):
            list(cluster_nodes.probe_nodes([missing]))


def test_no_cluster_says_how_to_start_one_and_leaves_no_store(tmp_path: Path) -> None:
    with raises("ray-unavailable", address="127.0.0.1:1"):
        list(sweep_on_ray(plan_of(1), tmp_path / "rows.jsonl", "127.0.0.1:1", simulate=True))
    with raises("bad-value", option="--ray", value="ray://head:10001"):
        list(sweep_on_ray(plan_of(1), tmp_path / "rows.jsonl", "ray://head:10001", simulate=True))
    assert not list(tmp_path.iterdir())


def test_auto_refuses_the_head_of_a_dead_cluster_before_ray_tries_for_minutes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with raises("ray-unavailable", address="127.0.0.1:1"):
        list(sweep_on_ray(plan_of(1), tmp_path / "rows.jsonl", "auto", simulate=True))


def test_auto_without_a_cluster_says_how_to_name_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(*_: Any) -> str:
        raise ConnectionError("none")

    monkeypatch.setattr("ray._private.services.get_ray_address_from_environment", nobody)
    with raises("ray-unavailable", address="auto"):
        list(sweep_on_ray(plan_of(1), tmp_path / "rows.jsonl", "auto", simulate=True))


def test_auto_finds_the_cluster_that_runs_here(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    list(sweep_on_ray(plan_of(1), tmp_path / "rows.jsonl", "auto", simulate=True))
    assert keys(tmp_path / "rows.jsonl") == once(plan_of(1))


def test_another_server_at_the_address_is_not_taken_for_a_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's own client waits 40 s for an answer: here it gives up at once."""
    from ray.exceptions import RpcError

    def give_up(address: str) -> None:
        raise RpcError(f"{address}: timed out")

    monkeypatch.setattr("ray._raylet.GcsClient", give_up)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with raises("ray-unavailable", address=address):
            list(sweep_on_ray(plan_of(1), tmp_path / "rows.jsonl", address, simulate=True))


def test_a_loss_that_ray_tells_by_any_error_is_retried_elsewhere(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.exceptions import OutOfMemoryError

    plan, path = plan_of(2, engines=("vllm",)), tmp_path / "rows.jsonl"
    seen: list[str] = []

    def unpack(content: bytes) -> dict[str, Any]:
        """Whoever measures is ended once, in its second cell, for want of memory."""
        event = node.unpack(content)
        seen.append(event["kind"])
        if seen.count("begin") == 2 and event["kind"] == "begin":
            raise OutOfMemoryError("killed for want of memory. More words")
        return event

    monkeypatch.setattr(cluster_module, "unpack", unpack)
    told = list(sweep_on_ray(plan, path, cluster.address, simulate=True))
    (lost,) = [event.detail for event in told if event.kind == "lost"]
    assert lost.endswith("killed for want of memory")
    assert seen.count("here") == 2
    assert keys(path) == once(plan)
    assert all(row.is_ok for row in read_store(path).rows)


def test_a_gpu_of_the_catalog_is_called_as_ray_calls_it_by_any_of_its_drivers_names() -> None:
    from ray._private.accelerators.nvidia_gpu import NvidiaGPUAcceleratorManager

    for name in gpu_names():
        gpu = get_gpu(name)
        drivers = [one for one in (*gpu.aliases, gpu.title) if one.startswith("NVIDIA")]
        told = {NvidiaGPUAcceleratorManager._gpu_name_to_accelerator_type(one) for one in drivers}
        assert told == {cluster_nodes.gpu_type(name)}, name


def test_a_store_written_on_ray_is_a_store(cluster: Any, tmp_path: Path) -> None:
    plan, path = plan_of(2), tmp_path / "rows.jsonl"
    kinds = Counter(event.kind for event in sweep_on_ray(plan, path, cluster.address, simulate=True))
    # On a slow machine Ray takes its time to start a first worker.
    del kinds["waiting"]
    assert kinds == {"loading": 2, "ready": 2, "begin": len(plan.cells), "row": len(plan.cells)}
    for line in path.read_text(encoding="utf-8").splitlines():
        assert json.loads(line)["simulated"] is True
