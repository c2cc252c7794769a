"""Several GPUs: the joules of each against its truth, and what becomes of a sweep when one of them fails."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from infergy.catalog import get_gpu, get_model, model_config
from infergy.catalog.memory import largest_batch
from infergy.engines import Completion, Work
from infergy.engines.engine import gpu_uuid_of
from infergy.engines.simulated_engine import SimulatedEngine
from infergy.errors import EngineError, GpuLostError, MissingError
from infergy.measure.block import window
from infergy.measure.grid import make_plan, parse_grid, read_toml
from infergy.measure.sweep import describe_row, sweep
from infergy.measure.worker import attempt, open_pair, wake
from infergy.meters import sharp_tick
from infergy.meters.simulated import SimulatedMeter, SimulatedNode, pretend_node
from infergy.records import EngineSetup, GpuIdentity, GpuState, Measurement, MeasureOptions, Plan, PlannedCell
from infergy.records.store import read_store
from infergy.records.uncertainty import find_uncertainty
from raising import raises
from simulated_truth import truth_of
from waiting import wait_until

SRC = str(Path(__file__).parents[2] / "src")
H200 = get_gpu("h200")


def plan_for(*counts: int, **changes: Any) -> Plan:
    grid = {
        "name": "many",
        "gpu": "h200",
        "model": "llama-3.1-8b",
        "engines": [{"engine": "vllm", "tensor_parallel": count} for count in counts],
        "cells": [{"input_tokens": [64, 512], "output_tokens": [8], "batch": [1, 32]}],
        "options": {"shuffle": False},
    }
    return make_plan(parse_grid(grid | changes, "test"))


# --- the joules of each ---


@pytest.mark.parametrize("count", [2, 4, 8])
def test_a_sweep_over_several_gpus_recovers_the_joules_of_each(count: int, tmp_path: Path) -> None:
    plan = plan_for(count, cells=[{"input_tokens": [512], "output_tokens": [64], "batch": [1, 32]}])
    list(sweep(plan, tmp_path / "rows.jsonl", simulate=True))
    rows = read_store(tmp_path / "rows.jsonl").rows
    assert len(rows) == 2
    for row in rows:
        load = row.cell.load
        truth = truth_of(load.input_tokens, load.output_tokens, load.batch, tensor_parallel=count)
        # What each GPU of a node draws of the whole, from a node of its own.
        node = pretend_node(H200, count)
        node.advance(1.0, truth.energy_j)
        each_j = {gpu.identity.uuid: gpu.true_j for gpu in node.gpus}
        assert row.result is not None
        assert row.result.energy_by_gpu_j == pytest.approx(each_j, rel=0.005)
        assert row.result.energy_j == pytest.approx(truth.energy_j, rel=0.005)
        assert sum(row.result.power_by_gpu_w.values()) == pytest.approx(row.result.power_w)
        assert [gpu.uuid for gpu in row.environment.gpus] == list(each_j)
        assert row.loaded_idle is not None
        assert row.loaded_idle.power_by_gpu_w == pytest.approx(
            {gpu.identity.uuid: gpu.idle_w for gpu in node.gpus}, rel=0.005
        )


def test_the_progress_line_tells_the_watts_of_each(tmp_path: Path) -> None:
    events = list(sweep(plan_for(1, 2), tmp_path / "rows.jsonl", simulate=True))
    one, *_, two = [describe_row(event.row) for event in events if event.row is not None]
    assert " W (simulated)" in one
    assert " + " in two.rpartition(" W (")[2]


def test_the_stamps_of_several_gpus_err_apart() -> None:
    row = attempt_on(SimulatedMeter(pretend_node(H200, 4)))[0]
    assert row.result is not None
    assert row.loaded_idle is not None
    found = find_uncertainty(row.windows, row.loaded_idle)
    assert found is not None
    squares = 0.0
    for one in row.windows:
        for uuid, watts in one.tail_power_by_gpu_w.items():
            tail_s = one.close[uuid].time_s - one.settled[uuid].time_s
            idle_s = one.duration_by_gpu_s[uuid] - one.busy_s
            squares += 2 * (one.edge_uncertainty_s * watts * (1 + idle_s / tail_s)) ** 2 / 12
    assert found.edges == pytest.approx(squares**0.5 / (row.result.energy_j * row.result.batches))


def test_more_gpus_take_larger_batches_and_the_simulated_engine_holds_them_to_it() -> None:
    shape = get_model("llama-3.1-8b")
    limits = [largest_batch(shape, H200, 8192, 512, engine="vllm", tensor_parallel=count).batch for count in (1, 2)]
    assert limits[1] > 2 * limits[0]
    setup = EngineSetup(engine="vllm", model="llama-3.1-8b", tensor_parallel=2)
    session = SimulatedEngine(pretend_node(H200, 2), H200).open(setup, model_config("llama-3.1-8b"), 0)
    batch = limits[0] + 1
    session.run(Work(prompts=((1,) * 8192,) * batch, output_tokens=(512,) * batch, arrival_s=(0.0,) * batch))


@pytest.mark.parametrize(
    ("engine", "count", "code", "fields"),
    [
        ("vllm", 3, "bad-value", {"option": "tensor_parallel", "value": 3}),
        ("transformers", 2, "engine-lacks", {"option": "tensor_parallel", "value": 2}),
    ],
)
def test_a_node_plays_what_it_has_and_what_the_engine_can(
    engine: str, count: int, code: str, fields: dict[str, object]
) -> None:
    setup = EngineSetup(engine=engine, model="llama-3.1-8b", tensor_parallel=count)
    with raises(code, **fields):
        SimulatedEngine(pretend_node(H200, 2), H200).check(setup)


def test_a_block_tells_the_joules_and_watts_of_each_in_the_engines_order() -> None:
    node = pretend_node(H200, 3)
    with window(idle_s=1.0, meter=SimulatedMeter(node)) as w:
        before_j = [gpu.true_j for gpu in node.gpus]
        node.advance(5.0, 1500.0)
        used_j = {gpu.identity.uuid: gpu.true_j - was for gpu, was in zip(node.gpus, before_j, strict=True)}
    assert w.energy_by_gpu_j == pytest.approx(used_j, rel=0.003)
    assert list(w.energy_by_gpu_j) == list(w.power_by_gpu_w) == list(used_j)
    assert w.energy_j == pytest.approx(7500.0, rel=0.003)
    assert w.power_w == pytest.approx(sum(w.power_by_gpu_w.values()))


class CrowdedMeter(SimulatedMeter):
    def states(self) -> tuple[GpuState, ...]:
        first, second = super().states()
        return (replace(first, processes=1), replace(second, processes=2))


def test_a_crowded_gpu_among_several_is_named() -> None:
    node = pretend_node(H200, 2)
    with window(meter=CrowdedMeter(node)) as w:
        node.advance(5.0, 900.0)
    (warning,) = [one for one in w.result.warnings if "another process" in one]
    assert "on GPU 1 (GPU-simulated-1):" in warning


# --- one of them fails ---


class FaultyMeter(SimulatedMeter):
    """Once `broken` is set, the counter of the second GPU is as `fault` makes it."""

    def __init__(self, node: SimulatedNode, fault: Callable[[dict[str, float]], dict[str, float]]) -> None:
        super().__init__(node)
        self.node = node
        self.fault = fault
        self.broken = False

    def read(self) -> Mapping[str, float]:
        found = dict(super().read())
        return self.fault(found) if self.broken else found


SECOND = "GPU-simulated-1"


def stall(found: dict[str, float]) -> dict[str, float]:
    return found | {SECOND: 4321.0}


def reset(found: dict[str, float]) -> dict[str, float]:
    return found | {SECOND: found[SECOND] % 100.0}


def vanish(found: dict[str, float]) -> dict[str, float]:
    del found[SECOND]
    return found


def lose(found: dict[str, float]) -> dict[str, float]:
    raise GpuLostError(f"GPU 1 ({SECOND}) is lost: GPU is lost")


class BreakingSession:
    """Its work draws 1,000 W for 2 s a batch; in the window the meter breaks, and the engine too if `dies`."""

    def __init__(self, meter: SimulatedMeter, *, dies: bool = False) -> None:
        self._meter = meter
        self._dies = dies
        self._runs = 0

    def run(self, work: Work) -> Completion:
        self._runs += 1
        if isinstance(self._meter, FaultyMeter):
            self._meter.broken = self._runs == 3
            if self._dies and self._meter.broken:
                raise EngineError("CUDA error: unspecified launch failure")
        clock = self._meter.clock
        assert isinstance(clock, SimulatedNode)
        clock.advance(2.0, 1000.0)
        return Completion(input_tokens=tuple(map(len, work.prompts)), output_tokens=work.output_tokens)

    def facts(self) -> Mapping[str, str | None]:
        return {}

    def close(self) -> None:
        return None


def attempt_on(meter: SimulatedMeter, *, dies: bool = False) -> tuple[Measurement, bool]:
    plan = plan_for(2)
    session = BreakingSession(meter, dies=dies)
    setup = plan.cells[0].cell.setup
    engine = SimulatedEngine(pretend_node(H200, 2), H200)
    surroundings, idle, loading = wake(SteadySession(meter), meter, engine, plan, setup, sharp_tick(meter))
    assert min(loading.duration_by_gpu_s.values()) > 0
    return attempt(session, meter, plan.cells[1], plan, surroundings, idle)


class SteadySession(BreakingSession):
    """Never breaks."""

    def run(self, work: Work) -> Completion:
        self._runs = 5
        return super().run(work)


@pytest.mark.parametrize(
    ("fault", "words", "is_usable"),
    [
        (stall, f"the energy counter of {SECOND} did not move", True),
        (reset, f"the energy counter of {SECOND} moved by -", True),
        (vanish, f"{SECOND} vanished", True),
        (lose, rf"GPU 1 \({SECOND}\) is lost", False),
    ],
)
def test_a_counter_that_fails_in_mid_window_fails_the_row_and_is_named(
    fault: Callable[[dict[str, float]], dict[str, float]], words: str, is_usable: bool
) -> None:
    row, usable = attempt_on(FaultyMeter(pretend_node(H200, 2), fault))
    assert row.failure is not None
    assert row.failure.code == ("meter" if is_usable else "gpu_lost")
    assert re.search(words, row.failure.message), row.failure.message
    assert "GPU-simulated-0" not in row.failure.message
    assert row.result is None
    assert usable is is_usable


def test_without_a_fault_the_same_attempt_is_a_row() -> None:
    row, usable = attempt_on(FaultyMeter(pretend_node(H200, 2), dict))
    assert usable
    assert row.result is not None
    assert row.result.energy_j == pytest.approx(2000.0, rel=0.005)


def test_an_engine_that_dies_with_its_gpu_names_the_gpu() -> None:
    row, usable = attempt_on(FaultyMeter(pretend_node(H200, 2), lose), dies=True)
    assert not usable
    assert row.failure is not None
    assert row.failure.code == "engine"
    assert f"unspecified launch failure; GPU 1 ({SECOND}) is lost" in row.failure.message


FAULTS = """
    from infergy.errors import GpuLostError, MeterError
    from infergy.meters.simulated import SimulatedMeter
    flag = {flag!r}
    class Faulty(SimulatedMeter):
        def read(self):
            found = super().read()
            if os.path.exists(flag) and {uuid!r} in found:
                {fault}
            return found
    real_pair, real_cell = w.open_pair, w.measure_cell
    def open_pair(*args, **options):
        engine, meter = real_pair(*args, **options)
        meter.__class__ = Faulty
        meter.read()
        return engine, meter
    def measure_cell(session, meter, planned, *rest, **options):
        run = session.run
        def broken(work):
            if planned.cell.load.input_tokens == 64 and planned.cell.load.batch == 32:
                open(flag, 'w').close()
            return run(work)
        session.run = broken
        try:
            return real_cell(session, meter, planned, *rest, **options)
        finally:
            session.run = run
            {afterwards}
    w.open_pair, w.measure_cell = open_pair, measure_cell
    os._exit(w.main())
