"""Flags compared with replicates: what docs/flags.md says of them."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "flags.py"


@pytest.mark.parametrize(
    ("same_gpu", "rows", "flagged", "outside", "outside_others"), [(True, 153, 29, 6, 4), (False, 329, 40, 4, 6)]
)
def test_replicates_of_unsteady_rows_lie_outside_more_often(
    same_gpu: bool, rows: int, flagged: int, outside: int, outside_others: int
) -> None:
    benchmark = runpy.run_path(str(BENCHMARK))
    outcomes = benchmark["compare_replicates"](benchmark["read_rows"](), same_gpu=same_gpu)
    is_flagged = [any(flag.code == "unsteady" for flag in one.row.checked.flags) for one in outcomes]
    is_outside = [abs(one.z) > benchmark["Z"] for one in outcomes]
    assert (len(outcomes), sum(is_flagged)) == (rows, flagged)
    pairs = list(zip(is_flagged, is_outside, strict=True))
    assert (pairs.count((True, True)), pairs.count((False, True))) == (outside, outside_others)
