"""Python processes that infergy starts: none runs Python files of the working folder.

Else a ``json.py`` there, of anyone who may write to that folder, would run with the rights of the person who measures.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ENDING = (signal.SIGTERM, signal.SIGHUP)
ROOT = Path(__file__).absolute().parents[1]
_RUN = (
    "import sys, os, typing, runpy; root, module = sys.argv[1:3]; del sys.argv[1:3]; sys.path.insert(0, root); "
    "import infergy; sys.path.append(sys.path.pop(0)); runpy.run_module(module, run_name='__main__', alter_sys=True)"
)
"""Run a module of the package at a path; only the package itself is looked for there first."""


def python_command(module: str) -> list[str]:
    """What runs a module of this package as `python -m` does, wherever it was found, without the working folder."""
    return [sys.executable, "-P", "-c", _RUN, str(ROOT), module]


class EndedError(BaseException):
    """This process was asked to end, by one of `ENDING`; no `Exception`, as an interruption by Ctrl-C is none."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


def end_by_exception() -> None:
    """Let SIGTERM, and SIGHUP unless `nohup` ignores it, end what runs as Ctrl-C does: files and processes are closed.

    Once: what comes while they are closed is ignored.
    """

    def end(number: int, _: Any) -> None:
        for each in ENDING:
            signal.signal(each, signal.SIG_IGN)
        raise EndedError(number)

    for number in ENDING:
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, end)


@contextmanager
def safe_path() -> Iterator[None]:
    """Processes that `multiprocessing` starts in this block leave the working folder out too."""
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONSAFEPATH"]
        else:
            os.environ["PYTHONSAFEPATH"] = before
