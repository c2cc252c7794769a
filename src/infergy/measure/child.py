"""The child process of a sweep, as seen from its parent: started, listened to without polling, and ended for good.

It leads a session of its own, so that all that an engine starts can be ended with it. It holds one end of a pipe whose
other end its parent alone has: when that closes, however the parent ended, it ends itself and all of that session.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from infergy.engines.weights import remove_folders
from infergy.errors import EngineError, UsageError
from infergy.files import open_beside
from infergy.processes import python_command
from infergy.records import Plan
from infergy.records.codec import to_json
from infergy.records.store import StoreWriter
from infergy.units import format_duration

READ_BYTES = 65536
END_S = 60.0
"""How long a child that has finished may take to end."""


class HangError(EngineError):
    """A child has reported nothing for longer than its work can take."""


def log_path(store: Path) -> Path:
    """The log of the engines of a store's sweeps."""
    return store.with_name(store.name + ".log")


def _nameless(content: bytes) -> IO[bytes]:
    try:
        file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by the caller
        file.write(content)
        file.seek(0)
    except OSError as error:
        raise UsageError.not_writable(Path(tempfile.gettempdir()), error, "folder, as TMPDIR,") from error
    return file


@dataclass(slots=True)
class Child:
    """One running child.

    Attributes:
        alive: While this end of a pipe is open, the child knows that its parent lives.
        log_start: Where in the log its own output begins.
        patience_s: How long it may report nothing; its listener sets it to what the current work may take.
    """

    process: subprocess.Popen[bytes]
    pipe: int
    alive: int
    log: Path
    log_start: int
    patience_s: float

    @classmethod
    def start(
        cls, plan: Plan, store: StoreWriter, cells: Sequence[str], *, simulate: bool, meter: str, patience_s: float
    ) -> Child:
        """Start a child that measures `cells` of a plan into a store, with the meter of that name."""
        path = log_path(store.path)
        read_fd, write_fd = os.pipe()
        parent_fd, alive_fd = os.pipe()
        job = {
            "plan": to_json(plan),
            "store": str(store.path),
            "store_fd": store.fileno(),
            "cells": list(cells),
            "simulate": simulate,
            "meter": meter,
            "events_fd": write_fd,
            "parent_fd": parent_fd,
        }
        # The job has no name, so nothing is left however processes end; and a child need not read it for us to go on.
        with os.fdopen(open_beside(path), "ab") as log, _nameless(json.dumps(job).encode()) as stdin:
            start = os.fstat(log.fileno()).st_size
            process = subprocess.Popen(
                python_command("infergy.measure.worker"),
                stdin=stdin,
                stdout=log,
                stderr=log,
                pass_fds=(write_fd, parent_fd, store.fileno()),
                env=os.environ | {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"},
                start_new_session=True,
            )
        os.close(write_fd)
        os.close(parent_fd)
        return cls(process, read_fd, alive_fd, path, start, patience_s)

    def events(self) -> Iterator[dict[str, Any]]:
        """What the child reports, until it has finished or its end of the pipe is closed.

        Raises:
            HangError: It reported nothing for `patience_s` seconds.
        """
        rest = b""
        while True:
            if not select.select([self.pipe], [], [], self.patience_s)[0]:
                message = f"reported nothing for {format_duration(self.patience_s)} and was ended; see {self.log}"
                raise HangError(message, code="engine-hung", log=str(self.log), waited_s=self.patience_s)
            chunk = os.read(self.pipe, READ_BYTES)
            if not chunk:
                return
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                event = json.loads(line)
                if event["event"] == "bye":
                    # What an engine leaves behind may hold the pipe open: do not wait for its end.
                    return
                yield event

    def end(self) -> int:
        """Wait for the child's end; returns its exit code, negative for a signal.

        Raises:
            HangError: It does not end.
        """
        try:
            return self.process.wait(END_S)
        except subprocess.TimeoutExpired as error:
            message = f"did not end within {END_S:g} s after its last cell; see {self.log}"
            raise HangError(message, code="engine-hung", log=str(self.log), waited_s=END_S) from error

    def kill(self) -> None:
        """End the child and all that it has started, if anything of it is left; may be called twice."""
        if self.pipe >= 0:
            os.close(self.pipe)
            os.close(self.alive)
            self.pipe = -1
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        remove_folders(self.process.pid)

    def last_words(self) -> str:
        """The last line that it or its engine printed, at most 300 characters."""
        text = self.log.read_bytes()[self.log_start :].decode("utf-8", errors="replace")
        lines = [line for line in text.splitlines() if line.strip()]
        return lines[-1].strip()[:300] if lines else "none"
