"""A plan becomes rows: one child process for each engine config, resumed by the same command.

The parent validates, locks the store, starts children and blocks on their events; it never touches CUDA and never
polls, so that it disturbs nothing that is measured.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path

from infergy import errors
from infergy.catalog import find_gpu_by_driver_name
from infergy.engines.weights import describe_weights
from infergy.errors import EngineError, InfergyError, UsageError
from infergy.measure.cell import failed_cell
from infergy.measure.child import Child, HangError, log_path
from infergy.measure.environment import Surroundings, gather
from infergy.measure.forecast import longest_s, patience_s, setup_s
from infergy.measure.gpu_settings import check_allowed, hold_settings
from infergy.measure.validation import check_contents
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
from infergy.records.plan import GIVEN
from infergy.records.store import StoreWriter
from infergy.units import count_of, format_duration, format_number, format_percent, format_si

DIED_LOADING = "died_loading"
"""The code of cells whose engine died before it was ready for any of them."""

NODE_LOST = "node_lost"
"""The code of a cell whose nodes were lost while they measured it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepEvent:
    """What a sweep reports as it goes.

    Attributes:
        kind: ``resumed``, ``torn``, ``loading``, ``ready``, ``begin``, ``row``; of a Ray cluster ``waiting`` (for
            nodes to answer) and ``lost`` (a node).
        row: The finished row, for ``row``.
        finished: Keys of what was measured before, for ``resumed``.
    """

    kind: str
    setup: EngineSetup | None = None
    planned: PlannedCell | None = None
    row: Measurement | None = None
    detail: str = ""
    finished: frozenset[str] = frozenset()


def sweep(
    plan: Plan,
    path: Path,
    *,
    simulate: bool = False,
    retry_failed: bool = False,
    meter: str = NVML,
    may_set: Collection[str] = (),
) -> Iterator[SweepEvent]:
    """Measure all cells of `plan`, in its order, that the store `path` does not hold yet.

    `meter` names that of real GPUs; with `simulate` they are simulated. Cells that failed before are tried again with
    `retry_failed`. Of what engine configs set of GPUs (`infergy.measure.gpu_settings.OPTIONS`), `may_set` is allowed.

    Raises:
        UsageError: An engine cannot do what the plan asks, a GPU may not be set so, or the store is in use or of
            another scope or GPU.
        MissingError: The meter, a GPU or an engine is missing.
        MeterError: A GPU cannot be set, or was not restored.
        DataError: `path` is no store, or was removed or replaced meanwhile: the error names where its rows are.
        EngineError: An engine loads, but its process ends before any cell.
    """
    known = survey(plan, simulate=simulate, meter=meter, may_set=may_set)
    with StoreWriter(path) as store:
        if store.torn is not None:
            yield SweepEvent(kind="torn", detail=str(store.torn))
        _check_store(store, next(iter(known.values())))
        done = find_done(plan, store.rows, retry_failed=retry_failed)
        if done:
            yield resumed(plan, done)
        for setup, group in plan.by_setup().items():
            todo = [planned for planned in group if planned.key not in done]
            if not todo:
                continue
            with hold_settings(setup):
                children = _run_children(plan, store, known[setup], todo, simulate=simulate, meter=meter)
                for event in children:
                    if event.row is not None:
                        done.add(event.row.key)
                        event = replace(event, detail=f"{len(done):4}/{len(plan.cells)}")
                    yield event


def _run_children(
    plan: Plan,
    store: StoreWriter,
    known: Surroundings,
    todo: list[PlannedCell],
    *,
    simulate: bool,
    meter: str,
) -> Iterator[SweepEvent]:
    """Run children over `todo`, cells of one engine config, until each has a row."""
    setup = todo[0].cell.setup
    while todo:
        yield SweepEvent(kind="loading", setup=setup)
        finished: list[str] = []
        for event in _run_child(plan, store, known, todo, simulate=simulate, meter=meter):
            if event.row is not None:
                finished.append(event.row.key)
            yield event
        left = [planned for planned in todo if planned.key not in finished]
        if len(left) == len(todo):
            message = f"{setup.label}: its process ended before any cell. See {log_path(store.path)}"
            raise EngineError(message, code="engine-died", setup=setup.label, log=str(log_path(store.path)))
        todo = left


def find_done(plan: Plan, rows: Iterable[Measurement], *, retry_failed: bool) -> set[str]:
    """Keys of the cells that need not be measured again."""
    wanted = {planned.key for planned in plan.cells}
    return {row.key for row in rows if row.is_ok or not (retry_failed or is_blameless(row))} & wanted


def resumed(plan: Plan, done: Set[str]) -> SweepEvent:
    """The event of cells that were measured before."""
    wanted = len({planned.key for planned in plan.cells})
    return SweepEvent(kind="resumed", detail=f"{len(done)} of {wanted}", finished=frozenset(done))


