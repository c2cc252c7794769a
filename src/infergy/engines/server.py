"""Any OpenAI-compatible server that runs already, over HTTP: it is loaded and timed as a client sees it.

    arrival ──▶ place free ──▶ sent ──▶ first piece ──▶ last piece ──▶ counts of tokens
                               └── sent again after 429, 503 or where no connection was made

What a server takes is found by asking it once (`DIALECTS`). Prompts are token ids where it takes them; else words, as
many as make the tokens by its own count. All counts are the server's.
"""

from __future__ import annotations

import asyncio
import json
import resource
import secrets
import time
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from infergy.catalog import read_shape
from infergy.engines.engine import Completion, Work, check_no_beams
from infergy.engines.open_loop import serve_arrivals
from infergy.engines.server_client import Client, import_httpx, key_of
from infergy.errors import EngineError, MissingError
from infergy.records import GREEDY, SERVER, Arrivals, Decoding, EngineSetup
from infergy.records.endpoint import Endpoint, Served

RETRIED = (429, 503)
LONGEST_WAIT_S = 60.0
"""Before a request is sent again, whatever the server asks for."""
SPARE_PIECES = 16
"""Pieces of text that a stream may have beyond the tokens asked for, before it counts as endless."""
MOST_TOKENS = 2**32
LOOK_S = 0.05
"""How often it is seen whether the client keeps up."""
PROBE_TOKENS, PROBE_WORDS = 8, (32, 160)
MICROSECOND_DIGITS = 6
TEXT = (
    "time people way water day man thing woman life child world school state family student group country problem "
    "hand part place case week company system program question work night point home room mother area money story "
    "fact month lot right study book eye job word business issue side kind head house service friend "
)
WORDS = TEXT.split()
"""Each one token, with the space before it, of most tokenizers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """How a server is asked: the end of the path, token ids or text, and whether it takes forced lengths."""

    path: str
    has_ids: bool
    is_forced: bool


DIALECTS = (
    *(Dialect(path="completions", has_ids=ids, is_forced=forced) for forced in (True, False) for ids in (True, False)),
    *(Dialect(path="chat/completions", has_ids=False, is_forced=forced) for forced in (True, False)),
)
"""In the order in which they are tried."""


@dataclass(slots=True)
class _Answer:
    """The answer to one request: instants by `time.monotonic`, 0 until known; its counts, None until they come."""

    arrived: float = 0.0
    late_s: float = 0.0
    first: float = 0.0
    last: float = 0.0
    pieces: int = 0
    retries: int = 0
    reason: str | None = None
    tokens: tuple[int, int] | None = None
    cached_tokens: int | None = None


class ServerEngine:
    """The engine of a server that runs already: nothing is loaded."""

    name = "server"
    packages: tuple[str, ...] = ("httpx",)

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    def check(self, setup: EngineSetup, decoding: Decoding = GREEDY, arrivals: Arrivals | None = None) -> None:
        """Reject what the OpenAI interface lacks."""
        import_httpx()
        key_of(self._endpoint.key_variable)
        check_no_beams(decoding)

    def open(
        self, setup: EngineSetup, config: Mapping[str, Any], seed: int, draft: Mapping[str, Any] | None = None
    ) -> ServerSession:
        """Find out what the server takes.

        Raises:
            MissingError: It does not answer.
            EngineError: It takes no request, or reports no counts of what it takes.
        """
        session = ServerSession(self._endpoint, read_shape(config, name=setup.model).vocabulary)
        try:
            session.probe()
        except BaseException:
            session.close()
            raise
        return session


class ServerSession:
    """A client of one server, with an event loop that runs only while a method of this session does."""

    def __init__(self, endpoint: Endpoint, vocabulary: int) -> None:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # a connection for each request that is open
        self._endpoint, self._vocabulary = endpoint, vocabulary
        self._loop = asyncio.new_event_loop()
        self._client = Client(endpoint)
        self._dialect = DIALECTS[0]
        self._words = 0.0, 1.0  # tokens of a prompt without words, and of each word
        # Its cache keeps prompts of earlier runs, which were drawn from the same seed: those of each run differ.
        self._offset = secrets.randbelow(vocabulary)

    def probe(self) -> None:
        """Choose the first dialect that the server takes, and count how many tokens a word has."""
        ids = tuple(range(100, 100 + PROBE_WORDS[0]))
        reason: EngineError | None = None
        for self._dialect in DIALECTS:
            try:
                answer = self._ask_one(ids)
            except EngineError as error:
                if error.fields.get("reason") != "status":
                    raise
                reason = reason or error
                continue
            if not self._dialect.has_ids:
                self._count_words(answer, ids)
                return
            if answer.tokens is None or answer.tokens[0] == len(ids):
                return
        assert reason is not None
        raise reason

    def _ask_one(self, ids: Sequence[int]) -> _Answer:
        answer = _Answer()
        self._loop.run_until_complete(self._request(ids, PROBE_TOKENS, GREEDY, answer))
        return answer

    def _count_words(self, first: _Answer, ids: Sequence[int]) -> None:
        few, many = PROBE_WORDS
        second = self._ask_one(tuple(range(many)))
        if first.tokens is None or second.tokens is None:
            message = f"{self._endpoint.url} takes no token ids and reports no usage: its tokens cannot be counted"
            raise EngineError(message, code="server-counts", url=self._endpoint.url)
        each = max(0.01, (second.tokens[0] - first.tokens[0]) / (many - few))
        self._words = max(0.0, first.tokens[0] - each * few), each

    def run(self, work: Work) -> Completion:
        """Send each request as it arrives, and read its stream to the last token.

        Raises:
            EngineError: A request failed, or the server gives no counts of it.
            MissingError: The server does not answer any more.
        """
        called_s = time.monotonic()
        self._offset = secrets.randbelow(self._vocabulary)
        prompts = [[(token + self._offset) % self._vocabulary for token in prompt] for prompt in work.prompts]
        answers = [_Answer() for _ in prompts]
        places = asyncio.Semaphore(self._endpoint.concurrency or len(prompts))

        async def ask(index: int, arrived: float) -> float:
            answer = answers[index]
            answer.arrived = arrived
            due = arrived if not places.locked() else None
            async with places:
                answer.late_s = 0.0 if due is None else time.monotonic() - due
                await self._request(prompts[index], work.output_tokens[index], work.decoding, answer)
            return answer.last

        begun_s, lag_s = self._loop.run_until_complete(_with_lag(serve_arrivals(work, ask)))
        served = self._served(work, answers, lag_s)
        is_streamed = any(answer.pieces > 1 for answer in answers) or max(work.output_tokens) == 1
        first_s, finished_s = (
            tuple(round(getattr(answer, name) - answer.arrived, MICROSECOND_DIGITS) for answer in answers)
            for name in ("first", "last")
        )
        return Completion(
            input_tokens=tuple(tokens for tokens, _ in served.lengths),
            output_tokens=tuple(tokens for _, tokens in served.lengths),
            first_token_s=first_s if is_streamed else None,
            finished_s=finished_s,
            prepared_s=begun_s - called_s,
            served=served,
        )

    def _served(self, work: Work, answers: Sequence[_Answer], lag_s: float) -> Served:
        """The server's counts; of a request without, what was asked if it ended at its length."""
        asked = list(zip(map(len, work.prompts), work.output_tokens, strict=True))
        lengths = [answer.tokens or self._uncounted(answer, own) for answer, own in zip(answers, asked, strict=True)]
        inconsistent = 0
        for answer, (sent, most), (found, made) in zip(answers, asked, lengths, strict=True):
            inconsistent += (self._dialect.has_ids and found != sent) or not answer.pieces <= made <= most
        cached = [answer.cached_tokens for answer in answers if answer.cached_tokens is not None]
        return Served(
            lengths=tuple(lengths),
            uncounted=sum(answer.tokens is None for answer in answers),
            inconsistent=inconsistent,
            retries=sum(answer.retries for answer in answers),
            late_s=round(max(lag_s, *(answer.late_s for answer in answers)), MICROSECOND_DIGITS),
            cached_tokens=sum(cached) if cached else None,
        )

    def _uncounted(self, answer: _Answer, asked: tuple[int, int]) -> tuple[int, int]:
        """The tokens of a request that the server gives no counts of: those asked for, if it ended at its length."""
        if self._dialect.has_ids and answer.reason == "length":
            return asked
        url = self._endpoint.url
        message = (
            f"{url} reports no usage of a request that did not end at its length: its tokens are not known, and pieces "
            "of text are no tokens"
        )
        raise EngineError(message, code="server-counts", url=url)

    async def _request(self, ids: Sequence[int], output: int, decoding: Decoding, answer: _Answer) -> None:
        """Send a request, again where it may be, and read its answer."""
        body = self._body(ids, output, decoding)
        while True:
            wait_s: float | None = None
            try:
                async with AsyncExitStack() as stack:
                    response = await self._client.open(stack, "POST", f"/v1/{self._dialect.path}", body)
                    is_last = answer.retries >= self._endpoint.retries
                    if response.status_code not in RETRIED or is_last:
                        await self._read(response, output, answer)
                        return
                    wait_s = _retry_after_s(response.headers.get("retry-after"))
            except MissingError:
                if answer.retries >= self._endpoint.retries:
                    raise
            answer.retries += 1
            await asyncio.sleep(min(LONGEST_WAIT_S, 0.25 * 2**answer.retries if wait_s is None else wait_s))

    def _body(self, ids: Sequence[int], output: int, decoding: Decoding) -> dict[str, Any]:
        dialect = self._dialect
        body: dict[str, Any] = {
            "model": self._endpoint.model,
            "max_tokens": output,
            "temperature": decoding.temperature or 0.0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if decoding.temperature is not None:
            body |= {"top_p": decoding.top_p} | ({} if decoding.top_k is None else {"top_k": decoding.top_k})
        if dialect.is_forced:
            body |= {"ignore_eos": True, "min_tokens": output}
        if dialect.has_ids:
            return body | {"prompt": list(ids)}
        begin, each = self._words
        count = max(1, round((len(ids) - begin) / each))
        text = " ".join(WORDS[ids[place % len(ids)] % len(WORDS)] for place in range(count))
        is_chat = dialect.path != "completions"
        return body | ({"messages": [{"role": "user", "content": text}]} if is_chat else {"prompt": text})

    async def _read(self, response: Any, output: int, answer: _Answer) -> None:
        """Read a stream to its end."""
        is_stream = response.headers.get("content-type", "").startswith("text/event-stream")
        if response.status_code != 200 or not is_stream:
            raise await self._client.rejected(response)
        is_whole, limit_s = False, self._endpoint.timeout_s
        try:
            # Bytes alone are no answer: a stream may be kept alive for ever.
            async with asyncio.timeout(limit_s) as limit, aclosing(self._client.lines(response)) as lines:
                async for line in lines:
                    if not line.startswith(b"data:") or is_whole:
                        continue
                    data = line[len(b"data:") :].strip()
                    is_whole = data == b"[DONE]"
                    if not is_whole:
                        self._note(self._parse(data), output, answer)
                        limit.reschedule(self._loop.time() + limit_s)
        except TimeoutError as error:
            raise self._client.broken(error) from error
        if not (is_whole or answer.reason) or not answer.last:
            raise self._client.failed("its stream ended before the answer was whole", "half stream")

    def _note(self, event: Mapping[str, Any], output: int, answer: _Answer) -> None:
        """Note what an event of a stream says, and when it came."""
        for text in _pieces(event):
            answer.last = time.monotonic()
            answer.first = answer.first or answer.last
            answer.pieces += bool(text)
        if answer.pieces > output + SPARE_PIECES:
            raise self._client.failed(f"more than the {output} tokens that were asked for", "endless stream")
        _note_usage(event, answer)

    def _parse(self, data: bytes) -> Mapping[str, Any]:
        try:
            event = json.loads(data)
        except (ValueError, RecursionError):
            event = None
        if not isinstance(event, Mapping) or event.get("error"):
            text = data.decode("utf-8", errors="replace")
            raise self._client.failed(f"in its stream: {self._client.quote(text)}", "error in stream")
        return event

    def facts(self) -> Mapping[str, str | None]:
        """What the server reports of itself, and how it was asked."""
        endpoint, dialect = self._endpoint, self._dialect
        return {
            "engine": ServerEngine.name,
            "usage_context": SERVER,
            "url": endpoint.url,
            "served_model": endpoint.model,
            "software": endpoint.software,
            "version": endpoint.version,
            "path": f"/v1/{dialect.path}",
            "prompts": "token ids" if dialect.has_ids else "words",
            "lengths": "forced" if dialect.is_forced else "up to max_tokens",
            "concurrency": None if endpoint.concurrency is None else str(endpoint.concurrency),
        }

    def close(self) -> None:
        """Close the connections; the server goes on."""
        if not self._loop.is_closed():
            self._loop.run_until_complete(self._client.__aexit__())
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()


async def _with_lag(serving: Coroutine[Any, Any, float]) -> tuple[float, float]:
    """The result of a run, and how long its loop was held up at most: by so much are instants late."""
    lag_s, task = 0.0, asyncio.ensure_future(serving)
    while not task.done():
        due = time.monotonic() + LOOK_S
        await asyncio.wait({task}, timeout=LOOK_S)
        lag_s = max(lag_s, time.monotonic() - due)
    return task.result(), lag_s


def _choices(event: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    choices = event.get("choices")
    return [_mapping(choice) for choice in choices] if isinstance(choices, list) else []


def _pieces(event: Mapping[str, Any]) -> Iterator[str]:
    """The text of each piece of an event; empty of a token without text, none of what announces a role or the end."""
    for choice in _choices(event):
        delta = _mapping(choice.get("delta"))
        text = choice.get("text") or delta.get("content") or delta.get("reasoning_content") or delta.get("reasoning")
        if text or ("delta" not in choice and choice.get("finish_reason") is None):
            yield str(text or "")


def _note_usage(event: Mapping[str, Any], answer: _Answer) -> None:
    """Keep the counts and the reason of an event, where it has them and they can be meant."""
    for choice in _choices(event):
        answer.reason = choice.get("finish_reason") or answer.reason
    usage = _mapping(event.get("usage"))
    sent, made = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
    if sent and made:
        answer.tokens = sent, made
        answer.cached_tokens = _count(_mapping(usage.get("prompt_tokens_details")).get("cached_tokens"))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _count(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value < MOST_TOKENS else None


def _retry_after_s(text: str | None) -> float | None:
    """Seconds that a server asks to wait, given as a number or as a date; None if it gives none that can be meant."""
    if text is None:
        return None
    try:
        if text.strip().isdecimal():
            return float(text)
        return max(0.0, (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None
