"""Windows of traces to serve on a real engine, resolved into a plan: each one run, energy and latencies as a whole.

    trace ──▶ Replay (a window of its time, or consecutive requests) ──▶ requests, arrivals ──▶ Plan

The device's time goes into runs: a plan of replays has no control cells, no power timelines and one window a visit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from infergy.catalog import canonical_name, get_gpu, model_config, read_shape
from infergy.catalog.models import find_draft
from infergy.errors import UsageError
from infergy.measure.planner import Planner, Run, resolve_arrivals
from infergy.measure.validation import Problems, length_errors, setup_errors
from infergy.records import GREEDY, Arrivals, EngineSetup, Load, MeasureOptions, Plan, PlannedCell, grid_visit
from infergy.records.cell import FEWEST_ARRIVALS, REPLAY
from infergy.records.plan import GIVEN

REPLAY_OPTIONS = MeasureOptions(
    max_time_s=0.0, min_window_s=0.1, min_batches=1, idle_s=15.0, bare_idle_s=0.0, timeline_s=0.0, hang_s=120.0
)
"""One window of one run a visit, loaded idle power over 15 s, and neither bare idle power nor a timeline."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """Requests of a trace to be served: those of a window of its time, or consecutive ones.

    Attributes:
        source: Name or path of the trace.
        from_s: Where the window begins, in seconds after the first request of the trace.
        for_s: Seconds of serving over which its requests arrive; None for `requests` consecutive ones.
        speed: Seconds of the trace in one second of serving.
        timed: Whether they arrive at their own times; else all at once.
        first: Without a window, how many requests of the trace come before.
        requests: Without a window, how many.
    """

    source: str
    from_s: float = 0.0
    for_s: float | None = None
    speed: float = 1.0
    timed: bool = True
    first: int = 0
    requests: int | None = None

    def load(self) -> Load:
        """What it asks for; its lengths and, of a window, its number of requests are known once the trace is read.

        Raises:
            UsageError: Neither a window nor a number of requests, or both.
        """
        if (self.for_s is None) == (self.requests is None):
            message = f"{self.source}: give a window (--from 10m --for 75s) or a number of requests (--requests 1000)"
            raise UsageError(
                message, code="option-missing", option="--for", alternatives=["--requests"], trace=self.source
            )
        # All at once no time passes: what the speed decides is how much of the trace the window spans.
        for_s = None if self.for_s is None else self.for_s * (1.0 if self.timed else self.speed)
        arrivals = Arrivals(
            law=REPLAY,
            trace=self.source,
            first=self.first,
            timed=self.timed,
            speed=self.speed if self.timed else 1.0,
            from_s=self.from_s,
            for_s=for_s,
        )
        return Load(input_tokens=1, output_tokens=1, batch=self.requests or FEWEST_ARRIVALS, arrivals=arrivals)


def plan_replays(
    asked: Iterable[tuple[EngineSetup, Replay]],
    *,
    gpu: str,
    name: str = "replays",
    max_tokens: int | None = None,
    options: MeasureOptions = REPLAY_OPTIONS,
) -> Plan:
    """A plan that serves each replay on its engine config, in the order given, engine config by engine config.

    A pair that is given twice is measured twice, in visits of their own.

    Args:
        asked: Engine configs, and what each serves.
        gpu: Name of the GPU to plan for.
        name: Of the plan.
        max_tokens: Requests of more input and output tokens are left out; None leaves out none, and a longer one than
            the model or the engine config's `max_model_len` allows is an error.
        options: How each is measured.

    Raises:
        UsageError: A model, a GPU or an engine is unknown, an engine cannot serve a replay, or a request is too long:
            all reasons at once.
        DataError: A trace cannot be read, has no times, or has no two requests in a window.
    """
    problems = Problems(name)
    device = get_gpu(gpu)
    models: dict[str, Mapping[str, Any]] = {}
    runs: dict[Replay, Run] = {}
    visits: Counter[str] = Counter()
    by_setup: dict[EngineSetup, list[PlannedCell]] = {}
    for given, replay in asked:
        setup = replace(given, model=canonical_name(given.model))
        models.setdefault(setup.model, model_config(given.model))
        if setup.speculation is not None:
            models.setdefault(setup.speculation.draft, model_config(setup.speculation.draft))
        shape = read_shape(models[setup.model], name=setup.model)
        if replay not in runs:
            runs[replay] = resolve_arrivals(replay.load(), options.seed, max_tokens)
        run = runs[replay]
        problems.add(setup_errors(setup, shape, [GREEDY], [run.load.arrivals]))
        problems.add(length_errors(setup, models, run.load))
        with problems.collect():
            planner = Planner(setup, shape, device, find_draft(setup, models))
            planned = planner.plan(run.load, GIVEN, run.arrival_s, run.lengths)
            visits[planned.cell.id] += 1
            visit = grid_visit(visits[planned.cell.id])
            by_setup.setdefault(setup, []).append(replace(planned, visit=visit))
    problems.report()
    if not by_setup:
        raise UsageError(f"{name}: no replay was asked for", code="option-missing", option="replays", plan=name)
    cells = tuple(planned for group in by_setup.values() for planned in group)
    return Plan(name=name, gpu=device.name, cells=cells, models=models, options=options)
