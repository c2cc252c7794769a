"""What arrivals mean: the unit of numbers, where neither the user nor the format says it for certain; dates in text.

dates     numbers that lie between 2010 and 2100 in one unit and no other: seconds since 1970, or parts of them
name      ``request_start_ns``, ``startTimeUnixNano``
rate      a server sees one request in 100 s, or 200 per second, and what is between
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from infergy.errors import DataError
from infergy.workload.formats import UNITS_S, spellings

if TYPE_CHECKING:
    from infergy.workload.table import Table

DATES, NAME, RATE, FORMAT, DEFAULT = "dates", "name", "rate", "format", "default"
MOST_PER_S = 1e6
"""Requests per second that no log has."""
_OF_SEVERAL_UNITS = ("mooncake", "bailian")
"""Formats of logs in other units than their own: the one's names are the other's."""
_FIRST_DATE_S, _LAST_DATE_S, _LONGEST_S = 1_262_304_000, 4_102_444_800, 20 * 31_557_600
_SECONDS = ("s", "ms", "us", "ns")
SERIAL_EPOCH_S, _MOST_DAYS = 25_569 * 86_400, 92
_USUAL_PER_S, _POSSIBLE_PER_S = (0.01, 200.0), (1e-6, MOST_PER_S)
_MIDDLE_LOG = math.log(math.prod(_USUAL_PER_S)) / 2
_FEWEST_REQUESTS, _FEWEST_OF_SLOW = 3, 10
"""Fewer say nothing of the rate, or, where a format says the unit, nothing of a log that seems slow in it."""
_PEEKED_ROWS, _PEEKED_RECORDS = 1000, 200
_DATES, _TIMES = ("%Y-%m-%d", "%d %B %Y"), ("%H:%M:%S%.f", "%H:%M:%S%.f%#z", "%I:%M:%S%.f %p")
_UNIT_IN_NAME = re.compile(
    r"(?i:(?:^|[_.\s(\[-])([mun\u00b5\u03bc]?)s(?:ecs?|econds?)?[)\]]?$|(m)illi\w*$|(u)icro\w*$|(n)ano\w*$)|[a-z]([MUN])s$"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeUnit:
    """The unit of a column of arrivals that was inferred, or that the format says of a log that is slow in it.

    Attributes:
        column: The column.
        unit: ``s``, ``ms``, ``us``, ``ns`` or ``d``: days since 1899-12-30, as of Excel.
        basis: ``dates`` (the numbers are dates of 2010 to 2100 in that unit), ``name`` (of the column), ``rate`` (of
            requests, which in another unit were more or fewer than a server sees), ``format`` (in which they are
            fewer), or ``default``: seconds.
    """

    column: str
    unit: str
    basis: str

    @property
    def seconds(self) -> float:
        """Of one unit."""
        return UNITS_S[self.unit]


def find_unit(
    column: str, low: float, high: float, requests: int, *, declared_s: float | None, varies: bool = False
) -> TimeUnit | None:
    """The unit of numbers from `low` to `high`, the arrivals of so many requests; None if it is the declared one.

    Dates in seconds need no format that says so.

    Args:
        column: Its name.
        low: The first arrival, in the unknown unit.
        high: The last one.
        requests: How many arrive from one to the other, both included.
        declared_s: Seconds of the unit of the format; None if there is no format.
        varies: Whether there are logs of the format in other units.
    """
    dates = _unit_of_dates(low, high)
    if dates is not None:
        return None if UNITS_S[dates] == (declared_s or 1.0) else TimeUnit(column=column, unit=dates, basis=DATES)
    rate_per_s = (requests - 1) / (high - low) if high > low and requests >= _FEWEST_REQUESTS else 0.0
    likely = _likeliest_unit(rate_per_s)
    if declared_s is not None:
        basis = _basis_of_format(rate_per_s / declared_s, requests, varies=varies)
        declared = {size: unit for unit, size in UNITS_S.items()}.get(declared_s, "s")
        if likely is None or basis is None:
            return None
        return TimeUnit(column=column, unit=likely if basis == RATE else declared, basis=basis)
    return _unit_of_unknown(column, low, high, requests, likely)


def _unit_of_unknown(column: str, low: float, high: float, requests: int, likely: str | None) -> TimeUnit | None:
    """The unit of a log without a format: by its name, days of a spreadsheet, the likely one, or seconds."""
    unit, basis = _unit_in(column), NAME
    if unit is None:
        unit, basis = ("d", DATES) if _are_serial_days(low, high, requests) else (likely, RATE)
    if unit is None or (unit == "s" and basis == RATE):
        unit, basis = "s", DEFAULT
    return None if (unit, basis) == ("s", NAME) else TimeUnit(column=column, unit=unit, basis=basis)


def _likeliest_unit(rate_per_s: float) -> str | None:
    """The unit in which requests, so many of them per number, come as often as a server sees them; None if none is."""
    if not rate_per_s:
        return None
    unit = min(_SECONDS, key=lambda unit: abs(math.log(rate_per_s / UNITS_S[unit]) - _MIDDLE_LOG))
    return unit if _is_usual(rate_per_s / UNITS_S[unit]) else None


def _is_usual(rate_per_s: float) -> bool:
    return _USUAL_PER_S[0] <= rate_per_s <= _USUAL_PER_S[1]


def _basis_of_format(rate_per_s: float, requests: int, *, varies: bool) -> str | None:
    """Whether the unit is by the rate, or by the format whose log is slow in it; None if it is the format's."""
    is_few = requests < _FEWEST_OF_SLOW
    lowest, highest = _USUAL_PER_S if varies else _POSSIBLE_PER_S
    if rate_per_s > highest or rate_per_s < (_POSSIBLE_PER_S[0] if is_few else lowest):
        return RATE
    return None if is_few or rate_per_s >= _USUAL_PER_S[0] else FORMAT


