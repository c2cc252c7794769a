"""What docs/meters.md shows does run, keep the rules and print joules."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from infergy.errors import MissingError
from infergy.meters import open_meter
from infergy.testing import check_meter
from installed import PROJECT, install
from powercap import RANGE_UJ, PowercapClock

TEXT = (Path(__file__).parents[2] / "docs" / "meters.md").read_text(encoding="utf-8")
METER, CHECK, REPLAY = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture
def shown(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Runs the meter as shown, over powercap files whose counters start at `start_j`."""

    def run(start_j: float = 1000.0) -> dict[str, Any]:
        names: dict[str, Any] = {}
        exec(METER, names)
        clock = PowercapClock(tmp_path / "powercap", start_j)
        names |= {"ZONE": tmp_path / "powercap" / "intel-rapl:0", "SystemClock": lambda: clock}
        return names

    return run


def test_the_meter_that_is_shown_has_about_thirty_lines_and_keeps_every_rule(shown: Callable[..., Any]) -> None:
    body = METER[METER.index("class PackageMeter") :]
    assert len([line for line in body.splitlines() if line.strip()]) <= 30
    names = shown()
    exec(CHECK, names)
    names["test_my_meter_keeps_the_rules"]()


def test_it_outlives_an_overflow_of_its_counter(shown: Callable[..., Any]) -> None:
    names = shown(start_j=RANGE_UJ * 1e-6 - 100.0)
    meter = names["PackageMeter"].open(1)
    start_j = meter.read()["package-0"]
    meter.clock.sleep(2.0)
    assert meter.read()["package-0"] - start_j == pytest.approx(180.0, abs=0.1)
    names["PackageMeter"].open(1).clock.sleep(0.0)
    check_meter(lambda: names["PackageMeter"].open(1), plausible_w=(89.0, 91.0))


def test_it_says_what_is_missing(shown: Callable[..., Any], tmp_path: Path) -> None:
    names = shown()
    names["ZONE"] = tmp_path / "nowhere"
    with pytest.raises(MissingError, match=r"nowhere cannot be read.*sudo chmod a\+r"):
        names["PackageMeter"].open(1)


def test_the_entry_point_that_is_shown_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)
    site = tmp_path / "site"
    install(site, "my-package", tomllib.loads(block)["project"]["entry-points"]["infergy.meters"])
    (site / "my_module.py").write_text(METER.replace("/sys/class/powercap", str(tmp_path)))
    PowercapClock(tmp_path)
    monkeypatch.syspath_prepend(str(site))
    assert open_meter("my-package", 1).read() == {"package-0": 1000.0}


def test_a_recording_is_replayed_as_shown(
    shown: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(REPLAY, shown())
    assert capsys.readouterr().out == "360 J in 4 s\n"


def test_the_table_names_every_meter_that_the_package_declares() -> None:
    named = re.findall(r"^\| `([a-z-]+)`(?: \(default\))? \| `([a-z-]+)` \|", TEXT, re.MULTILINE)
    assert {name for name, _ in named} == {"nvml", *PROJECT["entry-points"]["infergy.meters"]}