"""


def sabotage(folder: Path, monkeypatch: pytest.MonkeyPatch, fault: str, afterwards: str = "pass") -> None:
    """In each child the second GPU fails from the second cell on, in this process and all later ones."""
    code = FAULTS.format(flag=str(folder / "lost"), uuid=SECOND, fault=fault, afterwards=afterwards)
    (folder / "sitecustomize.py").write_text(
        "import os, sys\n"
        "if sys.argv and 'infergy.measure.worker' in ' '.join(sys.orig_argv):\n"
        "    import infergy.measure.worker as w\n" + code
    )
    monkeypatch.setenv("PYTHONPATH", f"{folder}:{SRC}")


def test_a_lost_gpu_fails_the_rest_of_its_set_up_and_the_sweep_goes_on_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sabotage(tmp_path, monkeypatch, f"raise GpuLostError('GPU 1 ({SECOND}) is lost: GPU is lost')")
    opened = open_pair

    def open_here(setup: EngineSetup, plan: Plan, *, simulate: bool, meter: str) -> Any:
        if (tmp_path / "lost").exists() and setup.tensor_parallel > 1:
            raise GpuLostError(f"GPU 1 ({SECOND}) is lost: GPU is lost")
        return opened(setup, plan, simulate=simulate, meter=meter)

    monkeypatch.setattr("infergy.measure.sweep.open_pair", open_here)
    events = list(sweep(plan_for(2, 1), tmp_path / "rows.jsonl", simulate=True))
    rows = read_store(tmp_path / "rows.jsonl").rows
    assert [row.status for row in rows] == ["ok", "failed", "failed", "failed", "ok", "ok", "ok", "ok"]
    # One child that lost it, one that found it gone, one for the engine config that does not need it.
    assert [event.kind for event in events].count("loading") == 3
    for row in rows[1:4]:
        assert row.failure is not None
        assert row.failure.code == "gpu_lost"
        assert f"GPU 1 ({SECOND}) is lost" in row.failure.message
        assert [gpu.uuid for gpu in row.environment.gpus] == ["GPU-simulated-0", SECOND]
    assert all([gpu.uuid for gpu in row.environment.gpus] == ["GPU-simulated-0"] for row in rows[4:])


@pytest.mark.parametrize(
    ("fault", "code"), [("os.kill(os.getpid(), 9)", "died"), ("import time; time.sleep(1000)", "hung")]
)
def test_an_engine_that_goes_with_its_gpu_is_told_by_the_meter_and_the_sweep_goes_on(
    fault: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child says nothing more, as after an Xid; only the meter of the parent can tell why."""
    sabotage(tmp_path, monkeypatch, fault)
    opened, flag, hangs = open_pair, tmp_path / "lost", code == "hung"

    def loading_s(setup: EngineSetup, options: MeasureOptions) -> float:
        return 0.0 if hangs and setup.tensor_parallel > 1 and flag.exists() else 600.0

    def longest_s(planned: PlannedCell, options: MeasureOptions) -> float:
        """Of the cell that hangs nothing, told once it is lost."""
        load = planned.cell.load
        if not hangs or planned.cell.setup.tensor_parallel == 1 or (load.input_tokens, load.batch) != (64, 32):
            return 600.0
        wait_until(flag.exists)
        return 0.0

    monkeypatch.setattr("infergy.measure.sweep.setup_s", loading_s)
    monkeypatch.setattr("infergy.measure.sweep.longest_s", longest_s)
    monkeypatch.setattr("infergy.measure.sweep.patience_s", lambda forecast_s, options: forecast_s + 0.25)

    def open_here(setup: EngineSetup, plan: Plan, *, simulate: bool, meter: str) -> Any:
        if (tmp_path / "lost").exists() and setup.tensor_parallel > 1:
            raise GpuLostError(f"GPU 1 ({SECOND}) is lost: GPU is lost")
        return opened(setup, plan, simulate=simulate, meter=meter)

    monkeypatch.setattr("infergy.measure.sweep.open_pair", open_here)
    list(sweep(plan_for(2, 1), tmp_path / "rows.jsonl", simulate=True))
    rows = read_store(tmp_path / "rows.jsonl").rows
    assert [row.status for row in rows] == ["ok", "failed", "failed", "failed", "ok", "ok", "ok", "ok"]
    assert rows[1].failure is not None
    assert rows[1].failure.code == code
    assert f"GPU 1 ({SECOND}) is lost" in rows[1].failure.message


