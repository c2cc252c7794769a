"""What `infergy calibrate` keeps: a JSONL file, a line for each window of plain work on a GPU. Standard library only.

No model runs in these windows, so that what a GPU moves and computes in each is known exactly. The constants of the
physical model follow from this file alone: `infergy.cost.calibration`.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType

from infergy.errors import DataError, UsageError
from infergy.records.codec import from_json, to_json
from infergy.records.environment import Environment, GpuState
from infergy.records.flags import HARMFUL_SLOWDOWNS

CALIBRATION_WINDOW_SCHEMA = "infergy.calibration-window/1"

IDLE, COPY, PRODUCT, ATTENTION, LAUNCH, REDUCE = KINDS = ("idle", "copy", "product", "attention", "launch", "reduce")

WORDS_OF_LAUNCH = {"in a CUDA graph": True, "one by one": False}

FEWEST_S = 2.5
"""Below, the edges of a window weigh: an H200's counter ticks each 0.1 s."""

WIDEST = 0.1
"""Relative uncertainty of a window's joules, from the timestamps of its ticks, above which its weight is reduced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Work that is repeated through a window; counts are of one call.

    Attributes:
        name: What it is called in the file; a window of that name is measured once.
        kind: ``idle``, ``copy``, ``product``, ``attention``, ``launch`` or ``reduce``.
        sizes: Of a copy and a sum: bytes. Of a product: rows, and rows and columns of the weights. Of attention:
            sequences, tokens of context, heads, heads of the cache, width of a head. Of a launch: numbers of a kernel.
        dtype: Of the operands: ``bfloat16`` or ``fp8``.
        memory_bytes: Moved to and from the GPU's memory; 0 for what stays in its L2 cache.
        flops: Floating-point operations.
        launches: Kernels.
        copies: Operands are cycled over, so many of them that none is still in L2 when its turn comes.
        in_graph: Whether kernels are to be launched by a CUDA graph.
        gpus: GPUs that take part.
        link_bytes: What each GPU sends, and gets.
    """

    name: str
    kind: str
    sizes: tuple[int, ...] = ()
    dtype: str = "bfloat16"
    memory_bytes: float = 0.0
    flops: float = 0.0
    launches: float = 1.0
    copies: int = 1
    in_graph: bool = True
    gpus: int = 1
    link_bytes: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationWindow:
    """One window, or why there is none.

    Attributes:
        calls: How often the workload ran; 0 for an idle GPU.
        duration_s: From the first call to when the last one was done.
        energy_j: Energy of all GPUs in that time, idle power included; None where `reason` says why.
        low_j: What it was at least, and `high_j` at most, by the counter's ticks.
        energy_by_gpu_j: By UUID.
        before: State of each GPU before the work; `during` in the midst of it; `after` it.
        how: Which kernels did the work, and whether a CUDA graph launched them, in words.
        in_graph: Whether a CUDA graph launched them; None where nothing was launched, or only `how` of an old row says.
        reason: Why there is no window; None if there is one.
    """

    workload: Workload
    measured_utc: str
    simulated: bool
    calls: int
    duration_s: float
    energy_j: float | None
    low_j: float | None
    high_j: float | None
    environment: Environment
    energy_by_gpu_j: Mapping[str, float] = field(default_factory=dict)
    before: tuple[GpuState, ...] = ()
    during: tuple[GpuState, ...] = ()
    after: tuple[GpuState, ...] = ()
    how: str | None = None
    in_graph: bool | None = None
    reason: str | None = None
    schema: str = CALIBRATION_WINDOW_SCHEMA

    @property
    def is_whole(self) -> bool:
        """Whether there is a window."""
        return self.reason is None and self.energy_j is not None

    @property
    def call_s(self) -> float:
        """Seconds of a call."""
        return self.duration_s / max(1, self.calls)

    @property
    def power_w(self) -> float | None:
        """Mean watts of all GPUs; None without joules."""
        return None if self.energy_j is None or self.duration_s <= 0 else self.energy_j / self.duration_s

    @property
    def doubts(self) -> tuple[str, ...]:
        """Why to trust it less, in words; a power cap is no reason, since throttling is part of the model."""
        found = []
        states = (*self.before, *self.during, *self.after)
        harmful = sorted({reason for state in states for reason in state.slowdowns or ()} & HARMFUL_SLOWDOWNS)
        if harmful:
            found.append(f"clocks were lowered ({', '.join(harmful)})")
        # A sum over GPUs runs in processes of its own, beside that which measures.
        most = max((state.processes or 0 for state in states), default=0)
        if most > (1 if self.workload.gpus == 1 else 2):
            found.append("another process was on the GPU (see nvidia-smi)")
        if self.duration_s < FEWEST_S:
            found.append(f"it took {self.duration_s:.2g} s only: the edges weigh")
        if self.energy_j and self.low_j is not None and self.high_j is not None:
            doubt = (self.high_j - self.low_j) / 2 / self.energy_j
            if doubt > WIDEST:
                found.append(f"its energy is uncertain by ±{doubt:.0%}")
        return tuple(found)


