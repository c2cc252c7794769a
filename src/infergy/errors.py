"""Errors a user can act on; each says what failed, what was expected, and what to type next.

InfergyError
├── UsageError      exit 2   an option, a name or a grid that cannot be meant
├── DataError       exit 2   a file whose content is not what it should be
├── MissingError    exit 3   something that must be installed or present (a GPU, NVML, an engine)
├── MeterError      exit 3   the instrument answered wrongly
└── EngineError     exit 4   an engine could not do the work it was given

Programs read an error's `code` and `fields`, people its message: docs/errors.md lists the codes.
"""

from __future__ import annotations

import difflib
import json
import platform
import shlex
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import starmap
from pathlib import Path
from typing import Any, ClassVar, Self

from infergy import VERSION
from infergy.units import printable, without_secrets

DEBUG = "--debug"
"""The option that shows the stack of an error in infergy itself."""

LONGEST_SHOWN = 500
"""Characters of a foreign error, and of a command line, in the report of a bug."""

LONGEST_MESSAGE = 4000
"""Characters; in the middle of longer ones some are left out."""

EXIT_SOME_FAILED = 4
"""Exit code of a command that measured, where some cells failed."""


class InfergyError(Exception):
    """Base of all errors that infergy raises on purpose.

    Its message is printable, whatever names it holds, and neither it nor its fields hold passwords of URLs.

    Attributes:
        code: What happened, in kebab case; stable between releases.
        fields: The values that the message names, such as ``path``, ``option``, ``value`` and ``expected``.
        exit_code: The process's exit status.
    """

    exit_code: ClassVar[int] = 1
    default_code: ClassVar[str] = "failed"
    """Where none is given, by meters and engines of other packages: infergy itself always gives one."""

    def __init__(self, message: str, *, code: str | None = None, **fields: Any) -> None:
        message = printable(without_secrets(message))
        if len(message) > LONGEST_MESSAGE:
            # A name or a value of a file may have any length.
            message = f"{message[: LONGEST_MESSAGE - 1000]} … {message[-900:]}"
        super().__init__(message)
        self.code = code or self.default_code
        self.fields: dict[str, Any] = {
            name: without_secrets(value) if isinstance(value, str) else value for name, value in fields.items()
        }

    def __reduce__(self) -> tuple[Callable[..., InfergyError], tuple[str]]:
        return partial(type(self), code=self.code, **self.fields), (str(self),)

    @classmethod
    def unknown(
        cls, what: str, name: str, known: Iterable[str], hint: str = "", *, code: str = "unknown-name", **fields: Any
    ) -> Self:
        """Say that `name` is no known `what`, the nearest known names, and then `hint`.

        Its fields are `fields` and ``kind`` (`what`), ``name``, ``known`` and ``nearest``.
        """
        names = sorted(known)
        near = difflib.get_close_matches(name.lower(), [n.lower() for n in names], n=3, cutoff=0.5)
        nearest = [name for close in near for name in names if name.lower() == close]
        tail = f"did you mean {', '.join(nearest)}?" if nearest else f"known: {', '.join(names) or 'none'}."
        message = f"unknown {what} {name!r}; {tail}{' ' + hint if hint else ''}"
        return cls(message, code=code, **{"kind": what, "name": name, "known": names, "nearest": nearest} | fields)

    @classmethod
    def bug(cls, error: BaseException, command: Sequence[str]) -> Self:
        """Say that an error was not foreseen: what it is, where, and the command."""
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "infergy" in frame.filename]
        place = f"{Path(frames[-1].filename).name} line {frames[-1].lineno}" if frames else "unknown"
        words = shlex.join(command)[:LONGEST_SHOWN]
        reason = f"{type(error).__name__}: {error}"[:LONGEST_SHOWN]
        versions = f"infergy {VERSION}, Python {platform.python_version()}, {platform.system()}"
        message = (
            f"this is an error in infergy, not in what you typed: {reason} ({place})\n  command: {words}\n"
            f"  version: {versions}\nPlease report these lines, with the file if you can. The stack: {DEBUG}"
        )
        return cls(message, code="bug", command=words, version=versions, place=place, reason=reason)

    def within(self, place: str, /, **fields: Any) -> Self:
        """The same error with ``place: `` before its message, and `fields` added to its own."""
        return type(self)(f"{place}: {self}", code=self.code, **self.fields | fields)