def test_a_counter_that_stalls_for_one_cell_costs_that_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sabotage(tmp_path, monkeypatch, f"found[{SECOND!r}] = 5.0", afterwards="os.path.exists(flag) and os.remove(flag)")
    events = list(sweep(plan_for(2), tmp_path / "rows.jsonl", simulate=True))
    rows = read_store(tmp_path / "rows.jsonl").rows
    assert [row.status for row in rows] == ["ok", "failed", "ok", "ok"]
    assert [event.kind for event in events].count("loading") == 1
    assert rows[1].failure is not None
    assert f"the energy counter of {SECOND} did not move" in rows[1].failure.message


# --- the engine and the meter on the same GPUs ---

CHIPS = ("GPU-11111111-aaaa-bbbb-cccc-000000000001", "GPU-22222222-aaaa-bbbb-cccc-000000000002")


class ChipMeter(SimulatedMeter):
    """Pretends to be of real chips."""

    def __init__(self, *uuids: str) -> None:
        node = pretend_node(H200, len(uuids))
        for gpu, uuid in zip(node.gpus, uuids, strict=True):
            gpu.identity = GpuIdentity(uuid=uuid, name="NVIDIA H200")
        super().__init__(node)


class TellingSession(SteadySession):
    def __init__(self, meter: SimulatedMeter, told: str | None) -> None:
        super().__init__(meter)
        self._told = told

    def facts(self) -> Mapping[str, str | None]:
        return {"gpu_uuids": self._told}


