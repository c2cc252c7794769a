"""Errors a user can act on; each says what failed, what was expected, and what to type next.

InfergyError
├── UsageError      exit 2   an option, a name or a grid that cannot be meant
├── DataError       exit 2   a file whose content is not what it should be
├── MissingError    exit 3   something that must be installed or present (a GPU, NVML, an engine)
├── MeterError      exit 3   the instrument answered wrongly
└── EngineError     exit 4   an engine could not do the work it was given
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import ClassVar


class InfergyError(Exception):
    """Base of all errors that infergy raises on purpose; `exit_code` is the process's exit status."""

    exit_code: ClassVar[int] = 1


class UsageError(InfergyError):
    """An option, a name or a grid that cannot be meant."""

    exit_code = 2

    @classmethod
    def unknown(cls, what: str, name: str, known: Iterable[str], hint: str = "") -> UsageError:
        """Say that `name` is no known `what`, the nearest known names, and then `hint`."""
        names = sorted(known)
        near = difflib.get_close_matches(name.lower(), [n.lower() for n in names], n=3, cutoff=0.5)
        nearest = [name for close in near for name in names if name.lower() == close]
        tail = f"did you mean {', '.join(nearest)}?" if nearest else f"known: {', '.join(names) or 'none'}."
        return cls(f"unknown {what} {name!r}; {tail}{' ' + hint if hint else ''}")


class DataError(InfergyError):
    """A file whose content is not what it should be."""

    exit_code = 2


class MissingError(InfergyError):
    """Something that must be installed or present is not."""

    exit_code = 3


class MeterError(InfergyError):
    """The instrument answered wrongly."""

    exit_code = 3


class GpuLostError(MeterError):
    """A GPU fell off the bus or must be reset: it answers nothing any more, in no process."""


class EngineError(InfergyError):
    """An engine could not do the work it was given."""

    exit_code = 4
