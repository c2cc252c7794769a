"""Runs on a server that runs already where nothing counts its energy: its latencies alone."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

from infergy.catalog import read_shape
from infergy.engines.server import ServerEngine
from infergy.errors import UsageError
from infergy.measure.cell import count_batch, work_of
from infergy.measure.warmup import replay_warm_up
from infergy.records import Batch, Plan, PlannedCell


def serve(plan: Plan) -> Iterator[tuple[PlannedCell, Batch]]:
    """Each cell of a plan, with the lengths that were served, and what its client saw.

    Raises:
        UsageError: The plan names no server.
        EngineError: The server failed.
        MissingError: It does not answer.
    """
    if plan.endpoint is None:
        raise UsageError("a plan without a server: --server URL", code="option-missing", option="--server")
    engine = ServerEngine(plan.endpoint)
    for setup, cells in plan.by_setup().items():
        config = plan.models[setup.model]
        session = engine.open(setup, config, plan.options.seed)
        try:
            for planned in cells:
                work = work_of(planned, plan.options, read_shape(config, name=setup.model).vocabulary)
                session.run(replay_warm_up(work))
                start_s = time.monotonic()
                completion = session.run(work)
                batch = count_batch(work, completion, start_s + completion.prepared_s, time.monotonic())
                yield replace(planned, lengths=planned.lengths if batch.served is None else batch.served.lengths), batch
        finally:
            session.close()
