"""The child process of one engine config: load once, then one row for each cell, on disk before the next.

Run as ``python -m infergy.measure.worker`` with a job as JSON on standard input; reports to its parent by JSON lines on
the job's `events_fd`. An error that no engine adapter foresaw ends the child with a traceback in the log; the parent
records it and starts another child for the remaining cells.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from infergy.catalog import read_shape
from infergy.engines import Engine, EngineOutOfMemoryError, Session, find_engine
from infergy.engines.engine import GPU_UUIDS
from infergy.engines.weights import describe_weights
from infergy.errors import DataError, EngineError, InfergyError, MeterError
from infergy.measure.cell import failed_cell, failure_of, measure_cell, measure_idle, window_since
from infergy.measure.environment import Surroundings, gather
from infergy.measure.power_sampler import NO_SAMPLER, PowerSampler, open_sampler
from infergy.measure.warmup import make_work
from infergy.meters import Meter, open_meter, sharp_tick
from infergy.meters.ticks import Edge, counter_period_s
from infergy.records import END_VISIT, START_VISIT, EngineSetup, Failure, Load, Measurement, Plan, PlannedCell, Window
from infergy.records.agreement import spread_key
from infergy.records.codec import from_json
from infergy.records.store import StoreWriter
from infergy.records.visits import join_visits, peer_of
from infergy.workload.load_generator import make_prompts

NVML = "nvml"
"""The meter that is used unless another one is asked for."""

HARMLESS = ("meter", "tokens")
"""Failures after which an engine can go on."""

EXIT_RESTART = 75
"""Exit code: the engine is broken, but the remaining cells can go on in a new child."""

NVIDIA_UUID = "GPU-"

FIRST_LOAD = Load(input_tokens=32, output_tokens=8, batch=1)
"""What a freshly loaded engine runs before its idle power is taken."""


def main() -> int:
    """Run the job on standard input (`infergy.measure.child` makes it)."""
    job = json.loads(sys.stdin.read())
    end_with_parent(job["parent_fd"])
    plan = from_json(Plan, job["plan"], "plan")
    keys = set(job["cells"])
    todo = [planned for planned in plan.cells if planned.key in keys]
    # Progress belongs to the parent: what an engine prints goes to the log, which is our stdout and stderr.
    with os.fdopen(job["events_fd"], "w", buffering=1) as events:

        def send(event: str, **facts: object) -> None:
            events.write(json.dumps({"event": event, **facts}) + "\n")

        setup = todo[0].cell.setup
        try:
            engine, meter = open_pair(setup, plan, simulate=job["simulate"], meter=job["meter"])
            engine.check(setup)
            # Before the engine is loaded: it may fork.
            sampler = open_sampler(meter, job["meter"], plan.options.timeline_s)
            bare_s = plan.options.idle_s if plan.options.bare_idle_s is None else plan.options.bare_idle_s
            bare = measure_idle(meter, bare_s) if bare_s > 0 else None
            before_load = sharp_tick(meter)
            session = engine.open(setup, plan.models[setup.model], plan.options.seed, plan.draft_config(setup))
            surroundings, idle, loading = wake(session, meter, engine, plan, setup, before_load)
        except InfergyError as error:
            send("refused", reason=str(error), code=failure_of(error).code)
            # What is loaded may be broken, and closing it hang; the kernel frees what it held.
            os._exit(error.exit_code)
        send("ready")
        with StoreWriter(Path(job["store"]), inherited=job["store_fd"]) as store:
            rows: dict[object, list[Measurement]] = {}
            for row in store.rows:
                rows.setdefault(spread_key(row), []).append(row)
            for planned in todo:
                send("begin", cell=planned.key)
                key = spread_key(failed_cell(planned, plan.options, surroundings, Failure(code="", message="")))
                here = rows.setdefault(key, [])
                row, is_usable = attempt(session, meter, planned, plan, surroundings, idle, here, sampler)
                # A server that ran already was not loaded here.
                row = replace(row, bare_idle=bare, loading=None if plan.endpoint else loading)
                here.append(row)
                try:
                    store.append(row)
                except InfergyError as error:
                    send(
                        "unwritten", kind=type(error).__name__, reason=str(error), code=error.code, fields=error.fields
                    )
                    os._exit(error.exit_code)
                send("end", cell=planned.key, row=row.to_json())
                if not is_usable:
                    # Closing a broken engine can hang; the kernel frees what it held.
                    send("bye")
                    os._exit(EXIT_RESTART)
        sampler.close()
        session.close()
        meter.close()
        send("bye")
    return 0


def end_with_parent(parent_fd: int) -> None:
    """End this process and all that it starts as soon as its parent has ended, which closes the other end of a pipe.

    Else the GPU would go on with the cell in progress, beside the next measurement. The thread sleeps in the kernel and
    holds no lock of the interpreter, so that it disturbs nothing.
    """

    def wait() -> None:
        os.read(parent_fd, 1)
        os.killpg(os.getpgrp(), signal.SIGKILL)

    threading.Thread(target=wait, name="parent", daemon=True).start()


def open_pair(setup: EngineSetup, plan: Plan, *, simulate: bool, meter: str = NVML) -> tuple[Engine, Meter]:
    """The engine of an engine config and the meter of its GPUs; simulated, they share simulated GPUs."""
    if plan.endpoint is not None:
        from infergy.engines.server import ServerEngine
        from infergy.meters.simulated import SteadyMeter

        count = setup.tensor_parallel
        return ServerEngine(plan.endpoint), SteadyMeter(count=count) if simulate else open_meter(meter, count)
    if not simulate:
        return find_engine(setup.engine), open_meter(meter, setup.tensor_parallel)
    from infergy.catalog import get_gpu
    from infergy.engines.simulated_engine import SimulatedEngine
    from infergy.meters.simulated import SimulatedMeter, pretend_node

    gpu = get_gpu(plan.gpu)
    node = pretend_node(gpu, setup.tensor_parallel)
    return SimulatedEngine(node, gpu), SimulatedMeter(node)


def wake(
    session: Session, meter: Meter, engine: Engine, plan: Plan, setup: EngineSetup, before_load: Edge
) -> tuple[Surroundings, Window, Window]:
    """Wake the engine once, take its idle power, and gather what all its rows share; also a window over its loading.

    Raises:
        MeterError: A counter failed, or counts another GPU than the engine uses.
        EngineError: The engine failed.
    """
    facts = session.facts()
    check_same_gpus(meter, facts.get(GPU_UUIDS))
    vocabulary = read_shape(plan.models[setup.model], name=setup.model).vocabulary
    session.run(make_work(make_prompts(FIRST_LOAD, vocabulary, plan.options.seed), FIRST_LOAD.output_tokens))
    loading = window_since(before_load, meter)
    idle = measure_idle(meter, plan.options.idle_s)
    environment = gather(
        meter,
        weights=describe_weights(setup.weights),
        packages=engine.packages,
        engine=facts,
        counter_period_s=counter_period_s(meter),
    )
    surroundings = Surroundings(environment=environment, vocabulary=vocabulary, is_simulated=meter.is_simulated)
    return surroundings, idle, loading


def attempt(
    session: Session,
    meter: Meter,
    planned: PlannedCell,
    plan: Plan,
    surroundings: Surroundings,
    idle: Window,
    here: Sequence[Measurement] = (),
    sampler: PowerSampler = NO_SAMPLER,
) -> tuple[Measurement, bool]:
    """The row of a cell, measured or failed with its reason, and whether the session can go on.

    `here` are rows of the engine config so far: of other cells for their scatter, of the cell for its earlier visits.
    """
    peers = [peer_of(row) for row in join_visits(here) if row.cell_id != planned.cell.id]
    earlier = [row for row in here if _is_earlier(row, planned, meter)]
    windows = [row.windows for row in earlier]
    is_watched = any(row.timeline for row in earlier)
    try:
        row = measure_cell(
            session, meter, planned, plan.options, surroundings, idle, peers, sampler, windows, is_watched=is_watched
        )
    except (EngineError, MeterError, DataError) as error:
        failure = failure_of(error)
        if failure.code == "engine":
            failure = replace(failure, message=f"{failure.message}{_lost_gpu(meter)}")
        is_usable = error.is_usable if isinstance(error, EngineOutOfMemoryError) else failure.code in HARMLESS
        return failed_cell(planned, plan.options, surroundings, failure), is_usable
    return row, row.interrupted is None or row.interrupted.code in HARMLESS


def _is_earlier(row: Measurement, planned: PlannedCell, meter: Meter) -> bool:
    """Whether a row is an earlier visit of a cell, in the grid and on the same GPUs."""
    is_of_grid = row.visit not in (START_VISIT, END_VISIT) and planned.round > 1
    here = {gpu.uuid for gpu in meter.gpus}
    return (
        bool(row.windows)
        and is_of_grid
        and row.cell_id == planned.cell.id
        and here == {gpu.uuid for gpu in row.environment.gpus}
    )


def check_same_gpus(meter: Meter, reported: str | None) -> None:
    """Compare the GPUs that an engine uses with those that are metered.

    `reported` holds UUIDs with commas between, with or without ``GPU-`` before them; None where it is unknown.

    Raises:
        MeterError: They are not the same.
    """
    metered = [gpu.uuid for gpu in meter.gpus]
    # A meter of another make, or of a CPU, names its devices in its own way.
    if reported is None or not all(uuid.startswith(NVIDIA_UUID) for uuid in metered):
        return
    used = [NVIDIA_UUID + uuid.strip().removeprefix(NVIDIA_UUID) for uuid in reported.split(",")]
    if sorted(used) != sorted(metered):
        message = (
            f"the engine runs on {', '.join(used)}, but {', '.join(metered)} was metered: this would be the energy of "
            "another GPU. Choose the GPUs by UUID: CUDA_VISIBLE_DEVICES=GPU-… (nvidia-smi -L)"
        )
        raise MeterError(message, code="gpus-differ", found=used, expected=metered)


def _lost_gpu(meter: Meter) -> str:
    """The meter's error where a GPU may have taken the engine with it; empty if it still answers."""
    try:
        meter.read()
    except InfergyError as error:
        return f"; {error}"
    return ""


if __name__ == "__main__":
    sys.exit(main())
