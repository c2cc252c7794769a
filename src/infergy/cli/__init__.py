"""The door: one module for each verb; each parses, calls the library and prints."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Any

import typer

from infergy import VERSION
from infergy.cli.failure import as_file_error, close_streams, open_streams, run_app, show_error, take_debug
from infergy.cli.verbs import ALL, SUMMARY, Verbs
from infergy.errors import DEBUG, InfergyError
from infergy.processes import EndedError, end_by_exception

EXIT_INTERRUPTED = 130
GARBAGE = 300_000
"""New objects after which cycles of them are looked for: modules and numbers have few, and looking takes time."""
HOMES = {
    "list": "lists:catalog",
    "next": "next:next_cells",
    "report": "show:report",
    "run": "command:run_command",
}
"""Module and function in this package of a verb, where they are not both named as the verb."""


def make_app(verbs: Iterable[str] = ALL) -> typer.Typer:
    """The command line with some verbs: the modules of the others are not loaded, and help lists all the same."""
    made = typer.Typer(
        name="infergy",
        cls=Verbs,
        help=SUMMARY,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        rich_markup_mode=None,
        epilog="Exit codes: 0 success, 1 bug in infergy, 2 usage, 3 something missing, 4 some cells failed, 5 a gate "
        "failed, 130 interrupted. Example: infergy estimate azure-conv-2023",
    )
    made.callback(invoke_without_command=True, help=SUMMARY)(_version_or_help)
    for name in verbs:
        module, _, function = HOMES.get(name, f"{name}:{name}").partition(":")
        command = getattr(import_module(f"infergy.cli.{module}"), function)
        if isinstance(command, typer.Typer):
            made.add_typer(command, name=name)
        else:
            # What follows the program's name in `infergy run` is the program's.
            made.command(name, context_settings={"allow_interspersed_args": name != "run"})(command)
    return made


def __getattr__(name: str) -> Any:
    """Make `app`, with all verbs, on its first use."""
    if name != "app":
        raise AttributeError(f"module 'infergy.cli' has no attribute {name!r}")
    globals()[name] = made = make_app()
    return made


def _version_or_help(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", help="Print the version and exit."),
    _debug: bool = typer.Option(False, DEBUG, help="Show the stack of an error in infergy itself."),
) -> None:
    if version:
        typer.echo(f"infergy {VERSION}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)


def main() -> None:
    """Run the command line; errors that a user can act on end without a traceback, others with a report of them."""
    gc.set_threshold(GARBAGE)
    open_streams()
    end_by_exception()
    arguments, is_debugged = take_debug(sys.argv[1:])
    code: Any
    try:
        _run(arguments)
    except InfergyError as error:
        show_error(error, arguments)
        code = error.exit_code
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    except EndedError as end:
        _report_interruption(f"ended by {end}")
        code = end.exit_code
    except SystemExit as end:
        # Rich and click, which write, make an exit of status 1 of a broken pipe.
        code = 0 if isinstance(end.__context__, BrokenPipeError) else end.code
    except BrokenPipeError:
        code = 0
    except BaseException as error:
        # A panic of a library in Rust is no Exception.
        if is_debugged:
            raise
        show_error(InfergyError.bug(error, ["infergy", *arguments]), arguments)
        code = 1
    # typer takes an interruption for an exit of this status, and says nothing.
    if code == EXIT_INTERRUPTED:
        _report_interruption()
    close_streams()
    sys.exit(code)


def _run(arguments: Sequence[str]) -> None:
    """Run the verb, and write all that it prints.

    Raises:
        UsageError: The output takes no more.
        DataError: A file cannot be read.
    """
    try:
        try:
            run_app(make_app([verb for verb in arguments[:1] if verb in ALL]), arguments)
        finally:
            sys.stdout.flush()
    except OSError as error:
        if (ours := as_file_error(error)) is not None:
            raise ours from error
        raise


def _report_interruption(how: str = "interrupted") -> None:
    typer.echo(f"{how}; what was finished is kept", err=True)
