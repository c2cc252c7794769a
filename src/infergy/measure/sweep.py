"""A plan becomes rows: one child process for each engine set-up, resumed by the same command.

The parent validates, locks the store, starts children and blocks on their events; it never touches CUDA and never
polls, so that it disturbs nothing that is measured.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from infergy.engines.weights import describe_weights
from infergy.errors import DataError, EngineError, InfergyError, UsageError
from infergy.hardware import BY_HAND, ModelShape, find_gpu_by_driver_name
from infergy.measure.cell import failed_cell
from infergy.measure.child import Child, HangError, log_path
from infergy.measure.environment import Surroundings, gather
from infergy.measure.forecast import longest_s, patience_s, setup_s
from infergy.measure.refusals import refuse_draft
from infergy.measure.worker import EXIT_RESTART, NVML, open_pair
from infergy.records import (
    END_VISIT,
    GRID_VISIT,
    START_VISIT,
    EngineSetup,
    Failure,
    GpuIdentity,
    Measurement,
    Plan,
    PlannedCell,
)
from infergy.records.agreement import SCOPE
from infergy.records.latency import describe_serving
from infergy.records.store import StoreWriter
from infergy.units import format_duration, format_number, format_percent, format_si

DIED_LOADING = "died_loading"
"""The code of cells whose engine died before it was ready for any of them."""

NODE_LOST = "node_lost"
"""The code of a cell whose nodes were lost while they measured it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepEvent:
    """What a sweep tells as it goes.

    Attributes:
        kind: ``resumed``, ``torn``, ``loading``, ``ready``, ``begin``, ``row``; of a Ray cluster ``waiting`` (for
            nodes to answer) and ``lost`` (a node).
        setup: The engine set-up at hand.
        planned: The cell at hand.
        row: The finished row, for ``row``.
        detail: What else there is to say.
        finished: Keys of what was measured before, for ``resumed``.
    """

    kind: str
    setup: EngineSetup | None = None
    planned: PlannedCell | None = None
    row: Measurement | None = None
    detail: str = ""
    finished: frozenset[str] = frozenset()


def sweep(
    plan: Plan, path: Path, *, simulate: bool = False, retry_failed: bool = False, meter: str = NVML
) -> Iterator[SweepEvent]:
    """Measure all cells of `plan` that `path` does not hold yet.

    Args:
        plan: What to measure, in order.
        path: The store; created, or resumed.
        simulate: Use the simulated GPU.
        retry_failed: Try cells again that failed before.
        meter: Name of the meter on real GPUs.

    Yields:
        What happens, as it happens.

    Raises:
        UsageError: An engine cannot do what the plan asks, or the store is in use or holds joules of another scope.
        MissingError: The meter, a GPU or an engine is missing.
        DataError: `path` is no store.
        EngineError: An engine loads, but its process ends before any cell.
    """
    known = survey(plan, simulate=simulate, meter=meter)
    with StoreWriter(path) as store, tempfile.TemporaryDirectory(prefix="infergy-sweep-") as folder:
        if store.torn is not None:
            yield SweepEvent(kind="torn", detail=str(store.torn))
        _refuse_other_scope(store, next((one.environment.scope for one in known.values()), ""))
        _refuse_other_gpu(store, next(iter(known.values())))
        wanted = {planned.key for planned in plan.cells}
        done = {row.key for row in store.rows if row.is_ok or not (retry_failed or is_blameless(row))} & wanted
        if done:
            yield SweepEvent(kind="resumed", detail=f"{len(done)} of {len(wanted)}", finished=frozenset(done))
        plan_path = Path(folder) / "plan.json"
        plan.save(plan_path)
        for setup, group in plan.by_setup().items():
            todo = [planned for planned in group if planned.key not in done]
            while todo:
                yield SweepEvent(kind="loading", setup=setup)
                finished: list[str] = []
                for event in _run_child(plan, plan_path, store, known[setup], todo, simulate=simulate, meter=meter):
                    if event.row is not None:
                        finished.append(event.row.key)
                        done.add(event.row.key)
                        event = replace(event, detail=f"{len(done):4}/{len(plan.cells)}")
                    yield event
                left = [planned for planned in todo if planned.key not in finished]
                if len(left) == len(todo):
                    message = f"{setup.label}: its process ended before any cell. See {log_path(store.path)}"
                    raise EngineError(message, code="engine-died", setup=setup.label, log=str(log_path(store.path)))
                todo = left