def survey(plan: Plan, *, simulate: bool, meter: str, may_set: Collection[str] = ()) -> dict[EngineSetup, Surroundings]:
    """Reject what cannot work before the first GPU-second; the environment of each engine config, for rows that fail.

    Once a GPU is lost, it cannot be gathered any more.

    Raises:
        UsageError: An engine cannot do what the plan asks, or the plan is for another GPU.
        DataError: The plan lacks a model, or holds one that is no configuration.
        MissingError: The meter, a GPU or an engine is missing.
        MeterError: A GPU cannot be set.
    """
    check_contents(plan, simulate=simulate or plan.endpoint is not None)
    check_allowed(plan.by_setup(), may_set, simulate=simulate)
    known: dict[EngineSetup, Surroundings] = {}
    for setup, cells in plan.by_setup().items():
        engine, opened = open_pair(setup, plan, simulate=simulate, meter=meter)
        for decoding, arrivals in {(one.cell.load.decoding, one.cell.load.arrivals) for one in cells}:
            engine.check(setup, decoding, arrivals)
        weights = describe_weights(setup.weights)
        environment = gather(opened, weights=weights, packages=engine.packages, engine={}, counter_period_s=None)
        opened.close()
        with hold_settings(setup):
            pass  # set and restored: what a GPU does not take, or root alone may set, ends the sweep here
        known[setup] = Surroundings(environment=environment, vocabulary=0, is_simulated=simulate)
        if not simulate:
            _check_gpu(plan, opened.gpus[0].name)
    return known


def _check_gpu(plan: Plan, name: str) -> None:
    """Reject a plan for another GPU; one that the catalog lacks takes batches that were given, or those of a file."""
    here = find_gpu_by_driver_name(name)
    if here is None and (plan.gpu.endswith(".toml") or all(one.batch_choice == GIVEN for one in plan.cells)):
        return
    if here is None or here.name != plan.gpu:
        fix = "-g MINE.toml, a file that describes it (docs/models.md)" if here is None else f"-g {here.name}"
        message = f"the plan is for {plan.gpu}, its batches and all; here is {name}. Plan for it: {fix}"
        raise UsageError(message, code="other-gpu", found=name if here is None else here.name, expected=plan.gpu)


def _check_store(store: StoreWriter, here: Surroundings) -> None:
    """One store: one scope, and one kind of GPU, real or simulated, whose rows count as cells that are done."""

    def kind(gpus: Sequence[GpuIdentity], is_simulated: bool) -> tuple[str, str]:
        name = gpus[0].name if gpus else "no GPU"
        return name, f"{name}{' (simulated)' if is_simulated else ''}"

    scope, ours = here.environment.scope, kind(here.environment.gpus, here.is_simulated)
    path = str(store.path)
    for row in store.rows:
        was, theirs = SCOPE.of(row), kind(row.environment.gpus, row.simulated)
        if was != scope:
            message = (
                f"{path} holds energy of the {was}, read by {row.environment.meter}; here it is that of the {scope}. "
                "Write to a file of its own: -o OTHER.jsonl"
            )
            raise UsageError(message, code="environments-differ", path=path, fact="scope", was=was, now=scope)
        if theirs != ours:
            message = f"{path} holds rows of {theirs[1]}, here is {ours[1]}. Write to a file of its own: -o OTHER.jsonl"
            raise UsageError(message, code="other-gpu", path=path, found=theirs[0], expected=ours[0])


@dataclass(slots=True)
class _Heard:
    """What a child has reported so far: whether it is ready, the cell in progress, or why it cannot go on.

    `unwritten` is why a row could not be written.
    """

    is_ready: bool = False
    in_progress: PlannedCell | None = None
    refusal: Failure | None = None
    unwritten: InfergyError | None = None

    @property
    def death(self) -> str:
        """Code of the failure of a child that died now."""
        return "died" if self.is_ready else DIED_LOADING


