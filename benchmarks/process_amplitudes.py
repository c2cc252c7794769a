"""How much the amplitudes of the residual's process flatter the scoreboard: chosen on half of the networks, tried on the rest.

    python benchmarks/process_amplitudes.py

The amplitudes and lengths in `scoreboard.residual` were chosen once, on all shipped rows, so that the held-out network
of the scoreboard is not wholly unseen. Here they are chosen anew, from amplitudes that are all alike, on each half of the
networks, three times, by the likelihood (Student's, four degrees of freedom) of rows whose network or batch is left out
of that half, and score the other half. Some minutes on one core.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from dataclasses import dataclass
from typing import Any

import numpy as np

from scoreboard import residual
from scoreboard.fit import fit_served
from scoreboard.rows import TEXT_TASKS, Rows, read_rows
from scoreboard.splits import SPLITS

AMPLITUDES = (
    *("EVERYWHERE", "BATCH", "ARCHITECTURE", "SIZE", "TASK", "PRECISION", "GPU", "BACKBONE", "SERIES", "WITHIN_SERIES"),
    *("NOISE", "BATCH_OCTAVES", "SERIES_OCTAVES", "SIZE_OCTAVES", "GPUS_OCTAVES"),
)
START = {name: 2.0 if name.endswith("OCTAVES") else 0.1 for name in AMPLITUDES}
STEPS = (0.6, 1.6)
ROUNDS = 3
WEIGHTS = {"backbone": 1.0, "batch": 0.3}
HALVES = 3


@dataclass(frozen=True)
class Fold:
    """Rows that are seen, rows that are left out, and what the physical model leaves of all."""

    seen: Any
    left: Any
    residual: Any


def main() -> None:
    """Print the error of left-out networks by amplitudes as shipped, and by those chosen without them."""
    rows, energy_j = read_rows()
    text = np.isin(rows.task.astype(str), TEXT_TASKS)
    alone = text & (rows.architecture == "Dense Transformer") & (rows.gpus == 1)
    folds = {split: _folds(rows, energy_j, split) for split in WEIGHTS}
    shipped = {name: getattr(residual, name) for name in AMPLITUDES}
    print("left-out networks, text tasks: median / 90th percentile; dense ones on one GPU")
    print(f"  {'amplitudes as shipped':44s}{_told(_off(rows, folds['backbone'])[0], text, alone)}")
    names = np.array(sorted(set(rows.backbone)))
    for seed in range(HALVES):
        half = np.isin(rows.backbone, np.random.default_rng(seed).permutation(names)[: len(names) // 2])
        off = np.full(len(rows), np.nan)
        for chosen in (half, ~half):
            _set(START)
            _choose(rows, folds, chosen)
            off[~chosen] = _off(rows, folds["backbone"])[0][~chosen]
        print(f"  {f'chosen on the other half of networks, draw {seed}':44s}{_told(off, text, alone)}", flush=True)
    _set(shipped)


def _folds(rows: Rows, energy_j: Any, split: str) -> list[Fold]:
    found = []
    for seen, left in SPLITS[split](rows):
        served = fit_served(rows.take(seen), energy_j[seen])
        found.append(Fold(seen, left, np.log(energy_j / served.energy_j(rows))))
    return found


def _set(values: dict[str, float]) -> None:
    for name, value in values.items():
        setattr(residual, name, value)


def _off(rows: Rows, folds: list[Fold], among: Any = None) -> tuple[Any, Any]:
    """Logarithm of predicted over measured of each row that is left out, and its standard deviation; NaN elsewhere.

    Only rows of `among` are looked at, if given.
    """
    places = residual._Places.of(rows)
    covariance = places.covariance(places)
    off, spread = np.full(len(rows), np.nan), np.full(len(rows), np.nan)
    for fold in folds if among is None else [_within(fold, among) for fold in folds]:
        if not len(fold.left):
            continue
        between = covariance[np.ix_(fold.left, fold.seen)]
        within = covariance[np.ix_(fold.seen, fold.seen)] + residual.NOISE**2 * np.eye(len(fold.seen))
        solved = np.linalg.solve(within, np.column_stack([fold.residual[fold.seen], between.T]))
        off[fold.left] = between @ solved[:, 0] - fold.residual[fold.left]
        told = np.einsum("ij,ji->i", between, solved[:, 1:])
        spread[fold.left] = np.sqrt(np.diag(covariance)[fold.left] + residual.NOISE**2 - told)
    return off, spread


def _within(fold: Fold, among: Any) -> Fold:
    return Fold(fold.seen[among[fold.seen]], fold.left[among[fold.left]], fold.residual)


def _choose(rows: Rows, folds: dict[str, list[Fold]], chosen: Any) -> None:
    """Change one amplitude after the other by a step where that makes left-out rows of `chosen` likelier."""
    best = _unlikeliness(rows, folds, chosen)
    for _ in range(ROUNDS):
        for name in AMPLITUDES:
            before = getattr(residual, name)
            for step in STEPS:
                setattr(residual, name, before * step)
                found = _unlikeliness(rows, folds, chosen)
                if found < best - 1e-3:
                    best = found
                    break
                setattr(residual, name, before)


def _unlikeliness(rows: Rows, folds: dict[str, list[Fold]], chosen: Any) -> float:
    total = 0.0
    for split, weight in WEIGHTS.items():
        off, spread = _off(rows, folds[split], chosen)
        told = chosen & np.isfinite(off)
        each = np.log(spread[told]) + 2.5 * np.log1p((off[told] / spread[told]) ** 2 / 4)
        total += weight * float(each.mean())
    return total


def _told(off: Any, text: Any, alone: Any) -> str:
    def errors(rows: Any) -> str:
        median, high = np.quantile(np.abs(np.expm1(off[rows])), [0.5, 0.9])
        return f"{median:.1%} / {high:.1%}"

    return f"{errors(text):>16s}   {errors(alone):>14s}"


if __name__ == "__main__":
    main()
