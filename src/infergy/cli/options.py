"""Options that several verbs share: dataclasses whose fields are options of each verb that names them."""

from __future__ import annotations

import inspect
import math
import typing
from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infergy.cli.output import reading_notes
from infergy.errors import UsageError
from infergy.units import parse_duration
from infergy.workload import Bins, Columns, TaskOptions
from infergy.workload.bins import BIN_NAMES, PAPER, POWERS_OF_TWO, Histogram, edges_of
from infergy.workload.formats import UNITS_S
from infergy.workload.tasks import is_task

if TYPE_CHECKING:
    from infergy.workload import Requests, Trace
    from infergy.workload.requests import Sample

OPTION = "option"
"""Key of a field's metadata: its option."""
LARGEST = 1e18
"""Of any number on the command line."""

_TRACE = (
    "A shipped trace (azure-conv-2023, azure-code-2023, burstgpt-synthetic), a task (task:translation, "
    "task:generation, task:classification, task:summarisation), a CSV (.gz too), JSONL or Parquet file, or a URL of "
    "Parquet (s3://…)."
)
TraceArg = Annotated[str, typer.Argument(metavar="TRACE", help=_TRACE)]
TracesArg = Annotated[list[str], typer.Argument(metavar="TRACE", help=_TRACE)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object, in SI units")]
ExplainOption = Annotated[bool, typer.Option("--explain", help="Also print how each figure was obtained, and notes")]
SimulateOption = Annotated[
    bool, typer.Option("--simulate", help="Use a simulated GPU; results are marked and say nothing about real ones")
]
MeterOption = Annotated[
    str, typer.Option("--meter", help="nvml, a plug-in such as zeus-gpu, or the URL of an exporter (watch --export)")
]
RequestLogOption = Annotated[
    Path | None,
    typer.Option("--request-log", help="Write the energy of each request here: JSON lines, OpenTelemetry's names"),
]
AllowSimulatedOption = Annotated[
    bool, typer.Option("--allow-simulated", help="Use rows of a simulated GPU; they say nothing about real ones")
]


def option(help: str, *names: str, default: Any = None, **settings: Any) -> Any:  # noqa: A002
    """An option of a verb, as the default of its parameter or of a field of a group; else it is called as these."""
    return field(default=default, metadata={OPTION: typer.Option(*names, help=help, **settings)})


def flag(help: str, name: str) -> Any:  # noqa: A002
    """An option without a value, which is off by default."""
    return option(help, name, default=False)


def argument(help: str, metavar: str | None = None, default: Any = MISSING) -> Any:  # noqa: A002
    """What a verb is given without an option."""
    return field(default=default, metadata={OPTION: typer.Argument(metavar=metavar, help=help)})


def make_group(help: str) -> typer.Typer:  # noqa: A002
    """A verb of several words."""
    settings = {"help_option_names": ["-h", "--help"]}
    return typer.Typer(help=help, no_args_is_help=True, rich_markup_mode=None, context_settings=settings)


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """A command as typer reads it: each `option` an option, each dataclass the options that its fields are."""
    hints = typing.get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        if name in groups:
            inner = typing.get_type_hints(groups[name], include_extras=True)
            parameters += [_parameter(one.name, inner[one.name], one) for one in fields(groups[name])]
        else:
            parameters.append(_parameter(name, hints[name], parameter.default))

    def run(**values: Any) -> None:
        for name, value in values.items():
            for number in value if isinstance(value, (list, tuple)) else [value]:
                if isinstance(number, (int, float)) and not abs(number) <= LARGEST:
                    raise UsageError.bad_value(f"--{name.replace('_', '-')}", number, "a finite number, below 1e18")
        made = {
            name: group(**{one.name: values.pop(one.name) for one in fields(group)}) for name, group in groups.items()
        }
        from infergy.cli.output import printable_streams

        with printable_streams():
            command(**values, **made)

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    # typer reads the annotations of the function itself where it finds them.
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    vars(run)["__signature__"] = inspect.Signature(parameters)
    return run


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    if isinstance(default, Field):
        annotation = Annotated[annotation, default.metadata[OPTION]] if OPTION in default.metadata else annotation
        default = inspect.Parameter.empty if default.default is MISSING else default.default
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def typed_options(context: typer.Context) -> dict[str, str]:
    """The options and arguments that stand on the command line: the longest spelling of each, by parameter."""
    return {
        parameter.name: max(parameter.opts, key=len)
        for parameter in context.command.params
        if parameter.name and getattr(context.get_parameter_source(parameter.name), "name", "") == "COMMANDLINE"
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceFormat:
    """How a trace is read: its format, the names of its columns, and the lengths of a task."""

    format: str | None = option("Format of the log, as docs/logs.md lists them [default: recognised from its columns]")
    input_column: str | None = option("Column of input tokens, cached ones included; a.b names a nested one, a+b a sum")
    output_column: str | None = option("Column of output tokens, or a sum")
    time_column: str | None = option("Column of arrivals")
    cached_column: str | None = option("Column of input tokens found in a prefix cache: no prefill for them")
    requests_column: str | None = option("Column of how many requests a row sums up: it is spread over them")
    time_unit: str | None = option("Unit of numeric arrivals: s, ms, us, ns, d [default: the format's, or recognised]")
    bad_rows: str | None = option("Share of rows that may be unreadable: they are left out [default: 0.1%]")
    requests: int | None = option("Number of requests [default: all; of a task 1024]", min=1)
    seed: int | None = option("Seed of a task's lengths, and of random arrivals [default: 0]")
    tokenizer: str | None = option(
        "Count the texts of a log, or of a task (needs datasets and a network), with this Hugging Face tokenizer "
        "[default: lengths of a task drawn by the published moments]"
    )

    def reading(self, requests: int | None, *, of_task: bool = True) -> dict[str, Any]:
        """Options for `infergy.workload.open_trace`; `requests` is how many a task makes.

        Raises:
            UsageError: No such time unit, or a share or number of requests out of range.
        """
        if self.time_unit is not None and self.time_unit not in UNITS_S:
            raise UsageError.unknown("time unit", self.time_unit, UNITS_S, code="unknown-name", option="--time-unit")
        columns = Columns(
            input=self.input_column,
            output=self.output_column,
            time=self.time_column,
            cached=self.cached_column,
            requests=self.requests_column,
            time_unit_s=None if self.time_unit is None else UNITS_S[self.time_unit],
        )
        # With random arrivals the seed is theirs.
        seed = None if getattr(self, "rate", None) is not None and not of_task else self.seed
        given = {"requests": requests, "seed": seed, "tokenizer": self.tokenizer if of_task else None}
        task: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        found: dict[str, Any] = {"format": self.format, "columns": None if columns == Columns() else columns}
        found |= {"task": TaskOptions(**task) if task else None}
        if self.tokenizer is not None and not of_task:
            found |= {"tokenizer": self.tokenizer}
        if self.bad_rows is not None:
            found |= {"bad_rows": fraction("--bad-rows", self.bad_rows, least=0.0)}
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceSelection(TraceFormat):
    """How a trace is read, and which of its requests are served."""

    start: str | None = option(
        "Start of the window: 10m is minute 10 after the first request", "--from", metavar="TIME"
    )
    duration: str | None = option(
        "Wall time of arrivals to serve: 75s at --speed 3 are 225 s of it", "--for", metavar="TIME"
    )
    speed: float | None = option("Factor on the request rate: 2 is twice as fast [default: 1]")
    rate: float | None = option(
        "Mean requests per second: faster or slower arrivals, or random ones (Poisson) of a trace without"
    )
    all_at_once: bool = flag("All requests arrive at once, whatever times the trace has", "--all-at-once")

    def open(self, source: str) -> Sample:
        """The requests; windows of them where a trace is longer than can be simulated whole.

        Raises:
            UsageError: An option out of range.
            DataError: The source cannot be read.
        """
        from infergy.estimates.estimate import sample_of

        return sample_of(self.choose(source))

    def choose(self, source: str) -> Requests | Trace | Histogram:
        """A trace or a histogram, or the requests of it that the options choose.

        Raises:
            UsageError: An option out of range, or one that the source does not have.
            DataError: The source cannot be read.
        """
        opened = self.opened(source)
        is_part = self._is_window or self.all_at_once or (self.requests is not None and not is_task(source))
        return self.part_of(self.all_of(opened), source) if is_part else opened

    def opened(self, source: str) -> Trace | Histogram:
        """A trace, unread, or a histogram.

        Raises:
            UsageError: An option without effect, or out of range.
            DataError: The source cannot be read.
        """
        # Readers are loaded late: the help of the command line needs none.
        from infergy.workload import open_requests

        if self.all_at_once and self.speed is not None and self.duration is None:
            given = {"--all-at-once": True, "--speed": self.speed}
            raise UsageError.conflict(given, "no time passes: leave --speed out, or give --for TIME")
        if self.rate is not None and (self.all_at_once or self.speed is not None):
            given = {"--rate": self.rate, "--all-at-once" if self.all_at_once else "--speed": self.speed or True}
            raise UsageError.conflict(given, "one of them says when requests come: leave the other out")
        of_task = is_task(source)
        opened = open_requests(source, **self.reading(self.requests if of_task else None, of_task=of_task))
        if not isinstance(opened, Histogram):
            for note in reading_notes(opened.time_unit, opened.assumed):
                typer.echo(f"{opened.source}: {note}", err=True)
        return opened

    def all_of(self, opened: Trace | Histogram) -> Requests:
        """All requests of a source, without times where no option needs them."""
        from infergy.workload import requests_of_histogram

        if isinstance(opened, Histogram):
            return requests_of_histogram(opened)
        return opened.requests(arrivals=self._is_window or not self.all_at_once)

    def part_of(self, requests: Requests, source: str) -> Requests:
        """The requests that the options choose of all: the window before the count.

        Raises:
            UsageError: An option out of range, or no arrivals for a window.
        """
        speed = self.speed_of(requests)
        if self.rate is not None and requests.arrival_s is None:
            requests = requests.at_random(self.rate, self.seed or 0)
        if self._is_window:
            requests = requests.window(
                start_s=0.0 if self.start is None else seconds_of("--from", self.start),
                duration_s=None if self.duration is None else seconds_of("--for", self.duration),
                speed=speed,
            )
        if self.requests is not None and not is_task(source):
            requests = requests.slice(0, self.requests)
        return requests.all_at_once() if self.all_at_once else requests

    def speed_of(self, requests: Requests) -> float:
        """The factor on the rate of all requests of a trace.

        Raises:
            UsageError: A rate out of range.
        """
        if self.rate is not None:
            return requests.speed_for(self.rate)
        return 1.0 if self.speed is None else self.speed

    @property
    def _is_window(self) -> bool:
        return (self.start, self.duration, self.speed, self.rate) != (None, None, None, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class BinSelection:
    """Over which bins of lengths requests are counted."""

    bins: str | None = option("powers-of-two (no request is left out), or paper (arXiv 2504.17674)")
    input_edges: str | None = option("Upper edges of input bins: 32,128,512")
    output_edges: str | None = option("Upper edges of output bins: 8,64,512")

    @property
    def given(self) -> dict[str, object]:
        """The options that were given, and their values."""
        values = {"--bins": self.bins, "--input-edges": self.input_edges, "--output-edges": self.output_edges}
        return {name: value for name, value in values.items() if value is not None}

    def is_of(self, bins: Bins) -> bool:
        """Whether these are the bins that the options mean, or they mean none."""
        grid = self.grid()
        if grid is None:
            return self.bins is None or bins.name == POWERS_OF_TWO
        return (grid.input_edges, grid.output_edges) == (bins.input_edges, bins.output_edges)

    def grid(self) -> Bins | None:
        """The bins that the options mean; None for powers of two up to the longest request.

        Raises:
            UsageError: No bins of that name, edges out of range, or edges of one axis alone.
        """
        if self.bins not in (None, *BIN_NAMES):
            hint = "Your own: --input-edges and --output-edges"
            raise UsageError.unknown("bins", self.bins, BIN_NAMES, hint, code="unknown-name", option="--bins")
        base = Bins.paper() if self.bins == PAPER else None
        texts = {"input_edges": self.input_edges, "output_edges": self.output_edges}
        edges = {axis: tuple(edges_of(text)) for axis, text in texts.items() if text is not None}
        if not edges:
            return base
        for axis in texts.keys() - edges.keys():
            if base is None:
                missing = f"--{axis.replace('_', '-')}"
                message = f"edges of one axis alone: give {missing} too, or --bins paper for the paper's on that axis"
                raise UsageError(message, code="option-missing", option=missing)
            edges[axis] = getattr(base, axis)
        return Bins(name="custom", **edges)


def seconds_of(option: str, text: str) -> float:
    """``50ms``, ``0.05s``, ``5m``, ``1h``, or plain seconds.

    Raises:
        UsageError: It is no time.
    """
    try:
        return parse_duration(text)
    except ValueError as error:
        raise UsageError.bad_value(option, text, "a time, as 50ms, 0.05s or 5m") from error


def fraction(option: str, text: str, *, least: float = 1e-9) -> float:
    """``2%`` or ``0.02``: a share of at least `least` and below one.

    Raises:
        UsageError: It is no such share.
    """
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = math.nan
    if 1 <= value < 100 and not text.endswith("%"):
        raise UsageError.bad_value(option, text, f"a share below 1, or percent: {option} {text}%")
    if not least <= value < 1:
        expected = f"a share {'of 0' if least == 0 else 'above 0'} to below 100 %, as {option} 2% or 0.02"
        raise UsageError.bad_value(option, text, expected)
    return value
