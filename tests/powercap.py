"""A stand-in for /sys/class/powercap, whose counters run on a clock that tests move."""

from __future__ import annotations

from pathlib import Path

from infergy.testing import FakeClock

RANGE_UJ = 262_143_328_850
POWERS_W = {
    "intel-rapl:0": ("package-0", 90.0),
    "intel-rapl:0/intel-rapl:0:0": ("dram", 7.0),
    "intel-rapl:1": ("psys", 140.0),
}


class PowercapClock(FakeClock):
    """Writes the counters of `folder` each time it moves; they overflow as real ones do."""

    def __init__(self, folder: Path, start_j: float = 1000.0) -> None:
        super().__init__()
        self.folder = folder
        self.start_j = start_j
        for zone, (name, _) in POWERS_W.items():
            (folder / zone).mkdir(parents=True)
            (folder / zone / "name").write_text(f"{name}\n")
            (folder / zone / "max_energy_range_uj").write_text(f"{RANGE_UJ}\n")
        self.sleep(0.0)

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds)
        for zone, (_, power_w) in POWERS_W.items():
            counter_uj = int((self.start_j + self.now_s() * power_w) * 1e6) % RANGE_UJ
            (self.folder / zone / "energy_uj").write_text(f"{counter_uj}\n")
