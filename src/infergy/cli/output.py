"""What verbs print: tables, notes, JSON, pictures; and the notes that several of them share."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import typer

from infergy.errors import MissingError, UsageError
from infergy.files import write_file
from infergy.units import count_of, printable

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

    from infergy.estimates.estimate import RunEstimate, ServerEstimate, TraceFacts
    from infergy.workload.clock import TimeUnit

WIDTH = 100
"""Columns of sentences, and of tables that can be divided."""
WIDTH_OF_FILES = 120
UNBOUNDED = 10_000
"""Columns of a terminal that every table fits."""
UNKNOWN, NONE = "unknown", "-"
PICTURES = (".svg", ".png", ".html")
DRAW_HELP = f"Draw it into a file: {', '.join(PICTURES)}"


class _Printable:
    """A stream that shows all text as `printable`; Rich, whose tables and bars control the terminal, writes past it."""

    buffer = None

    def __init__(self, stream: Any) -> None:
        self.rich_proxied_file = stream

    def write(self, text: str) -> int:
        """Write it, what would control a terminal escaped."""
        return int(self.rich_proxied_file.write(printable(text)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)


@contextmanager
def printable_streams() -> Iterator[None]:
    """Let no name of a model, a file or a request control the terminal, whatever is printed in this block."""
    out: Any = _Printable(sys.stdout)
    err: Any = _Printable(sys.stderr)
    with redirect_stdout(out), redirect_stderr(err):
        yield


def plain(cell: RenderableType) -> RenderableType:
    """A cell of a table: text is shown as it is, without markup, and printable."""
    from rich.text import Text

    return Text(printable(cell)) if isinstance(cell, str) else cell


def stdout_console() -> Console:
    """A console on stdout; a pipe or a file is wider than a terminal may be."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else WIDTH_OF_FILES, highlight=False)


