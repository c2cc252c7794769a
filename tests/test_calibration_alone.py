"""What docs say of the shipped calibration against measured rows is what the benchmark prints."""

from __future__ import annotations

import math
import re
import runpy
import statistics
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from infergy.cli import app
from infergy.energy.calibration import find_calibration, load_calibration
from infergy.records.calibration import read_calibration_file

ROOT = Path(__file__).parents[1]
SECOND = ROOT / "benchmarks" / "rows" / "h100-calibration-2.jsonl"
TABLE = ROOT / "src" / "infergy" / "data" / "tables" / "h100-sxm-llama-3.1-8b.jsonl"


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def blocks(name: str, start: str) -> list[str]:
    """Blocks of a page whose first line begins so."""
    found = re.findall(rf"^```\n({re.escape(start)}.*?)\n```", page(name), re.DOTALL | re.MULTILINE)
    assert found
    return found


def test_pages_show_what_the_benchmark_prints(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["calibration_alone.py"])
    runpy.run_path(str(ROOT / "benchmarks" / "calibration_alone.py"))["main"]()
    printed = "\n".join(line.rstrip() for line in capsys.readouterr().out.splitlines())
    for name, start in (
        ("calibration.md", "predicted / measured"),
        ("replay.md", "azure-code-2023: measured"),
        ("scoreboard.md", "served models on h100-sxm"),
    ):
        for block in blocks(name, start):
            assert block in printed


@pytest.mark.parametrize("arguments", [("-g", "h100-sxm", "--rows", str(TABLE)), ("-g", "h200")])
def test_the_replays_that_are_shown_are_those_that_are_printed(arguments: tuple[str, ...]) -> None:
    for trace in ("azure-conv-2023", "azure-code-2023")[: 1 if "--rows" in arguments else 2]:
        printed = CliRunner().invoke(app, ["replay", trace, *arguments])
        assert printed.exit_code == 0, printed.output
        assert printed.stdout in page("replay.md")


def test_two_chips_differ_as_the_page_says() -> None:
    lines = page("calibration.md").splitlines()
    first, second = load_calibration("h100-sxm"), load_calibration(SECOND)
    for one, other in zip(first.constants, second.constants, strict=True):
        values = [f"{c.value * 1e6:.1f} µs" if c.unit == "s" else f"{c.value:.3f}" for c in (one, other)]
        differ = f"{other.value / one.value - 1:+.1%}".replace("%", " %").replace("-", "−")
        spread = f"{math.hypot(one.spread, other.spread):.1%}".replace("%", " %")
        if not one.windows:
            values[0], differ, spread = "not measured", "-", f"{other.spread:.1%}".replace("%", " %")
        assert f"| {one.name} | {values[0]} | {values[1]} | {differ} | {spread} |" in lines
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
    told = [f"{statistics.median(one):.1%} {min(one):.1%} {max(one):.1%}".replace("%", "") for one in (seconds, joules)]
    assert (len(both), told) == (12, ["3.0 0.5 5.7", "3.7 1.6 7.6"])
