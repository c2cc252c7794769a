"""Options that every verb reading a trace shares, and what they mean."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infergy.errors import UsageError
from infergy.units import parse_duration
from infergy.workload import FORMAT_NAMES, Bins, Columns, TaskOptions
from infergy.workload.bins import BIN_NAMES, PAPER, Histogram, edges_of
from infergy.workload.tasks import is_task

if TYPE_CHECKING:
    from rich.console import Console

    from infergy.workload import Requests

_UNITS_S = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
_WIDTH_OF_FILES = 120

_SOURCE_HELP = (
    "A shipped trace (azure-conv-2023, azure-code-2023), a task (task:translation, task:generation, "
    "task:classification, task:summarisation), a CSV (.gz too), JSONL or Parquet file, or a URL of Parquet (s3://…)."
)
SourceArg = Annotated[str, typer.Argument(metavar="SOURCE", help=_SOURCE_HELP)]
SourcesArg = Annotated[list[str], typer.Argument(metavar="SOURCE", help=_SOURCE_HELP)]
FormatOption = Annotated[
    str | None,
    typer.Option("--format", help=f"{', '.join(FORMAT_NAMES)} [default: recognised from header or first record]"),
]
InputColumnOption = Annotated[
    str | None,
    typer.Option("--input-column", help="Column of input tokens; usage.prompt_tokens goes into nested records"),
]
OutputColumnOption = Annotated[str | None, typer.Option("--output-column", help="Column of output tokens")]
TimeColumnOption = Annotated[str | None, typer.Option("--time-column", help="Column of arrivals")]
TimeUnitOption = Annotated[
    str | None, typer.Option("--time-unit", help="Unit of a numeric time column: s, ms, us, ns [default: the format's]")
]
CachedColumnOption = Annotated[
    str | None,
    typer.Option("--cached-column", help="Column of input tokens that a prefix cache served: they cost no prefill"),
]
BinsOption = Annotated[
    str,
    typer.Option("--bins", help="powers-of-two leaves nobody out; paper is arXiv 2504.17674's"),
]
InputEdgesOption = Annotated[
    str | None, typer.Option("--input-edges", help="Upper edges of your own input bins: 32,128,512")
]
OutputEdgesOption = Annotated[
    str | None, typer.Option("--output-edges", help="Upper edges of your own output bins: 8,64,512")
]
RequestsOption = Annotated[
    int | None, typer.Option("--requests", help="How many requests of a task [default: the study's 1024]")
]
SeedOption = Annotated[int | None, typer.Option("--seed", help="Seed of a task's lengths [default: 0]")]
TokenizerOption = Annotated[
    str | None,
    typer.Option(
        "--tokenizer",
        help="Count the real texts of a task with this Hugging Face tokenizer (needs datasets and a network) "
        "[default: lengths drawn by the published moments]",
    ),
]
FromOption = Annotated[
    str | None,
    typer.Option(
        "--from", metavar="TIME", help="Where in the trace to begin: 10m is minute 10 after its first request"
    ),
]
ForOption = Annotated[
    str | None,
    typer.Option(
        "--for", metavar="TIME", help="Wall time of arrivals to serve: 75s at --speed 3 are 225 s of the trace"
    ),
]
SpeedOption = Annotated[
    float | None, typer.Option("--speed", help="Requests arrive so many times as fast [default: 1]")
]
FirstOption = Annotated[int | None, typer.Option("--first", min=0, help="How many requests to skip")]
CountOption = Annotated[
    int | None,
    typer.Option("--requests", min=1, help="How many requests to serve [default: all; of a task the study's 1024]"),
]
AllAtOnceOption = Annotated[
    bool, typer.Option("--all-at-once", help="All requests arrive at once, whatever times the trace has")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables")]


def columns_of(
    input_column: str | None,
    output_column: str | None,
    time_column: str | None,
    cached_column: str | None,
    time_unit: str | None = None,
) -> Columns | None:
    """The columns that the options name; None if they name none.

    Raises:
        UsageError: No such time unit.
    """
    if time_unit is not None and time_unit not in _UNITS_S:
        raise UsageError.unknown("time unit", time_unit, _UNITS_S, code="unknown-name", option="--time-unit")
    columns = Columns(
        input=input_column,
        output=output_column,
        time=time_column,
        cached=cached_column,
        time_unit_s=None if time_unit is None else _UNITS_S[time_unit],
    )
    return None if columns == Columns() else columns


def task_of(requests: int | None, seed: int | None, tokenizer: str | None) -> TaskOptions | None:
    """What the options say of a task; None if they say nothing.

    Raises:
        UsageError: A number of requests that cannot be.
    """
    given = {"requests": requests, "seed": seed, "tokenizer": tokenizer}
    asked: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    return TaskOptions(**asked) if asked else None


def bins_of(name: str, input_edges: str | None, output_edges: str | None) -> Bins | None:
    """The bins that the options mean; None for powers of two up to the longest request.

    Raises:
        UsageError: No bins of that name, edges that cannot be, or edges of one axis alone.
    """
    if name not in BIN_NAMES:
        raise UsageError.unknown(
            "bins", name, BIN_NAMES, "Your own: --input-edges and --output-edges", code="unknown-name", option="--bins"
        )
    base = Bins.paper() if name == PAPER else None
    if input_edges is None and output_edges is None:
        return base
    if base is None and (input_edges is None or output_edges is None):
        missing = "--input-edges" if input_edges is None else "--output-edges"
        message = f"edges of one axis alone: give {missing} too, or --bins paper for the paper's on that axis"
        raise UsageError(message, code="option-missing", option=missing)
    given = [None if text is None else tuple(edges_of(text)) for text in (input_edges, output_edges)]
    return Bins(
        name="custom",
        input_edges=given[0] if given[0] is not None else _edges(base, "input"),
        output_edges=given[1] if given[1] is not None else _edges(base, "output"),
    )


def _edges(base: Bins | None, axis: str) -> tuple[int, ...]:
    assert base is not None
    return base.input_edges if axis == "input" else base.output_edges


def print_json(answers: Sequence[Any]) -> None:
    """One object for one trace; for several a list of them under ``traces``."""
    from infergy.records.codec import to_json

    content = [to_json(answer) for answer in answers]
    typer.echo(json.dumps(content[0] if len(content) == 1 else {"traces": content}, indent=1, allow_nan=False))


def stdout_console() -> Console:
    """A console on stdout; a pipe or a file gets lines wide enough that no table is cut."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else _WIDTH_OF_FILES, highlight=False)


