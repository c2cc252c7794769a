"""Logs of texts, such as ShareGPT and WildChat: a tokenizer counts them, each answer is a request."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from infergy.errors import DataError, MissingError, UsageError
from infergy.workload.lines import Fault
from infergy.workload.source import JSONL, PARQUET, POLARS, UNPACKED, Source, first_line, of_frame

BLOCK_TOKENS = 16
_KINDS = (JSONL, UNPACKED, PARQUET, POLARS)
_PEEKED_ROWS = 5
_MESSAGES = ("conversations", "conversation", "messages", "input", "prompt")
_ANSWERS = ("response", "output", "completion", "answer", "output_length")
_TIMES = ("timestamp", "created_at", "created", "create_time", "time")
_MODEL = ("assistant", "gpt", "chatgpt", "bing", "bard", "model", "ai", "claude")

_LENGTH = re.compile(r"\d{1,10}", re.ASCII)

Encode = Callable[[str], Sequence[int]]


def has_texts(source: Source) -> bool:
    """Whether a log has messages, by its first records."""
    if not any((field,) in source.names for field in _MESSAGES) or source.kind not in _KINDS:
        return False
    return any(map(_turns, source.rows or itertools.islice(_records(source), _PEEKED_ROWS)))


def count_texts(source: Source, tokenizer: str) -> Source:
    """The answers of a log of texts as requests, their prompts all that stood before them, no chat template around it.

    Prompts have the hashes of their blocks, so that a cache of prefixes finds what a conversation repeats.

    Raises:
        UsageError: The log is a table without messages.
        MissingError: There is no such tokenizer, or transformers is not installed.
    """
    if source.kind not in _KINDS:
        message = f"{source.name}: --tokenizer counts the messages of JSON and Parquet, no columns of a table"
        raise UsageError(message, code="option-not-applicable", options=["--tokenizer"])
    encode = _load(tokenizer)
    import polars as pl

    rows = [(n, *values) for n, record in enumerate(_records(source)) for values in _requests(record, encode)]
    schema = {"conversation": pl.Int64, "input_tokens": pl.Int64, "output_tokens": pl.Int64}
    schema |= {"block_hashes": pl.List(pl.Int64), "arrival": pl.String}  # type: ignore[dict-item]
    frame = pl.DataFrame(rows, schema=schema, orient="row")
    frame = frame.drop("arrival") if frame["arrival"].null_count() == len(frame) else frame
    words = f"texts counted by the tokenizer {tokenizer}, without a chat template"
    return of_frame(source.name, POLARS, frame.lazy(), words)


def _load(tokenizer: str) -> Encode:
    try:
        import transformers

        loaded = transformers.AutoTokenizer.from_pretrained(tokenizer)
    except ImportError as error:
        raise MissingError.package("--tokenizer", "transformers", "pip install transformers") from error
    except (OSError, ValueError) as error:
        message = f"--tokenizer {tokenizer}: {first_line(error)}. Name a Hugging Face tokenizer, or its folder"
        raise MissingError(message, code="tokenizer-missing", tokenizer=tokenizer) from error

    def encode(text: str) -> Sequence[int]:
        ids: Sequence[int] = loaded(text, add_special_tokens=False)["input_ids"]
        return ids

    return encode


def _records(source: Source) -> Iterator[Mapping[str, Any]]:
    if source.nested is not None:
        for record in source.nested.records():
            if isinstance(record, Fault):
                message = f"{source.name}: {record}. Repair or remove that line"
                raise DataError(message, code="bad-syntax", path=source.name, line=record.number, form="JSON")
            yield record
        return
    import polars as pl

    frame = source.frame if source.path is None else pl.scan_parquet(source.path, glob=False)
    names = {name for (name, *_) in source.names} & {*_MESSAGES, *_ANSWERS, *_TIMES}
    yield from frame.select(sorted(names)).collect().iter_rows(named=True)


def _requests(record: Mapping[str, Any], encode: Encode) -> Iterator[tuple[int, int, list[int], str | None]]:
    """Input, output, hashes of the prompt's whole blocks and arrival of each answer of a conversation."""
    prompt: list[int] = []
    hashes: list[int] = []
    asked = _first(record, _TIMES)
    for is_answer, text, time in _turns(record):
        if is_answer and prompt:
            answer = text if isinstance(text, int) else len(encode(text))
            yield len(prompt), answer, list(hashes), None if asked is None else str(asked)
        asked = asked if is_answer or time is None else time
        prompt += () if isinstance(text, int) else encode(text)
        for start in range(len(hashes) * BLOCK_TOKENS, len(prompt) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
            block = (hashes[-1] if hashes else 0, *prompt[start : start + BLOCK_TOKENS])
            hashes.append(hash(block) & ((1 << 62) - 1))


def _first(record: Mapping[str, Any], names: Iterable[str]) -> Any:
    return next((record[name] for name in names if record.get(name) not in (None, "")), None)


def _turns(record: Mapping[str, Any]) -> list[tuple[bool, Any, Any]]:
    """Whether each message is the model's, its text (of an answer its length may be all there is), its time."""
    messages: Any = next((record[name] for name in _MESSAGES if isinstance(record.get(name), list | str)), [])
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}] * (not messages.strip().isdigit())
    turns = list(filter(None, map(_turn, messages)))
    answer = _first(record, _ANSWERS)
    if turns and not turns[-1][0] and answer is not None:
        is_length = _LENGTH.fullmatch(str(answer)) and not isinstance(answer, float)
        turns.append((True, int(answer) if is_length else _text(answer), None))
    return turns if any(turn[0] for turn in turns) else []


def _turn(message: Any) -> tuple[bool, Any, Any] | None:
    role = message.get("role", message.get("from")) if isinstance(message, Mapping) else None
    if role is None:
        return None
    text = _text(message.get("content", message.get("value")))
    return str(role).lower() in _MODEL, text, message.get("timestamp")


def _text(content: Any) -> str:
    """The text of a message, which may come in parts."""
    if isinstance(content, list):
        return "".join(_text(part.get("text")) for part in content if isinstance(part, Mapping))
    return content if isinstance(content, str) else ""
