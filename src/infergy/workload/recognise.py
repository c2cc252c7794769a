"""Which columns of one log hold what: recognised from its fields and first rows, or named by the user."""

from __future__ import annotations

import difflib
import itertools
import re
import shlex
import statistics
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, TypeVar

from infergy.errors import DataError, UsageError
from infergy.workload.bins import LONGEST_TOKENS
from infergy.workload.counts import Rows, number_of
from infergy.workload.formats import (
    AND,
    GAPS,
    KIND,
    NAMED,
    BlockColumn,
    Columns,
    Format,
    Layout,
    SessionColumns,
    Sums,
    Usage,
    format_names,
    formats,
    formats_elsewhere,
    names_of,
    outer,
    parts_of,
)
from infergy.workload.guess import guess_columns
from infergy.workload.locate import look_further, nested_readings, text_readings
from infergy.workload.source import Source, plain_name

_SHOWN_FIELDS = 20
_SHOWN_CHARACTERS = 80
_LONGEST_PROMPT = 1_500_000
"""Half of a log's prompts may not be longer, in tokens: no model takes so many."""
_FEWEST_PAIRS, _ASCENDING, _LONGEST_LATENCY = 8, 0.65, 1e6
_FEWEST_PERIODS = 3
_PERIOD = re.compile(
    r"\d{4}-\d\d(-\d\d)?([T ]\d\d(:00(:00(\.0+)?)?)?)?(Z|\+00:00)?|\d{4}-?W\d\d|\d\d?[/.]\d\d?[/.]\d{2,4}|\d\d?(:00)?"
    r"|[A-Za-z]{3,9}\.? \d\d?,? \d{4}|(19|20)\d\d[01]\d[0-3]\d"
)
"""A day or an hour, not the time of a request."""
_NUMBER = re.compile(r"\d{1,7}|\d{9,}")
_TIME_OF_DAY = re.compile(r"\d\d?:\d\d(:\d\d)?.*")
AXES = ("input", "output")
_OF_NAMED = Format(
    usage=Usage(input=(), output=()), layout=Layout(name=NAMED), marks=frozenset(), any=frozenset(), is_response=True
)
"""No format: the user named the columns."""
_Links = TypeVar("_Links", BlockColumn, SessionColumns)
_UNITS_OF_NAMES = ("", "unixnano", "nanos", "nano", "ns", "us", "ms", "millis", "seconds", "secs", "sec", "s")


def recognise(origin: Source, wanted: str | None, columns: Columns | None) -> tuple[Source, Layout]:
    """A source and what its columns hold: the first of its readings that has known columns."""
    origin = origin.peeked({"time", *names_of("counts"), *names_of("buckets"), *names_of("periods")})
    others = nested_readings(origin), text_readings(origin), _without_texts(origin), look_further(origin)
    options: dict[str, Any] = {"wanted": wanted, "columns": columns}
    errors = []
    for one in itertools.chain([origin], *others, [origin.respelled(plain_name)]):
        try:
            return one, settle(one.fields, source=one.name, records=one.is_records, rows=one.rows, **options)
        except DataError as error:
            if error.code not in ("unknown-format", "no-column"):
                raise
            errors.append(error)
    raise max(errors, key=lambda error: len(error.fields.get("guess", ())))


def _without_texts(origin: Source) -> Iterator[Source]:
    """No reading.

    Raises:
        DataError: The log has texts to be counted.
    """
    from infergy.workload.texts import has_texts

    if has_texts(origin):
        message = f"{origin.name}: texts, and no tokens. Count them: --tokenizer NAME, a Hugging Face tokenizer"
        raise DataError(message, code="uncounted-texts", trace=origin.name, option="--tokenizer")
    yield from ()


