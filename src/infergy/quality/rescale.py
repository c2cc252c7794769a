"""A table made to stand for another GPU of the same kind: its joules times the ratio of a few cells measured there.

Two GPUs of one kind differ by about 2 % (docs/measurements.md), much the same in all cells of an engine config: a
few cells give the factor. Raw facts stay as they were measured; each row carries the factor, its interval and its
origin (`infergy.records.Rescaled`), and `infergy.records.result_of` applies it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from infergy.errors import DataError
from infergy.quality.compare import Comparison, compare
from infergy.records import EngineSetup, Measurement, Rescaled, result_of
from infergy.records.agreement import SAME_KIND, differences


@dataclass(frozen=True, slots=True, kw_only=True)
class RescaledTable:
    """A table for another GPU.

    Attributes:
        rows: The rows of the engine configs that were measured again, each marked; failed rows as they were.
        factors: The mark of each of these engine configs.
        left_out: Rows of other engine configs: nothing is known of them on the other GPU.
    """

    rows: tuple[Measurement, ...]
    factors: tuple[tuple[EngineSetup, Rescaled], ...]
    left_out: int


def rescale(table: Sequence[Measurement], measured: Sequence[Measurement], *, force: bool = False) -> RescaledTable:
    """Scale a table's joules to the GPU on which some of its cells were `measured` again, per engine config.

    Args:
        table: Rows as they were measured.
        measured: Rows of some of the same cells from one other GPU of the same kind.
        force: Scale also by a factor whose interval holds 1.

    Raises:
        DataError: The table is rescaled already, the two are not of one kind of GPU, hold rows of several GPUs or no
            cell in common, or do not differ significantly.
        MeterError: A counter stood still.
    """
    if any(row.rescaled for row in (*table, *measured)):
        raise DataError(
            "the table is rescaled already: a factor of a factor has no known interval. Rescale the table that was "
            "measured: infergy compare MEASURED.jsonl --measure --rescale OUT.jsonl",
            code="rescaled",
        )
    cells = {row.cell_id for row in table}
    again: dict[EngineSetup, list[Measurement]] = {}
    for row in measured:
        if row.windows and row.cell_id in cells:
            again.setdefault(row.cell.setup, []).append(row)
    if not again:
        message = "the rows measured again hold no cell of the table. Measure some: infergy compare TABLE --measure"
        raise DataError(message, code="no-common-cells")
    marks = {setup: _mark(table, new, force=force) for setup, new in again.items()}
    kept = tuple(
        _scaled(row, marks[row.cell.setup]) if row.windows else row for row in table if row.cell.setup in marks
    )
    return RescaledTable(rows=kept, factors=tuple(marks.items()), left_out=len(table) - len(kept))


def _mark(table: Sequence[Measurement], new: Sequence[Measurement], *, force: bool) -> Rescaled:
    """The factor of the engine config of `new`, if it may be used."""
    setup, gpus = new[0].cell.setup, new[0].environment.gpus
    name = f"{setup.label} {setup.model}"
    old = [row for row in table if row.cell.setup == setup and row.windows]
    _reject_other_kinds(name, new[0], (*old, *new))
    _only_gpus(f"{name} in the table", old)
    compared, low, high = _compare(name, old, new, force=force)
    return Rescaled(
        factor=compared.overall.value,
        low=low,
        high=high,
        gpu=gpus[0].name if gpus else "unknown",
        chips=_only_gpus(f"{name} measured again", new),
        cells=tuple(sorted(cell.cell_id for cell in compared.cells)),
        measured_utc=max(row.measured_utc for row in new),
    )


def _compare(
    name: str, old: Iterable[Measurement], new: Sequence[Measurement], *, force: bool
) -> tuple[Comparison, float, float]:
    """The cells that were measured twice, and between which ratios another cell's lies."""
    wanted = {row.cell_id for row in new}
    compared = compare([row for row in old if row.cell_id in wanted], new)
    ratio = compared.overall
    if ratio.low is None or ratio.high is None:
        message = (
            f"{name}: the rows' spread is unknown, and so the factor's interval. Measure more of its cells again: "
            "infergy compare TABLE --measure"
        )
        raise DataError(message, code="too-few-rows", setup=name)
    if not (ratio.is_significant or force):
        message = (
            f"{name}: this GPU and the table do not differ significantly (× {ratio.low:.4f} .. "
            f"{ratio.high:.4f}), so there is nothing to rescale: use the table as it is"
        )
        raise DataError(message, code="no-difference", setup=name, ratio=ratio.value, low=ratio.low, high=ratio.high)
    # The interval of the mean of n control cells is t s / √n; another cell scatters as one of them:
    # t s √(1 + 1 / n), √(n + 1) times as wide (a prediction interval, in logs).
    wider = math.sqrt(len(compared.cells) + 1)
    low, high = (ratio.value * (edge / ratio.value) ** wider for edge in (ratio.low, ratio.high))
    return compared, low, high


def _reject_other_kinds(name: str, here: Measurement, rows: Iterable[Measurement]) -> None:
    for row in rows:
        for difference in differences(here, row, SAME_KIND):
            fact, was, now = difference.fact, difference.was, difference.now
            message = (
                f"{name}: {fact} {was or 'unknown'} here, {now or 'unknown'} in cell {row.cell_id}: "
                "a few cells do not predict the others across these. Measure the whole table here: "
                "infergy measure GRID.toml -o MINE.jsonl"
            )
            raise DataError(
                message, code="environments-differ", setup=name, fact=fact, was=was, now=now, cell=row.cell_id
            )


def _only_gpus(what: str, rows: Iterable[Measurement]) -> tuple[str, ...]:
    """The UUIDs that all rows share: a factor holds between two GPUs, not three."""
    by_gpus = {tuple(gpu.uuid for gpu in row.environment.gpus): row for row in rows}
    if len(by_gpus) > 1:
        one, other, *_ = (f"{', '.join(uuids)} (cell {row.cell_id})" for uuids, row in by_gpus.items())
        message = f"{what}: rows of several GPUs, {one} and {other}. Put those of each into a file of their own"
        raise DataError(
            message, code="several-gpus", place=what, gpus=sorted(uuid for uuids in by_gpus for uuid in uuids)
        )
    return next(iter(by_gpus))


def _scaled(row: Measurement, mark: Rescaled) -> Measurement:
    marked = replace(row, rescaled=mark)
    return replace(marked, result=result_of(marked))
