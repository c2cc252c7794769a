"""Tables of a report's page, and their Markdown: environments, flags, cells that are not measured yet."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from infergy.records import RANDOM_WEIGHTS, Cell
from infergy.records.agreement import MUST, SHOULD, WEIGHTS, key_of
from infergy.report.points import Point, group_by
from infergy.units import printable

ENVIRONMENT_HEAD = (
    "Engine config", "Rows", "GPU", "GPU UUID", "Limit", "Driver", "Packages", "Weights", "Measured",
)  # fmt: skip
FLAGS_HEAD = ("Flag", "Rows", "For example", "What to do")
GAPS_HEAD = ("Grid", "GPU", "Engine config", "Measured", "Not measured")

_SPECIAL = re.compile(r"([\\`*_\[\]|~])")
_ENTITIES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table with its title, and a note above it; instead of an empty table, only the note."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def escape(text: str) -> str:
    """`text` so that Markdown shows it as it is, on one line: no markup, no HTML, no new cell."""
    return _SPECIAL.sub(r"\\\1", " ".join(printable(text).split()).translate(_ENTITIES))


def table_lines(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """The lines of a table in Markdown."""
    yield f"| {' | '.join(map(escape, head))} |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield f"| {' | '.join(map(escape, row))} |"


def environment_table(points: Iterable[Point]) -> Table:
    """A line for each environment of each engine config."""
    groups = group_by(points, lambda point: (point.label, point.model, key_of(point.row, (WEIGHTS, *MUST, *SHOULD))))
    return Table(title="Environment", head=ENVIRONMENT_HEAD, rows=tuple(map(_environment, groups.values())))


def _environment(group: Sequence[Point]) -> tuple[str, ...]:
    environment = group[0].row.environment
    limits = {gpu.power_limit_w for gpu in environment.gpus if gpu.power_limit_w is not None}
    days = sorted(point.row.measured_utc[:10] for point in group)
    packages = sorted(environment.packages.items())
    return (
        f"{group[0].label} {group[0].model}",
        f"{len(group)}",
        group[0].gpu,
        ", ".join(gpu.uuid for gpu in environment.gpus) or "unknown",
        ", ".join(f"{limit:g} W" for limit in sorted(limits)) or "unknown",
        environment.driver or "unknown",
        ", ".join(f"{name} {version}" for name, version in packages) or "unknown",
        environment.weights,
        " to ".join(dict.fromkeys((days[0], days[-1]))),
    )


def flags_table(points: Iterable[Point]) -> Table:
    """A line for each flag, with its number of rows and one of them."""
    cases: dict[str, list[tuple[str, str]]] = {}
    for point in points:
        for flag in point.flags:
            cases.setdefault(flag.code, []).append((f"{point.row.cell}: {flag.reason}", flag.fix))
    rows = tuple((code, f"{len(found)}", *found[0]) for code, found in sorted(cases.items()))
    note = "Flags never change a number; docs/flags.md explains them." if rows else "No row is flagged."
    return Table(title="Flags", head=FLAGS_HEAD, rows=rows, note=note)


def gaps_table(gaps: Iterable[tuple[str, ...]]) -> Table:
    """What `find_gaps` found in all grids of a study."""
    rows = tuple(gaps)
    note = "" if rows else "Every cell of its grids is measured."
    return Table(title="Not measured yet", head=GAPS_HEAD, rows=rows, note=note)


def _config_name(cell: Cell) -> str:
    weights = "" if cell.setup.weights == RANDOM_WEIGHTS else f", weights {cell.setup.weights}"
    return f"{cell.label} {cell.setup.model}{weights}"


def find_gaps(
    grid: str, gpu: str, cells: Iterable[Cell], measured: Collection[str], failed: Mapping[str, str]
) -> Iterator[tuple[str, ...]]:
    """A line under `GAPS_HEAD` for each engine config of a grid with cells that have no row.

    Args:
        grid: Its name.
        gpu: Title of the GPU.
        cells: Of the whole grid.
        measured: Ids of cells that have a row.
        failed: Codes of the failures of other cells, by id.
    """
    for name, asked in sorted(group_by(cells, _config_name).items()):
        missing = [cell for cell in asked if cell.id not in measured]
        missing.sort(key=lambda cell: (cell.load.input_tokens, cell.load.output_tokens, cell.load.batch))
        # By lengths, the batches of each: ``512→64 × 1, 8``; a replay has no common lengths.
        batches: dict[str, list[str]] = {}
        for cell in missing:
            lengths = "" if cell.load.is_replay else f"{cell.load.input_tokens:,}→{cell.load.output_tokens:,} "
            why = f" ({failed[cell.id].replace('_', ' ')})" if cell.id in failed else ""
            batches.setdefault(lengths, []).append(f"{cell.load.batch:,}{why}")
        if missing:
            words = "; ".join(f"{lengths}× {', '.join(found)}" for lengths, found in batches.items())
            yield grid, gpu, name, f"{len(asked) - len(missing)} of {len(asked)}", words
