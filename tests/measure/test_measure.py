"""Measuring on the simulated GPU, whose joules are known: order, truth, resuming, failing."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from infergy.catalog import get_gpu, model_config
from infergy.engines import Completion, EngineOutOfMemoryError, Work
from infergy.engines.simulated_engine import SimulatedEngine
from infergy.errors import EngineError
from infergy.measure.cell import WrongTokensError, measure_cell, measure_idle
from infergy.measure.environment import Surroundings
from infergy.measure.grid import make_plan, parse_grid
from infergy.measure.sweep import survey, sweep
from infergy.measure.worker import attempt
from infergy.meters.simulated import CounterSensor, Sensors, SimulatedGpu, SimulatedMeter
from infergy.records import (
    EngineSetup,
    Environment,
    GpuIdentity,
    GpuState,
    Measurement,
    MeasureOptions,
    Plan,
    PlannedCell,
)
from infergy.records.check import find_idle_power
from infergy.records.store import read_store
from infergy.records.visits import Peer, Spread, join_visits
from raising import keys_of, raises
from simulated_truth import truth_of
from waiting import is_running, wait_until

ONE_WINDOW = MeasureOptions(max_time_s=0.0)
SRC = str(Path(__file__).parents[2] / "src")


def tiny_plan(**changes: Any) -> Plan:
    grid = {
        "name": "tiny",
        "gpu": "h200",
        "model": "llama-3.1-8b",
        "engines": [{"engine": "vllm"}, {"engine": "transformers"}],
        "cells": [{"input_tokens": [64, 128], "output_tokens": [8], "batch": [1, 4]}],
        "options": {"shuffle": False},
    }
    return make_plan(parse_grid(grid | changes, "test"))


class LoggedMeter(SimulatedMeter):
    def __init__(self, gpu: SimulatedGpu, log: list[str]) -> None:
        super().__init__(gpu)
        self._log = log

    def read(self) -> Mapping[str, float]:
        if self._log[-1:] != ["read"]:
            self._log.append("read")
        return super().read()

    def states(self) -> tuple[GpuState, ...]:
        self._log.append("state")
        return super().states()


class LoggedSession:
    """A session that draws `power_w` for `seconds` a batch."""

    def __init__(self, gpu: SimulatedGpu, log: list[str], *, seconds: float, power_w: float, lost: int = 0) -> None:
        self._gpu, self._log, self._seconds, self._power_w, self._lost = gpu, log, seconds, power_w, lost

    def run(self, work: Work) -> Completion:
        self._log.append(f"run {len(work.prompts)}x{work.output_tokens[0]}")
        self._gpu.advance(self._seconds, self._power_w)
        return Completion(
            input_tokens=tuple(map(len, work.prompts)),
            output_tokens=tuple(count - self._lost for count in work.output_tokens),
        )

    def facts(self) -> Mapping[str, str | None]:
        return {}

    def close(self) -> None:
        return None


@pytest.fixture
def gpu() -> SimulatedGpu:
    return SimulatedGpu(GpuIdentity(uuid="GPU-a", name="simulated"), idle_w=120.0)


@pytest.fixture
def surroundings(gpu: SimulatedGpu) -> Surroundings:
    return surroundings_of(gpu)


def surroundings_of(gpu: SimulatedGpu) -> Surroundings:
    environment = Environment(
        infergy="0",
        python="3",
        platform="test",
        cpu=None,
        gpus=(gpu.identity,),
        driver=None,
        cuda=None,
        meter="simulated",
        scope="gpu-board",
        counter_period_s=None,
        weights="none",
    )
    return Surroundings(environment=environment, vocabulary=1000, is_simulated=True)


def measure(
    gpu: SimulatedGpu,
    surroundings: Surroundings,
    *,
    seconds: float,
    power_w: float,
    lost: int = 0,
    options: MeasureOptions = ONE_WINDOW,
) -> tuple[Measurement, list[str]]:
    log: list[str] = []
    meter = LoggedMeter(gpu, log)
    session = LoggedSession(gpu, log, seconds=seconds, power_w=power_w, lost=lost)
    planned = replace(tiny_plan().cells[1], forecast_prefill_s=0.1)
    idle = measure_idle(meter, 2.0)
    log.clear()
    return measure_cell(session, meter, planned, options, surroundings, idle), log


def test_the_order_is_warm_up_state_tick_batches_state_tick(gpu: SimulatedGpu, surroundings: Surroundings) -> None:
    _, log = measure(gpu, surroundings, seconds=1.7, power_w=500.0)
    assert log == ["run 4x8", "state", "read", "run 4x8", "run 4x8", "state", "read"]


@pytest.mark.parametrize(("seconds", "batches"), [(0.5, 6), (1.4, 3), (2.9, 2), (4.9, 2), (5.1, 1), (30.0, 1)])
def test_a_window_lasts_three_seconds_and_two_batches_unless_one_is_long(
    gpu: SimulatedGpu, surroundings: Surroundings, seconds: float, batches: int
) -> None:
    row, _ = measure(gpu, surroundings, seconds=seconds, power_w=500.0)
    assert len(row.windows[0].batches) == batches


@pytest.mark.parametrize("seconds", [0.33, 1.71, 12.3])
@pytest.mark.parametrize("power_w", [130.0, 430.0, 700.0])
def test_measured_joules_are_the_true_ones_within_the_stated_edges(
    gpu: SimulatedGpu, surroundings: Surroundings, seconds: float, power_w: float
) -> None:
    row, _ = measure(gpu, surroundings, seconds=seconds, power_w=power_w)
    assert row.result is not None
    (window,) = row.windows
    doubt_j = 2 * window.edge_uncertainty_s * (power_w + gpu.idle_w) / len(window.batches) + 0.01
    assert row.result.energy_j == pytest.approx(seconds * power_w, abs=doubt_j)
    assert row.result.duration_s == pytest.approx(seconds)


def test_windows_repeat_until_four_agree(gpu: SimulatedGpu, surroundings: Surroundings) -> None:
    row, log = measure(gpu, surroundings, seconds=1.7, power_w=500.0, options=MeasureOptions())
    window = ["read", "run 4x8", "run 4x8", "state"]
    assert log == ["run 4x8", "state", *window, *window, *window, *window, "read"]
    assert len(row.windows) == 4


def test_batches_begin_at_any_moment_of_a_period_of_the_counter(gpu: SimulatedGpu, surroundings: Surroundings) -> None:
    row, _ = measure(gpu, surroundings, seconds=1.7, power_w=500.0, options=MeasureOptions(target=1e-9))
    leads = [window.batches[0].start_s - window.open["GPU-a"].time_s for window in row.windows]
    assert len(leads) > 10
    assert min(leads) < 0.02
    assert 0.08 < max(leads) < 0.11
    again, _ = measure(
        SimulatedGpu(gpu.identity, idle_w=120.0), surroundings, seconds=1.7, power_w=500.0, options=ONE_WINDOW
    )
    assert again.windows[0].batches[0].start_s - again.windows[0].open["GPU-a"].time_s == pytest.approx(leads[0])


@pytest.mark.parametrize("delay_s", [0.0, 0.06, 0.1])
def test_joules_that_the_counter_tells_late_are_counted(surroundings: Surroundings, delay_s: float) -> None:
    late = SimulatedGpu(
        GpuIdentity(uuid="GPU-a", name="simulated"),
        idle_w=120.0,
        sensors=Sensors(counter=CounterSensor(delay_s=delay_s)),
    )
    row, _ = measure(late, surroundings, seconds=1.6, power_w=600.0)
    assert row.result is not None
    assert row.result.energy_j == pytest.approx(960.0, rel=0.001)


def test_idle_parts_are_priced_at_what_the_gpu_draws_between_batches(surroundings: Surroundings) -> None:
    """Clocks stay high after work: loaded idle, taken when they have fallen, would subtract too little."""
    hot = SimulatedGpu(GpuIdentity(uuid="GPU-a", name="simulated"), idle_w=80.0, hot_idle_w=160.0)
    row, _ = measure(hot, surroundings, seconds=1.6, power_w=600.0)
    assert row.result is not None
    assert row.result.energy_j == pytest.approx(960.0, rel=0.001)
    assert row.windows[0].tail_power_by_gpu_w["GPU-a"] == pytest.approx(160.0, rel=0.01)
    assert find_idle_power(row).between_w == pytest.approx(160.0, rel=0.01)


class BreakingSession(LoggedSession):
    """Fails in its `fatal`-th batch."""

    def __init__(self, gpu: SimulatedGpu, fatal: int, error: EngineError) -> None:
        super().__init__(gpu, [], seconds=1.7, power_w=500.0)
        self._left, self._error = fatal, error

    def run(self, work: Work) -> Completion:
        self._left -= 1
        if self._left == 0:
            raise self._error
        return super().run(work)


@pytest.mark.parametrize(
    ("error", "code", "is_usable"),
    [
        (EngineError("CUDA error: GPU is lost"), "engine", False),
        (WrongTokensError("got 3"), "tokens", True),
        (EngineOutOfMemoryError("grew", is_usable=True), "out_of_memory", False),
    ],
)
def test_what_fails_after_a_window_keeps_the_windows_before_it(
    gpu: SimulatedGpu, surroundings: Surroundings, error: EngineError, code: str, is_usable: bool
) -> None:
    meter, plan = SimulatedMeter(gpu), tiny_plan()
    idle = measure_idle(meter, 2.0)
    # A warm-up, and two batches a window: the sixth batch is in the third window.
    session = BreakingSession(gpu, 6, error)
    row, usable = attempt(session, meter, plan.cells[1], plan, surroundings, idle)
    assert row.is_ok
    assert len(row.windows) == 2
    assert row.result is not None
    assert row.result.energy_j == pytest.approx(850.0, rel=0.01)
    assert row.interrupted is not None
    assert row.interrupted.code == code
    assert usable is is_usable
    failed, _ = attempt(BreakingSession(gpu, 2, error), meter, plan.cells[1], plan, surroundings, idle)
    assert failed.failure is not None
    assert failed.failure.code == code


def test_windows_end_when_the_time_is_up_however_uncertain(gpu: SimulatedGpu, surroundings: Surroundings) -> None:
    options = MeasureOptions(max_time_s=8.0, target=1e-9)
    row, _ = measure(gpu, surroundings, seconds=1.7, power_w=500.0, options=options)
    # Windows of 3.4 s: the third is the first after which 8 s are over.
    assert len(row.windows) == 3


def test_like_cells_that_agree_save_windows(gpu: SimulatedGpu, surroundings: Surroundings) -> None:
    session = LoggedSession(gpu, [], seconds=1.7, power_w=500.0)
    meter = SimulatedMeter(gpu)
    planned = replace(tiny_plan().cells[1], forecast_prefill_s=0.1)
    idle = measure_idle(meter, 2.0)

    def windows(*peers: Peer) -> int:
        row = measure_cell(session, meter, planned, MeasureOptions(), surroundings, idle, peers)
        return len(row.windows)

    steady = Spread(variance_s=1e-5, degrees_of_freedom=9)
    assert windows(Peer(power_w=520.0, spread=steady)) == 1
    assert windows(Peer(power_w=300.0, spread=steady)) == 4
    assert windows(Peer(power_w=520.0, spread=Spread(variance_s=1e-5, degrees_of_freedom=2))) == 4
    assert windows(Peer(power_w=520.0, spread=replace(steady, is_of_joules=False))) == 4
    assert windows(Peer(power_w=520.0, spread=Spread(variance_s=0.01, degrees_of_freedom=9))) > 1


def test_lost_tokens_are_a_failure_not_a_number(gpu: SimulatedGpu, surroundings: Surroundings) -> None:
    with raises("wrong-tokens", expected=[256, 32], found=[256, 28]):
        measure(gpu, surroundings, seconds=1.0, power_w=300.0, lost=1)


def test_out_of_memory_is_a_row_with_its_reason(gpu: SimulatedGpu, surroundings: Surroundings) -> None:
    plan = tiny_plan(cells=[{"input_tokens": [8192], "output_tokens": [512], "batch": [400]}])
    setup = EngineSetup(engine="vllm", model="llama-3.1-8b")
    session = SimulatedEngine(gpu, get_gpu("h200")).open(setup, model_config("llama-3.1-8b"), 0)
    meter = SimulatedMeter(gpu)
    row, is_usable = attempt(session, meter, plan.cells[0], plan, surroundings, measure_idle(meter, 1.0))
    assert is_usable
    assert row.failure is not None
    assert row.failure.code == "out_of_memory"
    assert "400 does not fit" in row.failure.message
    with pytest.raises(EngineOutOfMemoryError):
        session.run(Work(prompts=((1,) * 8192,) * 400, output_tokens=(512,) * 400, arrival_s=(0.0,) * 400))


def test_a_sweep_measures_every_cell_and_the_same_command_resumes(tmp_path: Path) -> None:
    plan, store = tiny_plan(), tmp_path / "rows.jsonl"
    events = list(sweep(plan, store, simulate=True))
    assert [event.kind for event in events].count("row") == 8
    rows = read_store(store).rows
    assert [row.cell_id for row in rows] == [planned.cell.id for planned in plan.cells]
    assert all(row.is_ok and row.simulated for row in rows)
    assert all(row.bare_idle is not None and row.bare_idle != row.loaded_idle for row in rows)
    lines = store.read_bytes().split(b"\n")
    store.write_bytes(b"\n".join(lines[:5]) + b"\n" + lines[5][:100])
    again = list(sweep(plan, store, simulate=True))
    assert [event.kind for event in again].count("row") == 3
    assert {event.kind for event in again} >= {"torn", "resumed"}
    assert len(read_store(store).rows) == 8
    assert (tmp_path / "rows.jsonl.torn").read_bytes().startswith(lines[5][:100])


def test_a_simulated_sweep_recovers_the_energy_of_the_simulated_gpu(tmp_path: Path) -> None:
    plan = tiny_plan(cells=[{"input_tokens": [512], "output_tokens": [64], "batch": [1, 32]}])
    list(sweep(plan, tmp_path / "rows.jsonl", simulate=True))
    for row in read_store(tmp_path / "rows.jsonl").rows:
        load, setup = row.cell.load, row.cell.setup
        truth = truth_of(load.input_tokens, load.output_tokens, load.batch, engine=setup.engine)
        assert row.result is not None
        assert row.result.energy_j == pytest.approx(truth.energy_j, rel=0.003)


def test_an_engine_that_is_missing_is_told_before_anything_runs(tmp_path: Path) -> None:
    with raises("unknown-engine", name="transformer", nearest=["transformers"]):
        list(sweep(tiny_plan(engines=[{"engine": "transformer"}]), tmp_path / "rows.jsonl"))
    assert not (tmp_path / "rows.jsonl").exists()


def sabotage(folder: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Have each child run `code`, indented by four, at its start; the worker's module is `w`."""
    (folder / "sitecustomize.py").write_text(
        "import os, sys\n"
        "if sys.argv and 'infergy.measure.worker' in ' '.join(sys.orig_argv):\n"
        "    import infergy.measure.worker as w\n" + code
    )
    monkeypatch.setenv("PYTHONPATH", f"{folder}:{SRC}")


