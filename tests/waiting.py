"""Waiting for what will come, however slow the machine: on a condition, never for a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

PATIENCE_S = 300.0
"""Only what will never come takes so long."""

LOOK_S = 0.01


def wait_until(is_so: Callable[[], object]) -> None:
    """Wait until `is_so`.

    Raises:
        AssertionError: It never was.
    """
    end_s = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < end_s, f"still not so after {PATIENCE_S:g} s"
        time.sleep(LOOK_S)


def is_running(pid: int) -> bool:
    """Whether a process lives; one that is dead and not buried does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in ("Z", "X")
