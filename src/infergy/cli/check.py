"""`infergy check`: what to distrust in measured rows, why, and what to type."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infergy.cli.trace_options import JsonOption, print_json
from infergy.records.flags import Flag
from infergy.records.uncertainty import Uncertainty
from infergy.units import format_si

if TYPE_CHECKING:
    from infergy.records import Measurement

CHECK_SCHEMA = "infergy.check/1"
EXIT_FLAGGED = 5
DEFAULT_TARGET = "2%"


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedRow:
    """A row, its interval and its flags.

    Attributes:
        cell: The cell in words.
        energy_j: Joules a batch; None if the cell failed.
        uncertainty: Its 95 % interval; None if nothing tells.
        failure: Why the cell has no number; None if it has one.
    """

    cell_id: str
    cell: str
    energy_j: float | None
    uncertainty: Uncertainty | None
    flags: tuple[Flag, ...]
    failure: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedFile:
    """All rows of a store, in its order."""

    file: str
    rows: tuple[CheckedRow, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What `infergy check --json` prints."""

    files: tuple[CheckedFile, ...]
    schema: str = CHECK_SCHEMA


def check(
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="Stores of measurements (.jsonl)")],
    target: Annotated[str, typer.Option("--target", help="Joules must be certain to ± this")] = DEFAULT_TARGET,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 5 if any row is flagged or failed.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List what to distrust in measured rows, and what to type; the codes are explained in docs/flags.md.

    Example: infergy check mine.jsonl --strict
    """
    from infergy.cli.measure import fraction
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
    if strict and any(row.flags or row.failure for one in checked.files for row in one.rows):
        raise typer.Exit(EXIT_FLAGGED)


def check_rows(rows: Sequence[Measurement], *, target: float) -> tuple[CheckedRow, ...]:
    """Judge rows set-up by set-up, in their order."""
    from infergy.records.flags import find_drift, find_flags
    from infergy.records.uncertainty import find_uncertainties

    found: dict[int, CheckedRow] = {}
    groups: dict[Any, list[int]] = {}
    for place, row in enumerate(rows):
        groups.setdefault((row.cell.setup, row.environment.weights), []).append(place)
    for places in groups.values():
        group = [rows[place] for place in places]
        drift = find_drift(group)
        for place, row, uncertainty in zip(places, group, find_uncertainties(group), strict=True):
            moved = (drift[row.key],) if row.key in drift else ()
            failure = None if row.failure is None else f"{row.failure.code}: {row.failure.message}"
            found[place] = CheckedRow(
                cell_id=row.cell_id,
                cell=str(row.cell),
                energy_j=row.result.energy_j if row.result else None,
                uncertainty=uncertainty,
                flags=(*find_flags(row, uncertainty, target=target), *moved),
                failure=failure,
            )
    return tuple(found[place] for place in range(len(rows)))


def _print(checked: CheckedFile) -> None:
    for row in checked.rows:
        if row.failure:
            typer.echo(f"{row.cell_id} {row.cell}: failed: {row.failure}. Try it again: --retry-failed")
        for flag in row.flags:
            typer.echo(f"{row.cell_id} {row.cell} ({_energy(row)}): {flag.code}: {flag.reason}; {flag.cure}")
    flagged = sum(bool(row.flags or row.failure) for row in checked.rows)
    typer.echo(f"{checked.file}: {len(checked.rows)} rows, {flagged} to distrust")


def _energy(row: CheckedRow) -> str:
    if row.energy_j is None:
        return "no joules"
    half = "" if row.uncertainty is None else f" ± {row.uncertainty.half_width:.1%}"
    return f"{format_si(row.energy_j, 'J')}{half} a batch"
