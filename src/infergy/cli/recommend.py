"""`infergy recommend`: which configuration serves a trace with the least energy, and what to type for it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING

import typer

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
from infergy.units import format_latency, format_percent, format_si

if TYPE_CHECKING:
    from infergy.estimates.recommend import Configuration, Recommendation

BROKEN = {
    "ttft_p99_s": "TTFT p99 over limit",
    "tpot_p50_s": "TPOT p50 over limit",
    "tpot_p99_s": "TPOT p99 over limit",
    "e2e_p99_s": "E2E p99 over limit",
    "rejected_requests": "rejects more requests",
    "overload": "queue grows without limit",
}

OF_REPLAYS = (
    *("format", "input_column", "output_column", "time_column", "cached_column", "time_unit", "requests", "seed"),
    *("tokenizer", "start", "duration", "speed", "all_at_once", "table", "usage_context"),
)
"""Options of a trace that a replay takes too."""
REPLAYED_S, LATER_S = 75, 700
"""Seconds of a long trace that a replay takes, and from which on it begins at minute 10."""


@with_options
def recommend(
    context: typer.Context,
    source: TraceArg,
    trace: TraceSelection,
    servers: ServerSelection,
    measured: MeasuredSelection,
    ttft_p99: str | None = option("Limit on the time to first token, 99 % of requests: 50ms, 0.05s", metavar="TIME"),
    tpot_p99: str | None = option("Limit on the time per output token, 99 % of requests: 50ms, 0.05s", metavar="TIME"),
    e2e_p99: str | None = option("Limit on the time to the last token, 99 % of requests: 50ms, 0.05s", metavar="TIME"),
    keep_outputs: bool = flag("Leave out what changes the model's answers: another precision", "--keep-outputs"),
    explain: ExplainOption = False,
    as_json: JsonOption = False,
) -> None:
    """Rank configurations by the energy of serving a trace within limits on latency.

    The server options are those of the present configuration. Several servers (repeated options, or --compare) are
    ranked as they are, the first of them the present one.

    Example: infergy recommend azure-conv-2023 --tpot-p99 50ms
    """
    from infergy.estimates.recommend import Limits
    from infergy.estimates.recommend import recommend as rank

    given = {"--ttft-p99": ttft_p99, "--tpot-p99": tpot_p99, "--e2e-p99": e2e_p99}
    limits = Limits(
        **{
            option[2:].replace("-", "_") + "_s": _seconds(option, text)
            for option, text in given.items()
            if text is not None
        }
    )
    present, *others = servers.specs()
    table = measured.load()
    found = rank(trace.open(source), others or None, table, present=present, limits=limits, keep_outputs=keep_outputs)
    if as_json:
        print_json([found])
    else:
        _print(found, replay=_replay_of(found, source, context), explain=explain)


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
    return " ".join([*words, "-o replay.jsonl"])


def _print(found: Recommendation, *, replay: str, explain: bool) -> None:
    first = found.configurations[0].estimate
    typer.echo(f"{title_of(found.trace, first)}; {first.model} on {first.gpu}; savings compared with {found.present}")
    for line in _answer(found, replay):
        typer.echo(line)
    heads = ("Configuration", "Energy", "Saves (90 %)", "TTFT p99", "TPOT p99", "")
    print_table(heads, (_row(one, is_present=one.label == found.present) for one in found.configurations))
    rejects = rejected_notes({one.label: one.estimate.run for one in found.configurations})
    print_notes((*found.notes, *trace_notes(found.trace), *rejects))
    if explain:
        print_notes(f"{label} is left out: {reason}" for label, reason in found.left_out.items())


def _answer(found: Recommendation, replay: str) -> Iterator[str]:
    if found.recommended is None:
        nearest = found.configurations[0]
        if nearest.breaks == ("overload",):
            yield f"Each configuration that keeps the limits is overloaded. Nearest: {nearest.label}. Give --replicas."
            return
        yield f"No configuration keeps the limits. Nearest: {nearest.label} ({_broken(nearest)})."
        return
    chosen, present = found.of(found.recommended), found.of(found.present)
    if found.reason == "present_is_best":
        yield f"Keep {found.present}: no configuration within the limits saves energy significantly."
    elif found.reason == "saves":
        yield f"Recommended: {chosen.label}. It saves {_saving(chosen)} of the energy."
    else:
        yield f"Recommended: {chosen.label}, since {found.present} does not serve this load ({_broken(present)})."
        verb = "saves" if chosen.saving >= 0 else "takes more energy: it saves"
        certain = "" if chosen.is_significant else ", no significant difference"
        yield f"It {verb} {_saving(chosen)} of the energy{certain}."
    yield f"  {' '.join(chosen.command)}"
    if not chosen.estimate.run.measured_share and chosen.estimate.engine.startswith("vllm"):
        yield f"The table has no run of it on {chosen.estimate.gpu}; measure a window of it first: {replay}"


def _row(one: Configuration, *, is_present: bool) -> tuple[str, ...]:
    latency = one.estimate.run.latency
    return (
        one.label,
        format_si(one.energy_j, "J"),
        "present" if is_present else _saving(one),
        *(NONE if time is None else format_latency(time.p99) for time in (latency.ttft_s, latency.tpot_s)),
        _remarks(one, is_present=is_present),
    )


def _saving(one: Configuration) -> str:
    """A share with its interval."""
    low, high = (format_percent(share).removesuffix(" %") for share in (one.saving_low, one.saving_high))
    return f"{format_percent(one.saving)} ({low} .. {high})"


def _broken(one: Configuration) -> str:
    return ", ".join(BROKEN[name] for name in one.breaks)


def _remarks(one: Configuration, *, is_present: bool) -> str:
    remarks = [_broken(one)] if one.breaks else []
    remarks += [one.changes_outputs] if one.changes_outputs else []
    remarks += [] if is_present or one.is_significant else ["no significant difference"]
    remarks += [] if one.estimate.run.measured_share else ["not measured on this GPU"]
    return "; ".join(remarks)
