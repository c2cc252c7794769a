"""A process that is killed in a call to its store, done by half or not at all. For processes that tests start."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

calls = 0


def die_in_call(fatal: int, once: str | None = None) -> None:
    """Kill this process in the store's call numbered `fatal`, from 1; 0: only count them, in `calls`.

    Calls are writes, syncs, truncations, links and unlinks. Where `once` names a file, only the first of all processes
    that gets so far dies; it leaves that file.
    """

    def step(act: Callable[[], Any], half: Callable[[], Any] | None = None) -> Any:
        global calls
        calls += 1
        if calls == fatal and not (once and os.path.exists(once)):
            if once:
                os.close(os.open(once, os.O_CREAT))
            if half is not None:
                half()
            os.kill(os.getpid(), signal.SIGKILL)
        return act()

    class Dying:
        """A file whose calls are counted; what is written goes to the kernel at once."""

        def __init__(self, file: Any) -> None:
            self._file = file

        def write(self, data: bytes) -> None:
            step(lambda: self._write(data), lambda: self._write(data[: len(data) // 2]))

        def truncate(self, size: int) -> None:
            step(lambda: self._file.truncate(size))

        def _write(self, data: bytes) -> None:
            self._file.write(data)
            self._file.flush()

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

        def __enter__(self) -> Dying:
            return self

        def __exit__(self, *error: object) -> None:
            self._file.close()

    real_open, real_fsync, real_link, real_unlink = Path.open, os.fsync, os.link, Path.unlink

    def open_dying(path: Path, mode: str = "r", *rest: Any, **named: Any) -> Any:
        file = real_open(path, mode, *rest, **named)
        # The log of the engines is no part of the store.
        return Dying(file) if mode[0] in "ax" and path.suffix != ".log" else file

    patched: Any = Path
    patched.open = open_dying
    patched.unlink = lambda path, **named: step(lambda: real_unlink(path, **named))
    os.fsync = lambda fd: step(lambda: real_fsync(fd))
    os.link = lambda *names: step(lambda: real_link(*names))
