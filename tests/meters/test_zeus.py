"""The meters of the extra `zeus`, opened through their entry points, over a zeus that is pretended."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infergy.meters import Meter, open_meter
from infergy.testing import METER_RULES, FakeClock, check_meter
from installed import install_infergy
from powercap import PowercapClock
from raising import raises

SCOPES = {"zeus-gpu": "gpu-board", "zeus-cpu": "cpu-package", "zeus-dram": "dram", "zeus-soc-gpu": "soc-gpu"}
POWERS_W = {"zeus-gpu": 512.0, "zeus-cpu": 90.0, "zeus-dram": 7.0, "zeus-soc-gpu": 3.0}

EXCEPTION = """
class ZeusBaseError(Exception):
    pass
"""
DEVICE = '''
"""As much of zeus.device 0.16 as infergy calls; all energies are in millijoules, all powers in milliwatts."""
from types import SimpleNamespace
from zeus.exception import ZeusBaseError

clock, rapl_dir, has_counter, has_dram, finds = None, None, True, True, True

def mj(power_w):
    return round(1e6 + clock.now_s() * power_w * 1000)

class Gpus:
    gpus = [SimpleNamespace(gpu_index=2), SimpleNamespace(gpu_index=0)]
    def __len__(self): return len(self.gpus)
    def get_name(self, i): return "AMD Instinct MI300X"
    def get_power_management_limit(self, i): return 750_000
    def supports_get_total_energy_consumption(self, i): return has_counter
    def get_total_energy_consumption(self, i): return mj(512 + 100 * i)
    def get_instant_power_usage(self, i): return 512_000 + 100_000 * i
    def get_gpu_temperature(self, i): raise ZeusBaseError("not supported")

class Cpu:
    def __init__(self, index): self.cpu_index = index
    def supports_get_dram_energy_consumption(self): return has_dram
    def get_total_energy_consumption(self): return SimpleNamespace(cpu_mj=mj(90), dram_mj=mj(7) if has_dram else None)

class Jetson:
    def get_available_metrics(self): return {"cpu_energy_mj", "gpu_energy_mj"}
    def get_total_energy_consumption(self): return SimpleNamespace(cpu_energy_mj=mj(2), gpu_energy_mj=mj(3))

def found(device):
    if not finds:
        raise ZeusBaseError("NVML and AMDSMI unavailable.")
    return device

def get_gpus(): return found(Gpus())
def get_cpus(): return found(SimpleNamespace(cpus=[Cpu(0), Cpu(1)], rapl_dir=rapl_dir))
def get_soc(): return found(Jetson())
'''


def forget_zeus() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "zeus"]:
        del sys.modules[name]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """infergy as an installer leaves it, without zeus."""
    folder = tmp_path / "site"
    install_infergy(folder)
    monkeypatch.syspath_prepend(str(folder))
    forget_zeus()
    yield folder
    forget_zeus()


@pytest.fixture
def zeus(site: Path, tmp_path: Path) -> Any:
    (site / "zeus" / "device").mkdir(parents=True)
    (site / "zeus" / "__init__.py").write_text('__version__ = "0.16.0"\n')
    (site / "zeus" / "exception.py").write_text(EXCEPTION)
    (site / "zeus" / "device" / "__init__.py").write_text(DEVICE)
    importlib.invalidate_caches()
    device: Any = importlib.import_module("zeus.device")
    device.rapl_dir = str(tmp_path / "intel-rapl")
    device.clock = PowercapClock(tmp_path / "intel-rapl")
    return device


def open_on(clock: FakeClock, name: str) -> Meter:
    meter = open_meter(name, 1)
    meter.clock = clock
    return meter


@pytest.mark.parametrize("name", SCOPES)
def test_every_domain_is_a_meter_of_its_own_scope_that_keeps_every_rule(zeus: Any, name: str) -> None:
    power_w = POWERS_W[name]
    kept = check_meter(lambda: open_on(zeus.clock, name), plausible_w=(0.99 * power_w, 1.01 * power_w))
    assert kept == tuple(METER_RULES)
    meter = open_meter(name, 1)
    assert (meter.name, meter.scope) == (name, SCOPES[name])
    assert not meter.is_simulated
    assert meter.facts() == {"zeus": "0.16.0"}


def test_every_meter_that_the_package_declares_is_tested_here() -> None:
    from installed import PROJECT

    assert set(PROJECT["entry-points"]["infergy.meters"]) == set(SCOPES)


def test_boards_are_counted_one_by_one_in_the_engines_order(zeus: Any) -> None:
    meter = open_meter("zeus-gpu", 2)
    assert [gpu.uuid for gpu in meter.gpus] == ["zeus-gpu-2", "zeus-gpu-0"]
    start_j = meter.read()
    zeus.clock.sleep(10.0)
    end_j = meter.read()
    used_j = {uuid: end_j[uuid] - start_j[uuid] for uuid in end_j}
    assert used_j == pytest.approx({"zeus-gpu-2": 5120.0, "zeus-gpu-0": 6120.0})
    assert meter.gpus[0].power_limit_w == 750.0
    assert [state.power_w for state in meter.states()] == [512.0, 612.0]
    assert meter.states()[0].temperature_c is None


def test_a_zone_that_covers_the_packages_once_more_is_no_package(zeus: Any) -> None:
    assert [gpu.uuid for gpu in open_meter("zeus-cpu", 1).gpus] == ["cpu-package-0"]
    assert [gpu.uuid for gpu in open_meter("zeus-dram", 1).gpus] == ["dram-0"]


def test_a_counter_that_falls_is_an_error_and_never_a_negative_joule(zeus: Any) -> None:
    meter = open_meter("zeus-cpu", 1)
    zeus.clock = FakeClock(-5.0)
    with raises("counter-wrong", uuid="cpu-package-0", was_j=1000.0, now_j=550.0):
        meter.read()


def test_what_is_missing_is_reported_with_what_to_do(zeus: Any, tmp_path: Path) -> None:
    with raises("gpu-missing", wanted=3, found=2):
        open_meter("zeus-gpu", 3)
    zeus.has_counter = False
    with raises("counter-missing", gpu="AMD Instinct MI300X", index=0):
        open_meter("zeus-gpu", 1)
    zeus.has_dram = False
    with raises("counter-missing", package=0, part="DRAM"):
        open_meter("zeus-dram", 1)
    with raises("gpu-missing", wanted=2, found=1):
        open_meter("zeus-soc-gpu", 2)
    zeus.rapl_dir = str(tmp_path / "nowhere")
    with raises("counter-missing", path=tmp_path / "nowhere"):
        open_meter("zeus-cpu", 1)
    zeus.finds = False
    with raises("counter-missing", meter="zeus-gpu"):
        open_meter("zeus-gpu", 1)


@pytest.mark.parametrize("name", SCOPES)
def test_without_zeus_the_extra_is_named(site: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, "zeus", None)
    with raises("package-missing", package="zeus", install="pip install 'infergy[zeus]'"):
        open_meter(name, 1)
