"""What docs say of the shipped calibrations is what the benchmark prints."""

from __future__ import annotations

import math
import re
import runpy
import statistics
from pathlib import Path

import pytest

from infergy.cost.calibration import find_calibration, load_calibration
from infergy.records.calibration import read_calibration_file

ROOT = Path(__file__).parents[2]
SECOND = ROOT / "benchmarks" / "rows" / "h100-calibration-2.jsonl"


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def test_the_page_shows_what_the_benchmark_prints_of_served_models(capsys: pytest.CaptureFixture[str]) -> None:
    calibration = load_calibration("h100-sxm")
    runpy.run_path(str(ROOT / "benchmarks" / "calibration_alone.py"))["show_held_out"](calibration)
    printed = "\n".join(line.rstrip() for line in capsys.readouterr().out.splitlines())
    (block,) = re.findall(r"^```\n(served models on h100-sxm.*?)\n```", page("scoreboard.md"), re.DOTALL | re.MULTILINE)
    assert block == printed


def test_two_gpus_differ_as_the_page_says() -> None:
    lines = page("calibration.md").splitlines()
    first, second = load_calibration("h100-sxm"), load_calibration(SECOND)
    for one, other in zip(first.constants, second.constants, strict=True):
        values = [_figure(c.value, c.unit) for c in (one, other)]
        differ = f"{other.value / one.value - 1:+.1%}".replace("%", " %").replace("-", "−")
        sd = f"{math.hypot(one.sd, other.sd):.1%}".replace("%", " %")
        if not one.windows:
            values[0], differ, sd = "not measured", "-", f"{other.sd:.1%}".replace("%", " %")
        assert f"| {one.name} | {values[0]} | {values[1]} | {differ} | {sd} |" in lines
    ours, theirs = (
        {one.workload.name: one for one in read_calibration_file(path)}
        for path in (find_calibration("h100-sxm"), SECOND)
    )
    both = [name for name in ours if name in theirs and name != "idle"]
    seconds = [1 - theirs[name].call_s / ours[name].call_s for name in both]
    joules = [
        1 - (theirs[name].energy_j or 0) / theirs[name].calls / (ours[name].energy_j or 1) * ours[name].calls
        for name in both
    ]
    figures = [
        f"{statistics.median(one):.1%} {min(one):.1%} {max(one):.1%}".replace("%", "") for one in (seconds, joules)
    ]
    assert (len(both), figures) == (12, ["3.0 0.5 5.7", "3.7 1.6 7.6"])


def _figure(value: float, unit: str) -> str:
    if unit == "s":
        return f"{value * 1e6:.1f} µs"
    return f"{value * 1e12:.0f} pJ" if unit == "J" else f"{value:.3f}"