def settle_on(meter: SimulatedMeter, told: str | None) -> Mapping[str, str | None]:
    plan = plan_for(2)
    engine = SimulatedEngine(pretend_node(H200, 2), H200)
    setup = plan.cells[0].cell.setup
    surroundings, *_ = wake(TellingSession(meter, told), meter, engine, plan, setup, sharp_tick(meter))
    return surroundings.environment.engine


@pytest.mark.parametrize("told", [",".join(CHIPS), ",".join(reversed(CHIPS)), CHIPS[0][4:] + "," + CHIPS[1][4:], None])
def test_an_engine_on_the_metered_gpus_or_one_that_does_not_tell_is_measured(told: str | None) -> None:
    assert settle_on(ChipMeter(*CHIPS), told) == {"gpu_uuids": told}


@pytest.mark.parametrize("told", [CHIPS[0], f"{CHIPS[0]},GPU-3333", f"{CHIPS[0]},{CHIPS[0]}"])
def test_an_engine_on_other_gpus_than_the_metered_ones_is_refused(told: str) -> None:
    with raises("gpus-differ", found=told.split(",")):
        settle_on(ChipMeter(*CHIPS), told)


def test_a_meter_that_names_devices_its_own_way_is_not_held_against_the_engine() -> None:
    assert settle_on(ChipMeter("soc-gpu-0"), CHIPS[0]) == {"gpu_uuids": CHIPS[0]}


