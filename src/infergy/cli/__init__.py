"""The door: one module for each verb; each parses, calls the library and prints."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import typer

from infergy.cli.failure import run_app, show_error
from infergy.cli.retired import Verbs
from infergy.errors import InfergyError
from infergy.version import VERSION

EXIT_INTERRUPTED = 130
GARBAGE = 300_000
"""New objects after which cycles of them are looked for: modules and numbers have few, and looking takes time."""
SUMMARY = "What LLM inference costs in joules: measured, modelled from a request trace, and reduced."
COMMAND = "measure-command"
"""What `infergy measure … -- COMMAND` becomes; not in the help."""

SERVED = ("estimate", "recommend", "waterfall", "report", "trace", "bins")
MEASURED = ("measure", "replay", "calibrate", "merge", "check", "compare", "verify", "phases", "timeline")
KNOWN = ("plan", "grid", "gpus", "models", "schema", "doctor")
VERBS = (*SERVED, *MEASURED, *KNOWN, "next", "study", "table", COMMAND)
HOMES = {"plan": "measure", "grid": "measure", "gpus": "hardware", "models": "hardware", COMMAND: "command"}
"""The module in this package of a verb that has another name than its verb."""
FUNCTIONS = {"next": "next_cells", COMMAND: "measure_command"}


def make_app(verb: str | None = None) -> typer.Typer:
    """The command line; with `verb` that one alone, so that the modules of the others are not loaded."""
    made = typer.Typer(
        name="infergy",
        cls=Verbs,
        help=SUMMARY,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        rich_markup_mode=None,
        epilog="Exit codes: 0 good, 1 our bug, 2 usage, 3 something missing, 4 some cells failed, 5 a gate failed, "
        "130 interrupted. Try: infergy estimate azure-conv-2023",
    )
    made.callback(invoke_without_command=True, help=SUMMARY)(_version_or_help)
    for name in VERBS if verb is None else (verb,):
        run = getattr(import_module(f"infergy.cli.{HOMES.get(name, name)}"), FUNCTIONS.get(name, name))
        if isinstance(run, typer.Typer):
            made.add_typer(run, name=name)
        else:
            made.command(name, hidden=name == COMMAND)(run)
    return made


def __getattr__(name: str) -> Any:
    """Make `app`, with all verbs, on its first use."""
    if name != "app":
        raise AttributeError(f"module 'infergy.cli' has no attribute {name!r}")
    globals()[name] = made = make_app()
    return made


def route(arguments: Sequence[str]) -> list[str]:
    """The command line with ``measure … -- COMMAND`` sent to the verb that runs commands."""
    if arguments[:1] == ["measure"] and "--" in arguments:
        return [COMMAND, *arguments[1:]]
    return list(arguments)


def _version_or_help(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", help="Print the version and end."),
) -> None:
    if version:
        typer.echo(f"infergy {VERSION}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)


def main() -> None:
    """Run the command line; errors that a user can act on end without a traceback."""
    gc.set_threshold(GARBAGE)
    arguments = route(sys.argv[1:])
    try:
        run_app(make_app(arguments[0] if arguments and arguments[0] in VERBS else None), arguments)
    except InfergyError as error:
        show_error(error, arguments)
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
