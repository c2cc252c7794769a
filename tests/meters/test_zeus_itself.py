"""The meters of the extra `zeus` over zeus itself, as far as that needs no hardware: pip install 'infergy[zeus]'."""

from __future__ import annotations

from pathlib import Path

import pytest

from infergy.meters import Meter
from infergy.meters.zeus import ZeusCpuMeter, ZeusDramMeter, ZeusGpuMeter, ZeusSocGpuMeter
from infergy.testing import METER_RULES, check_meter
from powercap import PowercapClock
from raising import raises

rapl = pytest.importorskip("zeus.device.cpu.rapl")
pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PowercapClock:
    """zeus, led to a powercap tree whose package draws 90 W and whose DRAM draws 7 W."""
    import zeus.device.cpu

    folder = tmp_path / "intel-rapl"
    moving = PowercapClock(folder)
    monkeypatch.setattr(rapl, "RAPL_DIR", str(folder))
    rapl.rapl_is_available.cache_clear()
    monkeypatch.setattr(zeus.device.cpu, "_cpus", None)
    return moving


@pytest.mark.parametrize(("kind", "power_w"), [(ZeusCpuMeter, 90.0), (ZeusDramMeter, 7.0)])
def test_packages_and_dram_are_counted_in_joules(
    clock: PowercapClock, kind: type[ZeusCpuMeter] | type[ZeusDramMeter], power_w: float
) -> None:
    def opened() -> Meter:
        meter = kind.open(1)
        meter.clock = clock
        return meter

    assert len(opened().gpus) == 1
    assert check_meter(opened, plausible_w=(0.99 * power_w, 1.01 * power_w)) == tuple(METER_RULES)


@pytest.mark.parametrize("kind", [ZeusGpuMeter, ZeusSocGpuMeter])
def test_what_zeus_does_not_find_is_missing(kind: type[ZeusGpuMeter] | type[ZeusSocGpuMeter]) -> None:
    import zeus.device

    try:
        _ = zeus.device.get_gpus() if kind is ZeusGpuMeter else zeus.device.get_soc()
    except zeus.exception.ZeusBaseError:
        with raises("counter-missing", meter=kind.name):
            kind.open(1)
    else:
        pytest.skip("zeus finds such a device here")