def make_table(
    heads: Sequence[str],
    rows: Iterable[Sequence[RenderableType] | None],
    *,
    left: int = 1,
    title: str | None = None,
) -> Table:
    """A table whose first `left` columns are text, the others right-aligned figures, or remarks under an empty head.

    Args:
        heads: Names of the columns.
        rows: Cells of each row; None draws a line.
        left: How many columns are text.
        title: Stands above it.
    """
    from rich import box
    from rich.cells import cell_len
    from rich.table import Table

    kept = list(rows)
    shown: Any = None if title is None else plain(title)
    table = Table(title=shown, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for number, head in enumerate(heads):
        if number >= left and not head:
            table.add_column(plain(head))
            continue
        column = (head, *(str(row[number]) for row in kept if row is not None))
        width = max(cell_len(line) for cell in column for line in cell.split("\n"))
        table.add_column(plain(head), justify="left" if number < left else "right", no_wrap=True, min_width=width)
    for row in kept:
        if row is None:
            table.add_section()
        else:
            table.add_row(*map(plain, row))
    return table


def print_table(
    heads: Sequence[str],
    rows: Iterable[Sequence[RenderableType] | None],
    *,
    left: int = 1,
    title: str | None = None,
) -> None:
    """Print a table as `make_table` makes it; where the terminal is too narrow it breaks lines: no name is cut."""
    show_table(make_table(heads, rows, left=left, title=title))


def show_table(table: Table) -> None:
    """Print a table in full."""
    console = stdout_console()
    least = console.measure(table, options=console.options.update(max_width=UNBOUNDED)).minimum
    console.width = max(console.width, least)
    console.print(table)


def print_figures(
    columns: Sequence[tuple[str, Any]], figures: Sequence[tuple[str, Callable[[Any], str]]], head: str = ""
) -> None:
    """Print figures of several things side by side, in as many tables as fit the width of a page.

    Args:
        columns: Each with its label.
        figures: What a row shows: a name, and the text of a column.
        head: Above the names.
    """
    console = stdout_console()
    unbounded = console.options.update(max_width=UNBOUNDED)
    limit = min(console.width, WIDTH)

    def table_of(part: Sequence[tuple[str, Any]]) -> Table:
        rows = [(name, *(figure(column) for _, column in part)) for name, figure in figures]
        return make_table((head, *(label for label, _ in part)), rows)

    first = 0
    for last in range(1, len(columns) + 1):
        is_last = last == len(columns)
        if is_last or console.measure(table_of(columns[first : last + 1]), options=unbounded).maximum > limit:
            show_table(table_of(columns[first:last]))
            first = last


def print_notes(lines: Iterable[str], *, width: int = WIDTH) -> None:
    """Print sentences as a list."""
    for text in lines:
        typer.echo(fill(text, width, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False))


ANSWERS_SCHEMA = "infergy.answers/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What a verb prints of several traces or runs, in their order; each has the schema of one."""

    traces: tuple[Any, ...]
    schema: str = ANSWERS_SCHEMA


def print_json(answers: Sequence[Any]) -> None:
    """One object for one answer; for several traces a list of them under ``traces``."""
    from infergy.records.codec import to_json

    content = answers[0] if len(answers) == 1 else Answers(traces=tuple(answers))
    typer.echo(json.dumps(to_json(content), indent=1, allow_nan=False))


def check_picture(path: Path | None) -> None:
    """Reject a picture's name before anything is computed.

    Raises:
        UsageError: It ends in no known format.
    """
    if path is not None and path.suffix not in PICTURES:
        raise UsageError.bad_value("-o", str(path), f"a name that ends in one of {', '.join(PICTURES)}")


def save_picture(draw: Callable[[], Any], path: Path) -> None:
    """Write what `draw` makes, an altair chart, in the format of the file's name.

    Raises:
        MissingError: The extra ``report`` is not installed.
        UsageError: The file cannot be written.
    """
    try:
        from infergy.report.html import SIGNS
        from infergy.report.html import draw as draw_file

        content = draw_file(draw().to_dict(), path.suffix)
    except ImportError as error:
        packages = "altair and vl-convert-python"
        raise MissingError.package("drawing", packages, "pip install 'infergy[report]'", str(error)) from error
    write_file(path, content, f"picture ({path.suffix})", SIGNS[path.suffix])


def title_of(trace: TraceFacts, estimate: ServerEstimate) -> str:
    """A trace and how it is served."""
    how = "as they arrive" if estimate.served is not None else "all at once"
    return f"{trace.source}: {count_of(trace.requests, 'request')} {how}"


def reading_notes(unit: TimeUnit | None, assumed: Sequence[str]) -> list[str]:
    """How a log is read where its names do not say it: what is assumed, in which unit arrivals are, and why."""
    if unit is None:
        return list(assumed)
    why = {
        "dates": "in which they are dates",
        "name": "as the column's name says",
        "rate": "by the rate of requests",
        "format": "as the format says, though requests come more seldom then than a server sees them",
        "default": "since neither their size nor a format says otherwise",
    }
    name = "days since 1899-12-30" if unit.unit == "d" else unit.unit
    return [*assumed, f"arrivals in {unit.column!r} are read as {name}, {why[unit.basis]}; another unit: --time-unit"]


def trace_notes(trace: TraceFacts) -> list[str]:
    """Rows of a log that are not served as they are."""
    lines = {
        "Rows without input or output tokens, or that cannot be read, left out": trace.set_aside,
        "Rows that are further parts of an answer, of which the last counts": trace.stream_chunks,
        "Requests out of order, sorted by arrival": trace.out_of_order,
        "Requests without a session, or no later than the one that they follow, each served as a session of its own": (
            trace.without_session
        ),
        "Requests without hashes of their blocks, served as if they shared no prefix": trace.without_blocks,
    }
    return [f"{what}: {count:,}." for what, count in lines.items() if count]


def rejected_notes(runs: Mapping[str, RunEstimate]) -> list[str]:
    """Requests that runs, by label, reject: one sentence for those that reject equally many."""
    alike: dict[str, list[str]] = {}
    for label, run in runs.items():
        if run.rejected_requests:
            verb = "is" if run.rejected_requests == 1 else "are"
            sentence = (
                f"{run.rejected_requests:,} of {count_of(run.requests, 'request')} {verb} longer than the context or "
                "the KV cache, and rejected."
            )
            alike.setdefault(sentence, []).append(label)
    is_common = len(runs) > 1 and any(len(labels) == len(runs) for labels in alike.values())
    return [f"{'every server' if is_common else ', '.join(labels)}: {note}" for note, labels in alike.items()]


def run_notes(estimates: Sequence[ServerEstimate], advice: str = "infergy next") -> list[str]:
    """What was assumed, queues without limit, rejected requests, and runs without a measured step; each once."""
    from infergy.records.engine_setup import WEIGHT_ONLY

    lines = []
    for one in estimates:
        lines += [
            f"{one.engine}: {run.overload}."
            for run in (one.served, one.offline)
            if run is not None and run.overload is not None
        ]
        lines += [f"{note}." for note in one.notes]
        lines += rejected_notes({one.engine: one.run})
        if one.run.measured_share == 0:
            more = "" if one.precision in WEIGHT_ONLY else f" One measured cell narrows it: {advice}."
            lines.append(
                f"{one.engine}: no step of {one.model} in {one.precision} on {one.gpu} was measured at these batch "
                f"sizes and lengths: by datasheet and what other steps showed.{more}"
            )
    return list(dict.fromkeys(lines))
