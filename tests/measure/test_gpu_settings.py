"""Power limits and clocks as axes: only where allowed, checked before an engine loads, restored however a process ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import settable_nvml
from infergy.cli import app
from infergy.errors import InfergyError, MeterError
from infergy.estimates.build import entries_of_rows
from infergy.measure.cell import failed_cell
from infergy.measure.gpu_settings import OPTIONS, hold_settings
from infergy.measure.sweep import SweepEvent, survey, sweep
from infergy.measure.worker import open_pair
from infergy.meters.nvml import NvmlMeter
from infergy.records import EngineSetup, Failure
from infergy.records.store import create_store, read_store
from measure.test_measure import SRC, tiny_plan
from raising import raises, seen
from settable_nvml import LIMIT_MW, STATE, UUIDS, fresh
from waiting import wait_until

BOTH = EngineSetup(engine="vllm", model="llama-3.1-8b", tensor_parallel=2, power_limit_w=400, sm_clock_mhz=1200)
CELLS = [{"input_tokens": [64], "output_tokens": [8], "batch": [1]}]
RESTORED = fresh()["gpus"]
Nvml = Callable[..., None]

HOLD = """
import time
from infergy.measure.gpu_settings import hold_settings
from infergy.records import EngineSetup
with hold_settings(EngineSetup(engine="vllm", model="m", tensor_parallel=2, power_limit_w=400, sm_clock_mhz=1200)):
    print("set", flush=True)
    time.sleep(300)
