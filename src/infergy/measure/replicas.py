"""Replays on several replicas at once: a process and a store for each, on GPUs of its own. Standard library only.

The replicas load and serve side by side, each its requests by its own clock. Their stores become one; interrupted, they
stay beside it, and the same command resumes from them. Where GPUs are too few, the replicas are measured one after the
other like other cells: each serves its own requests alone, so that their energy is the same.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice
from pathlib import Path

from infergy.errors import EXIT_SOME_FAILED, MissingError
from infergy.measure.worker import NVML
from infergy.meters import open_meter
from infergy.processes import python_command
from infergy.records import Measurement, Plan, PlannedCell
from infergy.records.merge import merge
from infergy.records.store import create_store, read_store


def split_replicas(plan: Plan, *, simulate: bool = False, meter: str = NVML) -> list[Plan]:
    """The part of each replica, if all cells are of as many and there are GPUs for each; else the plan alone."""
    parts: dict[tuple[int, int], list[PlannedCell]] = {}
    for planned in plan.cells:
        parts.setdefault(planned.cell.load.replica, []).append(planned)
    if len(parts) == 1 or len({replicas for _, replicas in parts}) > 1:
        return [plan]
    plans = [replace(plan, cells=tuple(cells)) for _, cells in sorted(parts.items())]
    try:
        if not simulate:
            open_meter(meter, sum(map(_gpus, plans))).close()
    except MissingError:
        return [plan]
    return plans


def _gpus(part: Plan) -> int:
    return max(setup.tensor_parallel for setup in part.by_setup())


def measure_replicas(
    parts: Sequence[Plan], path: Path, *, simulate: bool = False, retry_failed: bool = False, meter: str = NVML
) -> int:
    """Measure the part of each replica in a process of its own, all at once, into the store `path`.

    Returns:
        How many cells have failed.

    Raises:
        InfergyError: As for `merge`.
        SystemExit: A replica's process ended with an error, which it has printed; rows of all replicas are kept.
    """
    stores = [path.with_name(f"{path.stem}-{k}of{len(parts)}{path.suffix}") for k in range(1, len(parts) + 1)]
    if path.exists():
        _divide(read_store(path).rows, parts, stores)
    options = ["--meter", meter] + ["--simulate"] * simulate + ["--retry-failed"] * retry_failed
    devices = [None] * len(parts) if simulate else _devices([_gpus(part) for part in parts])
    codes = _run(parts, stores, devices, options)
    written = [store for store in stores if store.exists()]
    if broken := [code for code in codes if code not in (0, EXIT_SOME_FAILED)]:
        kept = ", ".join(map(str, written)) or "none"
        print(f"a replica's process ended with status {broken[0]}; stores kept: {kept}", file=sys.stderr)
        raise SystemExit(max(1, broken[0]))
    merge(path, written)
    failed = sum(not row.is_ok for store in written for row in read_store(store).rows)
    for store in written:
        store.unlink()
    return failed


def _divide(rows: Sequence[Measurement], parts: Sequence[Plan], stores: Sequence[Path]) -> None:
    """Begin the stores of replicas that have none with their rows of an earlier run."""
    for part, store in zip(parts, stores, strict=True):
        if not store.exists():
            keys = {planned.key for planned in part.cells}
            create_store(store, [row for row in rows if row.key in keys])


def _devices(sizes: Sequence[int]) -> list[str]:
    """What CUDA_VISIBLE_DEVICES is for each replica of so many GPUs."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    visible = iter(given.split(",") if given else map(str, range(sum(sizes))))
    return [",".join(islice(visible, size)) for size in sizes]


def _run(
    parts: Sequence[Plan], stores: Sequence[Path], devices: Sequence[str | None], options: Sequence[str]
) -> list[int]:
    """Exit codes of all processes; none is left behind."""
    with tempfile.TemporaryDirectory(prefix="infergy-replicas-") as folder, ExitStack() as processes:
        running = []
        for part, store, own in zip(parts, stores, devices, strict=True):
            plan = Path(folder) / f"{store.name}.plan.json"
            part.save(plan)
            command = [*python_command("infergy.measure"), str(plan), "-o", str(store), *options]
            environment = os.environ | ({} if own is None else {"CUDA_VISIBLE_DEVICES": own})
            process = subprocess.Popen(command, env=environment)
            processes.callback(process.wait)
            processes.callback(process.terminate)
            running.append(process)
        return [process.wait() for process in running]
