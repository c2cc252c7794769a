"""Windows of traces to serve on a real engine, resolved into a plan: each one run, energy and latencies as a whole.

    requests of a trace ──▶ `planner.replay_run` ──▶ Run ──▶ Plan

The device's time goes into runs: a plan of replays has no control cells, no power timelines and one window a visit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from infergy.catalog import canonical_name, get_gpu, model_config, read_shape
from infergy.catalog.models import find_draft
from infergy.errors import UsageError
from infergy.measure.planner import Planner, Run
from infergy.measure.validation import Problems, length_errors, setup_errors
from infergy.records import GREEDY, EngineSetup, MeasureOptions, Plan, PlannedCell, grid_visit
from infergy.records.plan import GIVEN

REPLAY_OPTIONS = MeasureOptions(
    max_time_s=0.0, min_window_s=0.1, min_batches=1, idle_s=15.0, bare_idle_s=0.0, timeline_s=0.0, hang_s=120.0
)
"""One window of one run a visit, loaded idle power over 15 s, and neither bare idle power nor a timeline."""


def plan_replays(
    asked: Iterable[tuple[EngineSetup, Run]],
    *,
    gpu: str,
    name: str = "replays",
    options: MeasureOptions = REPLAY_OPTIONS,
) -> Plan:
    """A plan that serves each run on its engine config, in the order given, engine config by engine config.

    A pair that is given twice is measured twice, in visits of their own.

    Args:
        asked: Engine configs, and what each serves.
        gpu: Name of the GPU to plan for.
        name: Of the plan.
        options: How each is measured.

    Raises:
        UsageError: A model, a GPU or an engine is unknown, an engine cannot serve a replay, or a request is too long:
            all reasons at once.
    """
    problems = Problems(name)
    device = get_gpu(gpu)
    models: dict[str, Mapping[str, Any]] = {}
    visits: Counter[str] = Counter()
    by_setup: dict[EngineSetup, list[PlannedCell]] = {}
    for given, run in asked:
        setup = replace(given, model=canonical_name(given.model))
        models.setdefault(setup.model, model_config(given.model))
        if setup.speculation is not None:
            models.setdefault(setup.speculation.draft, model_config(setup.speculation.draft))
        shape = read_shape(models[setup.model], name=setup.model)
        problems.add(setup_errors(setup, shape, [GREEDY], [run.load.arrivals]))
        problems.add(length_errors(setup, models, run.load))
        with problems.collect():
            planner = Planner(setup, shape, device, find_draft(setup, models))
            planned = planner.plan(run, GIVEN)
            visits[planned.cell.id] += 1
            visit = grid_visit(visits[planned.cell.id])
            by_setup.setdefault(setup, []).append(replace(planned, visit=visit))
    problems.report()
    if not by_setup:
        raise UsageError(f"{name}: no replay was asked for", code="option-missing", option="replays", plan=name)
    cells = tuple(planned for group in by_setup.values() for planned in group)
    return Plan(name=name, gpu=device.name, cells=cells, models=models, options=options)
