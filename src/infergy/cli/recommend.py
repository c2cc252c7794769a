"""`infergy recommend`: which configuration serves a trace with the least energy, and what to type for it."""

from __future__ import annotations

from collections.abc import Iterator
from textwrap import fill
from typing import TYPE_CHECKING, Annotated

import typer

from infergy.cli.estimate import WIDTH
from infergy.cli.groups import with_groups
from infergy.cli.notes import rejected_notes, trace_notes
from infergy.cli.server_options import MeasuredSelection, ServerSelection, TraceSelection
from infergy.cli.trace_options import JsonOption, print_json, seconds_of, stdout_console
from infergy.errors import UsageError
from infergy.units import count_of, format_latency, format_percent, format_si

if TYPE_CHECKING:
    from rich.table import Table

    from infergy.estimates.recommend import Configuration, Recommendation

BROKEN = {
    "ttft_p99_s": "TTFT p99 over limit",
    "tpot_p50_s": "TPOT p50 over limit",
    "tpot_p99_s": "TPOT p99 over limit",
    "e2e_p99_s": "E2E p99 over limit",
    "rejected_requests": "rejects more requests",
    "overload": "queue grows without limit",
}
NONE = "-"


def _limit(option: str, meaning: str) -> typer.models.OptionInfo:
    option_info: typer.models.OptionInfo = typer.Option(option, metavar="TIME", help=f"Limit on {meaning}: 50ms, 0.05s")
    return option_info


@with_groups
def recommend(
    source: Annotated[str, typer.Argument(metavar="TRACE", help="A shipped trace's name, or a file")],
    trace: TraceSelection,
    servers: ServerSelection,
    measured: MeasuredSelection,
    ttft_p99: Annotated[str | None, _limit("--ttft-p99", "the time to first token, 99 % of requests")] = None,
    tpot_p50: Annotated[str | None, _limit("--tpot-p50", "the time per output token, half of the requests")] = None,
    tpot_p99: Annotated[str | None, _limit("--tpot-p99", "the time per output token, 99 % of requests")] = None,
    e2e_p99: Annotated[str | None, _limit("--e2e-p99", "the time to the last token, 99 % of requests")] = None,
    keep_outputs: Annotated[
        bool, typer.Option("--keep-outputs", help="Leave out what changes the model's answers: another precision")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Rank configurations by the energy of serving a trace within limits on latency.

    The server options are those of the present configuration. Several servers (repeated options, or --compare) are
    ranked as they are, the first of them the present one.

    Example: infergy recommend azure-conv-2023 --tpot-p99 50ms
    """
    from infergy.estimates.recommend import Limits
    from infergy.estimates.recommend import recommend as rank

    given = {"--ttft-p99": ttft_p99, "--tpot-p50": tpot_p50, "--tpot-p99": tpot_p99, "--e2e-p99": e2e_p99}
    limits = Limits(
        **{
            option[2:].replace("-", "_") + "_s": _seconds(option, text)
            for option, text in given.items()
            if text is not None
        }
    )
    present, *others = servers.specs()
    found = rank(
        trace.open(source), others or None, measured.load(), present=present, limits=limits, keep_outputs=keep_outputs
    )
    if as_json:
        print_json([found])
    else:
        _print(found)


def _seconds(option: str, text: str) -> float:
    """A time with its unit."""
    if text.strip()[-1:].isdigit():
        raise UsageError.bad_value(option, text, f"a time with its unit, as {option} {text}ms or {option} {text}s")
    return seconds_of(option, text)


def _print(found: Recommendation) -> None:
    console = stdout_console()
    first = found.configurations[0].estimate
    how = "as they arrive" if first.served is not None else "all at once"
    console.print(
        f"{found.trace.source}: {count_of(found.trace.requests, 'request')} {how}; {first.model} on {first.gpu}; "
        f"savings against {found.present}",
        markup=False,
        soft_wrap=True,
    )
    for line in _answer(found):
        console.print(line, markup=False, soft_wrap=True)
    console.print(_table(found))
    rejects = rejected_notes({one.label: one.estimate.run for one in found.configurations})
    known = (*found.notes, *trace_notes(found.trace), *rejects)
    for text in (*known, *(f"{label} is left out: {reason}" for label, reason in found.left_out.items())):
        lines = fill(text, WIDTH, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False)
        console.print(lines, markup=False)


def _answer(found: Recommendation) -> Iterator[str]:
    if found.recommended is None:
        nearest = found.configurations[0]
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
    if not chosen.estimate.run.measured_share:
        replay = f"infergy replay {found.trace.source} -e {chosen.estimate.engine} -o replay.jsonl"
        yield f"No run of it was measured on {chosen.estimate.gpu}; measure it first: {replay}"


def _table(found: Recommendation) -> Table:
    from rich import box
    from rich.table import Table

    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    grid.add_column("Configuration", no_wrap=True)
    for name in ("Energy", "Saves (90 %)", "TTFT p99", "TPOT p99"):
        grid.add_column(name, justify="right", no_wrap=True)
    grid.add_column("")
    for one in found.configurations:
        is_present = one.label == found.present
        latency = one.estimate.run.latency
        grid.add_row(
            one.label,
            format_si(one.energy_j, "J"),
            "present" if is_present else _saving(one),
            *(NONE if time is None else format_latency(time.p99) for time in (latency.ttft_s, latency.tpot_s)),
            _remarks(one, is_present=is_present),
        )
    return grid


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
