"""Which log this is, from its header: the columns of the formats that infergy knows.

    azure       TIMESTAMP, ContextTokens, GeneratedTokens                            CSV, Azure 2023 and 2024
    burstgpt    Timestamp, [Session ID, Elapsed time,] Model, Request tokens, …      CSV, BurstGPT
    mooncake    timestamp (ms), input_length, output_length, hash_ids                JSONL, Mooncake
    openai      usage.{prompt_tokens, completion_tokens, prompt_tokens_details}      JSONL, OpenAI and vLLM logs
    responses   usage.{input_tokens, output_tokens, input_tokens_details}            JSONL, OpenAI Responses API
    flat        prompt_tokens, completion_tokens [, cached_tokens]                   JSONL, CSV or Parquet, flattened
    columns     whatever --input-column and --output-column name

A path with dots goes into nested records.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from infergy.errors import DataError, UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """The columns of a log that hold a request, by name; dots go into nested records.

    Attributes:
        input: Input (prompt) tokens.
        output: Output (generated) tokens.
        time: Arrival: a number of seconds, or a timestamp; None if the log has none.
        cached: Input tokens served from a prefix cache; None if the log has none.
        time_unit_s: Seconds in one unit of a numeric time.
    """

    input: str
    output: str
    time: str | None = None
    cached: str | None = None
    time_unit_s: float = 1.0


FORMATS: dict[str, Columns] = {
    "azure": Columns(input="ContextTokens", output="GeneratedTokens", time="TIMESTAMP"),
    "burstgpt": Columns(input="Request tokens", output="Response tokens", time="Timestamp"),
    "mooncake": Columns(input="input_length", output="output_length", time="timestamp", time_unit_s=1e-3),
    "openai": Columns(
        input="usage.prompt_tokens",
        output="usage.completion_tokens",
        time="created",
        cached="usage.prompt_tokens_details.cached_tokens",
    ),
    "responses": Columns(
        input="usage.input_tokens",
        output="usage.output_tokens",
        time="created_at",
        cached="usage.input_tokens_details.cached_tokens",
    ),
    "flat": Columns(input="prompt_tokens", output="completion_tokens", time="created", cached="cached_tokens"),
}


def recognise(present: Iterable[str], source: str, format: str | None) -> tuple[str, Columns]:  # noqa: A002
    """The format of a log and its columns, from the paths it has (``usage.prompt_tokens``) or by name.

    Optional columns (time, cached) that the log lacks become None.

    Raises:
        DataError: Required columns are missing; says which were found, which are wanted, and what to type.
        UsageError: No format is called `format`.
    """
    paths = set(present)
    if format is not None and format not in FORMATS:
        raise UsageError.unknown("trace format", format, FORMATS)
    for name, columns in FORMATS.items():
        if format in (None, name) and {columns.input, columns.output} <= paths:
            return name, restrict(columns, paths)
    wanted = FORMATS[format] if format else None
    want = f"{wanted.input!r} and {wanted.output!r} ({format})" if wanted else "those of a known format"
    raise DataError(
        f"{source}: expected columns {want}; found {', '.join(sorted(paths)) or 'none'}. "
        "Name them: --input-column NAME --output-column NAME"
    )


def check_columns(columns: Columns, present: Iterable[str], source: str) -> None:
    """Refuse named columns that the log does not have.

    Raises:
        DataError: Says which is missing, which were found, and the flag that names it.
    """
    paths = set(present)
    for flag, path in (
        ("input", columns.input),
        ("output", columns.output),
        ("time", columns.time),
        ("cached", columns.cached),
    ):
        if path is not None and path not in paths:
            raise DataError(
                f"{source}: no column {path!r}; found {', '.join(sorted(paths)) or 'none'}. "
                f"Name the right one: --{flag}-column NAME"
            )


def restrict(columns: Columns, paths: set[str]) -> Columns:
    """The same columns without the optional ones that are not there."""
    return Columns(
        input=columns.input,
        output=columns.output,
        time=columns.time if columns.time in paths else None,
        cached=columns.cached if columns.cached in paths else None,
        time_unit_s=columns.time_unit_s,
    )
