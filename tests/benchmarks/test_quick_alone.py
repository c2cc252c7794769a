"""What docs say of the study `quick` is what the benchmark prints."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from infergy.cost.table import SHIPPED_TABLE, read_table
from kernel_windows import constants_of_file
from quick_alone import show

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_page_shows_what_quick_rows_and_plain_kernels_predict(capsys: pytest.CaptureFixture[str]) -> None:
    show(read_table(SHIPPED_TABLE, entries=True), "h200")
    printed = "\n".join(line.rstrip() for line in capsys.readouterr().out.strip().splitlines())
    page = (ROOT / "docs" / "measurements.md").read_text(encoding="utf-8")
    assert re.findall(r"quick_alone\.py h200\n(.*?)\n```", page, re.DOTALL) == [printed]


@pytest.mark.parametrize("name", ["h100-calibration", "h100-calibration-2", "h200-calibration"])
def test_windows_of_plain_kernels_stay_readable(name: str) -> None:
    gpu, constants = constants_of_file(ROOT / "benchmarks" / "rows" / f"{name}.jsonl")
    assert gpu == ("h200" if "h200" in name else "h100-sxm")
    values = {constant: value for constant, value, _ in constants}
    # A datasheet's bandwidth is never exceeded, and a byte of HBM takes some 100 pJ.
    assert 0.8 < values["weight_efficiency"] < 1
    assert 80e-12 < values["byte_j"] < 125e-12
