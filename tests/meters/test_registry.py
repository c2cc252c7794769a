"""Meters of other packages: found by entry point, and told by name and package when they are broken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from infergy.cli import app
from infergy.measure.block import window
from infergy.measure.sweep import sweep
from infergy.meters import open_meter
from infergy.meters.registry import find_plugins
from infergy.meters.simulated import SimulatedMeter
from infergy.testing import METER_RULES, check_meter
from installed import install
from measure.test_measure import tiny_plan
from raising import raises, seen

GOOD = """
from infergy.errors import MissingError
from infergy.meters.simulated import SimulatedGpu
from infergy.meters.simulated import SimulatedMeter
from infergy.records import GpuIdentity

class Plug(SimulatedMeter):
    name = "plug"
    scope = "wall-plug"

    @classmethod
    def open(cls, count):
        return cls(SimulatedGpu(GpuIdentity(uuid="plug-0", name=f"plug of {count}"), idle_w=50.0))

class Unplugged(Plug):
    @classmethod
    def open(cls, count):
        raise MissingError("the plug is pulled; put it in")

class Confused(Plug):
    @classmethod
    def open(cls, count):
        return 1 / 0

class Fragile(Plug):
    broken = False
    def read(self):
        if Fragile.broken:
            raise OSError(5, "Input/output error")
        return super().read()

class NoMeter:
    @classmethod
    def open(cls, count):
        return cls()

class Nothing:
    pass
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """A folder on the path that holds the module and a package that offers one good meter and several broken ones."""
    folder = tmp_path / "site"
    names = ("Plug", "Unplugged", "Confused", "Fragile", "NoMeter", "Nothing")
    module = f"plugmeters_{abs(hash(request.node.name))}"
    install(folder, "plug-meters", {name.lower(): f"{module}:{name}" for name in names} | {"gone": "no_module:X"})
    (folder / f"{module}.py").write_text(GOOD)
    monkeypatch.syspath_prepend(str(folder))
    return folder


def test_a_plug_in_is_opened_by_its_name_beside_broken_ones(site: Path) -> None:
    meter = open_meter("plug", 2)
    assert (meter.name, meter.scope, meter.gpus[0].name) == ("plug", "wall-plug", "plug of 2")
    assert check_meter(lambda: open_meter("plug", 1)) == tuple(METER_RULES)


@pytest.mark.parametrize(
    ("name", "code", "fields"),
    [
        ("gone", "bad-plugin", {"meter": "gone", "package": "plug-meters"}),
        ("confused", "bad-plugin", {"meter": "confused", "package": "plug-meters"}),
        ("nometer", "bad-plugin", {"meter": "nometer", "package": "plug-meters"}),
        ("nothing", "bad-plugin", {"meter": "nothing", "reason": "no open(count)"}),
        ("unplugged", "missing", {}),
        ("plugg", "unknown-name", {"name": "plugg", "nearest": ["plug", "unplugged"]}),
        ("simulated", "option-missing", {"option": "--simulate"}),
    ],
)
def test_one_that_is_of_no_use_is_reported_by_name_and_package(
    site: Path, name: str, code: str, fields: dict[str, object]
) -> None:
    with raises(code, **fields):
        open_meter(name, 1)


def test_one_that_raises_what_it_likes_in_mid_window_is_an_instrument_that_failed(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meter = open_meter("fragile", 1)
    kind: Any = type(meter._meter)  # type: ignore[attr-defined]
    with window(meter=meter) as w:
        meter.clock.sleep(4.0)
        monkeypatch.setattr(kind, "broken", True)
    assert w.energy_j is None
    assert w.result.reason is not None
    words = "meter 'fragile' of package 'plug-meters' failed in read(): OSError: [Errno 5] Input/output error"
    assert w.result.reason.startswith(words)


def test_an_unknown_name_is_answered_with_all_there_are(site: Path) -> None:
    with raises(
        "unknown-name",
        kind="meter",
        known=[
            "confused",
            "fragile",
            "gone",
            "nometer",
            "nothing",
            "nvml",
            "plug",
            "simulated",
            "unplugged",
            "zeus-cpu",
            "zeus-dram",
            "zeus-gpu",
            "zeus-soc-gpu",
        ],
    ):
        open_meter("xyzzy", 1)


def test_a_package_whose_entry_points_are_damaged_hinders_no_other(site: Path) -> None:
    install(site, "damaged", {})
    (site / "damaged-1.0.dist-info" / "entry_points.txt").write_text("[infergy.meters]\nthis is no entry\n")
    assert open_meter("plug", 1).name == "plug"
    (damaged,) = [plugin for plugin in find_plugins() if plugin.package == "damaged"]
    assert damaged.problem is not None
    with raises("unknown-name", kind="meter", name="xyzzy"):
        open_meter("xyzzy", 1)


def test_a_plug_in_never_takes_the_place_of_a_built_in_one(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(site, "thief", {"nvml": "no_module:X"})
    monkeypatch.setitem(__import__("sys").modules, "pynvml", None)
    with raises("package-missing", package="nvidia-ml-py"):
        open_meter("nvml", 1)


def test_two_packages_with_a_meter_of_one_name_are_both_named(site: Path) -> None:
    install(site, "copy-cat", {"plug": "no_module:X"})
    with raises("several-plugins", meter="plug", packages=["copy-cat", "plug-meters"]):
        open_meter("plug", 1)


def test_measure_takes_the_meter_by_name_and_says_which_there_are(site: Path, tmp_path: Path) -> None:
    options = ["--engine", "vllm", "--input", "32", "--output", "4", "--batch", "1", "-o", str(tmp_path / "x.jsonl")]
    done = CliRunner().invoke(app, ["measure", *options, "--meter", "plugg"])
    assert seen(done.exception, "kind", "name") == ("unknown-name", {"kind": "meter", "name": "plugg"})
    done = CliRunner().invoke(app, ["measure", *options, "--meter", "plug", "--simulate"])
    assert seen(done.exception, "options") == ("options-conflict", {"options": {"--simulate": True, "--meter": "plug"}})


def test_a_store_never_mixes_joules_of_two_scopes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.jsonl"
    for _ in sweep(tiny_plan(), path, simulate=True):
        pass
    rows = path.read_bytes()
    monkeypatch.setattr(SimulatedMeter, "scope", "cpu-package")
    with raises("environments-differ", fact="scope", was="gpu-board", now="cpu-package"):
        list(sweep(tiny_plan(), path, simulate=True))
    assert path.read_bytes() == rows
