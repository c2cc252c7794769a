"""Stores of rows whose energy follows a known function of the lengths."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from infergy.records import Measurement
from rows import build_row

INPUTS = (32, 128, 512, 2048)
OUTPUTS = (8, 64, 512)
BATCH = 16

Law = Callable[[int, int], float]


def power_law(input_tokens: int, output_tokens: int) -> float:
    """Joules per request, straight in log space: interpolation and extrapolation are exact."""
    return float(0.02 * input_tokens**0.8 * output_tokens**0.5)


def rows_of(
    law: Law = power_law,
    *,
    inputs: Sequence[int] = INPUTS,
    outputs: Sequence[int] = OUTPUTS,
    batch: int = BATCH,
    scale: float = 1.0,
    **others: Any,
) -> list[Measurement]:
    """One row for each input and output, of `law` × `scale` joules and a hundredth as many seconds per request."""
    return [
        build_row(
            input_tokens=i,
            output_tokens=o,
            batch=batch,
            energy_j=law(i, o) * scale * batch,
            duration_s=law(i, o) * scale * batch / 100,
            **others,
        )
        for i in inputs
        for o in outputs
    ]


def two_engines(law: Law = power_law) -> list[Measurement]:
    """Transformers at twice the joules of vllm."""
    return rows_of(law, engine="transformers", scale=2.0) + rows_of(law, engine="vllm")


def with_environment(row: Measurement, **changes: Any) -> Measurement:
    """The row as measured elsewhere."""
    return dataclasses.replace(row, environment=dataclasses.replace(row.environment, **changes))


def write_store(path: Path, rows: Iterable[Measurement]) -> Path:
    """A store of these rows."""
    path.write_text("".join(json.dumps(row.to_json()) + "\n" for row in rows), encoding="utf-8")
    return path
