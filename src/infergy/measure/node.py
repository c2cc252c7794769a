"""One engine config on one node of a Ray cluster: the plain sweep, reported to the driver event by event.

Ray decides where it runs and nothing else: the store, the child process and the meter are those of any sweep.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from infergy.errors import EngineError, InfergyError, UsageError
from infergy.measure.environment import Surroundings
from infergy.measure.sweep import survey, sweep
from infergy.records import Measurement, Plan, PlannedCell
from infergy.records.codec import from_json, to_json
from infergy.records.store import create_store


def pack(event: dict[str, Any]) -> bytes:
    """An event on its way to the driver; compressed, rows are small enough for Ray to keep them with their reader."""
    return zlib.compress(json.dumps(event, default=str).encode(), 1)


def unpack(content: bytes) -> dict[str, Any]:
    """An event as the driver reads it."""
    return dict(json.loads(zlib.decompress(content)))


def measure_here(
    plan: dict[str, Any],
    controls: Sequence[dict[str, Any]],
    earlier: Sequence[dict[str, Any]],
    simulate: bool,
    meter: str,
) -> Iterator[bytes]:
    """Measure all cells of `plan`, which is of one engine config; a Ray task.

    Args:
        plan: As JSON.
        controls: Control cells at the start of the engine config that are measured, as JSON: again where on other GPUs.
        earlier: Rows that the driver's store holds, as JSON, for scatter and earlier visits.
        simulate: Use the simulated GPU.
        meter: Name of the meter on real GPUs.

    Yields:
        Packed events: where it runs, what the sweep reports, or why this node cannot run it.
    """
    try:
        yield from _measure(plan, controls, earlier, simulate, meter)
    except InfergyError as error:
        yield _failed_event(type(error).__name__, str(error), error.code, error.fields)
    except OSError as error:
        yield _failed_event(EngineError.__name__, f"its disk: {error}", "engine-failed", {"reason": str(error)})


def _failed_event(kind: str, reason: str, code: str | None, fields: dict[str, Any]) -> bytes:
    return pack({"kind": "refused", "error": kind, "reason": reason, "code": code, "fields": fields})


def _measure(
    plan: dict[str, Any],
    controls: Sequence[dict[str, Any]],
    earlier: Sequence[dict[str, Any]],
    simulate: bool,
    meter: str,
) -> Iterator[bytes]:
    todo = from_json(Plan, plan, "plan")
    rows = [Measurement.from_json(row, "the driver's row") for row in earlier]
    (surroundings,) = survey(todo, simulate=simulate, meter=meter).values()
    yield pack({"kind": "here", "host": os.uname().nodename, "environment": to_json(surroundings.environment)})
    again = _measured_elsewhere([from_json(PlannedCell, one, "control cell") for one in controls], rows, surroundings)
    keys = {planned.key for planned in again}
    with _folder(simulate=simulate) as folder:
        store = folder / "rows.jsonl"
        create_store(store, [row for row in rows if row.key not in keys])
        for event in sweep(replace(todo, cells=(*again, *todo.cells)), store, simulate=simulate, meter=meter):
            cell = None if event.planned is None else event.planned.key
            row = None if event.row is None else event.row.to_json()
            yield pack({"kind": event.kind, "cell": cell, "row": row})


def _measured_elsewhere(
    controls: Sequence[PlannedCell], rows: Sequence[Measurement], surroundings: Surroundings
) -> list[PlannedCell]:
    """The control cells without a row of these very GPUs."""
    here = {gpu.uuid for gpu in surroundings.environment.gpus}
    known = {row.key for row in rows if {gpu.uuid for gpu in row.environment.gpus} == here}
    return [planned for planned in controls if planned.key not in known]


@contextmanager
def _folder(*, simulate: bool) -> Iterator[Path]:
    """A folder for a sweep's own store, held until the engine of a sweep before it on these GPUs has ended.

    A driver that dies takes this task with it, but the engine's process may end later: until then it holds the lock of
    its store, whose folder is named after the GPUs. Simulated GPUs are not shared.
    """
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if simulate or not gpus:
        with tempfile.TemporaryDirectory(prefix="infergy-ray-") as name:
            yield Path(name)
        return
    base, prefix = Path(tempfile.gettempdir()), f"infergy-ray-{os.getuid()}-gpu-"
    mine = set(gpus.split(","))
    for other in base.glob(f"{prefix}*"):
        if mine & set(other.name.removeprefix(prefix).split("+")):
            _demand_own(other)
            with suppress(FileNotFoundError), (other / "rows.jsonl").open("rb") as held:
                fcntl.flock(held, fcntl.LOCK_EX)
                (other / "rows.jsonl").unlink(missing_ok=True)
    folder = base / (prefix + "+".join(sorted(mine)))
    folder.mkdir(mode=0o700, exist_ok=True)
    _demand_own(folder)
    yield folder


def _demand_own(folder: Path) -> None:
    """Reject a folder that another made under our name: temporary folders are shared, and its files would be theirs.

    Raises:
        UsageError: It is another's, others may write to it, or it is a link.
    """
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        message = (
            f"{folder}: no folder of this user alone, so it is not used. Remove it, or name another place for "
            "temporary files: TMPDIR=FOLDER before ray start"
        )
        raise UsageError(message, code="folder-not-ours", path=str(folder))
