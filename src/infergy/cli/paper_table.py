"""Estimates by the study's method as tables on screen: gaps to the ideal and savings, as its Table 4."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import typer

from infergy.cli.output import NONE, UNKNOWN, print_notes, print_table
from infergy.units import count_of, format_duration, format_percent, format_si

if TYPE_CHECKING:
    from infergy.estimates.paper import PaperEstimate, PaperServer

WIDTH = 120
_Text = Callable[["PaperServer"], str]


def print_paper(estimates: Sequence[PaperEstimate]) -> None:
    """Print a table for each trace, one column per server, and for several traces one of gaps and savings.

    Args:
        estimates: One per trace, of the same servers.
    """
    for estimate in estimates:
        bins = estimate.bins
        typer.echo(
            f"{estimate.source}: {count_of(estimate.requests, 'request')} in {bins.name} bins of "
            f"{len(bins.input_edges)} input and {len(bins.output_edges)} output lengths, each at its upper corner "
            "(arXiv 2504.17674)"
        )
        lines = ((name, *map(text, estimate.servers)) for name, text in _lines(estimate))
        print_table(("", *_names(estimate.servers)), lines)
        print_notes(_notes(estimate), width=WIDTH)
    if len(estimates) > 1:
        heads = [head for name in _names(estimates[0].servers) for head in (f"{name}, gap", "saving")]
        rows = [
            (estimate.source, *(text(server) for server in estimate.servers for text in (_gap, _saving)))
            for estimate in estimates
        ]
        title = f"Gap to the ideal, and saving compared with {estimates[0].baseline}"
        print_table(("Trace", *heads), rows, title=title)


def _lines(estimate: PaperEstimate) -> Iterator[tuple[str, _Text]]:
    yield "Energy", lambda s: _text(s.energy_j, lambda j: format_si(j, "J"))
    yield "  bins' floors .. whole batches", _bracket
    yield "Energy per request", lambda s: _text(s.energy_j, lambda j: format_si(j / _served(s), "J"))
    yield "Duration", lambda s: _text(s.duration_s, format_duration)
    yield "Batches", _batches
    yield "Ideal", lambda s: _text(s.compared.ideal_energy_j, lambda j: format_si(j, "J"))
    yield "Gap to the ideal", _gap
    yield f"Saving compared with {estimate.baseline}", _saving
    yield "  90 %", _saving_interval
    if any(server.unserved_requests for server in estimate.servers):
        yield "Requests not served", lambda s: format_percent(s.unserved_requests / (_served(s) + s.unserved_requests))


def _names(servers: Sequence[PaperServer]) -> list[str]:
    """Engines, and what else differs among the servers."""
    parts = [(server.engine, server.model, f"{server.gpus} × {server.gpu}") for server in servers]
    varying = [k for k in range(3) if k == 0 or len({part[k] for part in parts}) > 1]
    return [", ".join(part[k] for k in varying) for part in parts]


def _notes(estimate: PaperEstimate) -> Iterator[str]:
    hardware = {f"{server.model} on {server.gpus} × {server.gpu}, {server.precision}" for server in estimate.servers}
    yield f"Served: {'; '.join(sorted(hardware))}. Batches of equal requests, all at once, one batch after the other."
    yield from dict.fromkeys(
        f"Ideal: {server.compared.ideal_basis}" for server in estimate.servers if server.compared.ideal_basis
    )
    if estimate.left_out_requests:
        yield (
            f"{estimate.left_out_requests:,} of {count_of(estimate.requests, 'request')} lie past the last bin and are "
            "left out; --bins powers-of-two leaves none out"
        )
    for server in estimate.servers:
        if server.unserved_requests:
            yield (
                f"{server.engine}: {count_of(server.unserved_requests, 'request')} lie in bins whose upper corner "
                "exceeds the context or the memory; they are in no sum"
            )
        if server.compared.saving_vs_baseline is None and server.engine != estimate.baseline:
            yield f"{server.engine}: saving unknown: {server.compared.saving_reason}"


def _served(server: PaperServer) -> int:
    return sum(entry.requests for entry in server.bins if entry.batch)


def _text(value: float | None, show: Callable[[float], str]) -> str:
    return UNKNOWN if value is None else show(value)


def _bracket(server: PaperServer) -> str:
    if server.low_j is None or server.high_j is None:
        return UNKNOWN
    return f"{format_si(server.low_j, 'J')} .. {format_si(server.high_j, 'J')}"


def _batches(server: PaperServer) -> str:
    sizes = [entry.batch for entry in server.bins if entry.batch]
    return " to ".join(f"{size:,}" for size in sorted({min(sizes), max(sizes)})) if sizes else UNKNOWN


def _gap(server: PaperServer) -> str:
    return _text(server.compared.gap_to_ideal, lambda gap: format_percent(gap, signed=True))


def _saving(server: PaperServer) -> str:
    saving = server.compared.saving_vs_baseline
    return NONE if saving is None else format_percent(saving)


def _saving_interval(server: PaperServer) -> str:
    low, high = server.compared.saving_low, server.compared.saving_high
    return NONE if low is None or high is None else f"{format_percent(low)} .. {format_percent(high)}"
