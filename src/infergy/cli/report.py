"""`infergy report`: figures, tables and claims in one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from infergy.cli.options import AllowSimulatedOption, TraceSelection, with_groups
from infergy.errors import MissingError, UsageError

PAPER = "paper"
DEFAULT_FOLDER = Path("infergy-report")


@with_groups
def report(
    sources: Annotated[
        list[str], typer.Argument(metavar="SOURCE", help="paper for all that ships, or stores of measurements (.jsonl)")
    ],
    trace: TraceSelection,
    output: Annotated[Path, typer.Option("-o", "--output-folder", help="Where to write")] = DEFAULT_FOLDER,
    traces: Annotated[
        list[str] | None, typer.Option("--trace", help="Estimate this trace from the stores; repeat for more")
    ] = None,
    mixed: Annotated[
        str | None,
        typer.Option(
            "--mixed",
            help="Rows of environments that must not be mixed in one figure: split into series, or refuse "
            "[default: refuse; paper: split]",
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Of the estimated traces [default: the one that was measured]")
    ] = None,
    gpu: Annotated[
        str | None, typer.Option("--gpu", "-g", help="Of the estimated traces [default: the one that was measured]")
    ] = None,
    allow_simulated: AllowSimulatedOption = False,
) -> None:
    """Write one page that needs no network, the same as Markdown, and each figure as PNG and SVG.

    Example: infergy report paper -o infergy-report
    """
    if PAPER in sources and len(sources) > 1:
        message = "paper stands for all that ships, alone: infergy report paper, or infergy report FILE …"
        raise UsageError(message, code="bad-usage")
    try:
        from infergy.measure.studies import study_cells
        from infergy.report.build import build_report
        from infergy.report.page import write_report

        built = build_report(
            [] if sources == [PAPER] else [Path(source) for source in sources],
            traces=[trace.open(source) for source in traces or ()],
            mixed=mixed,
            model=model,
            gpu=gpu,
            allow_simulated=allow_simulated,
            planned=study_cells if sources == [PAPER] else None,
        )
        paths = write_report(built, output)
    except ImportError as error:
        raise MissingError.package(
            "drawing", "altair and vl-convert", "pip install 'infergy[report]'", str(error)
        ) from error
    for path in paths:
        typer.echo(str(path))
    if built.missing:
        typer.echo(f"not measured yet: {', '.join(study.name for study in built.missing)}", err=True)
