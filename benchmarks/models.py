"""Cells of models that no fit has seen, beside what was predicted for them before they ran.

    python benchmarks/models.py                             # what was measured beside what was predicted
    python benchmarks/models.py --again                     # beside what the table that ships now says
    python benchmarks/models.py --predict PLAN… > benchmarks/models/h200-predictions.json

Rows: benchmarks/models/*.jsonl, of the study `models` (`infergy measure models -m MODEL`); predictions were committed
before the first run. Random weights.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any

from infergy.estimates.replay import predict
from infergy.estimates.servers import shipped_table
from infergy.records import Measurement, Plan, PlannedCell, result_of
from infergy.records.store import read_store

HERE = Path(__file__).parent / "models"


def main(arguments: Sequence[str]) -> None:
    """Predict plans, or compare rows with predictions."""
    if arguments[:1] == ["--predict"]:
        plans = [Plan.load(Path(name)) for name in arguments[1:]]
        figures = {cell.cell.id: figures_of(cell, plan.gpu) for plan in plans for cell in plan.cells}
        print(json.dumps(figures, indent=1))
        return
    rows = [row for path in sorted(HERE.glob("*.jsonl")) for row in read_store(path).rows if row.is_ok]
    again = arguments == ["--again"]
    predicted = {} if again else json.loads((HERE / "h200-predictions.json").read_text(encoding="utf-8"))
    print(f"{'':34}{'cells':>6} |{'energy: median':>15}{'worst':>7}{'inside':>8} |{'time: median':>13}{'worst':>7}")
    for name, group in groupby(rows, lambda row: f"{row.cell.setup.label} {row.cell.setup.model}"):
        compared = [compare(row, predicted.get(row.cell.id) or figures_of(row, "h200")) for row in group]
        energy, seconds = zip(*((energy, seconds) for energy, seconds, _ in compared), strict=True)
        inside = sum(is_inside for _, _, is_inside in compared)
        print(
            f"{name:34}{len(compared):>6} |{median(map(abs, energy)):>15.1%}{max(energy, key=abs):>+7.0%}"
            f"{inside:>5}/{len(compared)} |{median(map(abs, seconds)):>13.1%}{max(seconds, key=abs):>+7.0%}"
        )


def figures_of(part: PlannedCell | Measurement, gpu: str) -> dict[str, Any]:
    """Energy with its 90 % interval and time of a batch."""
    name, config = str(part.cell), HERE / f"{part.cell.setup.model}.json"
    if config.exists():
        part = replace(part, cell=replace(part.cell, setup=replace(part.cell.setup, model=str(config))))
    parts: Sequence[Any] = [part]
    run = predict(parts, gpu, shipped_table()).predicted
    return {
        "cell": name,
        "energy_j": run.energy_j,
        "low_j": run.low_j,
        "high_j": run.high_j,
        "duration_s": run.duration_s,
    }


def compare(row: Measurement, predicted: dict[str, Any]) -> tuple[float, float, bool]:
    """Predicted over measured, less 1, of energy and time; whether the interval contains the energy."""
    result = result_of(row)
    energy_error = predicted["energy_j"] / result.energy_j - 1
    is_inside = predicted["low_j"] <= result.energy_j <= predicted["high_j"]
    return energy_error, predicted["duration_s"] / result.duration_s - 1, is_inside


if __name__ == "__main__":
    main(sys.argv[1:])