def _run_child(
    plan: Plan,
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
    start_bytes = store.size_bytes
    child = Child.start(plan, store, list(by_key), simulate=simulate, meter=meter, patience_s=loading_s)
    heard, hang = _Heard(), ""
    code: int | None = None
    try:
        for event in _listen(child, heard, by_key, plan):
            store.demand_in_place()
            yield event
        code = child.end()
    except HangError as error:
        hang = str(error)
    finally:
        # Interrupted, or given up on: what the engine has started ends with it.
        child.kill()
    store.demand_in_place()
    if heard.unwritten is not None:
        raise heard.unwritten
    if code in (0, EXIT_RESTART):
        return
    if heard.in_progress is not None:
        # It may have written its row, and died before it reported it.
        for row in store.read(start_bytes).rows:
            if row.key == heard.in_progress.key:
                yield SweepEvent(kind="row", setup=setup, planned=heard.in_progress, row=row)
                return
    failure = heard.refusal if not hang else None
    if failure is None:
        # Hung, or dead without a word: the meter may know why.
        reason = hang or f"the engine's process ended with {_name_exit(code)}; its last words: {child.last_words()}"
        reason += _lost_gpu(plan, setup, simulate=simulate, meter=meter)
        failure = Failure(code="hung" if hang else heard.death, message=reason)
    # One that never got ready has measured none of them.
    for planned in filter(None, [heard.in_progress] if heard.is_ready else todo):
        row = failed_cell(planned, plan.options, known, failure)
        store.append(row)
        yield SweepEvent(kind="row", setup=setup, planned=planned, row=row)


def _listen(child: Child, heard: _Heard, by_key: Mapping[str, PlannedCell], plan: Plan) -> Iterator[SweepEvent]:
    for event in child.events():
        planned = by_key.get(event.get("cell", ""))
        if event["event"] == "refused":
            heard.refusal = Failure(code=event["code"], message=event["reason"])
            continue
        if event["event"] == "unwritten":
            kind_of: type[InfergyError] = getattr(errors, event["kind"])
            heard.unwritten = kind_of(event["reason"], code=event["code"], **event["fields"])
            return
        if event["event"] == "ready":
            heard.is_ready = True
            yield SweepEvent(kind="ready", setup=next(iter(by_key.values())).cell.setup)
        elif planned is not None and event["event"] == "begin":
            heard.in_progress = planned
            child.patience_s = patience_s(longest_s(planned, plan.options), plan.options)
            yield SweepEvent(kind="begin", setup=planned.cell.setup, planned=planned)
        elif planned is not None:
            row = Measurement.from_json(event["row"], "event")
            yield SweepEvent(kind="row", setup=planned.cell.setup, planned=planned, row=row)
            heard.in_progress = None


def is_blameless(row: Measurement) -> bool:
    """Whether a cell failed for a death that was not its own: the same command tries it again."""
    return row.failure is not None and row.failure.code in (DIED_LOADING, NODE_LOST)


def _name_exit(code: int | None) -> str:
    return f"signal {-code}" if code is not None and code < 0 else f"status {code}"


def _lost_gpu(plan: Plan, setup: EngineSetup, *, simulate: bool, meter: str) -> str:
    """The meter's error where a GPU may have taken the engine with it; empty if it still answers."""
    try:
        open_pair(setup, plan, simulate=simulate, meter=meter)[1].close()
    except InfergyError as error:
        return f"; {error}"
    return ""


def describe(event: SweepEvent) -> str:
    """One line for a person; empty for events that need none."""
    if event.kind == "torn":
        return f"the last line of the store was half-written; kept aside in {event.detail}"
    if event.kind == "resumed":
        return f"resuming: {event.detail} cells are already measured"
    if event.kind == "waiting":
        return f"waiting for {event.detail} to report what is installed there …"
    if event.kind == "lost":
        return event.detail
    if event.kind == "loading" and event.setup is not None:
        return f"loading {event.setup.label} {event.setup.model} …"
    return f"{event.detail} {describe_row(event.row)}" if event.row is not None else ""


def kept_rows(path: Path) -> str:
    """What stays of a sweep that was ended before its end."""
    rows = path.read_bytes().count(b"\n") if path.is_file() else 0
    return f"{path} keeps {count_of(rows, 'row')}; the same command goes on"


def name_visit(visit: str) -> str:
    """``control cell, start``, ``visit 2``: a session that is not the first of the grid, in words."""
    return (
        f"control cell, {visit}"
        if visit in (START_VISIT, END_VISIT)
        else f"visit {visit.removeprefix(f'{GRID_VISIT}-')}"
    )


def describe_row(row: Measurement) -> str:
    """One line of a row: energy, seconds, power, latencies online; or why there are none."""
    result = row.result
    if result is None:
        return f"{row.cell}: FAILED {row.failure.code}: {row.failure.message}" if row.failure else f"{row.cell}: FAILED"
    windows = "" if len(row.windows) == 1 else f" ({len(row.windows)} windows)"
    visit = "" if row.visit == GRID_VISIT else f" ({name_visit(row.visit)})"
    by_gpu = [result.power_by_gpu_w[gpu.uuid] for gpu in row.environment.gpus if gpu.uuid in result.power_by_gpu_w]
    watts = f" ({' + '.join(map(format_number, by_gpu))})" if len(by_gpu) > 1 else ""
    return (
        f"{row.cell}{visit}: {format_si(result.energy_j, 'J')} per {'run' if row.cell.load.is_online else 'batch'} "
        f"in {format_duration(result.duration_s)}{windows}, "
        f"{format_si(result.energy_per_request_j, 'J')} per request, {format_number(result.power_w)} W"
        f"{watts}{' (simulated)' if row.simulated else ''}{''.join(_extras(row))}"
    )


def _extras(row: Measurement) -> Iterator[str]:
    """Latencies online, experts, and what a draft model reached."""
    if serving := describe_serving(row):
        yield f"; {serving}"
    if row.experts_touched is not None:
        yield f"; a step visits {format_percent(row.experts_touched)} of the experts"
    result = row.result
    if result is not None and result.accepted_share is not None and result.tokens_per_round is not None:
        yield (
            f"; {format_percent(result.accepted_share)} of drafted tokens accepted, {result.tokens_per_round:.2f} "
            f"tokens per round, {format_si(result.energy_per_output_token_j, 'J')} per output token"
        )
