"""How the command line ends in an error: a line on stderr, or with ``--json`` one JSON object there."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from infergy.errors import DEBUG, DataError, InfergyError, UsageError

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


def open_streams() -> None:
    """Make stdout and stderr take any text: closed ones lead nowhere, ASCII ones escape what they lack."""
    for name in ("stdout", "stderr"):
        stream: Any = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 (it stays open to the end)
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def close_streams() -> None:
    """Let go of what cannot be written: Python would try again at its end, and say so."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def take_debug(arguments: Sequence[str]) -> tuple[list[str], bool]:
    """The arguments without ``--debug``, and whether it is among them; what follows ``--`` is another program's."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    return [*(word for word in arguments[:end] if word != DEBUG), *arguments[end:]], DEBUG in arguments[:end]


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


def as_file_error(error: OSError) -> InfergyError | None:
    """The error of a file by its name, or of an output that takes no more, which has none; None for another."""
    if isinstance(error.filename, str):
        return DataError.not_readable(Path(error.filename), error, "Name another file, or change its permissions")
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
        return None
    return UsageError(
        f"the output cannot be written ({error.strerror}). Free some space, or write elsewhere",
        code="file-not-writable",
        path="stdout",
        reason=error.strerror,
    )


def show_error(error: InfergyError, arguments: Sequence[str]) -> None:
    """Print an error to stderr, which may be full or closed too."""
    text = f"error: {error}"
    if asks_json(arguments):
        from infergy.records.codec import to_json

        facts = ErrorFacts(code=error.code, message=str(error), exit_code=error.exit_code, fields=error.fields)
        text = json.dumps({"schema": ERROR_SCHEMA} | to_json(ErrorReport(error=facts)), default=str)
    with contextlib.suppress(OSError):
        typer.echo(text, err=True)


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
