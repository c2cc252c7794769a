"""A plan on a Ray cluster: each engine config a task, its rows in one store on the driver as they finish.

The driver holds the store's lock, needs no GPU, and measures nothing. A task is the plain sweep of one engine config
(`infergy.measure.node`): Ray knows nothing of engines or meters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from infergy import errors
from infergy.errors import EngineError, InfergyError
from infergy.measure.cell import failed_cell
from infergy.measure.cluster_nodes import connect, find_nodes, needs_of, probe_nodes
from infergy.measure.environment import Surroundings
from infergy.measure.node import measure_here, unpack
from infergy.measure.sweep import NODE_LOST, SweepEvent, find_done, resumed
from infergy.measure.validation import check_contents
from infergy.measure.worker import NVML
from infergy.records import START_VISIT, EngineSetup, Environment, Failure, Measurement, Plan, PlannedCell
from infergy.records.codec import from_json, to_json
from infergy.records.merge import reject_unlike
from infergy.records.store import StoreWriter

ATTEMPTS = 3
"""Nodes that may be lost under one cell, or while an engine config loads, before it is recorded as failed."""

LOOK_S = 5.0
"""How often the driver looks whether a node is left that can run what waits."""


@dataclass(slots=True, kw_only=True)
class _Job:
    """What is left of one engine config, and where it runs now."""

    setup: EngineSetup
    todo: list[PlannedCell]
    stream: Any = None
    host: str = "a node"
    in_progress: PlannedCell | None = None
    losses: Counter[str] = field(default_factory=Counter)
    surroundings: Surroundings | None = None


def sweep_on_ray(
    plan: Plan, path: Path, address: str, *, simulate: bool = False, retry_failed: bool = False, meter: str = NVML
) -> Iterator[SweepEvent]:
    """Measure all cells of `plan` that the store `path` does not hold yet, on the Ray cluster at `address`.

    `address` is ``auto``, or host and port of the cluster's head. A simulated GPU needs one CPU per config. `meter`
    names that of real GPUs. Cells that failed before are tried again with `retry_failed`.

    Raises:
        UsageError: The plan cannot be run, or the store is in use or holds rows of another kind.
        MissingError: No cluster, no Ray, or no node that can run an engine config; a node with another infergy.
        EngineError: Cells have no row because no node was left that had reported its GPUs.
    """
    check_contents(plan, simulate=simulate)
    with connect(address):
        needs = {setup: needs_of(setup, plan.gpu, simulate=simulate) for setup in plan.by_setup()}
        for names in probe_nodes(find_nodes(list(needs.values()))):
            yield SweepEvent(kind="waiting", detail=names)
        # A node may have been lost while it was asked.
        find_nodes(list(needs.values()))
        with StoreWriter(path) as store:
            if store.torn is not None:
                yield SweepEvent(kind="torn", detail=str(store.torn))
            run = _Run(plan, store, needs, simulate=simulate, meter=meter)
            run.done = find_done(plan, store.rows, retry_failed=retry_failed)
            if run.done:
                yield resumed(plan, run.done)
            jobs = [
                _Job(setup=setup, todo=[planned for planned in group if planned.key not in run.done])
                for setup, group in plan.by_setup().items()
            ]
            yield from run.all([job for job in jobs if job.todo])


class _Run:
    """The driver's side of one sweep."""

    def __init__(
        self, plan: Plan, store: StoreWriter, needs: dict[EngineSetup, dict[str, float]], *, simulate: bool, meter: str
    ) -> None:
        import ray

        self._ray = ray
        self._plan, self._store, self._needs = plan, store, needs
        self._simulate, self._meter = simulate, meter
        self._rows = list(store.rows)
        self.done: set[str] = set()
        # Ray's own retries would start an engine config again, with cells that are measured.
        self._task = ray.remote(max_retries=0)(measure_here)

    def all(self, jobs: list[_Job]) -> Iterator[SweepEvent]:
        """Run jobs to their end, wherever Ray finds room."""
        ray = self._ray
        try:
            for job in jobs:
                self._start(job)
            while running := {job.stream: job for job in jobs if job.stream is not None}:
                ready, _ = ray.wait(list(running), timeout=LOOK_S)
                for stream in ready:
                    yield from self._next(running[stream])
                if not ready:
                    yield from self._give_up_homeless(list(running.values()))
        finally:
            # Interrupted: engines end with their tasks.
            for job in jobs:
                if job.stream is not None:
                    ray.cancel(job.stream)
        self._check_complete(jobs)

    def _check_complete(self, jobs: list[_Job]) -> None:
        left = {job.setup.label: len(job.todo) for job in jobs if job.todo}
        if left:
            counts = ", ".join(f"{count} of {label}" for label, count in left.items())
            message = (
                f"no row for these cells, for no node was left that had reported its GPUs: {counts}. "
                "Add nodes (ray start --address=HEAD:6379) and run the same command again"
            )
            raise EngineError(message, code="nodes-lost", cells=left)

    def _start(self, job: _Job) -> None:
        names = {planned.key for planned in job.todo}
        models = {name: self._plan.models[name] for name in job.setup.models}
        part = replace(self._plan, cells=tuple(job.todo), models=models)
        # The first row says to any node what this store is of; those of the engine config are for its scatter.
        earlier = [row for place, row in enumerate(self._rows) if place == 0 or row.cell.setup == job.setup]
        rows = [row.to_json() for row in earlier if row.key not in names]
        needs = dict(self._needs[job.setup])
        cpus, gpus = needs.pop("CPU", 0.0), needs.pop("GPU", 0.0)
        job.in_progress = None
        job.stream = self._task.options(num_cpus=cpus, num_gpus=gpus, resources=needs).remote(
            to_json(part), [to_json(planned) for planned in self._controls(job)], rows, self._simulate, self._meter
        )

    def _controls(self, job: _Job) -> list[PlannedCell]:
        """Those at the engine config's start that are measured: other GPUs than those that did measure them again."""
        group = self._plan.by_setup()[job.setup]
        return [planned for planned in group if planned.visit == START_VISIT and planned.key in self.done]

    def _next(self, job: _Job) -> Iterator[SweepEvent]:
        """The next event of a task; its end; or the loss of its node."""
        from ray.exceptions import RayError, RayTaskError

        try:
            event = unpack(self._ray.get(next(job.stream)))
        except StopIteration:
            job.stream = None
            if job.todo:
                message = f"{job.setup.label}: its task on {job.host} ended before its cells"
                raise EngineError(message, code="engine-died", setup=job.setup.label, host=job.host) from None
            return
        except RayTaskError:
            raise
        except RayError as error:
            # A node, a worker, memory, a disk: what Ray itself lost there.
            yield from self._lose(job, str(error).strip().splitlines()[0].split(". ")[0])
            return
        yield from self._handle(job, event)

    def _handle(self, job: _Job, event: dict[str, Any]) -> Iterator[SweepEvent]:
        kind = event["kind"]
        known = [*job.todo, *self._controls(job)]
        planned = next((one for one in known if one.key == event.get("cell")), None)
        if kind == "here":
            job.host = event["host"]
            environment = from_json(Environment, event["environment"], "node")
            job.surroundings = Surroundings(environment=environment, vocabulary=0, is_simulated=self._simulate)
        elif kind == "refused":
            kind_of: type[InfergyError] = getattr(errors, event["error"], EngineError)
            raise kind_of(f"{job.host}: {event['reason']}", code=event["code"], **event["fields"])
        elif kind == "row" and planned is not None:
            yield self._keep(job, planned, Measurement.from_json(event["row"], "node"))
        elif kind in ("loading", "ready", "begin"):
            job.in_progress = planned
            yield SweepEvent(kind=kind, setup=job.setup, planned=planned)

    def _keep(self, job: _Job, planned: PlannedCell, row: Measurement) -> SweepEvent:
        if self._rows:
            reject_unlike((str(self._store.path), self._rows[0]), (job.host, row))
        self._store.append(row)
        self._rows.append(row)
        self.done.add(row.key)
        if planned in job.todo:
            job.todo.remove(planned)
        job.in_progress = None
        detail = f"{len(self.done):4}/{len(self._plan.cells)}"
        return SweepEvent(kind="row", setup=job.setup, planned=planned, row=row, detail=detail)

    def _lose(self, job: _Job, reason: str) -> Iterator[SweepEvent]:
        """A node is gone: what it had in hand is tried elsewhere, but not for ever."""
        job.stream = None
        # A control cell that was to be repeated is not one of the cells left.
        hit = [job.in_progress] if job.in_progress in job.todo else list(job.todo)
        for planned in hit:
            job.losses[planned.key] += 1
        yield SweepEvent(kind="lost", setup=job.setup, detail=f"lost {job.host} under {job.setup.label}: {reason}")
        yield from self._fail(job, [one for one in hit if job.losses[one.key] >= ATTEMPTS], reason)
        if job.todo and max(job.losses[one.key] for one in job.todo) < ATTEMPTS:
            self._start(job)

    def _give_up_homeless(self, jobs: list[_Job]) -> Iterator[SweepEvent]:
        """Record what no node that is left could ever run."""
        for job in jobs:
            try:
                find_nodes([self._needs[job.setup]])
            except InfergyError as error:
                self._ray.cancel(job.stream)
                job.stream = None
                yield SweepEvent(kind="lost", setup=job.setup, detail=f"{job.setup.label}: {error}")
                yield from self._fail(job, list(job.todo), str(error))

    def _fail(self, job: _Job, cells: list[PlannedCell], reason: str) -> Iterator[SweepEvent]:
        # A row must name its GPUs: without a node that reported them there is none.
        if job.surroundings is None:
            return
        for planned in cells:
            failure = Failure(code=NODE_LOST, message=reason)
            yield self._keep(job, planned, failed_cell(planned, self._plan.options, job.surroundings, failure))
