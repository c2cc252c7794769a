"""The highest rates of configurations and their replicas by hour, in text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import TYPE_CHECKING

import typer

from infergy.cli.output import print_notes, print_table
from infergy.units import format_number, format_percent, format_si

if TYPE_CHECKING:
    from infergy.estimates.capacity import Capacity, Schedule

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