def settle(
    fields: Collection[str], *, source: str, records: bool, wanted: str | None, columns: Columns | None, rows: Rows = ()
) -> Layout:
    """The columns of a log: recognised from the fields it has, or named; columns that the user names go first.

    Args:
        fields: Columns of the log; of JSON records, the dotted paths seen in the first ones.
        source: Name of the log, for messages.
        records: Whether rows are JSON records, in which an optional field may show up late.
        wanted: Name of a format, or None to recognise it.
        columns: Named by the user.
        rows: The first rows, by path, where they are known.

    Raises:
        UsageError: No format of that name.
        DataError: The log lacks a column, or its rows are sums over many requests; says which columns were found,
            which are expected, and the option that names them.
    """
    known = dict.fromkeys(fields)
    named = columns or Columns()
    return _Log(source=source, fields=known, is_records=records, wanted=wanted, named=named, rows=rows).layout()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Log:
    """What is known of a log before its rows are read, and what the user says of it; see `settle`."""

    source: str
    fields: Mapping[str, None]
    is_records: bool
    wanted: str | None
    named: Columns
    rows: Rows

    def layout(self) -> Layout:
        self._check_named()
        known = self._formats()
        first, usages = known[0], self._usages(known)
        own = usages[0].input[0]
        self._check_values(own)
        place = own[: own.rfind(".") + 1]
        layout = first.layout
        if layout.name in (NAMED, "tokens"):
            layout = replace(layout, is_partial=self.is_records or any(self._around(place, names_of("outcomes"))))
        time, unit_s = self._arrivals(known, place)
        skip = {path: texts for name, texts in layout.skip.items() for path in islice(self._around(place, [name]), 1)}
        layout = replace(
            layout,
            usages=usages,
            time=time,
            time_unit_s=self.named.time_unit_s or unit_s,
            skip=skip,
            blocks=self._linked(layout.blocks),
            sessions=self._linked(layout.sessions, GAPS),
            others=tuple(self._around(place, [*names_of("ids"), KIND])) if first.is_response else (),
        )
        if self.named.requests is None:
            self._check_sums(layout, place)
            return layout
        end = layout.sums.end if layout.sums and layout.sums.end in self.fields else None
        # Without the end of its time, a row does not say when its requests came.
        time = time if end or self.named.time else ()
        return replace(layout, sums=Sums(count=self.named.requests, end=end), time=time)

    def _linked(self, *links: _Links | None) -> _Links | None:
        """The first links whose columns the log has."""
        return next((one for one in links if one is not None and set(one.paths) <= set(self.fields)), None)

    def _around(self, place: str, names: Iterable[str]) -> Iterator[str]:
        """The fields of these names, in any case, beside the counts, or in a record around them."""
        any_case = {path.lower(): path for path in reversed([*self.fields])}
        paths = (path for name in names for path in outer(place, name))
        return (path if path in self.fields else any_case[path.lower()] for path in paths if path.lower() in any_case)

    def _values(self, path: str) -> list[str]:
        """The first values of a field, as text."""
        return [str(row[path]) for row in self.rows if row.get(path) not in (None, "")]

    def _check_named(self) -> None:
        axes = ("input", "output", "time", "cached", "requests")
        lacking = [(axis, path) for axis in axes for path in self._named(axis) if path not in self.fields]
        for axis, path in lacking:
            near = difflib.get_close_matches(path, list(self.fields), n=3, cutoff=0.5)
            hint = f"did you mean {', '.join(near)}? " if near else ""
            option = f"--{axis}-column"
            what = f"no column {path!r}; {hint}found: {_shown(self.fields)}"
            message = f"{self.source}: {what}. Name another: {option} NAME"
            raise DataError(message, code="no-column", trace=self.source, column=path, option=option)

    def _check_values(self, own: str) -> None:
        if isinstance(next((row[own] for row in self.rows if row.get(own) is not None), None), list):
            message = f"{self.source}: column {own!r} has lists, which go with no other list of the same length"
            message = f"{message}. Expected one row per request, or lists of input and output tokens in one record"
            raise DataError(message, code="unknown-format", trace=self.source, columns=list(self.fields))

    def _named(self, axis: str) -> tuple[str, ...]:
        """The columns that the user named: of a sum, or a date and its time; a name of the log may hold a plus."""
        text: str | None = getattr(self.named, axis)
        if text is None:
            return ()
        single = text in self.fields or axis == "requests" or (axis == "time" and AND not in text)
        return (text,) if single else parts_of(text)

    def _formats(self) -> list[Format]:
        """The formats that a log fits, the best first; none if the user named its columns."""
        if self.wanted not in (None, NAMED, *format_names()):
            names = *format_names(), NAMED
            fields = {"trace": self.source, "option": "--format"}
            raise UsageError.unknown("trace format", str(self.wanted), names, code="unknown-name", **fields)
        known = list(filter(self._fits, formats())) or list(filter(self._fits, formats_elsewhere(self.fields)))
        if not known and len(self._axes) < len(AXES):
            raise self._unknown()
        # Only responses of several APIs stand in one log.
        is_partial = bool(known) and known[0].layout.is_partial
        return [*known[:1], *(one for one in known[1:] if is_partial and one.layout.is_partial)] or [_OF_NAMED]

    @property
    def _axes(self) -> set[str]:
        """The axes of tokens whose columns the user named."""
        return {axis for axis in AXES if getattr(self.named, axis) is not None}

    def _fits(self, known: Format) -> bool:
        """Whether a log has the columns of a format, those that the user named in their place."""
        first = {axis: getattr(known.usage, axis)[:1] for axis in AXES}
        # Sums are no guess: they have their own names.
        named = set() if known.layout.sums else self._axes
        needed = {path for axis in first.keys() - named for path in first[axis]}
        if self.wanted is not None:
            return self.wanted == known.name and needed <= set(self.fields)
        # Where both columns are named, a format is only recognised by its own names.
        is_own = len(named) < len(AXES) or all(self._named(axis) == path for axis, path in first.items())
        has_any = not known.any or not known.any.isdisjoint(self.fields)
        return is_own and has_any and needed | known.marks <= set(self.fields)

    def _usages(self, known: list[Format]) -> tuple[Usage, ...]:
        """Where the counts may stand, each once; in one place only where the user named columns."""
        if self._axes:
            own = replace(known[0].usage, total=None)
            own = own if self.named.output is None else replace(own, output=self._named("output"))
            own = own if self.named.input is None else replace(own, input=self._named("input"), split=(), either=())
            return (self._placed(own, "", keep=False),)
        # Shapes of other APIs may show up in later records.
        is_mixed = self.is_records and known[0].is_response
        more = [one for one in formats() if is_mixed and one.is_response and one.within == known[0].within]
        usages: dict[str, Usage] = {}
        for one in (*known, *more):
            usages.setdefault(one.usage.input[0], self._placed(one.usage, one.within, keep=self.is_records))
        return tuple(usages.values())

    def _placed(self, usage: Usage, within: str, *, keep: bool) -> Usage:
        """Counts of only the columns that the log has, or, if those yet unseen are kept, may have."""
        kept = tuple if keep else self._present
        whole, parts = usage.split[:1], self._present(usage.split[1:])
        is_split = bool(parts and kept(whole))
        return replace(
            usage,
            input=kept((*usage.input, *(() if is_split else parts))),
            output=kept(usage.output),
            cached=self._cached(usage, within, kept),
            split=(*whole, *parts) if is_split else (),
            total=usage.total if usage.total in self.fields else None,
            either=()
            if self.named.cached
            else tuple(path for text in usage.either for path in self._present(text.split("|"))[:1]),
        )

    def _cached(
        self, usage: Usage, within: str, kept: Callable[[Iterable[str]], tuple[str, ...]]
    ) -> tuple[tuple[str, ...], ...]:
        """Sums of cached tokens; a path that begins with ^ is that of a field in a record around the counts."""
        if self.named.cached is not None:
            return (self._named("cached"),)
        around = {path: self._around(within, [path[1:]]) for sum_ in usage.cached for path in sum_ if path[0] == "^"}
        found = {path: next(paths, "") for path, paths in around.items()}
        sums = [tuple(found.get(path, path) for path in sum_) for sum_ in usage.cached]
        return tuple(sum_ for sum_ in sums if "" not in sum_ and kept(sum_) == sum_)

    def _present(self, paths: Iterable[str]) -> tuple[str, ...]:
        return tuple(path for path in paths if path in self.fields)

    def _arrivals(self, known: list[Format], place: str) -> tuple[tuple[str, ...], float | None]:
        """Columns of arrivals, and seconds of a unit where the format says it."""
        units = [(path, one.layout.time_unit_s) for one in known for path in self._around(one.within, one.layout.time)]
        if self.named.time is not None:
            return (AND.join(self._named("time")),), dict(reversed(units)).get(self.named.time)
        if units:
            # All are read in one unit: that of the first.
            return tuple(dict.fromkeys(path for path, unit in units if unit == units[0][1])), units[0][1]
        plain = self._plain_arrivals(place)
        if not plain and self.named.time_unit_s is not None:
            message = f"{self.source}: no column of arrivals that --time-unit could be of. Name one: --time-column NAME"
            fields = {"option": "--time-column", "needed_by": ["--time-unit"]}
            raise UsageError(message, code="option-missing", trace=self.source, **fields)
        return plain, None

    def _plain_arrivals(self, place: str) -> tuple[str, ...]:
        """The column with the best of the names that arrivals have in any log, beside the counts or around them."""
        found = sorted(self._named_as_arrivals(place))
        plain = {name: path for *_, name, path in reversed(found)}
        dates, times = (self._values(plain.get(name, "")) for name in ("date", "time"))
        is_split = dates and any(map(_TIME_OF_DAY.fullmatch, times)) and ":" not in dates[0]
        if is_split and found[0][2] in ("date", "time"):
            return (f"{plain['date']}{AND}{plain['time']}",)
        return tuple(path for *_, path in found[:1])

    def _named_as_arrivals(self, place: str) -> Iterator[tuple[int, int, str, str]]:
        """Rank of the name, how far around the counts, the name in plain letters, and the column."""
        names = [f"{name}{unit}" for name in names_of("arrivals") for unit in _UNITS_OF_NAMES]
        ranks = {name: rank for rank, name in reversed([*enumerate(names)])}
        depths = {around: depth for depth, around in enumerate(outer(place, ""))}
        for path in filter(self._may_be_arrivals, self.fields):
            around = path[: path.rfind(".") + 1]
            name = re.sub(r"[^a-z0-9]", "", path.removeprefix(around).lower())
            if around in depths and name in ranks:
                yield ranks[name], depths[around], name, path

    def _may_be_arrivals(self, path: str) -> bool:
        """Whether the first rows do not show a latency: small numbers in no order."""
        values = [number for row in self.rows if (number := number_of(row.get(path)))]
        pairs = list(itertools.pairwise(values))
        if len(pairs) < _FEWEST_PAIRS or max(values) >= _LONGEST_LATENCY:
            return True
        return sum(a <= b for a, b in pairs) >= _ASCENDING * len(pairs)

    def _check_sums(self, layout: Layout, place: str) -> None:
        """Check that rows are no sums over requests.

        Raises:
            DataError: They are, as their format says or the first rows.
        """
        known = layout.sums
        if known is None and self.wanted is not None:
            return
        count, reason = (known.count, known.count or layout.name) if known else self._sums(layout, place)
        if not reason:
            return
        fix = f", or spread each over its requests, which all get its mean length: --requests-column {count}"
        fix = fix if count else ": no column is known to say of how many a row is (--requests-column)"
        fix += "" if known else f". If each row is one request: --format {layout.name}"
        what = f"each row is a sum over many requests ({reason}), not one"
        message = f"{self.source}: {what}. Give a log with a row per request{fix}"
        raise DataError(message, code="bucketed", trace=self.source, column=count or None, option="--requests-column")

    def _sums(self, layout: Layout, place: str) -> tuple[str, str]:
        """The column of how many requests a row is, if there is one, and why rows are sums; empty if they are not."""
        period = self._period(layout, place)
        is_bucket = bool(period) or any(self._around(place, names_of("buckets")))
        names = [*names_of("counts"), *(names_of("counts_of_periods") if period else ())]
        for path in self._around(place, names):
            if is_bucket or any(number_of(row.get(path)) > 1 for row in self.rows):
                return path, path
        if self._median(layout.usages[0].input[0]) > _LONGEST_PROMPT:
            return "", "by its length"
        return "", f"by its time in {period!r}" if period else ""

    def _median(self, path: str) -> float:
        lengths = [number_of(row.get(path)) for row in self.rows]
        return statistics.median([length for length in lengths if 0 < length <= LONGEST_TOKENS] or [0])

    def _period(self, layout: Layout, place: str) -> str | None:
        """The column of the day or hour that rows sum up; None where a row has its own time."""
        named = list(self._around(place, names_of("periods")))
        for path in (*layout.time, *named):
            values = self._values(path)
            is_number = path in layout.time and all(map(_NUMBER.fullmatch, values))
            is_period = bool(values) and all(map(_PERIOD.fullmatch, values)) and not is_number
            if is_period and (path in named or (len(values) >= _FEWEST_PERIODS and len(set(values)) > 1)):
                return path
            if path in layout.time:
                return None
        return None

    def _unknown(self) -> DataError:
        axes = [axis for axis in AXES if axis not in self._axes]
        guess = guess_columns(self.fields, self.rows, axes)
        flags = [f"--{axis}-column {shlex.quote(guess.get(axis, ('NAME',))[0])}" for axis in axes]
        reasons = [f"{column} may be {axis} tokens, by {why}" for axis, (column, why) in guess.items()]
        advice = f"{'; '.join(reasons)}. If so" if reasons else "Name them"
        own = [f"{one.usage.input[0]} and {one.usage.output[0]}" for one in formats() if self.wanted == one.name]
        expected = f" Expected: {'; '.join(own)}." if own else ""
        what = "no columns were named" if self.wanted == NAMED else "no known columns of input and output tokens"
        message = f"{self.source}: {what}; found: {_shown(self.fields)}.{expected} {advice}: {' '.join(flags)}"
        columns = {axis: column for axis, (column, _) in guess.items()}
        return DataError(message, code="unknown-format", trace=self.source, columns=list(self.fields), guess=columns)


def _shown(fields: Collection[str]) -> str:
    """The first names: in quotes if they have what a terminal does not show, and long ones cut."""
    names = []
    for name in islice(fields, _SHOWN_FIELDS):
        cut = name if len(name) <= _SHOWN_CHARACTERS else f"{name[:_SHOWN_CHARACTERS]}…"
        names.append(cut if cut.isprintable() and cut == cut.strip() else repr(cut))
    more = len(fields) - len(names)
    return (", ".join(names) or "none") + (f", and {more} more" if more else "")
