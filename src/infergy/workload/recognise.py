"""Which columns of one log hold what: recognised from its fields and first rows, or named by the user."""

from __future__ import annotations

import difflib
import itertools
import re
import shlex
import statistics
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from infergy.errors import DataError, UsageError
from infergy.workload.bins import LONGEST_TOKENS
from infergy.workload.counts import Rows, are_running_counts, chunk_column, number_of
from infergy.workload.formats import (
    GAPS,
    NAMED,
    Columns,
    Format,
    Layout,
    Usage,
    format_names,
    formats,
    formats_elsewhere,
    names_of,
    outer,
    parts_of,
)
from infergy.workload.source import Source
from infergy.workload.sources import look_further, nested_readings, text_readings

_SHOWN_FIELDS = 20
_SHOWN_CHARACTERS = 80
_LONGEST_PROMPT = 1_500_000
"""Half of a log's prompts may not be longer, in tokens: no model takes so many."""
_FEWEST_PAIRS, _ASCENDING, _LONGEST_LATENCY = 8, 0.65, 1e6


def recognise(origin: Source, wanted: str | None, columns: Columns | None) -> tuple[Source, Layout]:
    """A source and what its columns hold; of a JSON file, the first of its readings that has known columns."""

    def settled(reading: Source) -> Layout:
        return settle(
            reading.fields,
            source=reading.name,
            records=reading.is_records,
            wanted=wanted,
            columns=columns,
            rows=reading.rows,
        )

    origin = origin.peeked((*names_of("counts"), "object", "cache_read_input_tokens"))
    try:
        return origin, settled(origin)
    except DataError as error:
        if error.code not in ("unknown-format", "no-column"):
            raise
        others = nested_readings(origin), text_readings(origin), _without_texts(origin), look_further(origin)
        for reading in itertools.chain(*others):
            try:
                return reading, settled(reading)
            except DataError as other:
                if other.code not in ("unknown-format", "no-column"):
                    raise
                if len(other.fields.get("guess", ())) > len(error.fields.get("guess", ())):
                    error = other
        raise error


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
    fields: Collection[str],
    *,
    source: str,
    records: bool,
    wanted: str | None,
    columns: Columns | None,
    rows: Rows = (),
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
    named = columns or Columns()
    fields = dict.fromkeys(fields)
    _check_named(named, fields, source)
    known = _find_formats(fields, source, wanted, named, rows)
    first = known[0] if known else None
    usages = _usages(known, named, fields, records=records)
    if isinstance(
        next((row[path] for path in usages[0].input for row in rows if row.get(path) is not None), None), list
    ):
        message = f"{source}: column {usages[0].input[0]!r} has lists, which go with no other list of the same length"
        message = f"{message}. Expected one row per request, or lists of input and output tokens in one record"
        raise DataError(message, code="unknown-format", trace=source, columns=list(fields))
    within = usages[0].input[0].rpartition(".")[0]
    layout = Layout(name=NAMED if first is None else first.name, usages=usages)
    if first is not None:
        layout = replace(layout, **first.rest)
    if layout.name in (NAMED, "tokens"):
        place = f"{within}." if within else ""
        ends = (path for name in names_of("outcomes") for path in outer(place, name))
        layout = replace(layout, is_partial=records or any(path in fields for path in ends))
    time, unit_s = _arrivals(known, named, fields, within, rows)
    if named.time_unit_s is not None and not time:
        message = f"{source}: no column of arrivals that --time-unit could be of. Name one: --time-column NAME"
        raise UsageError(
            message, code="option-missing", trace=source, option="--time-column", needed_by=["--time-unit"]
        )
    sessions = (links for links in (layout.sessions, GAPS) if links is not None and set(links.paths) <= set(fields))
    layout = replace(
        layout,
        time=time,
        time_unit_s=named.time_unit_s or unit_s,
        skip={
            path: values
            for name, values in layout.skip.items()
            for path in itertools.islice((one for one in outer(f"{within}.", name) if one in fields), 1)
        },
        blocks=layout.blocks if layout.blocks is not None and layout.blocks.path in fields else None,
        sessions=next(sessions, None),
        chunk=chunk_column(layout, fields, rows, within),
    )
    if layout.chunk is None and are_running_counts(layout, rows):
        message = f"{source}: chunks of answers, each with the counts so far, and no id that says of which answer"
        message = f"{message}. Log the id of each chunk, or only the last chunk of each answer"
        raise DataError(message, code="bad-trace", trace=source)
    return _spread(layout, first, named, source, _count(layout, first, named, fields, rows, wanted), fields)


