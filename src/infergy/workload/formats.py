"""Formats of request logs, as data (`data/formats.toml`): which columns hold the tokens, the arrivals, the cached part.

    formats() ──▶ Format, one per place that its counts may stand in ──▶ recognise.settle ──▶ Layout of one log

A dotted name is a path into JSON objects or struct columns. Standard library only.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

from infergy.errors import UsageError

NAMED = "columns"
_RUNNING_SUM = re.compile(r"(?i)total|cumul|aggregat")
UNITS_S = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}


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
    """A column of lists: the hashes of the blocks of `block_tokens` tokens that a prompt consists of.

    Attributes:
        within: Column of ids, where equal hashes are equal blocks only under the same id; None where they always are.
    """

    path: str
    block_tokens: int
    within: str | None = None


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
        return tuple(path for path in (self.id, self.parent, self.gap, self.elapsed) if path is not None)


GAPS = SessionColumns(id="session_id", gap="pre_gap")
"""Sessions of the LMCache agentic traces; read in any format that has both columns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Where the counts of a row stand.

    Attributes:
        input: Columns whose sum is the whole prompt, in tokens; one that a row lacks counts 0.
        output: Columns whose sum is generated.
        cached: Sums of columns, of which the first that a row has is what a prefix cache served.
        beside: Of all tokens, and of those that are generated beside `output` where only so all of them add up.
    """

    input: tuple[str, ...]
    output: tuple[str, ...]
    cached: tuple[tuple[str, ...], ...] = ()
    beside: tuple[str, ...] = ()

    @property
    def paths(self) -> Iterator[str]:
        """All its columns."""
        yield from self.input
        yield from self.output
        for parts in self.cached:
            yield from parts
        yield from self.beside


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A known format, its counts in one of the places that they may stand in; `data/formats.toml` explains the fields.

    Attributes:
        within: The path of that place, with a dot at its end unless it is empty.
        time: Names of arrivals, beside the counts or in a record around them.
        rest: What else a log of it has: the fields of `Layout` of the same names.
    """

    name: str
    of: str
    within: str
    usage: Usage
    time: tuple[str, ...]
    marks: frozenset[str]
    any: frozenset[str]
    chunk: str | None
    count: str | None
    end: str | None
    rest: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Which columns of one log hold what; `time` is tried in order, row by row, as are `usages`.

    Attributes:
        usages: A row's counts stand where it has an input.
        time_unit_s: Seconds in one unit of a number of `time`; None if neither the format nor the user says.
        is_partial: Whether a row without output is no request, as of embeddings and errors; else it is a bad row.
        skip: Texts of columns whose rows are no requests to a model.
        missing: Text that stands for an unknown count.
        chunk: Column of ids: the rows of an id are chunks of one answer, whose largest counts count.
        count: Column of how many requests a row sums up, which are spread from `time` to `end`.
    """

    name: str
    usages: tuple[Usage, ...]
    time: tuple[str, ...] = ()
    time_unit_s: float | None = None
    is_partial: bool = False
    skip: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    missing: str | None = None
    chunk: str | None = None
    count: str | None = None
    end: str | None = None
    blocks: BlockColumn | None = None
    sessions: SessionColumns | None = None

    def label(self, axis: str, fields: Collection[str] = ()) -> str:
        """Columns of ``input``, ``output`` or ``cached`` tokens in words; only those among `fields`, if one is."""
        single = {"cached": self.cached, "requests": (self.count or "",)}.get(axis)
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
        single = (path for path in (self.chunk, self.count, self.end) if path is not None)
        return tuple(dict.fromkeys((*lengths, *self.time, *self.skip, *single)))

    @property
    def link_paths(self) -> tuple[str, ...]:
        """The columns that link requests: blocks of prompts and sessions."""
        blocks = () if self.blocks is None else tuple(filter(None, (self.blocks.path, self.blocks.within)))
        return (*blocks, *(() if self.sessions is None else self.sessions.paths))


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
        is_anywhere = "chunk" in entry
        found += [
            _make(entry, place)
            for place in places
            if (is_anywhere or place.endswith(known)) and not _RUNNING_SUM.search(place)
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


def parts_of(text: str, prefix: str = "") -> tuple[str, ...]:
    """The columns of a sum."""
    return tuple(f"{prefix}{part.strip()}" for part in text.split("+"))


def _make(entry: Mapping[str, Any], within: str) -> Format:
    rest: dict[str, Any] = {"is_partial": entry.get("partial", False), "missing": entry.get("missing")}
    rest["time_unit_s"] = UNITS_S.get(entry.get("unit", ""))
    rest["skip"] = {path: tuple(values) for path, values in entry.get("skip", {}).items()}
    if "blocks" in entry:
        blocks = entry["blocks"]
        rest["blocks"] = BlockColumn(path=blocks["path"], block_tokens=blocks["tokens"], within=blocks.get("within"))
    if "sessions" in entry:
        rest["sessions"] = SessionColumns(**entry["sessions"])
    usage = Usage(
        input=parts_of(entry["input"], within),
        output=parts_of(entry["output"], within),
        beside=tuple(f"{within}{path}" for path in entry.get("beside", ())),
        cached=tuple(parts_of(text, "" if text.startswith("^") else within) for text in entry.get("cached", ())),
    )
    return Format(
        name=entry["name"],
        of=entry["of"],
        within=within,
        usage=usage,
        time=tuple(entry.get("time", ())),
        marks=frozenset(entry.get("marks", ())),
        any=frozenset(f"{within}{name}" for name in entry.get("any", ())),
        chunk=entry.get("chunk"),
        count=entry.get("count"),
        end=entry.get("end"),
        rest=rest,
    )
