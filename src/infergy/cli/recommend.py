"""`infergy recommend`: which configuration serves a trace with the least energy, and what to type for it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from itertools import groupby
from typing import TYPE_CHECKING, Any

import typer

from infergy.cli.footprint import FootprintSelection, print_footprints
from infergy.cli.options import (
    ExplainOption,
    JsonOption,
    TraceArg,
    TraceSelection,
    flag,
    option,
    seconds_of,
    typed_options,
    with_options,
)
from infergy.cli.output import NONE, print_json, print_notes, print_table, rejected_notes, title_of, trace_notes
from infergy.cli.server_options import MeasuredSelection, ServerSelection
from infergy.errors import UsageError
from infergy.units import DAYS_OF_MONTH, JOULES_PER_KWH, format_latency, format_number, format_percent, format_si

if TYPE_CHECKING:
    from infergy.estimates.capacity import Capacity, Schedule
    from infergy.estimates.latency import Limits
    from infergy.estimates.recommendation import Configuration, Recommendation, Saving, Searched
    from infergy.estimates.vllm_command import TypedServer

BROKEN = {"rejected_requests": "rejects more requests", "overload": "cannot keep up"}

OF_REPLAYS = (
    *("format", "input_column", "output_column", "time_column", "cached_column", "requests_column", "time_unit"),
    *("bad_rows", "requests", "seed", "tokenizer", "start", "duration", "speed", "rate", "all_at_once"),
    *("table", "usage_context"),
)
"""Options of a trace that a replay takes too."""
REPLAYED_S, LATER_S = 75, 700
"""Seconds of a long trace that a replay takes, and from which on it begins at minute 10."""


OF_THE_TRACE = ("model", "gpu", "table", "allow_simulated")
"""Options that go with --present: it says all else of a server."""


@with_options
def recommend(
    context: typer.Context,
    source: TraceArg,
    trace: TraceSelection,
    servers: ServerSelection,
    measured: MeasuredSelection,
    footprint: FootprintSelection,
    ttft_p99: str | None = option("Limit on the time to first token, 99 % of requests: 50ms, 0.05s", metavar="TIME"),
    tpot_p99: str | None = option("Limit on the time per output token, 99 % of requests: 50ms, 0.05s", metavar="TIME"),
    e2e_p99: str | None = option("Limit on the time to the last token, 99 % of requests: 50ms, 0.05s", metavar="TIME"),
    gpus: str | None = option("GPUs that may serve: 2, 1..4 or 1,2,4 [default: 1 to twice the present]"),
    present: str | None = option('What runs now: "vllm serve MODEL --max-num-seqs 256"', metavar="COMMAND"),
    keep_outputs: bool = flag("Leave out what changes the model's answers: another precision", "--keep-outputs"),
    capacity: bool = flag(
        "Also the highest rates within the limits, and the replicas that each hour needs", "--capacity"
    ),
    explain: ExplainOption = False,
    as_json: JsonOption = False,
) -> None:
    """Search for the configuration that serves a trace with the least energy within limits on latency.

    The server options, or --present, are those of the present configuration, by default vLLM's own on the fewest GPUs
    that keep up; --gpu names kinds of GPU to choose from, the first the present one. Several servers (repeated options,
    or --compare) are compared as they are, the first of them the present one.

    Example: infergy recommend azure-conv-2023 --ttft-p99 1s --tpot-p99 50ms --gpus 1..4
    """
    from infergy.cli.progress import counting
    from infergy.estimates.candidates import Space, plain_spec
    from infergy.estimates.recommend import recommend as search
    from infergy.estimates.search import fewest_gpus

    limits = _limits({"--ttft-p99": ttft_p99, "--tpot-p99": tpot_p99, "--e2e-p99": e2e_p99})
    site, wanted = footprint.site(), None if gpus is None else _numbers(gpus)
    command = None if present is None else _typed(present, servers, typed_options(context))
    specs = servers.specs()
    kinds = tuple(dict.fromkeys(spec.gpu for spec in specs))
    others = specs[1:] if len(specs) > len(kinds) else []
    if others and (gpus or present):
        message = "several servers are compared as they are: leave out --gpus and --present, or name one server"
        raise UsageError(message, code="options-conflict", options=["--gpus" if gpus else "--present"])
    table, sample = measured.load(), trace.open(source)
    now = specs[0] if command is None else command.spec
    if not (command or others or {"tensor_parallel_size", "replicas"} & set(typed_options(context))):
        now = fewest_gpus(plain_spec(now), sample, table)
    changes: dict[str, Any] = {"kinds": kinds, "keep_outputs": keep_outputs}
    if wanted is not None:
        changes["gpus"] = wanted
    with counting("simulations") as progress:
        found = search(
            sample,
            others or None,
            table,
            present=now,
            limits=limits,
            space=Space.around(now, **changes),
            keep_outputs=keep_outputs,
            site=site,
            capacity=capacity,
            processes=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
            progress=progress,
        )
    if as_json:
        print_json([found])
        return
    # Random arrivals are not those of a trace, so there is nothing to replay.
    is_random = trace.rate is not None and not trace.all_of(trace.opened(source)).is_timed
    replay = "" if is_random else _replay_of(found, source, context)
    _print(found, command, wanted, replay=replay, explain=explain)


def _limits(given: Mapping[str, str | None]) -> Limits:
    from infergy.estimates.latency import Limits

    known = {option: _seconds(option, text) for option, text in given.items() if text is not None}
    return Limits(**{option[2:].replace("-", "_") + "_s": limit_s for option, limit_s in known.items()})


def _typed(present: str, servers: ServerSelection, typed: Mapping[str, str]) -> TypedServer:
    from infergy.estimates.vllm_command import parse_command

    own = {field.name for field in fields(servers)} - set(OF_THE_TRACE)
    wrong = [option for name, option in typed.items() if name in own]
    if wrong:
        message = f"--present says what runs now: leave out {', '.join(wrong)}, or write them into its command"
        raise UsageError(message, code="options-conflict", options=["--present", *wrong])
    (spec, *_) = servers.specs()
    return parse_command(present, gpu=spec.gpu, model=servers.model[0] if servers.model else None)


def _numbers(text: str) -> tuple[int, ...]:
    """``1..4`` or ``1,2,4``."""
    from infergy.estimates.candidates import MOST_GPUS

    expected = f"numbers of GPUs from 1 to {MOST_GPUS}, as 2, 1..4 or 1,2,4"
    try:
        first, dots, last = text.partition("..")
        ends = [int(first), int(last)] if dots else [*map(int, text.split(","))]
    except ValueError as error:
        raise UsageError.bad_value("--gpus", text, expected) from error
    if not all(1 <= count <= MOST_GPUS for count in ends) or (dots and ends[0] > ends[1]):
        raise UsageError.bad_value("--gpus", text, expected)
    return tuple(range(ends[0], ends[1] + 1) if dots else sorted(set(ends)))


def _seconds(option: str, text: str) -> float:
    """A time with its unit."""
    if text.strip()[-1:].isdigit():
        raise UsageError.bad_value(option, text, f"a time with its unit, as {option} {text}ms or {option} {text}s")
    return seconds_of(option, text)


def _replay_of(found: Recommendation, source: str, context: typer.Context) -> str:
    """The command that replays the trace as it was asked for, or 75 s of it, on the recommended configuration."""
    from infergy.estimates.servers import DEFAULT_MODEL

    if found.recommended is None:
        return ""
    typed = typed_options(context)
    given = {spelling: context.params[name] for name, spelling in typed.items() if name in OF_REPLAYS}
    words = ["infergy replay", shlex.quote(source)]
    words += [word if value is True else f"{word} {shlex.quote(str(value))}" for word, value in given.items()]
    span_s = found.trace.duration_s or 0.0
    if span_s > 2 * REPLAYED_S and not {"start", "duration", "requests", "all_at_once"} & set(typed):
        words += ["--from 10m"] * (span_s > LATER_S) + [f"--for {REPLAYED_S}s"]
    chosen = found.of(found.recommended)
    words += [f"-e {chosen.engine}"]
    words += [] if chosen.estimate.model == DEFAULT_MODEL else [f"-m {shlex.quote(chosen.estimate.model)}"]
    words += [f"-g {shlex.quote(chosen.estimate.gpu)}"] if "gpu" in typed else []
    words += [] if chosen.estimate.config.get("enable_prefix_caching", True) else ["--no-enable-prefix-caching"]
    return " ".join([*words, "-o replay.jsonl"])


def _print(
    found: Recommendation, command: TypedServer | None, wanted: Sequence[int] | None, *, replay: str, explain: bool
) -> None:
    present = found.of(found.present)
    typer.echo(f"{title_of(found.trace, present.estimate)}; {present.estimate.model}")
    limits = ", ".join(f"{limit_name(name)} {format_latency(limit_s)}" for name, limit_s in found.limits.given())
    typer.echo(f"Limits: {limits or 'none on latency'}")
    typer.echo(f"Present: {found.present}, {_gpus(present)}: {_energy(present)}")
    for line in _answer(found, command, replay):
        typer.echo(line)
    heads = ("Configuration", "GPUs", "Energy", "Saves (90 %)", "TTFT p99", "TPOT p99", "")
    shown = found.configurations if explain else _shown(found)
    print_table(heads, (_row(one, found) for one in shown))
    print_capacity(found.capacity, found.recommended)
    both = (found.of(label) for label in dict.fromkeys((found.present, found.recommended)) if label is not None)
    print_footprints([(one.label, one.estimate.footprint) for one in both if one.estimate.footprint is not None])
    print_notes(_notes(found, command, wanted))
    if explain:
        print_notes(_explained(found.searched))


def _notes(found: Recommendation, command: TypedServer | None, wanted: Sequence[int] | None) -> Iterator[str]:
    yield from () if command is None else command.notes
    if wanted is not None and found.recommended is not None and found.of(found.recommended).estimate.gpus not in wanted:
        yield f"with --gpus {','.join(map(str, wanted))} nothing within the limits saves energy significantly"
    changed = sorted({one.changes_outputs for one in found.configurations if one.changes_outputs is not None})
    if changed:
        yield f"{', '.join(changed)} changes the model's answers: --keep-outputs leaves it out"
    yield from (*found.notes, *trace_notes(found.trace))
    yield from rejected_notes({one.label: one.estimate.run for one in found.configurations})


def _explained(searched: Searched) -> Iterator[str]:
    yield (
        f"{searched.configurations:,} configurations: {searched.equal:,} with limits on a step that this trace "
        f"never reaches, {searched.pruned:,} left out by floors or as far from the best, {searched.windows:,} "
        f"simulated in windows of the trace, {searched.whole:,} whole"
    )
    yield from (f"{label} is left out: {reason}" for label, reason in searched.reasons.items())


def _shown(found: Recommendation) -> Iterator[Configuration]:
    """The present one, those on the way, the Pareto set, static batches and the best that break a limit."""
    always = {found.present, found.recommended, *found.pareto, *(step.label for step in found.steps)}
    broken = [one.label for one in found.configurations if one.breaks][:2]
    for one in found.configurations:
        if one.label in always or one.label in broken or one.estimate.engine == "transformers":
            yield one


def _answer(found: Recommendation, command: TypedServer | None, replay: str) -> Iterator[str]:
    if found.recommended is None:
        nearest = found.configurations[0]
        kept, why = "keeps the limits", f": {_broken(nearest)}."
        if nearest.breaks == ("overload",):
            kept, why = "keeps up with this load", "; more: --gpus"
        yield f"No configuration {kept}. Nearest: {nearest.label}, {_gpus(nearest)}{why}"
        return
    chosen = found.of(found.recommended)
    yield from _choice(found, chosen)
    is_vllm = chosen.estimate.engine.startswith("vllm")
    yield f"  {' '.join(chosen.command if command is None or not is_vllm else command.again(chosen.command))}"
    if len(found.steps) > 1:
        yield "  step by step: " + ", ".join(f"{step.change} {format_percent(step.share)}" for step in found.steps)
    if found.static_batches is not None:
        yield f"  compared with static batches of transformers: {_saving(found.static_batches)} saved"
    if not chosen.estimate.run.measured_share and is_vllm:
        advice = f"; measure a window of it first: {replay}" if replay else ""
        yield f"The table has no run of it on {chosen.estimate.gpu}{advice}"


def _choice(found: Recommendation, chosen: Configuration) -> Iterator[str]:
    if found.reason == "present_is_best":
        yield f"Keep {found.present}: no configuration within the limits saves energy significantly."
        return
    remark = ""
    if found.reason == "present_breaks_limits":
        broken = _broken(found.of(found.present))
        yield f"The present configuration does not serve this load within the limits: {broken}"
        remark = "" if chosen.saving.share >= 0 else ", that is, it takes more"
        remark += "" if chosen.saving.is_significant else ", no significant difference"
    yield f"Recommended: {chosen.label}, {_gpus(chosen)}: {_energy(chosen)}, {_saving(chosen.saving)} saved{remark}"


def _row(one: Configuration, found: Recommendation) -> tuple[str, ...]:
    latency, is_present = one.estimate.run.latency, one.label == found.present
    return (
        one.label,
        str(one.estimate.gpus),
        format_si(one.energy_j, "J"),
        "present" if is_present else _saving(one.saving),
        *(NONE if time is None else format_latency(time.p99) for time in (latency.ttft_s, latency.tpot_s)),
        _remarks(one, found),
    )


def _gpus(one: Configuration) -> str:
    return f"{one.estimate.gpus} × {one.estimate.gpu}"


def _energy(one: Configuration) -> str:
    """Energy of the run, and of a month at this load where the load lasts."""
    daily_j = one.estimate.run.load.daily_j
    month = "" if daily_j is None else f", {format_number(daily_j * DAYS_OF_MONTH / JOULES_PER_KWH)} kWh per month"
    return f"{format_si(one.energy_j, 'J')}{month}"


def _saving(saving: Saving) -> str:
    """A share with its interval."""
    low, high = (format_percent(share).removesuffix(" %") for share in (saving.low, saving.high))
    return f"{format_percent(saving.share)} ({low} .. {high})"


def _broken(one: Configuration) -> str:
    """What it breaks, with the figures."""
    words = []
    for name in one.breaks:
        kind, _, percentile = name.removesuffix("_s").partition("_")
        time = getattr(one.estimate.run.latency, f"{kind}_s", None)
        words.append(BROKEN.get(name) or f"{limit_name(name)} is {format_latency(getattr(time, percentile))}")
    return ", ".join(words)


def _remarks(one: Configuration, found: Recommendation) -> str:
    over = [limit_name(name) for name in one.breaks if name not in BROKEN]
    remarks = [f"over {', '.join(over)}"] if over else []
    remarks += [BROKEN[name] for name in one.breaks if name in BROKEN]
    remarks += [] if one.label == found.present or one.saving.is_significant else ["no significant difference"]
    remarks += [] if one.estimate.run.measured_share else ["not measured"]
    return "; ".join(remarks)


HOUR_S = 3600


def print_capacity(capacity: Iterable[Capacity], recommended: str | None) -> None:
    """A line for each configuration, and the replicas by hour of the recommended one."""
    for one in capacity:
        typer.echo(_line(one))
    for one in capacity:
        if one.label == recommended and one.schedule is not None:
            _print_schedule(one.schedule)


def limit_name(limit: str) -> str:
    """``ttft_p99_s`` as ``TTFT p99``."""
    kind, percentile, _ = limit.split("_")
    return f"{kind.upper()} {percentile}"


def _line(one: Capacity) -> str:
    if one.rate_per_s is None:
        return f"{one.label}: no rate within the limits: {one.reason}"
    rate = f"{format_number(one.rate_per_s)} requests/s within the limits"
    if not one.binds:
        return f"{one.label} holds at least {rate}: the trace is too short for a higher rate"
    binds = ("its queue grows" if name == "overload" else f"{limit_name(name)} is over" for name in one.binds)
    return f"{one.label} holds up to {rate}; above, {' and '.join(binds)}"


def _print_schedule(schedule: Schedule) -> None:
    energy, all_j = format_si(schedule.energy_j, "J"), format_si(schedule.constant_j, "J")
    saved = format_percent(1 - schedule.energy_j / schedule.constant_j)
    typer.echo(f"Replicas by hour: {energy}, {all_j} with {schedule.replicas} all the time: {saved} saved")
    print_table(("Hours", "Requests/s", "Replicas", "Energy"), _rows(schedule))
    print_notes(schedule.notes)


def _rows(schedule: Schedule) -> Iterator[tuple[str, ...]]:
    """Hours with equal counts are joined."""
    for count, group in groupby(schedule.hours, lambda hour: hour.replicas):
        hours = [*group]
        first, last = (round(hour.start_s / HOUR_S) for hour in (hours[0], hours[-1]))
        each = [hour.rate_per_s for hour in hours]
        rates = dict.fromkeys(map(format_number, (min(each), max(each))))
        yield f"{first} .. {last + 1}", " .. ".join(rates), str(count), format_si(sum(h.energy_j for h in hours), "J")