def _find_formats(fields: Collection[str], source: str, wanted: str | None, named: Columns, rows: Rows) -> list[Format]:
    """The formats that a log fits, the best first; none if the user named its columns."""
    if wanted not in (None, NAMED, *format_names()):
        raise UsageError.unknown(
            "trace format", str(wanted), (*format_names(), NAMED), code="unknown-name", trace=source, option="--format"
        )

    def fitting(candidates: Iterable[Format]) -> list[Format]:
        return [
            one for one in candidates if wanted in (None, one.name) and _fits(one, fields, named, wanted is not None)
        ]

    known = fitting(formats()) or fitting(formats_elsewhere(fields))
    # Only responses of several APIs stand in one log.
    known = [one for one in known if one is known[0] or (one.rest["is_partial"] and known[0].rest["is_partial"])]
    if not known and (named.input is None or named.output is None):
        from infergy.workload.guess import guess_columns

        guess = guess_columns(fields, rows)
        raise DataError(
            _not_recognised(fields, source, wanted, named, guess),
            code="unknown-format",
            trace=source,
            columns=list(fields),
            guess={axis: column for axis, (column, _) in guess.items()},
        )
    return known


def _fits(known: Format, fields: Collection[str], named: Columns, is_sure: bool) -> bool:
    """Whether a log has the columns of a format, those that the user named in their place."""
    first = {axis: getattr(known.usage, axis)[0] for axis in ("input", "output") if getattr(named, axis) is None}
    if is_sure:
        return set(first.values()) <= set(fields)
    if not first:
        # Where both columns are named, a format is only recognised by its own names.
        names = tuple(known.usage.input[:1]), tuple(known.usage.output[:1])
        if (_named_parts(named.input, fields), _named_parts(named.output, fields)) != names:
            return False
    return {*first.values(), *known.marks} <= set(fields) and (not known.any or any(one in fields for one in known.any))


def _named_parts(text: str | None, fields: Collection[str]) -> tuple[str, ...]:
    """The columns of a sum that the user named; a name of the log may hold a plus."""
    return () if text is None else (text,) if text in fields else parts_of(text)


def _usages(known: Sequence[Format], named: Columns, fields: Collection[str], *, records: bool) -> tuple[Usage, ...]:
    """Where the counts may stand, each once; in one place only where the user named columns."""
    cached = _named_parts(named.cached, fields)
    if named.input is not None or named.output is not None:
        base = known[0].usage if known else Usage(input=(), output=())
        usage = Usage(
            input=_named_parts(named.input, fields) or _present(base.input, fields),
            output=_named_parts(named.output, fields) or _present(base.output, fields),
            cached=(cached,) if cached else tuple(parts for parts in base.cached if set(parts) <= set(fields)),
        )
        return (usage,)
    first = known[0]
    mixed = list(known)
    if records and first.chunk is not None:
        # Shapes of other APIs may show up in later records.
        mixed += [one for one in formats() if one.chunk is not None and one.within == first.within]
    usages: dict[str, Usage] = {}
    for one in mixed:
        paths = [tuple(_resolved(path, one, fields) for path in parts) for parts in one.usage.cached]
        paths = [parts for parts in paths if "" not in parts]
        usage = Usage(
            input=one.usage.input if records else _present(one.usage.input, fields),
            output=one.usage.output if records else _present(one.usage.output, fields),
            cached=(cached,) if cached else tuple(parts for parts in paths if records or set(parts) <= set(fields)),
            beside=one.usage.beside if set(one.usage.beside) <= set(fields) else (),
        )
        usages.setdefault(one.usage.input[0], usage)
    return tuple(usages.values())


def _present(parts: Iterable[str], fields: Collection[str]) -> tuple[str, ...]:
    return tuple(part for part in parts if part in fields)


def _resolved(path: str, known: Format, fields: Collection[str]) -> str:
    """A path, or that of a field in a record around the counts; empty if there is none."""
    if not path.startswith("^"):
        return path
    return next((one for one in outer(known.within, path[1:]) if one in fields), "")


def _arrivals(
    known: Sequence[Format], named: Columns, fields: Collection[str], within: str, rows: Rows
) -> tuple[tuple[str, ...], float | None]:
    """Columns of arrivals, and seconds of a unit where the format says it."""
    units: dict[str, float | None] = {}
    for one in known:
        for path in (path for name in one.time for path in outer(one.within, name)):
            if path in fields:
                units.setdefault(path, one.rest["time_unit_s"])
    if named.time is None and units:
        # All are read in one unit: that of the first.
        first = next(iter(units.values()))
        return tuple(path for path, unit in units.items() if unit == first), first
    chosen = named.time or _plain_arrivals([path for path in fields if _may_be_arrivals(path, rows)], within)
    return ((), None) if chosen is None else ((chosen,), units.get(chosen))


def _may_be_arrivals(path: str, rows: Rows) -> bool:
    """Whether the first rows do not show a latency: small numbers in no order."""
    values = [number for row in rows if (number := number_of(row.get(path)))]
    pairs = list(itertools.pairwise(values))
    if len(pairs) < _FEWEST_PAIRS or max(values) >= _LONGEST_LATENCY:
        return True
    return sum(a <= b for a, b in pairs) >= _ASCENDING * len(pairs)


