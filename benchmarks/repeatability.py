"""The same cells measured in several processes: how far their joules scatter, and whether the stated intervals hold.

    infergy measure paper-bins -e vllm --input 512 --output 8,64,512 --batch 1,8,32,128 --plan plan.json
    python -m infergy.measure plan.json -o one.jsonl     and again for two.jsonl, three.jsonl
    python benchmarks/repeatability.py one.jsonl two.jsonl three.jsonl

Without files it does so three times on the simulated GPU, which repeats itself to the edges of its windows.

What a store holds of one GPU, or of one group of GPUs, is taken for one process. Stores may hold other cells too: those
that two processes share are compared. A row that stands in two stores counts once.

For each cell: mean joules per request, the largest distance of a process from it, and the largest half-width that a process
states. Then, over all pairs of processes on one GPU, and over those on two, how many of the cells' ratios have an
interval that holds 1; 95 % are expected where nothing but chance differs, fewer where processes differ (clocks, heat,
memory layout). The same over pairs of rows without a flag. Last, what a process errs beyond its
interval, as a standard error β by the method of moments (DerSimonian and Laird, Control. Clin. Trials 7, 1986) over the
ratios r, whose logarithms have the standard error s with ν degrees of freedom by the two intervals. Where nothing else
differs, ln r / s is Student's t, whose square has the mean ν / (ν − 2):

    β² = max(0, Σ ((ln r)² / s² − ν / (ν − 2))) / (2 Σ 1 / s²)
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import fmean

from infergy.quality.compare import Ratio, compare
from infergy.records import Measurement, result_of
from infergy.records.check import check_rows
from infergy.records.store import read_store
from infergy.records.uncertainty import Uncertainty, find_uncertainties
from infergy.records.visits import join_visits


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """What one process measured on one GPU, or one group of GPUs.

    Attributes:
        rows: As they were measured.
        cells: The visits of each cell as one row, and its interval, by the cell's id.
        good: The ids of cells no visit of which has a flag.
    """

    chips: tuple[str, ...]
    rows: tuple[Measurement, ...]
    cells: dict[str, tuple[Measurement, Uncertainty | None]]
    good: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One cell in two processes.

    Attributes:
        error: Standard error of the logarithm of the ratio, as the two intervals state it.
        degrees: Degrees of freedom of `error` (Welch and Satterthwaite), infinity where it is known.
        is_good: Whether neither row has a flag.
    """

    ratio: Ratio
    error: float
    degrees: float
    is_good: bool

    @property
    def excess(self) -> float:
        """By how much (ln r)² / s² lies over its mean where nothing but chance differs."""
        expected = 1 if math.isinf(self.degrees) else self.degrees / (self.degrees - 2)
        return (math.log(self.ratio.value) / self.error) ** 2 - expected


def read_processes(paths: Sequence[Path], engine: str | None) -> list[Process]:
    """The processes of all stores, in their order."""
    seen: set[tuple[str, ...]] = set()
    found = []
    for path in paths:
        groups: dict[tuple[str, ...], list[Measurement]] = {}
        for row in read_store(path).rows:
            chips = tuple(gpu.uuid for gpu in row.environment.gpus)
            measured = (row.key, row.measured_utc, *chips)
            if row.is_ok and measured not in seen and engine in (None, row.cell.setup.engine):
                seen.add(measured)
                groups.setdefault(chips, []).append(row)
        found += [make_process(chips, rows) for chips, rows in groups.items()]
    return found


def make_process(chips: tuple[str, ...], rows: Sequence[Measurement]) -> Process:
    joined = join_visits(rows)
    intervals = find_uncertainties(joined)
    doubted = {one.cell_id for one in check_rows(rows) if one.flags}
    return Process(
        chips=chips,
        rows=tuple(rows),
        cells={row.cell_id: (row, one) for row, one in zip(joined, intervals, strict=True)},
        good=frozenset({row.cell_id for row in rows} - doubted),
    )


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


def pair_cells(a: Process, b: Process) -> list[Pair]:
    """The ratios of all cells that two processes share and whose intervals are known."""
    if a.cells.keys().isdisjoint(b.cells):
        return []
    found = []
    for cell in compare(a.rows, b.rows).cells:
        known = [one for process in (a, b) if (one := process.cells[cell.cell_id][1]) is not None]
        if len(known) == 2:
            error = math.hypot(*(one.standard_error for one in known))
            parts = [one.standard_error**4 / one.degrees_of_freedom for one in known if one.degrees_of_freedom]
            degrees = error**4 / sum(parts) if parts else math.inf
            is_good = cell.cell_id in a.good & b.good
            found.append(Pair(ratio=cell.ratio, error=error, degrees=degrees, is_good=is_good))
    return found


def show(paths: Sequence[Path], engine: str | None = None) -> None:
    processes = read_processes(paths, engine)
    measured: dict[str, list[tuple[Measurement, Uncertainty | None]]] = {}
    for process in processes:
        for cell_id, row in process.cells.items():
            measured.setdefault(cell_id, []).append(row)
    shared = [rows for rows in measured.values() if len(rows) > 1]
    print(f"{len(shared)} cells in {len(processes)} processes")
    worst = []
    for rows in shared:
        joules = [result_of(row).energy_per_request_j for row, _ in rows]
        mean_j = fmean(joules)
        far = max(abs(one / mean_j - 1) for one in joules)
        widths = [one.half_width for _, one in rows if one is not None]
        stated = f"± {max(widths):.2%}" if widths else "unknown"
        worst.append(far)
        print(f"  {rows[0][0].cell!s:44} {len(rows)} × {mean_j:9.2f} J per request, {far:6.2%} apart, stated {stated}")
    print(f"largest distance from a cell's mean: median {sorted(worst)[len(worst) // 2]:.2%}, worst {max(worst):.2%}")
    pairs = list(combinations(processes, 2))
    show_pairs("one GPU", [found for a, b in pairs if a.chips == b.chips for found in pair_cells(a, b)])
    show_pairs("two GPUs", [found for a, b in pairs if a.chips != b.chips for found in pair_cells(a, b)])


def show_pairs(where: str, pairs: Sequence[Pair]) -> None:
    if not pairs:
        return
    print(f"pairs on {where}:")
    for what, those in (("", pairs), (" of rows without a flag", [pair for pair in pairs if pair.is_good])):
        hold = sum(not pair.ratio.is_significant for pair in those)
        print(f"  intervals{what} that hold no difference: {hold} of {len(those)}")
    told = [pair for pair in pairs if pair.degrees > 2]
    beyond = max(0.0, sum(pair.excess for pair in told)) / (2 * sum(pair.error**-2 for pair in told))
    print(f"  beyond its interval a process errs by {math.sqrt(beyond):.2%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="two or more stores that share cells")
    parser.add_argument("--engine", help="rows of this engine alone, such as vllm")
    asked = parser.parse_args()
    if asked.files:
        show(asked.files, asked.engine)
        return
    with tempfile.TemporaryDirectory() as folder:
        show(simulate(Path(folder)))


if __name__ == "__main__":
    main()
