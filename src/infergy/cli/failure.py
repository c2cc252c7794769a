"""How the command line ends in an error: a line on stderr, or with ``--json`` one JSON object there."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import typer

from infergy.errors import InfergyError, UsageError

ERROR_SCHEMA = "infergy.error/1"

# typer's own base of all that is wrong with a command line, which it does not export.
PARSING_ERRORS: type[Exception] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorFacts:
    """An error: docs/errors.md lists codes and says what `fields` hold."""

    code: str
    message: str
    exit_code: int
    fields: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorReport:
    """What a failing verb with ``--json`` writes to stderr."""

    error: ErrorFacts


def run_app(app: typer.Typer, arguments: Sequence[str]) -> None:
    """Run the command line, which ends the process.

    Raises:
        UsageError: It asks for JSON, and typer cannot parse it: without ``--json`` typer itself says so.
    """
    if not asks_json(arguments):
        app(arguments)
    try:
        status = app(arguments, standalone_mode=False)
    except PARSING_ERRORS as error:
        raise _as_usage_error(error) from error
    sys.exit(status or 0)


def asks_json(arguments: Sequence[str]) -> bool:
    """Whether ``--json`` is among the verb's own options: what follows ``--`` is another program's."""
    return "--json" in arguments[: list(arguments).index("--") if "--" in arguments else None]


def show_error(error: InfergyError, arguments: Sequence[str]) -> None:
    """Print an error."""
    if not asks_json(arguments):
        typer.echo(f"error: {error}", err=True)
        return
    from infergy.records.codec import to_json

    facts = ErrorFacts(code=error.code, message=str(error), exit_code=error.exit_code, fields=error.fields)
    report = {"schema": ERROR_SCHEMA} | to_json(ErrorReport(error=facts))
    typer.echo(json.dumps(report, default=str), err=True)


def _as_usage_error(error: Any) -> UsageError:
    """An error of typer's parser as one of ours, with the same words."""
    message, kind = error.format_message(), type(error).__name__
    if kind == "NoSuchOption":
        nearest = list(error.possibilities or ())
        return UsageError(message, code="unknown-option", option=error.option_name, nearest=nearest)
    parameter = getattr(error, "param", None)
    if parameter is None:
        return UsageError(message, code="bad-usage")
    option = max(parameter.opts, key=len)
    if kind == "MissingParameter":
        return UsageError(message, code="option-missing", option=option)
    return UsageError(message, code="bad-value", option=option)