def seconds_of(option: str, text: str) -> float:
    """``50ms``, ``0.05s``, ``5m``, ``1h``, or plain seconds.

    Raises:
        UsageError: It is no time.
    """
    try:
        return parse_duration(text)
    except ValueError as error:
        raise UsageError.bad_value(option, text, "a time, as 50ms, 0.05s or 5m") from error


def open_requests_options(
    source: str,
    *,
    format: str | None = None,  # noqa: A002
    input_column: str | None = None,
    output_column: str | None = None,
    time_column: str | None = None,
    cached_column: str | None = None,
    time_unit: str | None = None,
    start: str | None = None,
    duration: str | None = None,
    speed: float | None = None,
    first: int | None = None,
    requests: int | None = None,
    seed: int | None = None,
    tokenizer: str | None = None,
    all_at_once: bool = False,
) -> Requests:
    """The requests that the shared options choose: of a trace, a task or a histogram; the window before the count.

    Args:
        source: Name, path or URL.
        format: `FormatOption`.
        input_column: `InputColumnOption`; the other columns likewise.
        output_column: `OutputColumnOption`.
        time_column: `TimeColumnOption`.
        cached_column: `CachedColumnOption`.
        time_unit: `TimeUnitOption`.
        start: `FromOption`.
        duration: `ForOption`.
        speed: `SpeedOption`.
        first: `FirstOption`.
        requests: `CountOption`; of a task, how many are made.
        seed: `SeedOption`.
        tokenizer: `TokenizerOption`.
        all_at_once: `AllAtOnceOption`.

    Raises:
        UsageError: An option out of range, or one that the source does not have.
        DataError: The source cannot be read.
    """
    # Names of readers are loaded late: the help of the command line needs none.
    from infergy.workload import open_requests, requests_of_histogram

    made = requests if is_task(source) and not first else None
    opened = open_requests(
        source,
        format=format,
        columns=columns_of(input_column, output_column, time_column, cached_column, time_unit),
        task=task_of(made, seed, tokenizer),
    )
    is_window = (start, duration, speed) != (None, None, None)
    if isinstance(opened, Histogram):
        found = requests_of_histogram(opened)
    else:
        found = opened.requests(arrivals=is_window or not all_at_once)
    if is_window:
        found = found.window(
            start_s=0.0 if start is None else seconds_of("--from", start),
            duration_s=None if duration is None else seconds_of("--for", duration),
            speed=1.0 if speed is None else speed,
        )
    if first or (requests is not None and made is None):
        found = found.slice(first or 0, requests)
    return found.all_at_once() if all_at_once else found
