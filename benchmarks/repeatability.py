"""The same cells measured in several processes: how far their joules scatter, and whether the stated intervals hold.

    infergy plan paper-bins -e vllm --input 512 --output 8,64,512 --batch 1,8,32,128 -o plan.json
    python -m infergy.measure plan.json -o one.jsonl     and again for two.jsonl, three.jsonl
    python benchmarks/repeatability.py one.jsonl two.jsonl three.jsonl

Without files it does so three times on the simulated GPU, which repeats itself to the edges of its windows.

For each cell: mean joules a request, the largest distance of a file from it, and the largest half-width that a file
states. Then, over all pairs of files, how many of the cells' ratios have an interval that holds 1; 95 % are expected
where nothing but chance differs, fewer where processes differ (clocks, heat, memory layout). Last, the same over pairs of
rows that `infergy check` doubts in nothing.
"""

from __future__ import annotations

import argparse
import tempfile
from itertools import combinations
from pathlib import Path
from statistics import fmean

from infergy.energy.compare import compare
from infergy.records import Measurement
from infergy.records.check import check_rows
from infergy.records.flags import TARGET
from infergy.records.store import read_store
from infergy.records.uncertainty import Uncertainty, find_uncertainties

Run = dict[str, tuple[Measurement, Uncertainty | None]]


def read_run(path: Path) -> Run:
    rows = [row for row in read_store(path).rows if row.is_ok]
    found: Run = {}
    for setup in {row.cell.setup for row in rows}:
        group = [row for row in rows if row.cell.setup == setup]
        found |= {row.key: (row, one) for row, one in zip(group, find_uncertainties(group), strict=True)}
    return found


def read_good(path: Path) -> dict[str, bool]:
    """Whether no visit of a cell has a flag, by the cell's id."""
    rows = read_store(path).rows
    good: dict[str, bool] = {}
    for one in check_rows(rows, target=TARGET):
        good[one.cell_id] = good.get(one.cell_id, True) and not one.flags and one.failure is None
    return good


def simulate(folder: Path) -> list[Path]:
    from infergy.measure.grid import make_plan, parse_grid
    from infergy.measure.sweep import sweep

    cells = [{"input_tokens": [512], "output_tokens": [8, 64], "batch": [1, 8, 32, 64, 128]}]
    grid = {"name": "ten", "gpu": "h200", "model": "llama-3.1-8b", "engines": [{"engine": "vllm"}], "cells": cells}
    plan = make_plan(parse_grid(grid, "ten"))
    paths = [folder / f"{number}.jsonl" for number in range(3)]
    for path in paths:
        for _ in sweep(plan, path, simulate=True):
            pass
    return paths


def show(paths: list[Path]) -> None:
    runs = [read_run(path) for path in paths]
    is_good = {path: read_good(path) for path in paths}
    shared = [key for key in runs[0] if all(key in run for run in runs)]
    print(f"{len(shared)} cells, each in {len(runs)} processes")
    worst = []
    for key in shared:
        rows = [run[key] for run in runs]
        joules = [row.result.energy_per_request_j for row, _ in rows if row.result is not None]
        mean_j = fmean(joules)
        far = max(abs(one / mean_j - 1) for one in joules)
        widths = [one.half_width for _, one in rows if one is not None]
        stated = f"± {max(widths):.2%}" if widths else "unknown"
        worst.append(far)
        label = f"{rows[0][0].cell} {rows[0][0].visit}"
        print(f"  {label:50} {mean_j:10.2f} J a request, {far:6.2%} apart, stated {stated}")
    compared = [
        (cell, is_good[a][cell.cell_id] and is_good[b][cell.cell_id])
        for a, b in combinations(paths, 2)
        for cell in compare(read_store(a).rows, read_store(b).rows).cells
        if cell.ratio.low is not None
    ]
    print(f"largest distance from a cell's mean: median {sorted(worst)[len(worst) // 2]:.2%}, worst {max(worst):.2%}")
    for what, those in (("", compared), (" of rows without a flag", [one for one in compared if one[1]])):
        hold = sum(not cell.ratio.is_significant for cell, _ in those)
        print(f"intervals{what} that hold no difference: {hold} of {len(those)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="two or more stores with the same cells")
    files = parser.parse_args().files
    if files:
        show(files)
        return
    with tempfile.TemporaryDirectory() as folder:
        show(simulate(Path(folder)))


if __name__ == "__main__":
    main()