def check_plan(plan: Plan, *, simulate: bool, meter: str = NVML) -> str:
    """Refuse what cannot work before the first GPU-second: engines, options, the meter, GPUs, models.

    Returns:
        What the joules will cover: the meter's scope.

    Raises:
        UsageError: An engine cannot do what the plan asks, or the plan is for another GPU.
        DataError: The plan lacks a model, or holds one that is no configuration.
        MissingError: The meter, a GPU or an engine is missing.
    """
    known = survey(plan, simulate=simulate, meter=meter)
    return next((one.environment.scope for one in known.values()), "")


def check_contents(plan: Plan, *, simulate: bool) -> None:
    """Refuse a plan that no machine can run.

    Raises:
        UsageError: A draft model does not fit its model, or an engine is to load a model that is told in numbers.
        DataError: The plan lacks a model or times of arrival, or holds a model that is no configuration.
    """
    for setup, cells in plan.by_setup().items():
        for name in setup.models:
            if name not in plan.models:
                message = (
                    f"the plan holds no configuration of {name}. Make it again with: infergy measure GRID --plan FILE"
                )
                raise DataError(message, code="plan-incomplete", plan=plan.name, missing=name)
            shape = ModelShape.from_config(plan.models[name], name=name)
            if shape.architecture == BY_HAND and not simulate:
                message = (
                    f"{name} is told by hand, in numbers that no engine loads. Measure it with its config.json, or "
                    "pretend: --simulate"
                )
                raise UsageError(message, code="not-supported", model=name, reason="described by hand")
        for error in refuse_draft(setup, plan.models):
            raise error
        _check_times(cells)


def survey(plan: Plan, *, simulate: bool, meter: str) -> dict[EngineSetup, Surroundings]:
    """Check a plan, and gather what failed rows tell of their GPUs: once one is lost, nothing can be asked any more."""
    check_contents(plan, simulate=simulate)
    found: dict[EngineSetup, Surroundings] = {}
    for setup, cells in plan.by_setup().items():
        engine, opened = open_pair(setup, plan, simulate=simulate, meter=meter)
        for decoding, arrivals in {(one.cell.load.decoding, one.cell.load.arrivals) for one in cells}:
            engine.check(setup, decoding, arrivals)
        here = find_gpu_by_driver_name(opened.gpus[0].name)
        weights = describe_weights(setup.weights)
        environment = gather(opened, weights=weights, packages=engine.packages, engine={}, counter_period_s=None)
        opened.close()
        found[setup] = Surroundings(environment=environment, vocabulary=0, is_simulated=simulate)
        # A GPU that the catalogue lacks is measured with another's batches: its rows say so by its own name.
        if not simulate and here is not None and here.name != plan.gpu:
            message = (
                f"the plan is for {plan.gpu}, its batches and all; here is {here.title}. Plan for it: -g {here.name}"
            )
            raise UsageError(message, code="other-gpu", found=here.name, expected=plan.gpu)
    return found


