"""The engine that ``vllm serve`` runs (vLLM 0.25's `AsyncLLM`), without HTTP and tokenizer.

    arrival ──▶ submitted ──▶ queued ──▶ scheduled ──▶ first token ──▶ last token
    client      front end     engine     engine        engine, client  engine, client

The front end runs in this process, the engine in one of its own; both stamp by `time.monotonic`, on Linux one clock for
all processes of a host.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from infergy.engines.engine import GPU_UUIDS, Completion, Work, gpu_uuid_of
from infergy.engines.open_loop import serve_arrivals
from infergy.engines.vllm_options import (
    CACHE_IN_USE,
    FORCED,
    failed,
    join_uuids,
    not_loaded,
    resolved_options,
    sampling_options,
)
from infergy.engines.weights import LAWS, draw_weights
from infergy.records import SERVER, EngineSetup
from infergy.records.latency import EngineCounts, EngineTimes

T = TypeVar("T")
MICROSECOND_DIGITS = 6
ALIVE_S = 1.0
"""How often a pending call checks that the engine is still alive."""
RESET_TRIES = 5
"""How often it is tried to empty the prefix cache, `ALIVE_S` apart."""


class StepCounts:
    """Sums what vLLM's scheduler reports of each step; one of the loggers of `AsyncLLM`'s statistics.

    Its own loggers stay: they are part of a server's work.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Set the counts to zero."""
        self._steps = self._preemptions = self._running = self._waiting = 0
        self._cache_share = 0.0

    def record(self, scheduler_stats: Any = None, iteration_stats: Any = None, **others: Any) -> None:
        """Add a step: vLLM's `SchedulerStats` and `IterationStats`, each None where there are none."""
        if scheduler_stats is not None:
            self._steps += 1
            self._running = max(self._running, scheduler_stats.num_running_reqs)
            self._waiting = max(self._waiting, scheduler_stats.num_waiting_reqs)
            self._cache_share = max(self._cache_share, scheduler_stats.kv_cache_usage)
        if iteration_stats is not None:
            self._preemptions += iteration_stats.num_preempted_reqs

    def total(self, cached_tokens: int) -> EngineCounts:
        """The counts since `reset`."""
        return EngineCounts(
            steps=self._steps,
            preemptions=self._preemptions,
            cached_tokens=cached_tokens,
            peak_running=self._running,
            peak_waiting=self._waiting,
            peak_cache_share=round(self._cache_share, MICROSECOND_DIGITS),
        )

    def log(self) -> None:
        """Print nothing."""

    def log_engine_initialized(self) -> None:
        """Print nothing."""

    def record_sleep_state(self, sleep: int = 0, level: int = 0) -> None:
        """The engine is never put to sleep."""


@dataclass(slots=True)
class _Answer:
    """The answer to one request; instants by `time.monotonic`, 0 until known."""

    arrived: float = 0.0
    submitted: float = 0.0
    first_token: float = 0.0
    last_token: float = 0.0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    stamps: Any = None


def open_server(setup: EngineSetup, options: Mapping[str, Any], seed: int) -> VllmServerSession:
    """Start vLLM's engine as ``vllm serve`` does, with the defaults of a server.

    Raises:
        EngineError: vLLM could not load the model.
    """
    from vllm import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.async_llm import AsyncLLM

    try:
        import uvloop

        loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    except ImportError:
        loop = asyncio.new_event_loop()
    counts = StepCounts()

    async def start() -> Any:
        engine = AsyncLLM.from_engine_args(
            AsyncEngineArgs(**options),
            usage_context=UsageContext.OPENAI_API_SERVER,
            stat_loggers=[lambda config, index=0: counts],
        )
        if setup.weights in LAWS:
            draw = partial(draw_weights, law=setup.weights, seed=seed)
            await _alive(engine, engine.collective_rpc("apply_model", args=(draw,)))
        return engine

    try:
        engine = loop.run_until_complete(start())
    except (RuntimeError, ValueError, OSError) as error:
        loop.close()
        raise not_loaded(setup, error) from error
    return VllmServerSession(engine, loop, counts)


