"""Measured cells predicted from priors alone, from plain kernels of their kind of GPU, and from the study `quick`.

    python benchmarks/quick_alone.py [GPU …]

Each is what a user could know of a GPU before any of these cells was measured: the priors of `infergy.cost.constants`,
the windows of the former `infergy calibrate` (`benchmarks/rows/*-calibration*.jsonl`), and rows of `infergy measure
quick` (`benchmarks/quick`). None of the predicted cells is used. Half a minute.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Read when numpy loads: threads stall each other over matrices this small.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
import numpy as np

from infergy.cost.constants import Fit, prior_fit
from infergy.cost.fit import fit_row
from infergy.cost.fit_rows import run_rows
from infergy.cost.rates import rates_of
from infergy.cost.table import SHIPPED_TABLE, Table, TableEntry, read_table
from infergy.estimates.build import build_table
from kernel_windows import constants_of_file, narrow

HERE = Path(__file__).parent
KERNELS = {"h200": "h200-calibration.jsonl", "h100-sxm": "h100-calibration.jsonl"}
QUICK = {
    "h200": {
        "quick, 3B": "h200-3b-vllm-2.jsonl",
        "quick, 3B, other GPU": "h200-3b-vllm.jsonl",
        "quick, 3B, third GPU": "h200-3b-vllm-3.jsonl",
        "quick, 1B": "h200-vllm-2.jsonl",
    }
}
"""By kind of GPU the rows of each run of `quick`; the first is of the GPU whose kernels were measured."""
WIDTH = 38


def main() -> None:
    """Print a table of each kind of GPU."""
    table = read_table(SHIPPED_TABLE, entries=True)
    for gpu in sys.argv[1:] or KERNELS:
        show(table, gpu)


def show(table: Table, gpu: str) -> None:
    """How far energy and time of measured cells and runs are off, server by server."""
    three = f"{'median':>7}{'largest':>9}{'mean':>7} "
    print(f"{gpu}: predicted / measured - 1{'':{WIDTH - len(gpu) + 2}}|{'energy':^24}|{'time':^24}")
    print(f"{'':{WIDTH}}{'cells':>6}{'':23}|{three}|{three}")
    _, kernels = constants_of_file(HERE / "rows" / KERNELS[gpu])
    learned = {name: build_table([HERE / "quick" / file]).fits for name, file in QUICK.get(gpu, {}).items()}
    groups: dict[str, list[TableEntry]] = {}
    for entry in table.entries:
        by = entry.served_by
        if by.gpu == gpu and entry.duration_s:
            eager = "" if by.has_graphs or by.engine == "transformers" else " eager"
            groups.setdefault(f"{by.model} {by.engine}{eager} {by.dtype} × {by.gpus}", []).append(entry)
    for words, entries in groups.items():
        for number, (method, fit) in enumerate(_fits(entries[0].served_by.engine, gpu, kernels, learned).items()):
            energy, seconds = errors(entries, fit)
            head = " " * (WIDTH + 6) if number else f"{words:{WIDTH}}{len(entries):>6}"
            print(f"{head}  {method:21}|{_three(energy)}|{_three(seconds)}")
    print("median: of |error|; largest and mean: with their sign\n")


def _fits(
    engine: str, gpu: str, kernels: Sequence[tuple[str, float, float]], learned: Mapping[str, Mapping[str, Fit]]
) -> dict[str, Fit]:
    """By method; a run of `quick` says something of its own engine alone."""
    prior = prior_fit(engine)
    quick = {name: fits[engine] for name, fits in learned.items() if engine in fits}
    return {"priors": prior, "kernels": narrow(prior, gpu, kernels), **quick}


def errors(entries: Sequence[TableEntry], fit: Fit) -> tuple[Any, Any]:
    """Predicted / measured - 1 of joules and of seconds of one server's cells."""
    rows = [fit_row(entry) for entry in entries]
    constants = fit.constants(rows[0].gpu.name)
    rates = rates_of(
        rows[0].work,
        rows[0].gpu,
        constants,
        idle_w=float(np.median([row.idle_w for row in rows])),
        server=rows[0].server,
    )
    seconds, energy = run_rows(rows, rates, constants["call_s"])
    return (
        energy / np.array([entry.energy_j for entry in entries]) - 1,
        seconds / np.array([entry.duration_s for entry in entries]) - 1,
    )


def _three(error: Any) -> str:
    largest = error[np.argmax(np.abs(error))]
    return f"{np.median(np.abs(error)):>7.1%}{largest:>+9.0%}{np.mean(error):>+7.0%} "


if __name__ == "__main__":
    main()