def test_a_dead_child_costs_one_cell_and_the_rest_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The child kills itself in the second cell, as an engine might."""
    sabotage(
        tmp_path,
        monkeypatch,
        "    real = w.attempt\n"
        "    def attempt(session, meter, planned, *rest):\n"
        "        if planned.cell.load.batch == 4 and planned.cell.load.input_tokens == 64:\n"
        "            os.kill(os.getpid(), 9)\n"
        "        return real(session, meter, planned, *rest)\n"
        "    w.attempt = attempt\n"
        "    os._exit(w.main())\n",
    )
    plan = tiny_plan(engines=[{"engine": "vllm"}])
    list(sweep(plan, tmp_path / "rows.jsonl", simulate=True))
    rows = read_store(tmp_path / "rows.jsonl").rows
    assert [row.status for row in rows] == ["ok", "failed", "ok", "ok"]
    assert rows[1].failure is not None
    assert rows[1].failure.code == "died"
    assert f"signal {signal.SIGKILL}" in rows[1].failure.message
    retried = list(sweep(plan, tmp_path / "rows.jsonl", simulate=True))
    assert [event.kind for event in retried].count("row") == 0


def test_a_child_that_dies_while_it_loads_costs_no_cell_the_same_command_tries_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sabotage(
        tmp_path,
        monkeypatch,
        f"    if not os.path.exists({str(tmp_path / 'died')!r}):\n"
        f"        open({str(tmp_path / 'died')!r}, 'w').close()\n"
        "        os.kill(os.getpid(), 9)\n",
    )
    plan, store = tiny_plan(engines=[{"engine": "vllm"}]), tmp_path / "rows.jsonl"
    list(sweep(plan, store, simulate=True))
    assert [row.failure.code for row in read_store(store).rows if row.failure] == ["died_loading"] * 4
    list(sweep(plan, store, simulate=True))
    assert [row.status for row in read_store(store).rows] == ["failed"] * 4 + ["ok"] * 4


@pytest.fixture
def bare(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs Python as on a bare node: of what infergy's analysis needs only numpy can be imported."""
    for name in ("polars", "pydantic", "narwhals", "pandas", "scipy", "typer", "rich", "pynvml"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('blocked')\n")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments],
            env=os.environ | {"PYTHONPATH": f"{tmp_path}:{SRC}"},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def test_the_measuring_side_needs_the_standard_library_and_numpy_only(
    tmp_path: Path, bare: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    plan = tmp_path / "plan.json"
    tiny_plan().save(plan)
    done = bare("-m", "infergy.measure", str(plan), "-o", str(tmp_path / "rows.jsonl"), "--simulate")
    assert done.returncode == 0, done.stderr
    assert len(read_store(tmp_path / "rows.jsonl").rows) == 8
    without_gpu = bare("-m", "infergy.measure", str(plan), "-o", str(tmp_path / "more.jsonl"))
    assert without_gpu.returncode == 3
    assert "Traceback" not in without_gpu.stderr


def test_a_child_that_dies_after_its_last_row_does_not_stop_the_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sabotage(tmp_path, monkeypatch, "    w.main()\n    os.kill(os.getpid(), 9)\n")
    list(sweep(tiny_plan(), tmp_path / "rows.jsonl", simulate=True))
    assert [row.status for row in read_store(tmp_path / "rows.jsonl").rows] == ["ok"] * 8


def test_a_child_that_hangs_is_ended_recorded_and_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sabotage(
        tmp_path,
        monkeypatch,
        "    import subprocess, time\n"
        "    real = w.attempt\n"
        "    def attempt(session, meter, planned, *rest):\n"
        "        if planned.cell.load.batch == 4 and planned.cell.load.input_tokens == 64:\n"
        "            left = subprocess.Popen(['sleep', '1000'])\n"
        f"            open({str(tmp_path / 'pid')!r}, 'w').write(str(left.pid))\n"
        "            time.sleep(1000)\n"
        "        return real(session, meter, planned, *rest)\n"
        "    w.attempt = attempt\n"
        "    os._exit(w.main())\n",
    )
    pid = tmp_path / "pid"

    def forecast_s(planned: PlannedCell, options: MeasureOptions) -> float:
        """Of the cell that hangs nothing, told when it does hang."""
        load = planned.cell.load
        if (load.batch, load.input_tokens) != (4, 64):
            return 600.0
        wait_until(lambda: pid.exists() and pid.read_text())
        return 0.0

    monkeypatch.setattr("infergy.measure.sweep.longest_s", forecast_s)
    monkeypatch.setattr("infergy.measure.sweep.patience_s", lambda forecast_s, options: forecast_s + 0.25)
    list(sweep(tiny_plan(engines=[{"engine": "vllm"}]), tmp_path / "rows.jsonl", simulate=True))
    rows = read_store(tmp_path / "rows.jsonl").rows
    assert [row.status for row in rows] == ["ok", "failed", "ok", "ok"]
    assert rows[1].failure is not None
    assert rows[1].failure.code == "hung"
    assert "reported nothing for 0.25 s and was ended" in rows[1].failure.message
    # What the engine had started went with it.
    wait_until(lambda: not is_running(int(pid.read_text())))


def test_a_child_ends_in_mid_cell_with_all_it_started_when_its_parent_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pids = tmp_path / "pids"
    sabotage(
        tmp_path,
        monkeypatch,
        "    import subprocess, time\n"
        "    def attempt(*rest):\n"
        "        left = subprocess.Popen(['sleep', '1000'])\n"
        f"        open({str(tmp_path / 'draft')!r}, 'w').write(f'{{os.getpid()}} {{left.pid}}')\n"
        f"        os.rename({str(tmp_path / 'draft')!r}, {str(pids)!r})\n"
        "        time.sleep(1000)\n"
        "    w.attempt = attempt\n"
        "    os._exit(w.main())\n",
    )
    tiny_plan().save(tmp_path / "plan.json")
    process = start_sweep(tmp_path / "plan.json", tmp_path / "rows.jsonl", path=os.environ["PYTHONPATH"])
    while not pids.exists() and process.poll() is None:
        time.sleep(0.05)
    process.kill()
    process.wait()
    for pid in pids.read_text().split():
        state = Path("/proc") / pid / "stat"
        # It ends at once; the machine may take its time to say so. Were it to sleep on, this would not end.
        with suppress(FileNotFoundError, ProcessLookupError):
            while state.read_text().split()[2] != "Z":
                time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["parent", "child"])
def test_a_sweep_killed_at_random_moments_loses_no_finished_row(tmp_path: Path, target: str) -> None:
    """Ten kills of each; whatever stood in the store before a kill stands there after it, and the sweep ends whole."""
    plan, store = tmp_path / "plan.json", tmp_path / "rows.jsonl"
    tiny_plan().save(plan)
    rng = random.Random(target)
    seen: set[str] = set()

    def lines() -> int:
        return store.read_bytes().count(b"\n") if store.exists() else 0

    for _ in range(10):
        process = start_sweep(plan, store)
        # By what was measured, so that on a slow machine too not all die before their first cell.
        wanted = lines() + rng.choice((0, 1, 2))
        wait_until(lambda process=process, wanted=wanted: process.poll() is not None or lines() >= wanted)  # type: ignore[misc]
        time.sleep(rng.uniform(0.0, 0.3))
        kill(process, target)
        kept = {row.cell_id for row in read_store(store).rows} if store.exists() else set()
        assert seen <= kept
        seen = kept
        if len(seen) == 8:
            store.unlink()
            seen = set()
    while (code := start_sweep(plan, store, "--retry-failed").wait()) == 2:
        # The child of a killed parent may hold the store for a moment more; it ends with it.
        time.sleep(0.1)
    assert code == 0
    rows = [row for row in read_store(store).rows if row.is_ok]
    assert sorted(row.cell_id for row in rows) == sorted(one.cell.id for one in tiny_plan().cells)


def doom(folder: Path, **fatal: int) -> str:
    """A path for Python on which a sweep and its worker are killed, once, in the calls of their numbers."""
    folder.mkdir()
    modules = {"sweep": "infergy.measure", "worker": "infergy.measure.worker"}
    (folder / "sitecustomize.py").write_text(
        "import sys\n"
        + "".join(
            f"if {modules[who]!r} in sys.orig_argv:\n"
            "    import dying\n"
            f"    dying.die_in_call({call}, once={str(folder / who)!r})\n"
            for who, call in fatal.items()
        )
    )
    return f"{folder}:{SRC}:{Path(__file__).parents[1]}"


def two_cells(folder: Path) -> tuple[Path, list[str]]:
    cells = [{"input_tokens": [64, 128], "output_tokens": [8], "batch": [1]}]
    planned = tiny_plan(engines=[{"engine": "vllm"}], cells=cells)
    planned.save(folder / "plan.json")
    return folder / "plan.json", [one.cell.id for one in planned.cells]


def measured(store: Path) -> list[str]:
    return [row.cell_id for row in read_store(store).rows if row.is_ok]


@pytest.mark.parametrize("call", [1, *(pytest.param(call, marks=pytest.mark.slow) for call in (2, 3, 4))])
def test_a_child_killed_in_any_call_to_its_store_loses_the_cell_in_progress_at_most(tmp_path: Path, call: int) -> None:
    """Two rows, each a write and a sync. What it had written by half is set aside by its parent, who goes on."""
    plan, cells = two_cells(tmp_path)
    store, doomed = tmp_path / "rows.jsonl", doom(tmp_path / "doomed", worker=call)
    # The parent records the cell in progress as failed, unless its row was whole, and measures the rest.
    assert start_sweep(plan, store, path=doomed).wait() == (4 if call in (1, 3) else 0)
    assert len(read_store(store).rows) == 2
    assert (tmp_path / "doomed" / "worker").exists()
    assert set(cells[: call // 2]) <= set(measured(store))
    assert (tmp_path / "rows.jsonl.torn").exists() == (call in (1, 3))
    assert start_sweep(plan, store, "--retry-failed").wait() == 0
    assert sorted(measured(store)) == sorted(cells)


@pytest.mark.parametrize("call", [1, *(pytest.param(call, marks=pytest.mark.slow) for call in (2, 3, 4, 5, 6))])
def test_a_sweep_killed_in_any_call_to_its_store_goes_on_by_the_same_command(tmp_path: Path, call: int) -> None:
    """Its child has died in mid-line: it writes that aside, syncs, truncates, syncs, writes a failed row, syncs."""
    plan, cells = two_cells(tmp_path)
    store, doomed = tmp_path / "rows.jsonl", doom(tmp_path / "doomed", worker=3, sweep=call)
    assert start_sweep(plan, store, path=doomed).wait() == -signal.SIGKILL
    assert (tmp_path / "doomed" / "sweep").exists()
    assert measured(store) == cells[:1]
    whole = store.read_bytes().split(b"\n")[0]
    assert start_sweep(plan, store, "--retry-failed").wait() == 0
    assert store.read_bytes().split(b"\n")[0] == whole
    assert measured(store) == cells
    assert (tmp_path / "rows.jsonl.torn").exists()


def start_sweep(plan: Path, store: Path, *options: str, path: str = SRC) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "infergy.measure", str(plan), "-o", str(store), "--simulate", *options],
        env=os.environ | {"PYTHONPATH": path},
        stderr=subprocess.DEVNULL,
    )


def kill(process: subprocess.Popen[bytes], target: str) -> None:
    """Kill the sweep, or its child and let the sweep end."""
    if target == "parent":
        process.kill()
    else:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        for pid in children.read_text().split() if children.exists() else ():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
    process.wait()


def test_the_last_words_of_a_dead_child_are_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rows.jsonl.log").write_text("an older run: out of memory\n")
    sabotage(tmp_path, monkeypatch, "    os.kill(os.getpid(), 9)\n")
    list(sweep(tiny_plan(engines=[{"engine": "vllm"}]), tmp_path / "rows.jsonl", simulate=True))
    failures = [row.failure.message for row in read_store(tmp_path / "rows.jsonl").rows if row.failure]
    assert len(failures) == 4
    assert all("its last words: none" in message for message in failures)


class PretendedMeter(SimulatedMeter):
    """A simulated meter that passes for a real one of another GPU."""

    is_simulated = False


@pytest.mark.parametrize(
    ("name", "batches", "found"),
    [
        ("NVIDIA A100-SXM4-80GB", "given", "a100-80gb-sxm"),
        ("NVIDIA Mystery", "largest that fits the memory", "NVIDIA Mystery"),
        ("NVIDIA Mystery", "given", None),
    ],
)
def test_a_plan_for_another_gpu_is_refused_with_the_one_that_is_here(
    name: str, batches: str, found: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def open_pair(setup: EngineSetup, plan: Plan, *, simulate: bool, meter: str) -> tuple[Any, SimulatedMeter]:
        device = SimulatedGpu(GpuIdentity(uuid="GPU-a", name=name), idle_w=100.0)
        return SimulatedEngine(device, get_gpu("h200")), PretendedMeter(device)

    monkeypatch.setattr("infergy.measure.sweep.open_pair", open_pair)
    plan = tiny_plan()
    plan = replace(plan, cells=tuple(replace(cell, batch_choice=batches) for cell in plan.cells))
    with nullcontext() if found is None else raises("other-gpu", found=found, expected="h200"):
        survey(plan, simulate=False, meter="nvml")


def test_a_plan_without_its_model_is_refused_before_anything_runs(tmp_path: Path) -> None:
    with raises("plan-incomplete", missing="llama-3.1-8b"):
        list(sweep(replace(tiny_plan(), models={}), tmp_path / "rows.jsonl", simulate=True))
    assert not (tmp_path / "rows.jsonl").exists()


def test_a_model_told_by_hand_is_played_but_no_engine_is_asked_to_load_it(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    numbers = "layers = 2\nhidden = 64\nheads = 4\nintermediate = 128\nvocabulary = 500\n"
    path.write_text(numbers, encoding="utf-8")
    plan = tiny_plan(model=str(path))
    list(sweep(plan, tmp_path / "rows.jsonl", simulate=True))
    rows = read_store(tmp_path / "rows.jsonl").rows
    assert rows
    assert all(row.failure is None and row.cell.setup.model == "mine" for row in rows)
    with raises("not-supported", model="mine"):
        survey(plan, simulate=False, meter="nvml")


@pytest.mark.parametrize("model", ["nemotron-nano-12b-v2-vl", "qwen3-omni-30b-a3b"])
def test_a_text_model_inside_another_is_played(tmp_path: Path, model: str) -> None:
    list(sweep(tiny_plan(model=model), tmp_path / "rows.jsonl", simulate=True))
    rows = read_store(tmp_path / "rows.jsonl").rows
    assert rows
    assert all(row.failure is None for row in rows)


def test_a_batch_limit_that_one_request_exceeds_is_told() -> None:
    block = {"input_tokens": [512], "output_tokens": [4096], "max_batch_s": 1}
    (planned,) = tiny_plan(engines=[{"engine": "vllm"}], cells=[block]).cells
    assert planned.cell.load.batch == 1
    assert planned.batch_choice == "one request alone is forecast to take more than 1 s of GPU work"


def test_a_model_has_one_name_and_a_default_written_out_one_id() -> None:
    plain = tiny_plan(engines=[{"engine": "vllm"}])
    spelled = tiny_plan(engines=[{"engine": "vllm", "cuda_graphs": True}], model="Llama-3.1-8B")
    assert [one.cell.id for one in spelled.cells] == [one.cell.id for one in plain.cells]


@pytest.mark.parametrize("seconds", [0, -1, float("inf"), float("nan")])
def test_times_of_a_grid_are_finite_and_positive(seconds: float) -> None:
    with raises("bad-grid") as error:
        tiny_plan(cells=[{"input_tokens": [8], "output_tokens": [8], "max_batch_s": seconds}])
    assert keys_of(error.value) == ["cells.0.max_batch_s"]
    with raises("bad-grid") as error:
        tiny_plan(options={"min_window_s": seconds})
    assert keys_of(error.value) == ["options.min_window_s"]


def test_a_plan_survives_its_file(tmp_path: Path) -> None:
    plan = tiny_plan()
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan


def test_cells_are_grouped_by_set_up() -> None:
    groups = tiny_plan().by_setup()
    assert [setup.engine for setup in groups] == ["vllm", "transformers"]
    assert all(isinstance(planned, PlannedCell) for cells in groups.values() for planned in cells)


def test_rows_of_a_sweep_are_plain_json(tmp_path: Path) -> None:
    list(sweep(tiny_plan(engines=[{"engine": "vllm"}]), tmp_path / "rows.jsonl", simulate=True))
    first = json.loads((tmp_path / "rows.jsonl").read_text().splitlines()[0])
    assert first["schema"] == "infergy.measurement/2"
    greedy = {"beams": 1, "temperature": None, "top_p": 1.0, "top_k": None}
    lengths = {"input_tokens": 64, "output_tokens": 8, "batch": 1}
    assert first["cell"]["load"] == {**lengths, "decoding": greedy, "arrivals": None}
    assert first["result"]["energy_j"] > 0


WIDE = [{"input_tokens": [32, 64, 128, 256], "output_tokens": [8, 64], "batch": [1, 4]}]


def test_cells_are_shuffled_within_their_set_up_by_the_seed() -> None:
    def order(**options: Any) -> list[str]:
        return [one.cell.id for one in tiny_plan(cells=WIDE, options={"anchors": 0, **options}).cells]

    plain = order(shuffle=False)
    assert sorted(order()) == sorted(plain)
    assert order() == order()
    assert len({tuple(order(seed=seed)) for seed in range(5)}) == 5
    engines = [one.cell.setup.engine for one in tiny_plan(cells=WIDE, options={}).cells]
    assert engines == sorted(engines, reverse=True), "an engine config is loaded once"


def test_three_control_cells_are_visited_at_the_start_and_the_end_of_each_set_up() -> None:
    plan = tiny_plan(engines=[{"engine": "vllm"}], cells=WIDE, options={})
    start, end = plan.cells[:3], plan.cells[-3:]
    assert [one.visit for one in start] == ["start"] * 3
    assert [one.visit for one in end] == ["end"] * 3
    assert [one.cell for one in start] == [one.cell for one in end]
    grid = [one.cell.id for one in plan.cells if one.visit == "grid"]
    assert len(grid) == 13
    assert not {one.cell.id for one in start} & set(grid)
    middle = sorted(one.forecast_batch_s for one in plan.cells)[len(plan.cells) // 2]
    assert all(one.forecast_batch_s <= middle for one in start)
    assert len({one.key for one in plan.cells}) == len(plan.cells)


def test_a_small_set_up_has_no_control_cells() -> None:
    assert {one.visit for one in tiny_plan().cells} == {"grid"}


def test_both_visits_of_an_anchor_are_rows_and_are_resumed_apart(tmp_path: Path) -> None:
    plan, store = tiny_plan(engines=[{"engine": "vllm"}], cells=WIDE, options={}), tmp_path / "rows.jsonl"
    list(sweep(plan, store, simulate=True))
    rows = read_store(store).rows
    assert [row.key for row in rows] == [one.key for one in plan.cells]
    lines = store.read_text().splitlines(keepends=True)
    store.write_text("".join(lines[:-2]))
    again = [event.row.key for event in sweep(plan, store, simulate=True) if event.row is not None]
    assert again == [one.key for one in plan.cells[-2:]]


def test_a_store_of_another_gpu_or_of_pretended_joules_is_not_taken_for_measured(tmp_path: Path) -> None:
    store = tmp_path / "rows.jsonl"
    list(sweep(tiny_plan(engines=[{"engine": "vllm"}]), store, simulate=True))
    before = store.read_bytes()
    with raises("other-gpu", found="simulated NVIDIA H200 SXM 141GB", expected="simulated NVIDIA H100 80GB SXM"):
        list(sweep(tiny_plan(gpu="h100-sxm", engines=[{"engine": "vllm"}]), store, simulate=True))
    assert store.read_bytes() == before


def test_a_counter_that_tells_no_number_is_a_failure(gpu: SimulatedGpu, surroundings: Surroundings) -> None:
    class Dazed(SimulatedMeter):
        reads = 0

        def read(self) -> Mapping[str, float]:
            self.reads += 1
            return {uuid: math.nan if self.reads > 2000 else joules for uuid, joules in super().read().items()}

    meter, plan = Dazed(gpu), tiny_plan()
    idle = measure_idle(SimulatedMeter(gpu), 2.0)
    meter.reads = 2000
    row, is_usable = attempt(
        LoggedSession(gpu, [], seconds=1.7, power_w=500.0), meter, plan.cells[1], plan, surroundings, idle
    )
    assert row.failure is not None
    assert row.failure.code == "meter"
    assert is_usable


def test_repeated_visits_are_rounds_of_all_cells_each_in_an_order_of_its_own() -> None:
    plan = tiny_plan(cells=WIDE, engines=[{"engine": "vllm"}], options={"repeats": 3})
    visits = ["start"] * 3 + ["grid"] * 13 + ["grid-2"] * 13 + ["grid-3"] * 13 + ["end"] * 3
    assert [planned.visit for planned in plan.cells] == visits
    rounds = [[planned.cell.id for planned in plan.cells[begin : begin + 13]] for begin in (3, 16, 29)]
    assert len({tuple(one) for one in rounds}) == 3
    assert len({frozenset(one) for one in rounds}) == 1
    assert [planned.round for planned in plan.cells] == [1] * 16 + [2] * 13 + [3] * 13 + [1] * 3
    assert plan == tiny_plan(cells=WIDE, engines=[{"engine": "vllm"}], options={"repeats": 3})


def test_windows_are_spread_over_the_visits_and_the_first_alone_is_watched(tmp_path: Path) -> None:
    counts = {}
    for repeats in (1, 2):
        path = tmp_path / f"{repeats}.jsonl"
        # A window takes the target and the like cells' word for nothing: four a cell at least, however many visits.
        list(sweep(tiny_plan(options={"shuffle": False, "repeats": repeats}), path, simulate=True))
        rows = read_store(path).rows
        assert len(rows) == 8 * repeats
        counts[repeats] = {row.cell_id: row for row in join_visits(rows)}
        assert all((row.watched is not None) is (row.visit == "grid") for row in rows)
        assert all(row.timeline_reason == "an earlier visit was watched" for row in rows if row.visit == "grid-2")
    first = next(iter(counts[1]))
    assert [window.visit for window in counts[1][first].windows] == [1] * 4
    assert [window.visit for window in counts[2][first].windows] == [1, 1, 2, 2]
    for cell_id, row in counts[1].items():
        again = counts[2][cell_id]
        assert {window.visit for window in again.windows} == {1, 2}
        assert row.result is not None
        assert again.result is not None
        assert again.result.energy_j == pytest.approx(row.result.energy_j, rel=0.01)


def test_a_killed_sweep_of_several_visits_goes_on_where_it_was(tmp_path: Path) -> None:
    plan = tiny_plan(options={"repeats": 2})
    path = tmp_path / "rows.jsonl"
    list(sweep(plan, path, simulate=True))
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:11]))
    list(sweep(plan, path, simulate=True))
    rows = read_store(path).rows
    assert [row.key for row in rows] == [planned.key for planned in plan.cells]
    # The last visit of a cell takes over from the first, which was on disk.
    assert [len(row.windows) for row in rows] == [len(row.windows) for row in map(_row, lines)]


def _row(line: str) -> Measurement:
    return Measurement.from_json(json.loads(line))