"""


@pytest.fixture
def nvml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Nvml:
    """Makes a fresh NVML, in which calls `deny` fail, for processes that are started."""
    shutil.copy(settable_nvml.__file__, tmp_path / "pynvml.py")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{SRC}")
    monkeypatch.setenv(STATE, str(tmp_path / "state.json"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def make(*deny: str) -> None:
        (tmp_path / "state.json").write_text(json.dumps(fresh(deny)))

    return make


def read() -> dict[str, Any]:
    with settable_nvml.state() as content:
        return dict(content)


@contextmanager
def holding() -> Iterator[subprocess.Popen[str]]:
    """A process, at the head of a group, that holds settings."""
    command = [sys.executable, "-c", HOLD]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "set\n"
        yield process


def test_both_are_set_on_each_gpu_and_restored_at_the_end(nvml: Nvml, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml()
    monkeypatch.setitem(sys.modules, "pynvml", settable_nvml)
    with hold_settings(BOTH):
        # What a row records of its GPUs.
        assert [gpu.power_limit_w for gpu in NvmlMeter.open(2).gpus] == [400.0, 400.0]
        assert read()["gpus"] == [{"limit_mw": 400_000, "locked": [1200, 1200]}] * 2
    assert read()["gpus"] == RESTORED


def test_gpus_beyond_those_of_the_engine_config_are_left_alone(nvml: Nvml, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    with hold_settings(EngineSetup(engine="vllm", model="m", power_limit_w=300)):
        assert [gpu["limit_mw"] for gpu in read()["gpus"]] == [LIMIT_MW, 300_000]
    # No clock was locked, so none is unlocked: another program may have locked it.
    assert read()["calls"] == [["limit", 1, 300_000], ["limit", 1, LIMIT_MW]]


def test_nothing_is_called_where_nothing_is_set(nvml: Nvml) -> None:
    nvml()
    with hold_settings(EngineSetup(engine="vllm", model="m")):
        pass
    assert read()["calls"] == []


def test_they_are_restored_after_an_error(nvml: Nvml) -> None:
    nvml()
    with pytest.raises(ZeroDivisionError), hold_settings(BOTH):
        raise ZeroDivisionError
    assert read()["gpus"] == RESTORED


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGSEGV])
@pytest.mark.parametrize("send", [os.kill, os.killpg])
def test_they_are_restored_after_any_signal(nvml: Nvml, send: Callable[[int, int], None], number: int) -> None:
    nvml()
    with holding() as process:
        assert read()["gpus"] != RESTORED
        send(process.pid, number)
        assert process.wait() != 0
    wait_until(lambda: read()["gpus"] == RESTORED)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"power_limit_w": 900}, ("bad-value", {"option": "power_limit_w", "value": 900.0, "uuid": UUIDS[0]})),
        ({"power_limit_w": 100}, ("bad-value", {"option": "power_limit_w", "value": 100.0, "uuid": UUIDS[0]})),
        ({"sm_clock_mhz": 1201}, ("bad-value", {"option": "sm_clock_mhz", "value": 1201, "uuid": UUIDS[0]})),
    ],
)
def test_values_that_a_gpu_does_not_take_are_rejected_with_those_that_it_does(
    nvml: Nvml, changes: dict[str, Any], expected: tuple[str, dict[str, Any]]
) -> None:
    nvml()
    with pytest.raises(InfergyError) as error, hold_settings(EngineSetup(engine="vllm", model="m", **changes)):
        raise AssertionError
    assert seen(error.value, *expected[1]) == expected
    assert read()["calls"] == []


@pytest.mark.parametrize("call", ["limit", "limit 1", "lock 0", "lock 1"])
def test_where_root_alone_may_set_nothing_stays_set(nvml: Nvml, call: str) -> None:
    nvml(call)
    with pytest.raises(MeterError) as error, hold_settings(BOTH):
        raise AssertionError
    assert error.value.code == "not-set"
    assert read()["gpus"] == RESTORED


def test_gpus_that_are_not_restored_are_named_with_what_to_type(nvml: Nvml) -> None:
    nvml("reset")
    with raises("not-restored", setup=BOTH.label) as error, hold_settings(BOTH):
        pass
    assert "nvidia-smi -rgc" in str(error.value)
    assert UUIDS[0] in str(error.value)


def test_the_end_of_the_process_that_restores_is_noticed(nvml: Nvml, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml()
    started: list[subprocess.Popen[bytes]] = []

    class Noted(subprocess.Popen[bytes]):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            started.append(self)

    monkeypatch.setattr("infergy.measure.gpu_settings.subprocess.Popen", Noted)
    with raises("not-restored"), hold_settings(BOTH):
        started[0].kill()


def axes(**settings: Any) -> Any:
    return tiny_plan(engines=[{"engine": "vllm", **settings}, {"engine": "vllm"}], cells=CELLS)


def test_axes_multiply_and_engine_configs_without_them_keep_their_ids() -> None:
    plan = axes(power_limit_w=[400, 500.5], sm_clock_mhz=[1200, 1980])
    labels = [planned.cell.label for planned in plan.cells]
    expected = [f"vllm-pl{limit}-clk{clock}" for limit in ("400", "500.5") for clock in (1200, 1980)]
    assert labels == [*expected, "vllm"]
    (plain,) = tiny_plan(engines=[{"engine": "vllm"}], cells=CELLS).cells
    assert plan.cells[-1].cell.id == plain.cell.id == "a027df0d19dd"
    assert len({planned.cell.id for planned in plan.cells}) == 5
    for label in labels:
        setup = EngineSetup(model="llama-3.1-8b", **EngineSetup.parse_label(label))
        assert setup.id in {planned.cell.setup.id for planned in plan.cells}


@pytest.mark.parametrize("settings", [{"power_limit_w": 0}, {"power_limit_w": []}, {"sm_clock_mhz": 12.5}])
def test_axes_out_of_range_are_no_grid(settings: dict[str, Any]) -> None:
    with raises("bad-grid"):
        axes(**settings)


@pytest.mark.parametrize("name", OPTIONS)
def test_without_its_option_a_grid_with_an_axis_is_rejected_before_anything_is_opened(
    tmp_path: Path, name: str
) -> None:
    others = set(OPTIONS) - {name}
    with raises("option-missing", option=OPTIONS[name], needed_by=[name]):
        list(sweep(axes(**{name: 400}), tmp_path / "rows.jsonl", may_set=others))
    with raises("options-conflict"):
        list(sweep(axes(**{name: 400}), tmp_path / "rows.jsonl", may_set=[name], simulate=True))
    assert not (tmp_path / "rows.jsonl").exists()


def run(*arguments: str) -> InfergyError:
    done = CliRunner().invoke(app, ["measure", "--input", "64", "--output", "8", "--batch", "1", *arguments])
    assert isinstance(done.exception, InfergyError), done.output
    return done.exception


def test_the_command_line_says_which_option_allows_it(tmp_path: Path) -> None:
    rows = str(tmp_path / "rows.jsonl")
    grid = ("-e", "vllm-pl400", "--gpu", "h200", "-o", rows)
    assert seen(run(*grid), "option") == ("option-missing", {"option": "--set-power-limit"})
    assert seen(run(*grid, "--set-clocks"), "option") == ("option-missing", {"option": "--set-power-limit"})
    assert run(*grid, "--set-power-limit", "--ray", "auto").code == "options-conflict"


def pretend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines and meters of the simulated GPU, beside an NVML that is set."""

    def open_simulated(setup: EngineSetup, plan: Any, *, simulate: bool, meter: str) -> Any:
        return open_pair(setup, plan, simulate=True)

    monkeypatch.setattr("infergy.measure.sweep.open_pair", open_simulated)
    monkeypatch.setattr("infergy.measure.sweep.find_gpu_by_driver_name", lambda name: None)


