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
from infergy.workload.formats import UNITS_S

if TYPE_CHECKING:
    from infergy.workload.table import Table

DATES, NAME, RATE, FORMAT, DEFAULT = "dates", "name", "rate", "format", "default"
MOST_PER_S = 1e6
"""Requests per second that no log has."""
_OF_SEVERAL_UNITS = ("mooncake", "bailian")
"""Formats of logs in other units than their own: the one's names are the other's."""
_FIRST_DATE_S, _LAST_DATE_S, _LONGEST_S = 1_262_304_000, 4_102_444_800, 20 * 31_557_600
_USUAL_PER_S, _POSSIBLE_PER_S = (0.01, 200.0), (1e-6, MOST_PER_S)
_FEWEST_REQUESTS, _FEWEST_OF_SLOW = 3, 10
"""Fewer say nothing of the rate, or, where a format says the unit, nothing of a log that seems slow in it."""
_PEEKED_ROWS, _PEEKED_RECORDS = 1000, 200
_SPELLINGS = (
    (r"^\[([^\[\]]*)\]$", "$1"),
    (r"\s*\[[\w/+-]+\]$", ""),
    (r"([+-]\d\d:?\d\d) [A-Z]{3,4}$", "$1"),
    (r"\s+@\s+", " "),
    (r"(?i)\s*(?:UTC|GMT|Z)$", "+00:00"),
    (r"\s+([+-]\d\d:?\d\d)$", "$1"),
    (r"^(\d\d?)\.(\d\d?)\.(\d{4})", "$3-$2-$1"),
    (r"^(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)", "$1-$2-$3 $4:$5:$6"),
    (r"^(\d{4})[-/.](\d\d?)[-/.](\d\d?)", "$1-$2-$3"),
    (r"^(\d[-/.\d]*)(?:[Tt]|,?\s+)", "$1 "),
    (r"^([-/.\d]+ \d\d?:\d\d(?::\d\d)?),(\d)", "$1.$2"),
    (r"^([-/.\d]+ \d\d?:\d\d)([^:\d]|$)", "$1:00$2"),
    (r"^([-/.\d]+)$", "$1 00:00:00"),
)
"""Spellings of dates and times, and the same in ISO 8601; one after the other."""
_OTHER_PATTERNS = (
    "%Y-%m-%d %I:%M:%S%.f %p",
    "%d/%b/%Y:%H:%M:%S%#z",
    "%a, %d %b %Y %H:%M:%S%#z",
    "%a %b %d %H:%M:%S %Y",
    "%d %b %Y %H:%M:%S%.f",
    "%b %d, %Y %H:%M:%S%.f",
)
_UNIT_IN_NAME = re.compile(
    r"(?i:(?:^|[_.\s(\[-])([mun\u00b5\u03bc]?)s(?:ecs?|econds?)?[)\]]?$|(m)illi\w*$|(u)icro\w*$|(n)ano\w*$)|[a-z]([MUN])s$"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeUnit:
    """The unit of a column of arrivals that was inferred, or that the format says of a log that is slow in it.

    Attributes:
        column: The column.
        unit: ``s``, ``ms``, ``us`` or ``ns``.
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
    unit = _unit_of_date(low)
    if unit is not None and unit == _unit_of_date(high) and (high - low) * UNITS_S[unit] <= _LONGEST_S:
        return None if UNITS_S[unit] == (declared_s or 1.0) else TimeUnit(column=column, unit=unit, basis=DATES)
    stands = None if declared_s is not None else TimeUnit(column=column, unit="s", basis=DEFAULT)
    if stands is not None and (named := _unit_in(column)):
        return None if named == "s" else TimeUnit(column=column, unit=named, basis=NAME)
    if not high > low or requests < _FEWEST_REQUESTS:
        return stands
    own = (requests - 1) / (high - low) / (declared_s or 1.0)
    rates = {unit: (requests - 1) / (high - low) / size for unit, size in UNITS_S.items()}
    lowest, highest = _USUAL_PER_S if varies or stands is not None else _POSSIBLE_PER_S
    if stands is None and requests < _FEWEST_OF_SLOW:
        lowest = _POSSIBLE_PER_S[0]
    likely = [unit for unit, rate in rates.items() if _USUAL_PER_S[0] <= rate <= _USUAL_PER_S[1]]
    if not likely or lowest <= own <= highest:
        if not likely or stands is not None or own >= _USUAL_PER_S[0] or requests < _FEWEST_OF_SLOW:
            return stands
        declared = next((unit for unit, size in UNITS_S.items() if size == declared_s), "s")
        return TimeUnit(column=column, unit=declared, basis=FORMAT)
    middle = math.sqrt(math.prod(_USUAL_PER_S))
    likeliest = min(likely, key=lambda unit: abs(math.log(rates[unit] / middle)))
    return TimeUnit(column=column, unit=likeliest, basis=RATE)


def _unit_in(column: str) -> str | None:
    """The unit that ends the name of a column."""
    named = _UNIT_IN_NAME.search(column)
    if named is None:
        return None
    letter = next(group for group in named.groups() if group is not None).lower()
    return {"m": "ms", "n": "ns", "": "s"}.get(letter, "us")


def _unit_of_date(number: float) -> str | None:
    """The one unit in which a number is a date of 2010 to 2100."""
    return next((unit for unit, size in UNITS_S.items() if _FIRST_DATE_S <= number * size <= _LAST_DATE_S), None)


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
    if head is not None and table.is_polars:
        seen = [value for row in table.source.rows[:_PEEKED_RECORDS] if (value := _first(row, table.layout.time))]
        if seen:
            times = sorted(number for value in seen if (number := _number(value)) is not None)
        else:
            rows = table.frame.head(head).select(numbers.alias("time")).filter(time.is_finite())
            times = sorted(row["time"] for row in table.collect(rows)[0])
        outliers = len(times) // 10
        return (times[outliers], times[-1 - outliers], len(times) - 2 * outliers) if times else None
    rows = table.frame.select(numbers.alias("time")).filter(time.is_finite())
    ends = time.min().alias("low"), time.max().alias("high"), time.count().alias("n")
    ((facts,),) = table.collect(rows.select(*ends))
    return (float(facts["low"]), float(facts["high"]), int(facts["n"])) if facts["n"] else None


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
    patterns: tuple[str, ...] = ("%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f%#z")
    if spelled:
        spaced = column.str.strip_chars()
        for spelling, plain in _SPELLINGS:
            spaced = spaced.str.replace(spelling, plain)
        patterns = (*patterns, *_OTHER_PATTERNS)
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
