"""Formats of request logs, as data: which columns hold the tokens, the arrival and the cached part.

    azure       TIMESTAMP, ContextTokens, GeneratedTokens                       Azure LLM inference traces 2023, 2024
    burstgpt    Timestamp, Request tokens, Response tokens, …                   BurstGPT, with or without sessions
    bailian     chat_id, parent_chat_id, timestamp (s), hash_ids (16 tokens), … Qwen-Bailian usage traces
    agentic     session_id, pre_gap (s), input_length, … [, timestamp (s)]      sessions; times of their first requests
    mooncake    timestamp (ms), input_length, output_length, hash_ids           Mooncake, FAST '25 traces
    openai      usage.prompt_tokens …, usage.input_tokens …, or batch output    OpenAI- and vLLM-style response logs
    tokens      input_tokens, output_tokens [, cached_tokens, arrival_s]        what infergy itself would write
    columns     whatever --input-column and --output-column name

A dotted name is a path into JSON objects or struct columns. Standard library only.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace

from infergy.errors import DataError, UsageError

NAMED = "columns"
_SHOWN_FIELDS = 20
_SHOWN_CHARACTERS = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """The columns of a log that differ from its format; None takes the format's own.

    Attributes:
        input: Column of input (prompt) tokens, cached ones included.
        output: Column of output (generated) tokens.
        time: Column of arrivals: numbers, timestamps, or text like ``2024-05-10 00:00:00.009930+00:00``.
        cached: Column of input tokens that a prefix cache served.
        time_unit_s: Seconds in one unit of a numeric time column: 1e-3 for milliseconds.
    """

    input: str | None = None
    output: str | None = None
    time: str | None = None
    cached: str | None = None
    time_unit_s: float | None = None

    def __post_init__(self) -> None:
        if self.time_unit_s is not None and not 0 < self.time_unit_s < float("inf"):
            raise UsageError.bad_value("--time-unit", self.time_unit_s, "a positive number of seconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockColumn:
    """A column of lists: the hashes of the blocks of `block_tokens` tokens that a prompt consists of."""

    path: str
    block_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionColumns:
    """Columns that link the requests of a session.

    Attributes:
        id: Column of the request's own id if there is a `parent`, else of its session's.
        parent: Column of the id of the previous request of the session.
        gap: Column of seconds between the previous answer and this request.
    """

    id: str
    parent: str | None = None
    gap: str | None = None

    @property
    def paths(self) -> tuple[str, ...]:
        """All columns of sessions."""
        return tuple(path for path in (self.id, self.parent, self.gap) if path is not None)


GAPS = SessionColumns(id="session_id", gap="pre_gap")
"""Sessions of the LMCache agentic traces; read in any format that has both columns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """Columns of a known format, or of one log; `time` and `cached` are tried in order, row by row.

    Attributes:
        marks: Further columns by which the format is recognised.
        null_is_failed: Whether a row with neither input nor output is a failed request, as in logs of responses, where
            an error has no usage; elsewhere such a row is bad.
    """

    name: str
    input: str
    output: str
    time: tuple[str, ...] = ()
    cached: tuple[str, ...] = ()
    time_unit_s: float = 1.0
    null_is_failed: bool = False
    marks: tuple[str, ...] = ()
    blocks: BlockColumn | None = None
    sessions: SessionColumns | None = None

    @property
    def paths(self) -> tuple[str, ...]:
        """All columns of lengths and arrivals."""
        return tuple(dict.fromkeys((self.input, self.output, *self.time, *self.cached)))

    @property
    def link_paths(self) -> tuple[str, ...]:
        """The columns that link requests: blocks of prompts and sessions."""
        blocks = () if self.blocks is None else (self.blocks.path,)
        return (*blocks, *(() if self.sessions is None else self.sessions.paths))


_CHAT, _RESPONSES = ("prompt_tokens", "completion_tokens"), ("input_tokens", "output_tokens")


def _usage(prefix: str, names: tuple[str, str], *times: str) -> Format:
    """The usage object of the Chat Completions API, which vLLM, SGLang and others share, or of the Responses API."""
    return Format(
        name="openai",
        input=f"{prefix}{names[0]}",
        output=f"{prefix}{names[1]}",
        time=times,
        cached=(f"{prefix}{names[0]}_details.cached_tokens", f"{prefix}cached_tokens"),
        null_is_failed=True,
    )


FORMATS = (
    Format(name="azure", input="ContextTokens", output="GeneratedTokens", time=("TIMESTAMP",)),
    Format(name="burstgpt", input="Request tokens", output="Response tokens", time=("Timestamp",)),
    Format(
        name="bailian",
        input="input_length",
        output="output_length",
        time=("timestamp",),
        marks=("chat_id", "parent_chat_id"),
        blocks=BlockColumn(path="hash_ids", block_tokens=16),
        sessions=SessionColumns(id="chat_id", parent="parent_chat_id"),
    ),
    Format(name="agentic", input="input_length", output="output_length", time=("timestamp",), marks=GAPS.paths),
    Format(
        name="mooncake",
        input="input_length",
        output="output_length",
        time=("timestamp",),
        time_unit_s=1e-3,
        blocks=BlockColumn(path="hash_ids", block_tokens=512),
    ),
    _usage("usage.", _CHAT, "created"),
    _usage("usage.", _RESPONSES, "created_at", "created"),
    _usage("response.body.usage.", _CHAT, "response.body.created"),
    _usage("response.body.usage.", _RESPONSES, "response.body.created_at"),
    _usage("", _CHAT, "created"),
    Format(
        name="tokens",
        input="input_tokens",
        output="output_tokens",
        time=("arrival_s", "created_at", "created"),
        cached=("cached_tokens", "input_tokens_details.cached_tokens"),
    ),
)
FORMAT_NAMES = tuple(dict.fromkeys(known.name for known in FORMATS))