def test_every_cell_of_an_engine_on_another_gpu_fails_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "if sys.argv and 'infergy.measure.worker' in ' '.join(sys.orig_argv):\n"
        "    from infergy.engines.simulated_engine import SimulatedSession\n"
        "    SimulatedSession.facts = lambda self: {'gpu_uuids': 'GPU-other'}\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{SRC}")
    list(sweep(plan_for(1), tmp_path / "rows.jsonl", simulate=True))
    rows = read_store(tmp_path / "rows.jsonl").rows
    assert len(rows) == 4
    for row in rows:
        assert row.failure is not None
        assert row.failure.code == "meter"
        assert "the engine runs on GPU-other, but GPU-simulated-0 was metered" in row.failure.message


def fake_torch(monkeypatch: pytest.MonkeyPatch, properties: object, hip: str | None = None) -> None:
    cuda = SimpleNamespace(get_device_properties=lambda device: properties)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda, version=SimpleNamespace(hip=hip)))


def model_on(kind: str) -> Any:
    return SimpleNamespace(parameters=lambda: iter([SimpleNamespace(device=SimpleNamespace(type=kind))]))


def test_torch_tells_the_gpu_of_a_model_in_nvmls_words_or_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_torch(monkeypatch, SimpleNamespace(uuid=CHIPS[0][4:]))
    assert gpu_uuid_of(model_on("cuda")) == CHIPS[0]
    assert gpu_uuid_of(model_on("cpu")) is None
    assert gpu_uuid_of(SimpleNamespace(parameters=lambda: iter(()))) is None
    fake_torch(monkeypatch, SimpleNamespace())
    assert gpu_uuid_of(model_on("cuda")) is None
    fake_torch(monkeypatch, SimpleNamespace(uuid="x"), hip="6.0")
    assert gpu_uuid_of(model_on("cuda")) is None