def _check_times(cells: Iterable[PlannedCell]) -> None:
    """A plan holds the times at which requests arrive and the lengths of a replay, so that a bare node draws none."""
    for planned in cells:
        load, told = planned.cell.load, len(planned.arrival_s)
        if len(planned.lengths) != (load.batch if load.is_replay else 0):
            message = (
                f"the plan holds {len(planned.lengths)} lengths for {planned.cell}, which has {load.batch} requests. "
                "Make it again with: infergy measure GRID --plan FILE"
            )
            raise DataError(
                message, code="plan-incomplete", cell=planned.cell.id, missing="lengths", found=len(planned.lengths)
            )
        if told != (load.batch if load.is_online else 0):
            message = (
                f"the plan holds {told} times of arrival for {planned.cell}, which has {load.batch} requests. "
                "Make it again with: infergy measure GRID --plan FILE"
            )
            raise DataError(message, code="plan-incomplete", cell=planned.cell.id, missing="arrival_s", found=told)


def _refuse_other_scope(store: StoreWriter, scope: str) -> None:
    """One store, one scope."""
    others = {(row.environment.meter, SCOPE.of(row)) for row in store.rows if SCOPE.of(row) != scope}
    for meter, other in sorted(others):
        message = (
            f"{store.path} holds joules of the {other}, read by {meter}; here the joules are of the {scope}. "
            "Write them to a file of their own: -o OTHER.jsonl"
        )
        raise UsageError(message, code="environments-differ", path=str(store.path), fact="scope", was=other, now=scope)


def _refuse_other_gpu(store: StoreWriter, here: Surroundings) -> None:
    """One store, one kind of GPU, real or simulated: another's rows would pass for cells that are done."""

    def name(gpus: Sequence[GpuIdentity]) -> str:
        return gpus[0].name if gpus else "no GPU"

    ours = (name(here.environment.gpus), here.is_simulated)
    for row in store.rows:
        theirs = (name(row.environment.gpus), row.simulated)
        if theirs != ours:
            told, found = (f"{gpu}{' (simulated)' if simulated else ''}" for gpu, simulated in (theirs, ours))
            message = f"{store.path} holds rows of {told}, here is {found}. Write to a file of its own: -o OTHER.jsonl"
            raise UsageError(message, code="other-gpu", path=str(store.path), found=theirs[0], expected=ours[0])


def _run_child(
    plan: Plan,
    plan_path: Path,
    store: StoreWriter,
    known: Surroundings,
    todo: list[PlannedCell],
    *,
    simulate: bool,
    meter: str,
) -> Iterator[SweepEvent]:
    """Run one child over `todo`; every cell it begins, and every cell if it never gets ready, ends as a row."""
    by_key = {planned.key: planned for planned in todo}
    setup = todo[0].cell.setup
    loading_s = patience_s(setup_s(setup, plan.options), plan.options)
    child = Child.start(plan_path, store, list(by_key), simulate=simulate, meter=meter, patience_s=loading_s)
    in_progress: PlannedCell | None = None
    is_ready, reason, refusal = False, "", "engine"
    try:
        for event in child.events():
            if event["event"] == "ready":
                is_ready = True
                yield SweepEvent(kind="ready", setup=setup)
            elif event["event"] == "begin":
                in_progress = by_key[event["cell"]]
                child.patience_s = patience_s(longest_s(in_progress, plan.options), plan.options)
                yield SweepEvent(kind="begin", setup=setup, planned=in_progress)
            elif event["event"] == "end":
                row = Measurement.from_json(event["row"], "event")
                yield SweepEvent(kind="row", setup=setup, planned=by_key[event["cell"]], row=row)
                in_progress = None
            else:
                reason, refusal = event["reason"], event["code"]
        code = child.end()
    except HangError as error:
        reason, code = str(error), None
    finally:
        # Interrupted, or given up on: whatever the engine has started goes with it.
        child.kill()
    if code in (0, EXIT_RESTART):
        return
    failure_code = "hung" if code is None else refusal if reason else "died" if is_ready else DIED_LOADING
    if not reason:
        reason = f"the engine's process ended with {_name_exit(code)}; its last words: {child.last_words()}"
    if failure_code != refusal:
        reason += _lost_words(plan, setup, simulate=simulate, meter=meter)
    lost = [in_progress] if is_ready and in_progress is not None else list(by_key.values()) if not is_ready else []
    for planned in lost:
        row = failed_cell(planned, plan.options, known, Failure(code=failure_code, message=reason))
        store.append(row)
        yield SweepEvent(kind="row", setup=setup, planned=planned, row=row)


