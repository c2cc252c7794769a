"""Formats of request logs, as data (`data/formats.toml`): which columns hold the tokens, the arrivals, the cached part.

    formats() ──▶ Format, one per place that its counts may stand in ──▶ recognise.settle ──▶ Layout of one log

A dotted name is a path into JSON objects or struct columns. Standard library only.
"""

from __future__ import annotations

import itertools
import re
import tomllib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

from infergy.errors import UsageError

NAMED = "columns"
KIND, CHUNK = "object", ".chunk"
"""The field that says what a record is, and the end of its value where it is a chunk of an answer."""
AND = " + "
"""Between the columns of a sum, and of a date and its time."""
_RUNNING_SUM = re.compile(r"(?i)total|cumul|aggregat")
UNITS_S = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9, "d": 86_400.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """The columns of a log that differ from its format; None takes the format's own.

    Attributes:
        input: Column of input (prompt) tokens, cached ones included; ``a+b`` is a sum of columns.
        output: Column of output (generated) tokens, or a sum.
        time: Column of arrivals: numbers, timestamps, or text like ``2024-05-10 00:00:00.009930+00:00``.
        cached: Column of input tokens that a prefix cache served, or a sum.
        requests: Column of how many requests a row sums up.
        time_unit_s: Seconds in one unit of a numeric time column: 1e-3 for milliseconds.
    """

    input: str | None = None
    output: str | None = None
    time: str | None = None
    cached: str | None = None
    requests: str | None = None
    time_unit_s: float | None = None

    def __post_init__(self) -> None:
        if self.time_unit_s is not None and not 0 < self.time_unit_s < float("inf"):
            raise UsageError.bad_value("--time-unit", self.time_unit_s, "a positive number of seconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockColumn:
    """A column of lists: the hashes of the blocks of `tokens` tokens that a prompt consists of.

    Attributes:
        within: Column of ids, where equal hashes are equal blocks only under the same id; None where they always are.
    """

    path: str
    tokens: int
    within: str | None = None

    @property
    def paths(self) -> tuple[str, ...]:
        """Its columns."""
        return tuple(filter(None, (self.path, self.within)))


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionColumns:
    """Columns that link the requests of a session.

    Attributes:
        id: Column of the request's own id if there is a `parent`, else of its session's.
        parent: Column of the id of the previous request of the session.
        gap: Column of seconds between the previous answer and this request.
        elapsed: Column of seconds from the request to its answer; with arrivals, it says what `gap` would.
    """

    id: str
    parent: str | None = None
    gap: str | None = None
    elapsed: str | None = None

    @property
    def paths(self) -> tuple[str, ...]:
        """All columns of sessions."""
        return tuple(filter(None, (self.id, self.parent, self.gap, self.elapsed)))


GAPS = SessionColumns(id="session_id", gap="pre_gap")
"""Sessions of the LMCache agentic traces; read in any format that has both columns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Where the counts of a row stand.

    Attributes:
        input: Columns whose sum is the whole prompt, in tokens; one that a row lacks counts 0.
        output: Columns whose sum is generated.
        cached: Sums of columns, of which the first that a row has is what a prefix cache served.
        split: A column of `input`, and those whose sum it is, which count where a row lacks it.
        total: Column of all tokens of a row.
        is_output: Whether `total` has output beside `output`, as thoughts: what it exceeds the sum by.
        either: Columns of cached tokens, read or written, of which it is not known whether `input` includes them; of a
            format ``a|b`` is the first that a log has.
    """

    input: tuple[str, ...]
    output: tuple[str, ...]
    cached: tuple[tuple[str, ...], ...] = ()
    split: tuple[str, ...] = ()
    total: str | None = None
    is_output: bool = False
    either: tuple[str, ...] = ()

    @property
    def paths(self) -> Iterator[str]:
        """All its columns."""
        yield from itertools.chain(self.input, self.output, *self.cached, self.split, self.either)
        yield from () if self.total is None else (self.total,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sums:
    """Rows that sum up requests.

    Attributes:
        count: Column of how many requests a row is; empty if there is none.
        end: Column of the end of their time.
    """

    count: str
    end: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Which columns of one log hold what; `time` is tried in order, row by row, as are `usages`.

    Attributes:
        usages: A row's counts stand where it has an input.
        time: Columns of arrivals; ``a + b`` joins the text of a date and of a time.
        time_unit_s: Seconds in one unit of a number of `time`; None if neither the format nor the user says.
        is_partial: Whether a row without output is no request, as of embeddings and errors; else it is a bad row.
        skip: Texts of columns whose rows are no requests to a model.
        missing: Text that stands for an unknown count.
        chunk: Column of ids: the rows of an id are chunks of one answer, whose largest counts count.
        sums: Where rows sum up requests, which are spread over their time.
        others: Further columns that are read: ids, and what says that a row is a chunk.
    """

    name: str
    usages: tuple[Usage, ...] = ()
    time: tuple[str, ...] = ()
    time_unit_s: float | None = None
    is_partial: bool = False
    skip: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    missing: str | None = None
    chunk: str | None = None
    sums: Sums | None = None
    blocks: BlockColumn | None = None
    sessions: SessionColumns | None = None
    others: tuple[str, ...] = ()

    def label(self, axis: str, fields: Collection[str] = ()) -> str:
        """Columns of ``input``, ``output`` or ``cached`` tokens in words; only those among `fields`, if one is."""
        single = {"cached": self.cached, "requests": (self.sums.count if self.sums else "",)}.get(axis)
        sums = [(path,) for path in single] if single else [getattr(one, axis) for one in self.usages]
        present = [tuple(part for part in parts if part in fields) for parts in sums]
        return " or ".join(dict.fromkeys(" + ".join(map(repr, parts)) for parts in [*filter(None, present)] or sums))

    @property
    def cached(self) -> tuple[str, ...]:
        """Columns of cached tokens."""
        return tuple(dict.fromkeys(path for usage in self.usages for parts in usage.cached for path in parts))

    @property
    def paths(self) -> tuple[str, ...]:
        """All columns of lengths and arrivals, and those that decide what is a request."""
        lengths = (path for usage in self.usages for path in usage.paths)
        times = (part for path in self.time for part in path.split(AND))
        sums = (self.sums.count, self.sums.end) if self.sums else ()
        return tuple(dict.fromkeys(filter(None, (*lengths, *times, *self.skip, self.chunk, *sums, *self.others))))

    @property
    def link_paths(self) -> tuple[str, ...]:
        """The columns that link requests: blocks of prompts and sessions."""
        return tuple(path for links in (self.blocks, self.sessions) if links is not None for path in links.paths)


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A known format, its counts in one of the places that they may stand in; `data/formats.toml` explains the fields.

    Attributes:
        within: The path of that place, with a dot at its end unless it is empty.
        usage: Its counts.
        layout: The rest of it; names of `time` and `skip` stand beside the counts or in a record around them.
        marks: Further columns by which it is recognised.
        any: Columns of which there is one.
        is_response: Whether its rows are responses of an API: several may be of one answer, and of several APIs.
    """

    usage: Usage
    layout: Layout
    marks: frozenset[str]
    any: frozenset[str]
    is_response: bool
    within: str = ""

    @property
    def name(self) -> str:
        """Its name."""
        return self.layout.name


def outer(within: str, name: str) -> Iterator[str]:
    """Paths of a name beside the counts that stand in `within`, and in the records around them, the nearest first."""
    parts = within.split(".")[:-1]
    for depth in range(len(parts), -1, -1):
        yield ".".join([*parts[:depth], name])


@cache
def _data() -> Mapping[str, Any]:
    return tomllib.loads((resources.files("infergy") / "data" / "formats.toml").read_text(encoding="utf-8"))


@cache
def formats() -> tuple[Format, ...]:
    """All known formats in the order in which they are tried, each once for each place that its counts may stand in."""
    return tuple(_make(entry, within) for entry in _data()["format"] for within in entry.get("within", ("",)))


def formats_elsewhere(fields: Collection[str]) -> list[Format]:
    """Formats of responses whose counts stand further inside records than is known; no sums over several of them."""
    found = []
    for entry in _data()["format"]:
        first = parts_of(entry["input"])[0]
        places = (path.removesuffix(first) for path in fields if path.endswith(f".{first}") and entry.get("partial"))
        known = tuple(place for place in entry.get("within", ()) if place)
        found += [
            _make(entry, place)
            for place in places
            if ("response" in entry or place.endswith(known)) and not _RUNNING_SUM.search(place)
        ]
    return found


def format_names() -> tuple[str, ...]:
    """Their names, each once."""
    return tuple(dict.fromkeys(entry["name"] for entry in _data()["format"]))


def format_entries() -> list[Mapping[str, Any]]:
    """The entries of `data/formats.toml`, for docs."""
    entries: list[Mapping[str, Any]] = _data()["format"]
    return entries


def names_of(kind: str) -> list[str]:
    """The `arrivals`, `counts`, `buckets` or `outcomes` of any log."""
    names: list[str] = _data()[kind]
    return names


@cache
def spellings() -> list[tuple[str, str]]:
    """Patterns of dates and times in text, and the same in ISO 8601 or as ``9 March 2025``, one after the other."""
    zones: Mapping[str, str] = _data()["zones"]
    return [
        (pattern.replace("ZONE", name), plain.replace("OFFSET", offset))
        for pattern, plain in _data()["spellings"]
        for name, offset in (zones.items() if "ZONE" in pattern else [("", "")])
    ]


def parts_of(text: str, prefix: str = "") -> tuple[str, ...]:
    """The columns of a sum."""
    return tuple(f"{prefix}{part.strip()}" for part in text.split("+"))


def _make(entry: Mapping[str, Any], within: str) -> Format:
    def placed(names: Iterable[str]) -> tuple[str, ...]:
        return tuple(f"{within}{name}" for name in names)

    blocks, sessions = entry.get("blocks"), entry.get("sessions")
    layout = Layout(
        name=entry["name"],
        time=tuple(entry.get("time", ())),
        time_unit_s=UNITS_S.get(entry.get("unit", "")),
        is_partial=entry.get("partial", False),
        skip={path: tuple(values) for path, values in entry.get("skip", {}).items()},
        missing=entry.get("missing"),
        sums=Sums(count=entry["count"], end=entry.get("end")) if "count" in entry else None,
        blocks=BlockColumn(**blocks) if blocks else None,
        sessions=SessionColumns(**sessions) if sessions else None,
    )
    usage = Usage(
        input=parts_of(entry["input"], within),
        output=parts_of(entry["output"], within),
        cached=tuple(parts_of(text, "" if text.startswith("^") else within) for text in entry.get("cached", ())),
        split=placed(entry.get("split", ())),
        total=f"{within}{entry['total']}" if "total" in entry else None,
        is_output=entry.get("total_output", False),
        either=tuple("|".join(placed(text.split(" | "))) for text in entry.get("either", ())),
    )
    return Format(
        within=within,
        usage=usage,
        layout=layout,
        marks=frozenset(entry.get("marks", ())),
        any=frozenset(placed(entry.get("any", ()))),
        is_response=entry.get("response", False),
    )
