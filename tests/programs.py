"""Programs that tests start on loopback, and wait for."""

from __future__ import annotations

import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from waiting import wait_until


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def is_up(url: str) -> bool:
    """Whether a page is there."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


@contextmanager
def running(command: Sequence[str], log: Path, url: str) -> Iterator[subprocess.Popen[bytes]]:
    """A program whose `url` answers; ended afterwards."""
    with log.open("wb") as file, subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT) as process:
        try:
            wait_until(lambda: is_up(url) or process.poll() is not None)
            assert process.poll() is None, log.read_text(encoding="utf-8", errors="replace")[-4000:]
            yield process
        finally:
            process.terminate()