def _plain_arrivals(fields: Collection[str], within: str) -> str | None:
    """The column with the best of the names that arrivals have in any log, beside the counts or around them."""
    ranks = {name: rank for rank, name in enumerate(names_of("arrivals"))}
    depths = {place: depth for depth, place in enumerate(outer(f"{within}." if within else "", ""))}
    found = []
    for path in fields:
        place, _, name = path.rpartition(".")
        depth = depths.get(f"{place}." if place else "")
        plain = re.sub(r"[^a-z0-9]", "", name.lower())
        for ending in ("", "unixnano", "nanos", "nano", "ns", "us", "ms", "millis", "seconds", "secs", "sec", "s"):
            rank = ranks.get(plain.removesuffix(ending))
            if plain.endswith(ending) and rank is not None and depth is not None:
                found.append((rank, depth, path))
    return min(found)[2] if found else None


def _count(
    layout: Layout, first: Format | None, named: Columns, fields: Collection[str], rows: Rows, wanted: str | None
) -> str | None:
    """The column of how many requests a row sums up; empty if rows are sums and none says of how many."""
    if named.requests is not None:
        return named.requests
    if first is not None and first.count is not None:
        return first.count
    if wanted is not None:
        return None
    own = layout.usages[0].input[0]
    place = own[: own.rfind(".") + 1]
    names = [path for name in names_of("counts") for path in outer(place, name) if path in fields]
    is_bucket = any(path in fields for name in names_of("buckets") for path in outer(place, name))
    several = (name for name in names if is_bucket or any(number_of(row.get(name)) > 1 for row in rows))
    lengths = [length for row in rows if 0 < (length := number_of(row.get(own))) <= LONGEST_TOKENS]
    is_long = bool(lengths) and statistics.median(lengths) > _LONGEST_PROMPT
    return next(several, "" if is_long else None)


def _spread(
    layout: Layout, first: Format | None, named: Columns, source: str, count: str | None, fields: Collection[str]
) -> Layout:
    """A layout whose rows are spread over their requests, if they are sums and the user wants them to be.

    Raises:
        DataError: Rows are sums.
    """
    if count is None:
        return layout
    if named.requests is None:
        fix = f", or spread each over its requests, which all get its mean length: --requests-column {count}"
        fix = fix if count else ": no column is known to say of how many a row is (--requests-column)"
        reason = count or layout.name
        if first is None or first.count is None:
            fix += f". If each row is one request: --format {layout.name}"
            reason = count or "by its length"
        what = f"each row is a sum over many requests ({reason}), not one"
        message = f"{source}: {what}. Give a log with a row per request{fix}"
        raise DataError(message, code="bucketed", trace=source, column=count or None, option="--requests-column")
    end = None if first is None or first.end is None or first.end not in fields else first.end
    # Without the end of its time, a row does not say when its requests came.
    return replace(layout, count=count, end=end, time=layout.time if end or named.time else ())


def _check_named(named: Columns, fields: Collection[str], source: str) -> None:
    for axis in ("input", "output", "time", "cached", "requests"):
        text = getattr(named, axis)
        for path in (text,) if axis in ("time", "requests") and text else _named_parts(text, fields):
            if path not in fields:
                near = difflib.get_close_matches(path, list(fields), n=3, cutoff=0.5)
                hint = f"did you mean {', '.join(near)}? " if near else ""
                found = f"found: {_shown(fields)}. Name another: --{axis}-column NAME"
                message = f"{source}: no column {path!r}; {hint}{found}"
                raise DataError(message, code="no-column", trace=source, column=path, option=f"--{axis}-column")


def _not_recognised(
    fields: Collection[str], source: str, wanted: str | None, named: Columns, guess: Mapping[str, tuple[str, str]]
) -> str:
    axes = [axis for axis in ("input", "output") if getattr(named, axis) is None]
    flags = [f"--{axis}-column {shlex.quote(guess[axis][0]) if axis in guess else 'NAME'}" for axis in axes]
    reasons = [f"{guess[axis][0]} may be {axis} tokens, by {guess[axis][1]}" for axis in axes if axis in guess]
    advice = f"{'; '.join(reasons)}. If so" if reasons else "Name them"
    own = [one for one in formats() if wanted == one.name]
    names = "; ".join(f"{one.usage.input[0]} and {one.usage.output[0]}" for one in own)
    expected = f" Expected: {names}." if names else ""
    what = "no columns were named" if wanted == NAMED else "no known columns of input and output tokens"
    return f"{source}: {what}; found: {_shown(fields)}.{expected} {advice}: {' '.join(flags)}"


def _shown(fields: Collection[str]) -> str:
    """The first names: in quotes if they have what a terminal does not show, and long ones cut."""
    names = []
    for name in itertools.islice(fields, _SHOWN_FIELDS):
        cut = name if len(name) <= _SHOWN_CHARACTERS else f"{name[:_SHOWN_CHARACTERS]}…"
        names.append(cut if cut.isprintable() and cut == cut.strip() else repr(cut))
    more = len(fields) - len(names)
    return (", ".join(names) or "none") + (f", and {more} more" if more else "")