class UsageError(InfergyError):
    """An option, a name or a grid that cannot be meant."""

    exit_code = 2
    default_code = "usage"

    @classmethod
    def bad_value(cls, option: str, value: object, expected: str, **fields: Any) -> Self:
        """An option, or a field of a grid, whose value cannot be meant."""
        shown = f"{value:g}" if isinstance(value, float) else f"{value!r:.300}"
        message = f"{option} is {shown}; expected {expected}"
        return cls(message, code="bad-value", option=option, value=value, expected=expected, **fields)

    @classmethod
    def conflict(cls, options: Mapping[str, object], why: str) -> Self:
        """Options, or fields of a grid, each good alone, that exclude each other with these values."""
        message = f"{' and '.join(starmap(_assign, options.items()))}: {why}"
        return cls(message, code="options-conflict", options=dict(options))

    @classmethod
    def engine_lacks(cls, engine: str, option: str, value: object, why: str) -> Self:
        """What an engine cannot do, whatever else is asked of it."""
        message = f"{_assign(option, value)}: {why}"
        return cls(message, code="engine-lacks", engine=engine, option=option, value=value)

    @classmethod
    def not_writable(cls, path: Path, error: Exception, kind: str = "file") -> Self:
        """A file or folder that cannot be written."""
        reason = getattr(error, "strerror", None) or str(error)
        message = f"{path}: cannot be written ({reason}). Name another {kind} with -o"
        return cls(message, code="file-not-writable", path=str(path), reason=reason)


class DataError(InfergyError):
    """A file whose content is not what it should be."""

    exit_code = 2
    default_code = "bad-data"

    @classmethod
    def not_found(cls, path: Path | str, hint: str) -> Self:
        """A file that is not there; `hint` says where one comes from."""
        return cls(f"{path}: no such file. {hint}", code="file-not-found", path=str(path))

    @classmethod
    def not_readable(cls, path: Path, error: Exception, hint: str = "") -> Self:
        """A file that is there and cannot be read."""
        reason = getattr(error, "strerror", None) or str(error)
        message = f"{path}: cannot be read ({reason}){hint and f'. {hint}'}"
        return cls(message, code="file-not-readable", path=str(path), reason=reason)

    @classmethod
    def bad_syntax(cls, path: Path, form: str, error: Exception, hint: str, line: int | None = None) -> Self:
        """A file, or a line of it, that is not of the form that it should be: JSON, TOML."""
        place = path if line is None else f"{path} line {line}"
        message = f"{place}: not {form} ({error}). {hint}"
        return cls(message, code="bad-syntax", path=str(path), form=form, line=line, reason=str(error))

    @classmethod
    def bad_field(cls, place: object, key: str, value: object, expected: str) -> Self:
        """A key of a file whose value cannot be meant; `place` names the file and the table."""
        message = f"{place}: {key} is {value!r:.80}; expected {expected}"
        return cls(message, code="bad-field", place=str(place), key=key, value=value, expected=expected)

    @classmethod
    def missing_field(cls, place: object, keys: Sequence[str], hint: str) -> Self:
        """Keys that a file lacks."""
        message = f"{place} lacks {', '.join(map(repr, keys))}; {hint}"
        return cls(message, code="missing-field", place=str(place), keys=list(keys))

    @classmethod
    def unknown_field(cls, place: object, key: str, known: Iterable[str], hint: str = "") -> Self:
        """A key of a file that means nothing there."""
        return cls.unknown("key", key, known, hint, code="unknown-field", key=key).within(str(place), place=str(place))


class MissingError(InfergyError):
    """Something that must be installed or present is not."""

    exit_code = 3
    default_code = "missing"

    @classmethod
    def package(cls, needed_by: str, package: str, install: str, hint: str = "") -> Self:
        """A Python package that is not installed; `install` is what to type."""
        message = f"{needed_by} needs {package}: {install}{hint and f'. {hint}'}"
        return cls(message, code="package-missing", package=package, install=install)


class MeterError(InfergyError):
    """The instrument answered wrongly."""

    exit_code = 3
    default_code = "meter-failed"


class GpuLostError(MeterError):
    """A GPU fell off the bus or must be reset: it answers nothing any more, in no process."""

    default_code = "gpu-lost"


class EngineError(InfergyError):
    """An engine could not do the work it was given."""

    exit_code = 4
    default_code = "engine-failed"


def _assign(option: str, value: object) -> str:
    """An option as a person types it: ``--meter zeus``, ``compiled = true``, ``arrivals = "poisson4"``."""
    if option.startswith("-"):
        return option if value is True else f"{option} {value}"
    return f"{option} = {json.dumps(value)}"
