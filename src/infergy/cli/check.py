"""`infergy check`: flags of measured rows, what they mean and how to fix them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from infergy.cli.options import JsonOption, argument, flag, fraction, option, with_options
from infergy.cli.output import print_json
from infergy.units import count_of, format_percent, format_si

if TYPE_CHECKING:
    from infergy.records import Measurement
    from infergy.records.check import CheckedRow, FlaggedRow

EXIT_FLAGGED = 5


@with_options
def check(
    files: list[Path] = argument("Stores of measurements (.jsonl)", "FILE"),
    target: str | None = option("Flag rows with a 95 % interval wider than ± this, such as 2%."),
    rows: bool = flag("List each row with its interval, flags and facts.", "--rows"),
    strict: bool = flag("Exit with 5 if any row is flagged or failed.", "--strict"),
    again: Path | None = option("Write a plan that measures flagged and failed cells again."),
    worst: int | None = option("With --again: at most so many, the widest intervals first.", min=1),
    as_json: JsonOption = False,
) -> None:
    """Summarise the flags of measured rows: figures that may be wrong by more than their interval (docs/flags.md).

    Example: infergy check mine.jsonl --rows --strict
    """
    from infergy.records.check import Checked, CheckedFile, describe_row, flag_rows
    from infergy.records.store import read_store

    widest = None if target is None else fraction("--target", target)
    stores = {str(path): read_store(path).rows for path in files}
    checked = {path: list(flag_rows(own, target=widest)) for path, own in stores.items()}
    if as_json:
        described = [CheckedFile(file=path, rows=tuple(map(describe_row, own))) for path, own in checked.items()]
        print_json([Checked(files=tuple(described))])
    else:
        for path, own in checked.items():
            _print(path, own, show_rows=rows)
    flagged = [row for row in chain.from_iterable(checked.values()) if row.is_flagged_or_failed]
    if again is not None:
        _plan_again(flagged, list(chain.from_iterable(stores.values())), again, worst, widest)
    if strict and flagged:
        raise typer.Exit(EXIT_FLAGGED)


def _plan_again(
    flagged: Iterable[FlaggedRow], measured: Sequence[Measurement], path: Path, worst: int | None, target: float | None
) -> None:
    from infergy.measure.control_cells import plan_again
    from infergy.records.plan import MeasureOptions

    widest = sorted(flagged, key=lambda one: -math.inf if one.uncertainty is None else -one.uncertainty.half_width)
    cells = list(dict.fromkeys(one.row.cell_id for one in widest))[:worst]
    if not cells:
        typer.echo(f"{path}: not written, no cell is flagged or failed", err=True)
        return
    plan_again(measured, cells, target=MeasureOptions().target if target is None else target).save(path)
    count = count_of(len(cells), "cell")
    typer.echo(f"{path}: {count} and their control cells. Measure: infergy measure {path} -o NEW.jsonl", err=True)


def _print(path: str, rows: Sequence[FlaggedRow], *, show_rows: bool) -> None:
    from infergy.records.check import describe_row
    from infergy.records.flags import CODES

    flags = [flag for row in rows for flag in row.flags]
    flagged, failed = sum(bool(row.flags) for row in rows), sum(row.row.failure is not None for row in rows)
    typer.echo(f"{path}: {count_of(len(rows), 'row')}, {flagged} flagged{f', {failed} failed' if failed else ''}")
    counts, fixes = Counter(flag.code for flag in flags), {flag.code: flag.fix for flag in reversed(flags)}
    for code in sorted(counts, key=list(CODES).index):
        typer.echo(f"  {code}, {count_of(counts[code], 'row')}: {CODES[code]}. Fix: {fixes[code]}")
    if show_rows:
        for row in rows:
            _print_row(describe_row(row))
    elif flagged or failed:
        typer.echo("  Which rows, and their values: --rows")


def _print_row(row: CheckedRow) -> None:
    name = f"{row.cell_id} {row.cell}"
    if row.failure:
        typer.echo(f"{name}: failed: {row.failure}. Try it again: --retry-failed")
        return
    typer.echo(f"{name}: {_energy(row)}: {', '.join(flag.code for flag in row.flags) or 'no flag'}")
    if row.serving is not None:
        typer.echo(f"  {row.serving}")
    if row.backlog is not None:
        state, counts = "grew" if row.backlog.grows else "did not grow", (row.backlog.halfway, row.backlog.at_end)
        typer.echo(
            "  backlog {}: {:.0f} requests halfway through the arrivals, {:.0f} at the last".format(state, *counts)
        )
    for raised in row.flags:
        typer.echo(f"  {raised.code}: {raised.reason}; {raised.fix}")
    typer.echo(f"  {row.facts}")


def _energy(row: CheckedRow) -> str:
    if row.energy_j is None:
        return "no energy"
    half = "(interval unknown)" if row.uncertainty is None else f"± {format_percent(row.uncertainty.half_width)}"
    gpus = [f"GPU {index} {format_si(energy_j, 'J')}" for index, energy_j in enumerate(row.energy_by_gpu_j.values())]
    by_gpu = f": {', '.join(gpus)}" if len(gpus) > 1 else ""
    return f"{format_si(row.energy_j, 'J')} {half} per {'run' if row.serving else 'batch'}{by_gpu}"
