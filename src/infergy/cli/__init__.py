"""The door: one module for each verb; each parses, calls the library and prints."""

from __future__ import annotations

import os
import sys

import typer

from infergy.cli.bins import bins
from infergy.cli.calibrate import calibrate
from infergy.cli.check import check
from infergy.cli.command import VERB, measure_command, route
from infergy.cli.compare import compare
from infergy.cli.doctor import doctor
from infergy.cli.estimate import estimate
from infergy.cli.hardware import gpus, models
from infergy.cli.measure import grid, measure, plan
from infergy.cli.merge import merge
from infergy.cli.next import next_cells
from infergy.cli.phases import phases
from infergy.cli.recommend import recommend
from infergy.cli.replay import replay
from infergy.cli.report import report
from infergy.cli.retired import Verbs
from infergy.cli.schema import schema
from infergy.cli.study import study
from infergy.cli.table import table
from infergy.cli.timeline import timeline
from infergy.cli.trace import trace
from infergy.cli.verify import verify
from infergy.cli.waterfall import waterfall
from infergy.errors import InfergyError
from infergy.version import VERSION

EXIT_INTERRUPTED = 130

app = typer.Typer(
    name="infergy",
    cls=Verbs,
    help="What LLM inference costs in joules: measured, modelled from a request trace, and reduced.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
    epilog="Exit codes: 0 good, 1 our bug, 2 usage, 3 something missing, 4 some cells failed, 5 a gate failed, "
    "130 interrupted. Try: infergy estimate azure-conv-2023",
)

MEASURED = (measure, replay, calibrate, merge, check, compare, verify, phases, timeline)
KNOWN = (plan, grid, gpus, models, schema, doctor)
for verb in (estimate, recommend, waterfall, report, trace, bins, *MEASURED, *KNOWN):
    app.command()(verb)
app.command("next")(next_cells)
app.add_typer(study, name="study")
app.add_typer(table, name="table")
app.command(VERB, hidden=True)(measure_command)


@app.callback(invoke_without_command=True)
def version_or_help(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", help="Print the version and end."),
) -> None:
    """What LLM inference costs in joules: measured, modelled from a request trace, and reduced."""
    if version:
        typer.echo(f"infergy {VERSION}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)


def main() -> None:
    """Run the command line; errors that a user can act on end without a traceback."""
    try:
        app(route(sys.argv[1:]))
    except InfergyError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        _tell_interrupted()
        sys.exit(EXIT_INTERRUPTED)
    except SystemExit as end:
        # typer takes an interruption for an exit of this status, and says nothing.
        if end.code == EXIT_INTERRUPTED:
            _tell_interrupted()
        if _has_reader_left(end):
            sys.exit(0)
        raise


def _has_reader_left(end: SystemExit) -> bool:
    """Whether a command ended because nobody reads its output any more (``infergy … | head``).

    Rich and click, which write, make an exit of status 1 of a broken pipe; what is still buffered finds it here.
    """
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        is_broken = not end.code
    else:
        is_broken = isinstance(end.__context__, BrokenPipeError)
    if is_broken:
        # Python must not write the rest of its buffer at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return is_broken


def _tell_interrupted() -> None:
    typer.echo("interrupted; what was finished is kept", err=True)
