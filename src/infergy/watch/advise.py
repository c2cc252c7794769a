"""What `infergy recommend` would change at the present load: asked in a process of its own, at low priority."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from infergy.processes import python_command
from infergy.watch.live import Advice
from infergy.watch.record import recorded_line
from infergy.watch.span import Reading, enough_of

FIRST_S, AGAIN_S, LONGEST_S = 60.0, 600.0, 900.0
"""Seconds of load before it is asked, from one question to the next, and of an answer at most."""


class Adviser:
    """Asks once in a while, and has the last answer."""

    def __init__(self) -> None:
        self._advice: Advice | None = None
        self._asked_s = -AGAIN_S
        self._child: subprocess.Popen[bytes] | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="infergy-")
        self._answers = [Path(self._folder.name) / name for name in ("answer.json", "errors.txt")]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End a question that is not answered."""
        self._stop()
        self._folder.cleanup()

    def look(self, readings: Iterable[Reading], options: Sequence[str]) -> Advice | None:
        """The last answer; asks where it is time to.

        Args:
            readings: Of which the last ones are the load.
            options: Of `infergy recommend`: the server that serves now; none as long as it is not known.
        """
        now_s = time.monotonic()
        if self._child is not None:
            if self._child.poll() is not None:
                self._advice, self._child = _read(*(path.read_text("utf-8", "replace") for path in self._answers)), None
            elif now_s - self._asked_s > LONGEST_S:
                self._stop()
        elif options and now_s - self._asked_s >= AGAIN_S and (span := enough_of(readings, FIRST_S)) is not None:
            self._asked_s, path = now_s, Path(self._folder.name) / "load.jsonl"
            path.write_text(recorded_line(span.readings, time.time()) + "\n", encoding="utf-8")
            words = [*python_command("infergy"), "recommend", str(path), *options, "--keep-outputs", "--json"]
            # Into files: a pipe that is not read meanwhile takes 64 kB.
            with self._answers[0].open("wb") as answer, self._answers[1].open("wb") as errors:
                self._child = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=answer, stderr=errors)
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, self._child.pid, 19)
        return self._advice

    def _stop(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            self._child = None


def _read(text: str, errors: str) -> Advice:
    """The answer of `infergy recommend --json`."""
    try:
        found: dict[str, Any] = json.loads(text)
        label = found["recommended"]
        if label is None or label == found["present"]:
            return Advice(command=None, saving=None, reason=found["reason"])
        chosen = next(one for one in found["configurations"] if one["label"] == label)
        return Advice(command=" ".join(chosen["command"]), saving=chosen["saving"]["share"], reason=found["reason"])
    except (ValueError, KeyError, TypeError, StopIteration):
        with suppress(ValueError, LookupError, TypeError):
            errors = json.loads(errors.strip().splitlines()[-1])["error"]["message"]
        return Advice(command=None, saving=None, reason=errors.strip()[:500] or "infergy recommend gave no answer")