class FakeLlm:
    def __init__(self, told: list[str | None] | Exception) -> None:
        self._told = told

    def apply_model(self, question: object) -> list[str | None]:
        assert question is gpu_uuid_of
        if isinstance(self._told, Exception):
            raise self._told
        return self._told


@pytest.mark.parametrize(
    ("told", "expected"),
    [(list(CHIPS), ",".join(CHIPS)), ([CHIPS[0], None], None), ([], None), (Exception("call failed"), None)],
)
def test_vllm_asks_each_worker_and_tells_only_what_all_know(
    told: list[str | None] | Exception, expected: str | None
) -> None:
    from infergy.engines.vllm import VllmSession

    session = VllmSession(FakeLlm(told))
    assert session.gpu_uuids() == expected


def test_too_few_gpus_are_told_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def open_here(setup: EngineSetup, plan: Plan, *, simulate: bool, meter: str) -> Any:
        raise MissingError("2 GPUs are wanted, 1 are visible")

    monkeypatch.setattr("infergy.measure.sweep.open_pair", open_here)
    with pytest.raises(MissingError):
        list(sweep(plan_for(2), tmp_path / "rows.jsonl"))
    assert not (tmp_path / "rows.jsonl").exists()


def test_the_shipped_study_measures_the_same_cells_on_one_gpu_and_on_two(tmp_path: Path) -> None:
    plan = make_plan(
        parse_grid(read_toml(Path(SRC) / "infergy" / "data" / "studies" / "tensor-parallel.toml"), "study")
    )
    loads = {setup.tensor_parallel: {one.cell.load for one in cells} for setup, cells in plan.by_setup().items()}
    assert set(loads) == {1, 2}
    assert loads[1] == loads[2]
    list(sweep(plan, tmp_path / "rows.jsonl", simulate=True))
    rows = read_store(tmp_path / "rows.jsonl").rows
    assert [len(row.environment.gpus) for row in rows] == [row.cell.setup.tensor_parallel for row in rows]
    assert all(row.is_ok for row in rows)
