"""A process that is killed in a call to its store, done by half or not at all. For processes that tests start."""

from __future__ import annotations

import os
import signal
import tempfile
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

    # Where temporary files go is found out by writing one, which is no call to a store.
    tempfile.gettempdir()
    real_write, real_truncate, real_fsync = os.write, os.ftruncate, os.fsync
    real_link, real_unlink = os.link, Path.unlink

    def half(fd: int, data: bytes) -> int:
        return real_write(fd, bytes(data)[: len(data) // 2])

    patched: Any = Path
    patched.unlink = lambda path, **named: step(lambda: real_unlink(path, **named))
    os.write = lambda fd, data: step(lambda: real_write(fd, data), lambda: half(fd, bytes(data)))
    os.ftruncate = lambda fd, size: step(lambda: real_truncate(fd, size))
    os.fsync = lambda fd: step(lambda: real_fsync(fd))
    os.link = lambda *names: step(lambda: real_link(*names))