def settle(
    fields: Collection[str], *, source: str, records: bool, wanted: str | None, columns: Columns | None
) -> Format:
    """The columns of a log: recognised from the fields it has, or named; columns that the user names go first.

    Args:
        fields: Columns of the log; of JSON records, the dotted paths seen in the first ones.
        source: Name of the log, for messages.
        records: Whether rows are JSON records, in which an optional field may show up late.
        wanted: Name of a format, or None to recognise it.
        columns: Named by the user.

    Raises:
        UsageError: No format of that name.
        DataError: The log lacks a column; says which were found, which are wanted, and the option that names it.
    """
    named = columns or Columns()
    _check_named(named, fields, source)
    known = _find_format(fields, source, wanted, named)

    def chosen(path: str | None, known_paths: Iterable[str]) -> tuple[str, ...]:
        return (path,) if path else tuple(known for known in known_paths if records or known in fields)

    if named.time_unit_s is not None and not chosen(named.time, known.time):
        message = f"{source}: no column of arrivals that --time-unit could be of. Name one: --time-column NAME"
        raise UsageError(
            message, code="option-missing", trace=source, option="--time-column", needed_by=["--time-unit"]
        )
    sessions = (links for links in (known.sessions, GAPS) if links is not None and set(links.paths) <= set(fields))
    return replace(
        known,
        input=named.input or known.input,
        output=named.output or known.output,
        time=chosen(named.time, known.time),
        cached=chosen(named.cached, known.cached),
        time_unit_s=named.time_unit_s or known.time_unit_s,
        blocks=known.blocks if known.blocks is not None and known.blocks.path in fields else None,
        sessions=next(sessions, None),
    )


def _find_format(fields: Collection[str], source: str, wanted: str | None, named: Columns) -> Format:
    if wanted not in (None, NAMED, *FORMAT_NAMES):
        raise UsageError.unknown(
            "trace format", str(wanted), (*FORMAT_NAMES, NAMED), code="unknown-name", trace=source, option="--format"
        )
    for known in FORMATS:
        if wanted in (None, known.name) and _fits(known, fields, named, is_sure=wanted is not None):
            return known
    if named.input is None or named.output is None:
        message = _not_recognised(fields, source, wanted, named)
        raise DataError(message, code="unknown-format", trace=source, columns=list(fields))
    return Format(name=NAMED, input=named.input, output=named.output)


def _fits(known: Format, fields: Collection[str], named: Columns, *, is_sure: bool) -> bool:
    """Whether a log has the columns of a format, those that the user named in their place."""
    tokens = named.input or known.input, named.output or known.output
    if is_sure:
        return set(tokens) <= set(fields)
    # Where both columns are named, a format is only recognised by its own names.
    all_named = named.input is not None and named.output is not None
    return {*tokens, *known.marks} <= set(fields) and not (all_named and tokens != (known.input, known.output))


def _check_named(named: Columns, fields: Collection[str], source: str) -> None:
    for axis in ("input", "output", "time", "cached"):
        path = getattr(named, axis)
        if path is not None and path not in fields:
            near = difflib.get_close_matches(path, list(fields), n=3, cutoff=0.5)
            hint = f"did you mean {', '.join(near)}? " if near else ""
            message = f"{source}: no column {path!r}; {hint}found: {_shown(fields)}. Name another: --{axis}-column NAME"
            raise DataError(message, code="no-column", trace=source, column=path, option=f"--{axis}-column")


def _not_recognised(fields: Collection[str], source: str, wanted: str | None, named: Columns) -> str:
    candidates = [known for known in FORMATS if wanted == known.name or (wanted is None and not known.marks)]
    names = "; ".join(f"{known.input} and {known.output} ({known.name})" for known in candidates)
    flags = [f"--{axis}-column NAME" for axis in ("input", "output") if getattr(named, axis) is None]
    what = "no known columns of input and output tokens" if candidates else "no columns were named"
    expected = f" Expected: {names}." if names else ""
    return f"{source}: {what}; found: {_shown(fields)}.{expected} Name them: {' '.join(flags)}"


def _shown(fields: Collection[str]) -> str:
    """The first names: in quotes if they have what a terminal does not show, and long ones cut."""
    names = []
    for name in itertools.islice(fields, _SHOWN_FIELDS):
        cut = name if len(name) <= _SHOWN_CHARACTERS else f"{name[:_SHOWN_CHARACTERS]}…"
        names.append(cut if cut.isprintable() and cut == cut.strip() else repr(cut))
    more = len(fields) - len(names)
    return (", ".join(names) or "none") + (f", and {more} more" if more else "")
