"""How a trace is named on the command line: the options that `trace`, `bins` and `estimate` share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from infergy.errors import UsageError

if TYPE_CHECKING:
    from infergy.workload import Bins, Columns

SourcesArg = Annotated[
    list[str],
    typer.Argument(
        metavar="TRACE...",
        help="Shipped traces (azure-conv-2023, azure-code-2023) or CSV, JSONL and Parquet files.",
        show_default=False,
    ),
]
FormatOption = Annotated[
    str | None,
    typer.Option("--format", "-f", help="azure, burstgpt, mooncake, openai, responses, flat [default: recognised]"),
]
InputColumnOption = Annotated[
    str | None, typer.Option("--input-column", help="Column of input tokens; dots go into nested records")
]
OutputColumnOption = Annotated[str | None, typer.Option("--output-column", help="Column of output tokens")]
TimeColumnOption = Annotated[
    str | None, typer.Option("--time-column", help="Column of arrival times, in seconds or as timestamps")
]
CachedColumnOption = Annotated[
    str | None, typer.Option("--cached-column", help="Column of input tokens that a prefix cache served")
]
BinsOption = Annotated[
    str, typer.Option("--bins", help="powers-of-two (nobody is left out) or paper (arXiv 2504.17674)")
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, in SI units")]


def columns_of(input: str | None, output: str | None, time: str | None, cached: str | None) -> Columns | None:  # noqa: A002
    """The columns that options name; None if they name none.

    Raises:
        UsageError: Only one of input and output is named.
    """
    if not any((input, output, time, cached)):
        return None
    if not (input and output):
        raise UsageError("name both --input-column and --output-column (and, if the log has them, --time-column, …)")
    from infergy.workload import Columns

    return Columns(input=input, output=output, time=time, cached=cached)


def bins_of(name: str) -> Bins | None:
    """The bins called `name`; None stands for powers of two up to the longest request.

    Raises:
        UsageError: No bins are called so.
    """
    if name not in ("powers-of-two", "paper"):
        raise UsageError.unknown("bins", name, ("powers-of-two", "paper"))
    from infergy.workload import Bins

    return Bins.paper() if name == "paper" else None
