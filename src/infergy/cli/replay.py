"""`infergy replay`: the requests of a trace on a real engine, at their arrival times: predicted, then measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from infergy.cli.endpoint import NO_METER, EndpointSelection, demand_energy, serve_unmetered, setups_on
from infergy.cli.measure import gpu_here, measure_plan
from infergy.cli.options import (
    JsonOption,
    MeterOption,
    RequestLogOption,
    SimulateOption,
    TraceSelection,
    argument,
    option,
    seconds_of,
    typed_options,
    with_options,
)
from infergy.cli.output import NONE, print_json, print_notes, print_table, rejected_notes
from infergy.cli.server_options import MeasuredSelection
from infergy.errors import DataError, MissingError, UsageError
from infergy.files import check_output
from infergy.meters import open_meter
from infergy.units import count_of, format_duration, format_latency, format_percent, format_si

if TYPE_CHECKING:
    from infergy.cost.table import Table
    from infergy.estimates.replay import Replay
    from infergy.measure.planner import Run
    from infergy.records import Arrivals, EngineSetup, Measurement, Plan
    from infergy.records.endpoint import Endpoint
    from infergy.workload import Requests

DEFAULT_GPU = "h200"
OF_A_PLAN = ("gpu", "output", "simulate", "meter", "energy_gpu_ids", "request_log")
"""Options that a plan takes too; rows, which are measured, take --gpu alone."""
SHOWN: Mapping[str, Callable[[float], str]] = {
    "_j": partial(format_si, unit="J"),
    "_tokens": "{:,.0f}".format,
    "": format_latency,
}
"""How a figure is printed, by the end of its name."""
OF_ALL = ("source", "table", "allow_simulated", "as_json")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayTarget:
    """Which engines serve the requests, on which GPU."""

    engine: list[str] | None = option(
        "vllm, transformers, vllm-eager, vllm-fp8-tp2; repeatable [default: vllm]", "--engine", "-e"
    )
    usage_context: str | None = option("server (vllm serve) or llm (the LLM class) [default: server]")
    tensor_parallel_size: int | None = option(
        "GPUs that share the model [default: 1]", "--tensor-parallel-size", "-tp", min=1
    )
    replicas: int = option("Servers, each on GPUs of its own; requests go to them in turn", default=1, min=1)
    max_num_seqs: int | None = option("Requests at once", min=1)
    enable_prefix_caching: bool | None = option(
        "Keep blocks of finished requests [default: keep if the trace has hashes of them]",
        "--enable-prefix-caching/--no-enable-prefix-caching",
    )
    max_tokens: int | None = option("Leave out requests of more input and output tokens")
    model: str | None = option("Name or config.json [default: llama-3.1-8b]", "--model", "-m")
    gpu: str | None = option("GPU to predict for [default: the one here, else h200]", "--gpu", "-g")

    def setups(self, *, has_blocks: bool) -> list[EngineSetup]:
        """Engine configs: vLLM is its server, as for `estimate`, unless --usage-context says otherwise.

        Args:
            has_blocks: Whether the trace has hashes of blocks: vLLM caches prefixes unless an option says otherwise.

        Raises:
            UsageError: A label or a context is unknown, or they contradict.
        """
        from infergy.estimates.servers import DEFAULT_MODEL
        from infergy.records import LLM_CLASS, SERVER, EngineSetup

        if self.usage_context not in (None, SERVER, LLM_CLASS):
            raise UsageError.bad_value("--usage-context", self.usage_context, f"{SERVER} or {LLM_CLASS}")
        labels = self.engine or ["vllm"]
        return [
            EngineSetup(model=self.model or DEFAULT_MODEL, **self._parts(label, has_blocks=has_blocks))
            for label in labels
        ]

    def _parts(self, label: str, *, has_blocks: bool) -> dict[str, Any]:
        from infergy.records import SERVER
        from infergy.records.engine_setup import OPTIONS, parse_label_beside

        context = self.usage_context
        given = {part: getattr(self, name) for part, name in OPTIONS.items() if getattr(self, name, None) is not None}
        parts = parse_label_beside(label, given) | given
        if parts["engine"] == "vllm" and parts.get("speculation") is None:
            return {"prefix_caching": has_blocks} | parts | {"usage_context": context or SERVER}
        if context is not None:
            why = "leave it out: servers of vLLM alone have one"
            raise UsageError.engine_lacks(parts["engine"], "--usage-context", context, why)
        return parts


@with_options
def replay(
    context: typer.Context,
    source: str = argument("A trace, a plan of replays, or rows that measured some", "TRACE|PLAN|ROWS"),
    *,
    trace: TraceSelection,
    measured: MeasuredSelection,
    target: ReplayTarget,
    endpoint: EndpointSelection,
    plan: Path | None = option("Write the plan here, to measure it elsewhere"),
    output: Path | None = option("Measure it into this store, then print both", "-o", "--output-file"),
    simulate: SimulateOption = False,
    meter: MeterOption = "nvml",
    request_log: RequestLogOption = None,
    as_json: JsonOption = False,
) -> None:
    """Predict the energy and latencies of a window of a trace on a real engine, and measure them with -o.

    Example: infergy replay azure-conv-2023 --from 10m --for 75s --speed 3 -o replays.jsonl
    """
    from infergy.estimates.replay import predict, replica_groups
    from infergy.estimates.request_log import LOG_KIND, LOG_SIGN

    path = Path(source)
    kind = _kind_of(path)
    _check_options(path, kind, typed_options(context))
    if request_log is not None:
        check_output(request_log, LOG_KIND, LOG_SIGN)
    resolved: Plan | None = None
    if kind == "rows":
        found, table, gpu = _compare_store(path, target.gpu, measured)
    else:
        endpoint.choose_gpus()
        resolved, gpu = _resolve(source, kind, trace, target, endpoint)
        table = measured.load()
        found = [predict(parts, gpu, table) for parts in replica_groups(resolved.cells)]
        if plan is not None:
            resolved.save(plan)
            typer.echo(f"{plan}: on the machine with the GPU: python -m infergy.measure {plan} -o ROWS.jsonl", err=True)
        if output is not None:
            typer.echo("\n".join(f"predicted {one.cell}: {_energy(one)}" for one in found), err=True)
            found = _measure(resolved, output, gpu, table, simulate=simulate, meter=meter) or found
    if request_log is not None:
        _log_requests(request_log, path if kind == "rows" else output, resolved, gpu, table)
    if as_json:
        print_json(found)
    else:
        _print(found)
        print_notes(dict.fromkeys((*(note for one in found for note in one.notes), *table.notes)))
    demand_energy(found, meter)


def _resolve(
    source: str, kind: str, trace: TraceSelection, target: ReplayTarget, endpoint: EndpointSelection
) -> tuple[Plan, str]:
    """The plan that is named or that the options make, and the GPU to predict for."""
    from infergy.catalog import get_gpu
    from infergy.measure.validation import load_plan

    gpu = get_gpu(target.gpu or gpu_here() or DEFAULT_GPU).name
    if kind == "plan":
        plan = load_plan(Path(source))
        return plan, gpu if target.gpu else plan.gpu or gpu
    return _plan(source, trace, target, gpu, endpoint.open()), gpu


def _measure(plan: Plan, output: Path, gpu: str, table: Table, *, simulate: bool, meter: str) -> list[Replay]:
    """A plan measured into a store, beside its prediction; of a server without a meter its latencies alone, no rows."""
    from infergy.estimates.replay import compare_rows

    reason = f"--meter {NO_METER}" if meter == NO_METER else None
    if plan.endpoint is not None and not simulate and reason is None:
        try:
            open_meter(meter, max(setup.tensor_parallel for setup in plan.by_setup())).close()
        except MissingError as error:
            reason = str(error)
    if plan.endpoint is None or reason is None:
        measure_plan(plan, output, simulate=simulate, meter=meter)
        return compare_rows(_rows_of(plan, output), gpu, table)
    typer.echo(f"no energy, and no row in {output}: {reason}", err=True)
    return serve_unmetered(plan, gpu, table)


def _compare_store(path: Path, gpu: str | None, measured: MeasuredSelection) -> tuple[list[Replay], Table, str]:
    """Each measured replay of a store beside its prediction, and the table and the GPU of the predictions."""
    from infergy.catalog import get_gpu
    from infergy.estimates.replay import compare_rows
    from infergy.records.store import read_store

    rows, table = read_store(path).rows, measured.load()
    name = get_gpu(gpu or _gpu_of(rows)).name
    found = compare_rows(rows, name, table)
    if not found:
        message = f"{path}: no measured replay in it. Measure one: infergy replay TRACE --for 75s -o {path}"
        raise UsageError(message, code="no-rows", path=str(path))
    return found, table, name


def _log_requests(path: Path, store: Path | None, plan: Plan | None, gpu: str, table: Table) -> None:
    """Write the requests of the replays of a plan, or of a store: measured where there are rows."""
    from infergy.estimates.replay import measured_groups, replica_groups
    from infergy.estimates.request_log import log_of_replay, write_log
    from infergy.records.store import read_store

    rows: Sequence[Measurement] = ()
    if store is not None and store.exists():
        rows = read_store(store).rows if plan is None else _rows_of(plan, store)
    groups = measured_groups(rows)
    lines = [log_of_replay(group, gpu, table) for group in groups]
    if plan is not None and not groups:
        lines = [log_of_replay(group, gpu, table) for group in replica_groups(plan.cells)]
    write_log(path, chain.from_iterable(lines))


def _rows_of(plan: Plan, store: Path) -> list[Measurement]:
    from infergy.records.store import read_store

    ids = {planned.cell.id for planned in plan.cells}
    return [row for row in read_store(store).rows if row.cell_id in ids]


def _check_options(path: Path, kind_of_file: str, typed: Mapping[str, str]) -> None:
    """Reject options that say nothing about a plan, about rows, or about what is not measured.

    Raises:
        UsageError: There are any.
    """
    options = {name: option for name, option in typed.items() if name not in OF_ALL}
    kept = {"trace": options, "plan": OF_A_PLAN, "rows": ("gpu", "request_log")}[kind_of_file]
    why = f"{path}: {'rows say' if kind_of_file == 'rows' else 'a plan says'} what is served"
    wrong = [option for name, option in options.items() if name not in kept]
    if not wrong and "output" not in options:
        why = "nothing is measured without -o FILE"
        wrong = [option for name, option in options.items() if name in ("simulate", "meter", "energy_gpu_ids")]
    if wrong:
        message = f"{why}; leave out what does not apply: {', '.join(wrong)}"
        raise UsageError(message, code="option-not-applicable", path=str(path), options=wrong)


def _plan(source: str, trace: TraceSelection, target: ReplayTarget, gpu: str, endpoint: Endpoint | None) -> Plan:
    from infergy.measure.replays import plan_replays
    from infergy.workload import Histogram

    path = Path(source)
    if path.suffix in (".json", ".jsonl") and not path.exists():
        hint = "Give a trace, a plan of replays (--plan writes one) or rows that measured some (-o writes them)"
        raise DataError.not_found(source, hint)
    opened = trace.opened(source)
    if isinstance(opened, Histogram):
        message = f"{source}: a histogram has no requests in order to replay. Give the trace that it was made of"
        raise DataError(message, code="wrong-schema", path=source, found="histogram", expected="trace")
    whole = trace.all_of(opened)
    if trace.rate is not None and whole.arrival_s is None and endpoint is None:
        message = f"{source}: --rate makes random arrivals of a trace without; to measure such: a grid of poisson loads"
        raise UsageError(message, code="no-arrivals", trace=source, option="--rate")
    chosen = trace.part_of(whole, source)
    timed, has_blocks = chosen.is_timed, chosen.prefix_blocks is not None
    if not (timed or trace.all_at_once):
        typer.echo(f"{source}: all requests at once: {chosen.order_reason}", err=True)
    if chosen.cached_tokens is not None and not has_blocks:
        lost = "cached tokens, since the log does not say which prompts share a prefix"
        typer.echo(f"{source}: left out, of the prediction too: {lost}", err=True)
    arrivals = _arrivals(source, trace, whole, timed=timed)
    if target.max_tokens is not None:
        chosen = chosen.take(chosen.input_tokens + chosen.output_tokens <= target.max_tokens)
    if target.replicas > 1 and chosen.gap_s is not None:
        message = f"{source}: sessions with gaps are replayed on one replica: leave out --replicas {target.replicas}"
        raise UsageError(message, code="not-supported", trace=source, option="--replicas", reason="sessions")
    asked = [
        (setup, run)
        for setup in setups_on(endpoint, target.setups(has_blocks=has_blocks), target.replicas)
        for run in _runs_on(setup, chosen, replace(arrivals, replicas=target.replicas), gpu)
    ]
    return replace(plan_replays(asked, gpu=gpu), endpoint=endpoint)


def _runs_on(setup: EngineSetup, requests: Requests, arrivals: Arrivals, gpu: str) -> Iterator[Run]:
    """The run of each replica, which takes its turn of the requests but for those that the engine rejects.

    Raises:
        UsageError: The engine serves static batches, and requests arrive one after the other.
    """
    from infergy.estimates.replay import spec_of
    from infergy.estimates.servers import open_server
    from infergy.measure.planner import replay_run
    from infergy.serving.simulate import rejected_of

    if arrivals.timed and setup.engine == "transformers":
        message = f"{requests.source}: transformers serves static batches, all at once: --all-at-once"
        raise UsageError(message, code="engine-lacks", engine=setup.engine, option="arrivals", value=arrivals.label)
    rejected = rejected_of(requests, open_server(spec_of(setup, gpu, len(requests))).config)
    served = (~rejected).nonzero()[0]
    for replica in range(1, arrivals.replicas + 1):
        own = replace(arrivals, replica=replica, rejected=int(rejected.sum()) if replica == 1 else 0)
        yield replay_run(requests.take(served[replica - 1 :: arrivals.replicas]), own)


def _arrivals(source: str, trace: TraceSelection, whole: Requests, *, timed: bool) -> Arrivals:
    """Which part of a trace the options choose: a window of its time, or consecutive requests."""
    from infergy.records import Arrivals
    from infergy.records.cell import REPLAY

    start_s = 0.0 if trace.start is None else seconds_of("--from", trace.start)
    speed = 1.0 if whole.arrival_s is None else trace.speed_of(whole)
    part = Arrivals(law=REPLAY, trace=source, timed=timed, speed=speed if timed else 1.0)
    if trace.duration is not None and trace.requests is None:
        # All at once no time passes: what the speed decides is how much of the trace the window spans.
        for_s = seconds_of("--for", trace.duration) * (1.0 if timed else speed)
        return replace(part, from_s=start_s, for_s=for_s)
    return part if whole.arrival_s is None else replace(part, first=int(whole.arrival_s.searchsorted(start_s)))


def _kind_of(path: Path) -> str:
    """``rows``, ``plan`` or ``trace``, by the first line and the names in it."""
    if path.suffix not in (".json", ".jsonl") or not path.is_file():
        return "trace"
    with path.open(encoding="utf-8", errors="replace") as file:
        begin = file.read(4096)
    if path.suffix == ".json":
        return "plan" if '"cells"' in begin or '"schema"' in begin else "trace"
    return "rows" if '"cell_id"' in begin else "trace"


def _gpu_of(rows: Sequence[object]) -> str:
    from infergy.catalog import catalog_name
    from infergy.records import Measurement

    names = {
        catalog_name(row.environment.gpus[0].name)
        for row in rows
        if isinstance(row, Measurement) and row.environment.gpus
    }
    if len(names) != 1:
        message = f"rows of several GPUs: {', '.join(sorted(names))}. Name one with --gpu"
        raise UsageError(message, code="several-gpus", gpus=sorted(names))
    return names.pop()


def _energy(one: Replay) -> str:
    run = one.predicted
    hits = run.load.hit_tokens
    return (
        f"{format_si(run.energy_j, 'J')} (90 % interval {format_si(run.low_j, 'J')} .. {format_si(run.high_j, 'J')}) "
        f"in {format_duration(run.duration_s)}"
        + (f", {format_percent(hits / one.input_tokens)} of input tokens cached" if hits else "")
    )


def _print(found: Sequence[Replay]) -> None:
    for one in found:
        typer.echo(
            f"{one.cell}: {count_of(one.requests, 'request')}, {one.input_tokens:,} input and "
            f"{count_of(one.output_tokens, 'output token')}"
        )
        for note in rejected_notes({"predicted": one.predicted}):
            typer.echo(f"  {note}")
        if not one.compared:
            typer.echo(f"  predicted: {_energy(one)}; not measured: -o FILE measures it")
            continue
        if one.simulated:
            typer.echo("  SIMULATED: measured on a simulated GPU, which says nothing about real ones")
        if one.is_inside is None:
            typer.echo(f"  predicted: {_energy(one)}; its energy was not measured")
        else:
            inside = "inside" if one.is_inside else "outside"
            typer.echo(f"  measured energy {inside} the 90 % interval: {_energy(one)}")
        rows = []
        for figure in one.compared:
            shown = next(show for end, show in SHOWN.items() if figure.name.endswith(end))
            name = figure.name.replace("_s", "").replace("_j", "")
            measured = NONE if figure.measured is None else shown(figure.measured)
            error = NONE if figure.error is None else format_percent(figure.error, signed=True)
            rows.append((name, shown(figure.predicted), measured, error))
        print_table(("", "predicted", "measured", "error"), rows)
