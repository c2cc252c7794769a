"""One engine set-up on one node of a Ray cluster: the plain sweep, told to the driver event by event.

Ray decides where it runs and nothing else: the store, the child process and the meter are those of any sweep.
"""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from infergy.errors import EngineError, InfergyError
from infergy.measure.sweep import survey, sweep
from infergy.records import GpuIdentity, Measurement, Plan, PlannedCell
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
    anchors: Sequence[dict[str, Any]],
    earlier: Sequence[dict[str, Any]],
    simulate: bool,
    meter: str,
) -> Iterator[bytes]:
    """Measure all cells of `plan`, which is of one set-up; a Ray task.

    Args:
        plan: As JSON.
        anchors: Cells at the set-up's start that are measured, as JSON: measured again if it was on other GPUs.
        earlier: Rows that the driver's store holds, as JSON: they tell of the spread and of earlier visits.
        simulate: Use the simulated GPU.
        meter: Name of the meter on real GPUs.

    Yields:
        Packed events: where it runs, what the sweep tells, or why this node refuses.
    """
    todo = from_json(Plan, plan, "plan")
    rows = [Measurement.from_json(row, "the driver's row") for row in earlier]
    try:
        (surroundings,) = survey(todo, simulate=simulate, meter=meter).values()
        yield pack({"kind": "here", "host": os.uname().nodename, "environment": to_json(surroundings.environment)})
        missing = anchors_missing(
            [from_json(PlannedCell, one, "anchor") for one in anchors], rows, surroundings.environment.gpus
        )
        todo = replace(todo, cells=(*missing, *todo.cells))
        again = {planned.key for planned in missing}
        with _folder(simulate=simulate) as folder:
            store = folder / "rows.jsonl"
            create_store(store, [row for row in rows if row.key not in again])
            for event in sweep(todo, store, simulate=simulate, meter=meter):
                yield pack(
                    {
                        "kind": event.kind,
                        "cell": None if event.planned is None else event.planned.key,
                        "row": None if event.row is None else event.row.to_json(),
                    }
                )
    except InfergyError as error:
        known = {"reason": str(error), "code": error.code, "fields": error.fields}
        yield pack({"kind": "refused", "error": type(error).__name__} | known)
    except OSError as error:
        known = {"reason": f"its disk: {error}", "code": "engine-failed", "fields": {"reason": str(error)}}
        yield pack({"kind": "refused", "error": EngineError.__name__} | known)


def anchors_missing(
    anchors: Sequence[PlannedCell], rows: Sequence[Measurement], gpus: Sequence[GpuIdentity]
) -> list[PlannedCell]:
    """The anchors of which `rows` hold none, measured or failed, of these very GPUs."""
    here = {gpu.uuid for gpu in gpus}
    known = {row.key for row in rows if {gpu.uuid for gpu in row.environment.gpus} == here}
    return [planned for planned in anchors if planned.key not in known]


@contextmanager
def _folder(*, simulate: bool) -> Iterator[Path]:
    """A folder for a sweep's own store, held until the engine of a sweep before it on these GPUs has ended.

    A driver that dies takes this task with it, but the engine's process ends only when it has no one to tell: it still
    holds the lock of its store, which is named after the GPUs. Simulated GPUs disturb nobody.
    """
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if simulate or not gpus:
        with tempfile.TemporaryDirectory(prefix="infergy-ray-") as name:
            yield Path(name)
        return
    base, prefix = Path(tempfile.gettempdir()), f"infergy-ray-{os.getuid()}-gpu-"
    mine = set(gpus.split(","))
    for other in base.glob(f"{prefix}*/rows.jsonl"):
        if mine & set(other.parent.name.removeprefix(prefix).split("+")):
            with other.open("ab") as held:
                fcntl.flock(held, fcntl.LOCK_EX)
            other.unlink(missing_ok=True)
    folder = base / (prefix + "+".join(sorted(mine)))
    folder.mkdir(exist_ok=True)
    yield folder