def read_calibration_file(path: Path) -> tuple[CalibrationWindow, ...]:
    """All windows of a file, those that failed too; a half-written last line is passed over.

    Raises:
        DataError: The file is missing, foreign, or damaged anywhere but in its last line.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError.not_found(path, f"Measure one: infergy calibrate -o {path}") from error
    except OSError as error:
        raise DataError.not_readable(path, error) from error
    return _windows(path, content)[0]


def _windows(path: Path, content: bytes) -> tuple[tuple[CalibrationWindow, ...], int]:
    """The windows, and where the last whole line ends."""
    found, end = [], 0
    for number, line in enumerate(content.splitlines(keepends=True), start=1):
        place = f"{path} line {number}"
        if not line.endswith(b"\n"):
            break
        end += len(line)
        if not line.strip():
            continue
        try:
            data = json.loads(line)
        except ValueError as error:
            raise DataError.bad_syntax(path, "JSON", error, "Remove the line to use the rest", number) from error
        tag = data.get("schema") if isinstance(data, Mapping) else None
        if tag != CALIBRATION_WINDOW_SCHEMA:
            message = f"{place}: no window of a calibration: schema {tag!r}, not {CALIBRATION_WINDOW_SCHEMA!r}"
            raise DataError(
                message, code="wrong-schema", path=str(path), line=number, found=tag, expected=CALIBRATION_WINDOW_SCHEMA
            )
        window = from_json(CalibrationWindow, data, place)
        if window.in_graph is None and window.how is not None and window.calls:
            # Rows from before the field say it in words only.
            window = replace(window, in_graph=WORDS_OF_LAUNCH.get(window.how.rpartition(", ")[2]))
        found.append(window)
    return tuple(found), end


class CalibrationFile:
    """Appends windows to one file, each on disk before the next begins; a half-written last line is dropped.

    Raises:
        UsageError: It cannot be written, or another process writes to it.
        DataError: It is foreign or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab+")
        except OSError as error:
            raise UsageError.not_writable(path, error) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.windows, end = _windows(path, path.read_bytes())
            self._file.truncate(end)
        except BlockingIOError as error:
            self._file.close()
            message = f"{path}: another calibration writes to it. Wait, or name another with -o"
            raise UsageError(message, code="file-locked", path=str(path)) from error
        except DataError:
            self._file.close()
            raise

    def append(self, window: CalibrationWindow) -> None:
        """Write one window and wait until it is on disk."""
        line = json.dumps(to_json(window), separators=(",", ":"), allow_nan=False)
        self._file.write(line.encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.windows = (*self.windows, window)

    def finished(self) -> frozenset[str]:
        """Names of the workloads that have a window."""
        return frozenset(one.workload.name for one in self.windows if one.is_whole)

    def __enter__(self) -> CalibrationFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if not self.windows:
            self.path.unlink(missing_ok=True)


def latest(windows: Sequence[CalibrationWindow]) -> tuple[CalibrationWindow, ...]:
    """Of each workload on each GPU the last whole window, else the last failure; in the file's order."""
    found: dict[tuple[str, str], CalibrationWindow] = {}
    for one in windows:
        key = (one.workload.name, one.environment.gpus[0].uuid if one.environment.gpus else "")
        if one.is_whole or key not in found or not found[key].is_whole:
            found[key] = one
    return tuple(found.values())
