"""Measured cells predicted from a GPU's calibration alone, beside its datasheet alone: no measured cell is used.

    python benchmarks/calibration_alone.py [CALIBRATION [TABLE]]

CALIBRATION is a shipped one (h100-sxm) or a file of `infergy calibrate`; TABLE one of `infergy table build`, the
shipped one by default. Then rows of served models on a GPU that is left out (docs/scoreboard.md). Half a minute.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

# Read when numpy loads: threads stall each other over matrices this small.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
import numpy as np

from infergy.cost.calibration import Calibration, load_calibration, narrow
from infergy.cost.constants import Fit, prior_fit
from infergy.cost.fit import fit_row, run_rows
from infergy.cost.rates import rates_of
from infergy.cost.table import Table, TableEntry, read_table
from infergy.estimates.servers import SHIPPED_TABLE
from scoreboard.ours import InfergyCalibrated, InfergyPhysics
from scoreboard.rows import TEXT_TASKS, read_rows

WIDTH = 40
BATCHES = (1, 16, 64, 256, 10_000)


def main() -> None:
    """Print all of it."""
    name, table = (*sys.argv[1:], *("h100-sxm", str(SHIPPED_TABLE))[len(sys.argv) - 1 :])
    calibration = load_calibration(name)
    print(f"{calibration.title}, calibrated on {', '.join(calibration.uuids)}: {calibration.windows} windows\n")
    show_cells(read_table(Path(table), entries=True), calibration)
    show_held_out(calibration)


def show_cells(table: Table, calibration: Calibration) -> None:
    """How far energy and time of measured cells and runs are off, server by server."""
    print(f"{'predicted / measured - 1':{WIDTH + 19}}|{'energy':^24}|{'time':^24}")
    three = f"{'median':>7}{'largest':>9}{'mean':>7} "
    print(f"{'':{WIDTH}}{'cells':>6}{'':13}|{three}|{three}")
    groups: dict[str, list[TableEntry]] = {}
    for entry in table.entries:
        by = entry.served_by
        if by.gpu == calibration.gpu and entry.duration_s:
            eager = "" if by.has_graphs or by.engine == "transformers" else " eager"
            words = f"{by.model} {by.engine}{eager} {by.dtype} × {by.gpus}"
            groups.setdefault(words, []).append(entry)
    for words, entries in groups.items():
        datasheet = prior_fit(entries[0].served_by.engine)
        for method, fit in (
            ("datasheet", datasheet),
            ("calibration", narrow(datasheet, calibration.gpu, calibration.measured)),
        ):
            energy, seconds = errors(entries, fit)
            head = f"{words:{WIDTH}}{len(entries):>6}" if fit is datasheet else " " * (WIDTH + 6)
            print(f"{head}  {method:11}|{_three(energy)}|{_three(seconds)}")
    print("median: of |error|; largest and mean: with their sign\n")


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


def show_held_out(calibration: Calibration) -> None:
    """Rows of text of served models on this kind of GPU, by constants fitted to all other rows."""
    rows, energy_j = read_rows()
    of_gpu = rows.gpu == calibration.gpu
    train, test = np.flatnonzero(~of_gpu), np.flatnonzero(of_gpu & np.isin(rows.task.astype(str), TEXT_TASKS))
    left_out, measured_j = rows.take(test), energy_j[test]
    off = [
        estimator.fit(rows.take(train), energy_j[train]).predict(left_out).energy_j / measured_j - 1
        for estimator in (InfergyPhysics(), InfergyCalibrated((calibration,)))
    ]
    three = f"{'median':>8}{'p90':>9}{'bias':>7}"
    print(f"{f'served models on {calibration.gpu}, unseen':37}   {'fitted to other GPUs':^24}|{'and calibrated':^24}")
    print(f"{'':32}{'rows':>5}   {three}|{three}")
    _line("all", np.ones(len(test), dtype=bool), off)
    _line("dense models on one GPU", (left_out.architecture == "Dense Transformer") & (left_out.gpus == 1), off)
    for low, high in pairwise(BATCHES):
        words = f"batch {low} to {high}" if high < BATCHES[-1] else f"batch from {low}"
        _line(words, (left_out.batch >= low) & (left_out.batch < high), off)
    for name in sorted(set(left_out.backbone)):
        _line(f"  {name}", left_out.backbone == name, off)


def _line(words: str, which: Any, off: Sequence[Any]) -> None:
    figures = [
        f"{np.median(np.abs(error[which])):>8.1%}{np.quantile(np.abs(error[which]), 0.9):>9.1%}"
        f"{np.median(error[which]):>+7.0%}"
        for error in off
    ]
    print(f"{words:32}{int(which.sum()):>5}   {figures[0]}|{figures[1]}")


def _three(error: Any) -> str:
    largest = error[np.argmax(np.abs(error))]
    return f"{np.median(np.abs(error)):>7.1%}{largest:>+9.0%}{np.mean(error):>+7.0%} "


if __name__ == "__main__":
    main()