def _are_serial_days(low: float, high: float, requests: int) -> bool:
    """Whether numbers are dates as of Excel, 2010 to 2100: days of no whole number, with some requests a day."""
    ends = [end * UNITS_S["d"] - SERIAL_EPOCH_S for end in (low, high)]
    are_dates = all(_FIRST_DATE_S <= end <= _LAST_DATE_S for end in ends) and not low == int(low) == high
    return are_dates and high - low <= min(_MOST_DAYS, max(1.0, requests))


def shift_s(unit_s: float | None) -> float:
    """Seconds to take off arrivals in a unit: days are counted from 1899-12-30, as Excel does."""
    return SERIAL_EPOCH_S if unit_s == UNITS_S["d"] else 0.0


def _unit_in(column: str) -> str | None:
    """The unit that ends the name of a column."""
    named = _UNIT_IN_NAME.search(column)
    if named is None:
        return None
    letter = next(group for group in named.groups() if group is not None).lower()
    return {"m": "ms", "n": "ns", "": "s"}.get(letter, "us")


def _unit_of_dates(low: float, high: float) -> str | None:
    """The one unit in which two numbers are dates of one log."""
    unit = _unit_of_date(low)
    is_one = unit is not None and unit == _unit_of_date(high) and (high - low) * UNITS_S[unit] <= _LONGEST_S
    return unit if is_one else None


def _unit_of_date(number: float) -> str | None:
    """The one unit in which a number is a date of 2010 to 2100."""
    return next((unit for unit in _SECONDS if _FIRST_DATE_S <= number * UNITS_S[unit] <= _LAST_DATE_S), None)


