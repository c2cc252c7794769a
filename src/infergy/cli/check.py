"""`infergy check`: what to distrust in measured rows, why, and what to type."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from infergy.cli.options import JsonOption, fraction
from infergy.cli.output import print_json
from infergy.units import count_of, format_si

if TYPE_CHECKING:
    from infergy.records.check import Checked, CheckedFile, CheckedRow

EXIT_FLAGGED = 5
DEFAULT_TARGET = "2%"


def check(
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="Stores of measurements (.jsonl)")],
    target: Annotated[str, typer.Option("--target", help="Joules must be certain to ± this")] = DEFAULT_TARGET,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 5 if any row is flagged or failed.")] = False,
    again: Annotated[
        Path | None, typer.Option("--again", help="Write a plan that measures flagged and failed cells again.")
    ] = None,
    worst: Annotated[
        int | None, typer.Option("--worst", min=1, help="With --again: only so many, the least certain first.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List what to distrust in measured rows, and what to type; the codes are explained in docs/flags.md.

    Example: infergy check mine.jsonl --strict
    """
    from infergy.records.check import Checked, CheckedFile, check_rows
    from infergy.records.store import read_store

    wanted = fraction("--target", target)
    checked = Checked(
        files=tuple(
            CheckedFile(file=str(path), rows=check_rows(read_store(path).rows, target=wanted)) for path in files
        )
    )
    if as_json:
        print_json([checked])
    else:
        for one in checked.files:
            _print(one)
    if again is not None:
        _plan_again(checked, files, again, worst, wanted)
    if strict and any(row.flags or row.failure for one in checked.files for row in one.rows):
        raise typer.Exit(EXIT_FLAGGED)


def _plan_again(checked: Checked, files: list[Path], path: Path, worst: int | None, target: float) -> None:
    from infergy.measure.anchors import plan_again
    from infergy.records.store import read_store

    doubtful = [row for one in checked.files for row in one.rows if row.flags or row.failure]
    doubtful.sort(key=lambda row: -math.inf if row.uncertainty is None else -row.uncertainty.half_width)
    cells = list(dict.fromkeys(row.cell_id for row in doubtful))[:worst]
    if not cells:
        typer.echo(f"{path}: not written, for no cell is flagged or failed", err=True)
        return
    plan_again([row for file in files for row in read_store(file).rows], cells, target=target).save(path)
    typer.echo(
        f"{path}: {count_of(len(cells), 'cell')} and their anchors. Measure them: infergy measure {path} -o NEW.jsonl",
        err=True,
    )


def _print(checked: CheckedFile) -> None:
    for row in checked.rows:
        if row.failure:
            typer.echo(f"{row.cell_id} {row.cell}: failed: {row.failure}. Try it again: --retry-failed")
        if row.serving is not None:
            typer.echo(f"{row.cell_id} {row.cell} ({_energy(row)}): {row.serving}")
        for flag in row.flags:
            typer.echo(f"{row.cell_id} {row.cell} ({_energy(row)}): {flag.code}: {flag.reason}; {flag.cure}")
    flagged = sum(bool(row.flags or row.failure) for row in checked.rows)
    typer.echo(f"{checked.file}: {count_of(len(checked.rows), 'row')}, {flagged} to distrust")


def _energy(row: CheckedRow) -> str:
    if row.energy_j is None:
        return "no joules"
    half = "" if row.uncertainty is None else f" ± {row.uncertainty.half_width:.1%}"
    return f"{format_si(row.energy_j, 'J')}{half} a {'run' if row.serving else 'batch'}{_by_gpu(row)}"


def _by_gpu(row: CheckedRow) -> str:
    """Joules of each of several GPUs, in the engine's order."""
    if len(row.energy_by_gpu_j) <= 1:
        return ""
    joules = [f"GPU {index} {format_si(one_j, 'J')}" for index, one_j in enumerate(row.energy_by_gpu_j.values())]
    return f": {', '.join(joules)}"