class VllmServerSession:
    """A running `AsyncLLM`; its event loop runs only while a method of this session does."""

    def __init__(self, engine: Any, loop: asyncio.AbstractEventLoop, counts: StepCounts) -> None:
        self._engine = engine
        self._loop = loop
        self._counts = counts
        self._ids = itertools.count()

    def run(self, work: Work) -> Completion:
        """Submit each request as it arrives, and stream its tokens as a server does until the last one."""
        from vllm import SamplingParams, TokensPrompt
        from vllm.sampling_params import RequestOutputKind
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        called_s = time.monotonic()
        common = {**sampling_options(work.decoding), **FORCED, "output_kind": RequestOutputKind.DELTA}
        parameters = [SamplingParams(**common, max_tokens=count) for count in work.output_tokens]
        prompts = [TokensPrompt(prompt_token_ids=list(prompt)) for prompt in work.prompts]
        requests = list(zip(prompts, parameters, strict=True))
        answers = [_Answer() for _ in requests]
        try:
            begun_s = self._loop.run_until_complete(self._serve(requests, work, answers))
        except (RuntimeError, ValueError, EngineDeadError, EngineGenerateError) as error:
            raise failed(error) from error
        arrived_s = [answer.arrived for answer in answers]
        return Completion(
            input_tokens=tuple(answer.input_tokens for answer in answers),
            output_tokens=tuple(answer.output_tokens for answer in answers),
            first_token_s=_since(arrived_s, [answer.first_token for answer in answers]),
            finished_s=_since(arrived_s, [answer.last_token for answer in answers]),
            prepared_s=begun_s - called_s,
            engine_times=_engine_times(arrived_s, answers),
            counts=self._counts.total(sum(answer.cached_tokens for answer in answers)),
        )

    async def _serve(self, requests: list[tuple[Any, Any]], work: Work, answers: list[_Answer]) -> float:
        """Serve until all are finished; returns when the run began, by `time.monotonic`."""
        if self._engine.vllm_config.cache_config.enable_prefix_caching:
            # Prompts are drawn from one seed: the cache would still hold those of an earlier run. vLLM answers False
            # while blocks are in use, older versions nothing.
            for _ in range(RESET_TRIES):
                if await _alive(self._engine, self._engine.reset_prefix_cache()) is not False:
                    break
                await asyncio.sleep(ALIVE_S)
            else:
                raise RuntimeError(CACHE_IN_USE)
        self._counts.reset()

        async def ask(index: int, arrived: float) -> float:
            answers[index].arrived = arrived
            await self._stream(*requests[index], answers[index])
            return answers[index].last_token

        return await serve_arrivals(work, ask)

    async def _stream(self, prompt: Any, parameters: Any, answer: _Answer) -> None:
        answer.submitted = time.monotonic()
        output = None
        async for output in self._engine.generate(prompt, parameters, f"infergy-{next(self._ids)}"):
            now_s = time.monotonic()
            answer.first_token = answer.first_token or now_s
            answer.last_token = now_s
            answer.output_tokens += len(output.outputs[0].token_ids)
        if output is not None:
            answer.input_tokens = len(output.prompt_token_ids)
            answer.cached_tokens = output.num_cached_tokens or 0
            answer.stamps = output.metrics

    def facts(self) -> Mapping[str, str | None]:
        """The options as vLLM resolved them."""
        return {
            **resolved_options(self._engine.vllm_config),
            "usage_context": SERVER,
            "event_loop": type(self._loop).__module__.partition(".")[0],
            GPU_UUIDS: self.gpu_uuids(),
        }

    def gpu_uuids(self) -> str | None:
        """The GPU of each worker, in the order of their ranks; None unless all are known."""
        uuids: list[str | None] = []
        with suppress(Exception):
            # Errors of workers come as a bare Exception; a vLLM that does not answer can be measured all the same.
            call = self._engine.collective_rpc("apply_model", args=(gpu_uuid_of,))
            uuids = self._loop.run_until_complete(_alive(self._engine, call))
        return join_uuids(uuids)

    def close(self) -> None:
        """Stop vLLM's processes."""
        if self._engine is None:
            return
        engine, self._engine = self._engine, None
        engine.shutdown()
        # The front end's own tasks end by being cancelled, which needs the loop once more.
        self._loop.run_until_complete(_cancel_others())
        self._loop.close()


async def _alive(engine: Any, call: Coroutine[Any, Any, T]) -> T:
    """The result of a call to the engine's process; vLLM's own would wait for ever for one that has died."""
    task = asyncio.ensure_future(call)
    while not (await asyncio.wait({task}, timeout=ALIVE_S))[0]:
        if engine.errored:
            task.cancel()
            raise RuntimeError("the engine's process has died; its log says why")
    return task.result()


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


def _since(arrived_s: list[float], instants: list[float]) -> tuple[float, ...]:
    return tuple(
        round(instant - came_s, MICROSECOND_DIGITS) for came_s, instant in zip(arrived_s, instants, strict=True)
    )


def _engine_times(arrived_s: list[float], answers: list[_Answer]) -> EngineTimes | None:
    """The engine's stamps; None unless each request has them all, in their order and of the client's clock."""
    names = ("queued_ts", "scheduled_ts", "first_token_ts", "last_token_ts")
    try:
        stamps = [[float(getattr(answer.stamps, name)) for name in names] for answer in answers]
    except AttributeError:
        return None
    stages = [[a.submitted, *stamp, a.last_token] for a, stamp in zip(answers, stamps, strict=True)]
    if not all(instants == sorted(instants) for instants in stages):
        return None
    submitted, queued, scheduled, first, last, _ = (
        _since(arrived_s, list(column)) for column in zip(*stages, strict=True)
    )
    return EngineTimes(
        submitted_s=submitted, queued_s=queued, scheduled_s=scheduled, first_token_s=first, finished_s=last
    )