def is_blameless(row: Measurement) -> bool:
    """Whether a cell failed for a death that was not its own: the same command tries it again."""
    return row.failure is not None and row.failure.code in (DIED_LOADING, NODE_LOST)


def _lost_words(plan: Plan, setup: EngineSetup, *, simulate: bool, meter: str) -> str:
    """What the meter says of a GPU that may have taken the engine with it; empty if it still answers."""
    try:
        open_pair(setup, plan, simulate=simulate, meter=meter)[1].close()
    except InfergyError as error:
        return f"; {error}"
    return ""


def _name_exit(code: int | None) -> str:
    return f"signal {-code}" if code is not None and code < 0 else f"status {code}"


def describe(event: SweepEvent) -> str:
    """One line for a person; empty for events that need none."""
    if event.kind == "torn":
        return f"the last line of the store was half-written; kept aside in {event.detail}"
    if event.kind == "resumed":
        return f"resuming: {event.detail} cells are already measured"
    if event.kind == "waiting":
        return f"waiting for {event.detail} to say what is installed there …"
    if event.kind == "lost":
        return event.detail
    if event.kind == "loading" and event.setup is not None:
        return f"loading {event.setup.label} {event.setup.model} …"
    return f"{event.detail} {describe_row(event.row)}" if event.row is not None else ""


def name_visit(visit: str) -> str:
    """``anchor, start``, ``visit 2``: a visit that is not the first of the grid, in words."""
    return f"anchor, {visit}" if visit in (START_VISIT, END_VISIT) else f"visit {visit.removeprefix(f'{GRID_VISIT}-')}"


def describe_row(row: Measurement) -> str:
    """One line of a row: joules a batch and a request, seconds, watts, the pace online; or why there are none."""
    if row.result is None:
        return f"{row.cell}: FAILED {row.failure.code}: {row.failure.message}" if row.failure else f"{row.cell}: FAILED"
    result = row.result
    windows = "" if len(row.windows) == 1 else f" ({len(row.windows)} windows)"
    visit = "" if row.visit == GRID_VISIT else f" ({name_visit(row.visit)})"
    return (
        f"{row.cell}{visit}: {format_si(result.energy_j, 'J')} a {'run' if row.cell.load.is_online else 'batch'} "
        f"in {format_duration(result.duration_s)}{windows}, "
        f"{format_si(result.energy_per_request_j, 'J')} a request, {format_number(result.power_w)} W"
        f"{_watts_by_gpu(row)}{' (simulated)' if row.simulated else ''}{_serving(row)}{_drafting(row)}"
    )


def _serving(row: Measurement) -> str:
    experts = (
        "" if row.experts_touched is None else f"a step visits {format_percent(row.experts_touched)} of the experts"
    )
    return "".join(f"; {told}" for told in (describe_serving(row), experts) if told)


def _drafting(row: Measurement) -> str:
    """What a draft model reached; empty without one."""
    if row.result is None or row.result.accepted_share is None or row.result.tokens_per_round is None:
        return ""
    accepted, rounds = format_percent(row.result.accepted_share), f"{row.result.tokens_per_round:.2f}"
    joules = format_si(row.result.energy_per_output_token_j, "J")
    return f"; {accepted} of drafted tokens accepted, {rounds} tokens a round, {joules} an output token"


def _watts_by_gpu(row: Measurement) -> str:
    """Watts of each of several GPUs, in the engine's order."""
    told = {} if row.result is None else row.result.power_by_gpu_w
    watts = [format_number(told[gpu.uuid]) for gpu in row.environment.gpus if gpu.uuid in told]
    return f" ({' + '.join(watts)})" if len(watts) > 1 else ""