def test_a_sweep_sets_each_engine_config_while_it_is_measured(
    nvml: Nvml, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[tuple[str, int]] = []
    nvml()
    pretend(monkeypatch)

    def measure(plan: Any, store: Any, known: Any, todo: Any, **how: Any) -> Iterator[SweepEvent]:
        for planned in todo:
            limits.append((planned.cell.label, read()["gpus"][0]["limit_mw"]))
            row = failed_cell(planned, plan.options, known, Failure(code="engine", message="none here"))
            store.append(row)
            yield SweepEvent(kind="row", setup=planned.cell.setup, planned=planned, row=row)

    monkeypatch.setattr("infergy.measure.sweep._run_child", measure)
    plan = axes(power_limit_w=[400, 500])
    events = list(sweep(plan, tmp_path / "rows.jsonl", may_set=["power_limit_w"]))
    assert limits == [("vllm-pl400", 400_000), ("vllm-pl500", 500_000), ("vllm", LIMIT_MW)]
    assert read()["gpus"] == RESTORED
    rows = [event.row for event in events if event.row is not None]
    assert [row.cell.setup.power_limit_w for row in rows] == [400.0, 500.0, None]
    # The consumer of a sweep may stop in the middle.
    for _ in sweep(plan, tmp_path / "others.jsonl", may_set=["power_limit_w"]):
        if read()["gpus"] != RESTORED:
            break
    wait_until(lambda: read()["gpus"] == RESTORED)


def test_what_root_alone_may_set_is_found_before_an_engine_loads(nvml: Nvml, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml("lock")
    pretend(monkeypatch)
    with raises("not-set", option="sm_clock_mhz", uuid=UUIDS[0]):
        survey(axes(sm_clock_mhz=1200), simulate=False, meter="nvml", may_set=["sm_clock_mhz"])
    assert read()["gpus"] == RESTORED


def test_such_rows_enter_no_table_and_no_estimate(tmp_path: Path) -> None:
    for label in ("vllm-pl400", "vllm-clk1200"):
        done = CliRunner().invoke(app, ["estimate", "azure-conv-2023", "--requests", "10", "-e", label])
        assert seen(done.exception, "engine") == ("not-supported", {"engine": label})
    path, other = tmp_path / "rows.jsonl", tmp_path / "other.jsonl"
    list(sweep(tiny_plan(engines=[{"engine": "vllm"}], cells=CELLS), path, simulate=True))
    (row,) = read_store(path).rows
    for settings in ({"power_limit_w": 400.0}, {"sm_clock_mhz": 1200}):
        cell = replace(row.cell, setup=replace(row.cell.setup, **settings))
        other.unlink(missing_ok=True)
        create_store(other, [replace(row, cell=cell, cell_id=cell.id)])
        assert read_store(other).rows[0].cell.setup.gpu_settings == settings
        assert len(entries_of_rows([path], {}, allow_simulated=True)[0]) == 1
        with raises("no-rows"):
            entries_of_rows([other], {}, allow_simulated=True)