def infer_unit(table: Table) -> TimeUnit | None:
    """The unit of the arrivals of a table; None if it is the format's (see `find_unit`), or if they are no numbers.

    Raises:
        DataError: They are dates in several units.
    """
    layout, unit = table.layout, None
    if layout.time_unit_s is None and _unit_in(layout.time[0]) == "s":
        return None
    for head in (_PEEKED_ROWS, None):
        ends = _ends(table, head)
        if ends is None:
            return None
        units = _unit_of_date(ends[0]), _unit_of_date(ends[1])
        if units[0] != units[1] and None not in units:
            column, name = layout.time[0], table.source.name
            message = (
                f"{name}: arrivals in {column!r} are dates in several units ({units[0]} and {units[1]}). Convert them"
            )
            raise DataError(message, code="bad-trace", trace=name, column=column)
        unit = find_unit(layout.time[0], *ends, declared_s=layout.time_unit_s, varies=layout.name in _OF_SEVERAL_UNITS)
        # The first requests may come in a burst that says nothing of the log: all of them decide.
        if unit is None or unit.basis not in (RATE, FORMAT):
            break
    return unit


def _ends(table: Table, head: int | None) -> tuple[float, float, int] | None:
    """The first and last arrival and how many there are, of the `head` of a table without outliers; None if none."""
    numbers = table.arrival_numbers
    if numbers is None:
        return None
    time = table.x.col("time")
    rows = table.frame.select(numbers.alias("time")).filter(time.is_finite())
    if head is None or not table.is_polars:
        ends = time.min().alias("low"), time.max().alias("high"), time.count().alias("n")
        ((facts,),) = table.collect(rows.select(*ends))
        return (float(facts["low"]), float(facts["high"]), int(facts["n"])) if facts["n"] else None
    seen = [value for row in table.source.rows[:_PEEKED_RECORDS] if (value := _first(row, table.layout.time))]
    times = [number for value in seen if (number := _number(value)) is not None]
    if not seen:
        first = table.frame.head(head).select(numbers.alias("time")).filter(time.is_finite())
        times = [row["time"] for row in table.collect(first)[0]]
    outliers = len(times) // 10
    times = sorted(times)[outliers : len(times) - outliers]
    return (times[0], times[-1], len(times)) if times else None


def _first(row: Mapping[str, Any], paths: Iterable[str]) -> str:
    return next((str(row[path]) for path in paths if row.get(path) is not None), "")


def _number(text: str) -> float | None:
    try:
        number = float(text.replace(",", "."))
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def instants(x: Any, column: Any, *, spelled: bool) -> list[Any]:
    """Unix times of text in the spellings that logs have, null for other text; without a zone it is taken as UTC.

    Args:
        x: polars.
        column: Text.
        spelled: Also what is not ISO 8601, at a third of the speed.
    """
    spaced = column.str.replace("T", " ", literal=True)
    patterns = [f"{_DATES[0]} {time}" for time in _TIMES[:2]]
    if spelled:
        spaced = column.str.strip_chars()
        for spelling, plain in spellings():
            spaced = spaced.str.replace(spelling, plain)
        patterns = [f"{date} {time}" for date in _DATES for time in _TIMES]
    times = []
    for pattern in patterns:
        kind = x.Datetime("us", "UTC") if "z" in pattern else x.Datetime("us")
        times.append(spaced.str.strptime(kind, pattern, strict=False).dt.timestamp("us").cast(x.Float64) / 1e6)
    return [*times, *(_by_day_or_month(x, spaced) if spelled else ())]


def _by_day_or_month(x: Any, text: Any) -> list[Any]:
    """Unix times of dates with slashes whose year is last, in the order of day and month that makes one log of them.

    It is the order in which all are dates, and if both are, that of the shorter log.
    """

    def parsed(date: str) -> Any:
        times = (
            text.str.strptime(x.Datetime("us"), f"{date} {of_day}", strict=False).dt.timestamp("us")
            for of_day in ("%H:%M:%S%.f", "%I:%M:%S%.f %p")
        )
        return x.coalesce(*times)

    orders = parsed("%m/%d/%Y"), parsed("%d/%m/%Y")
    (us, us_count, us_span), (eu, eu_count, eu_span) = (
        (order, order.count(), order.max() - order.min()) for order in orders
    )
    is_us = (us_count > eu_count) | ((us_count == eu_count) & (us_span <= eu_span))
    return [x.when(is_us).then(us).otherwise(eu).cast(x.Float64) / 1e6]
