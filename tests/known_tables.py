"""Stores whose surface is known, for any test that estimates."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from infergy.energy.load import load_table
from infergy.energy.table import EnergyTable
from infergy.records import Measurement
from infergy.workload.bins import Bin, BinCount, Bins, Histogram
from rows import build_row

INPUTS = (32, 128, 512, 2048)
OUTPUTS = (8, 64, 512)
BATCH = 16

Law = Callable[[int, int], float]


def power_law(input_tokens: int, output_tokens: int) -> float:
    """Joules a request, straight in log space: interpolation and extrapolation are exact."""
    return float(0.02 * input_tokens**0.8 * output_tokens**0.5)


def linear_law(input_tokens: int, output_tokens: int) -> float:
    """Joules a request as real ones grow: a little of each input token, more of each output token."""
    return 0.1 + 0.02 * input_tokens + 0.05 * output_tokens


def rows_of(
    law: Law = power_law,
    *,
    inputs: Sequence[int] = INPUTS,
    outputs: Sequence[int] = OUTPUTS,
    batch: int = BATCH,
    scale: float = 1.0,
    **others: Any,
) -> list[Measurement]:
    """One row for each input and output, of `law` × `scale` joules and a hundredth as many seconds a request."""
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


def under(row: Measurement, **changes: Any) -> Measurement:
    """The row as measured under another set-up."""
    cell = dataclasses.replace(row.cell, setup=dataclasses.replace(row.cell.setup, **changes))
    return dataclasses.replace(row, cell=cell, cell_id=cell.id)


def with_environment(row: Measurement, **changes: Any) -> Measurement:
    """The row as measured elsewhere."""
    return dataclasses.replace(row, environment=dataclasses.replace(row.environment, **changes))


def write_store(path: Path, rows: Iterable[Measurement]) -> Path:
    """A store of these rows."""
    path.write_text("".join(json.dumps(row.to_json()) + "\n" for row in rows), encoding="utf-8")
    return path


def table_of(folder: Path, rows: Iterable[Measurement], **options: Any) -> EnergyTable:
    """These rows, written and read again."""
    return load_table([write_store(folder / "rows.jsonl", rows)], **options)


def histogram_of(requests: Iterable[tuple[int, int]], bins: Bins | None = None) -> Histogram:
    """Requests of (input, output) tokens, counted one by one: what any trace reader must agree with."""
    requests = list(requests)
    bins = bins or Bins.powers_of_two(max(i for i, _ in requests), max(o for _, o in requests))
    counts: dict[Bin, list[tuple[int, int]]] = {}
    outside = []
    for i, o in requests:
        found = bins.find(i, o)
        if found is None:
            outside.append((i, o))
        else:
            counts.setdefault(found, []).append((i, o))
    return Histogram(
        source="test",
        bins=bins,
        counts=tuple(_count(found, inside) for found, inside in sorted(counts.items())),
        left_out=_count(Bin(input_tokens=1, output_tokens=1, input_floor=0, output_floor=0), outside)
        if outside
        else None,
    )


def _count(found: Bin, inside: Sequence[tuple[int, int]]) -> BinCount:
    return BinCount(
        bin=found,
        requests=len(inside),
        input_tokens=sum(i for i, _ in inside),
        output_tokens=sum(o for _, o in inside),
    )
