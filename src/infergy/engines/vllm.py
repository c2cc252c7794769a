"""vLLM, offline and online: continuous batching, paged KV cache, CUDA graphs unless turned off."""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from infergy.engines.engine import GPU_UUIDS, Completion, Session, Work, check_vllm, gpu_uuid_of
from infergy.engines.vllm_options import (
    CACHE_IN_USE,
    FORCED,
    DraftCounts,
    draw_draft_weights,
    engine_options,
    failed,
    join_uuids,
    not_loaded,
    resolved_options,
    sampling_options,
    speculate,
)
from infergy.engines.weights import LAWS, draw_weights
from infergy.errors import MissingError
from infergy.records import GREEDY, SERVER, Arrivals, Decoding, EngineSetup

Times = tuple[float, ...] | None
"""Seconds per request; None where unknown."""


class VllmEngine:
    """The `LLM` class with its own defaults, except that prefix caching is off unless the engine config has it."""

    name = "vllm"
    packages: tuple[str, ...] = ("vllm", "torch", "transformers", "triton")

    def check(self, setup: EngineSetup, decoding: Decoding = GREEDY, arrivals: Arrivals | None = None) -> None:
        """Reject what vLLM lacks, and a machine without it."""
        check_vllm(setup, decoding)
        if importlib.util.find_spec("vllm") is None:
            raise MissingError.package("engine vllm", "vllm", "pip install 'infergy[vllm]'")

    def open(
        self, setup: EngineSetup, config: Mapping[str, Any], seed: int, draft: Mapping[str, Any] | None = None
    ) -> Session:
        """Load the model; infergy draws random weights in vLLM's workers, after loading."""
        # vLLM sends functions to its workers by pickle, which it rejects by default; ours go to our own child only.
        os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
        # A forked engine process would keep the pipe to our parent open after we have died.
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
        options = engine_options(setup, config, seed)
        if setup.usage_context == SERVER:
            from infergy.engines.vllm_server import open_server

            return open_server(setup, options, seed)
        from vllm import LLM

        is_random, has_draft = setup.weights in LAWS, setup.speculation is not None
        if setup.speculation is not None:
            options["speculative_config"] = speculate(setup.speculation, setup.tensor_parallel, draft)
            # Drafted tokens are counted where requests are scheduled, and only if statistics are on from the start.
            options["disable_log_stats"] = False
        try:
            llm = LLM(**options)
            if is_random:
                llm.apply_model(partial(draw_weights, law=setup.weights, seed=seed))
            if is_random and has_draft:
                llm.collective_rpc(partial(draw_draft_weights, law=setup.weights, seed=seed))
        except (RuntimeError, ValueError, OSError) as error:
            raise not_loaded(setup, error) from error
        return VllmSession(llm, is_drafting=has_draft, is_caching=setup.prefix_caching)


class VllmSession:
    """A running vLLM engine."""

    def __init__(self, llm: Any, *, is_drafting: bool = False, is_caching: bool = False) -> None:
        self._llm = llm
        self._is_caching = is_caching
        self._counts = DraftCounts() if is_drafting else None
        if self._counts is not None:
            # In place of vLLM's own, which print a line every 10 s, in the middle of a window.
            llm.llm_engine.logger_manager = self._counts
        _keep_times(getattr(llm, "llm_engine", None))

    def run(self, work: Work) -> Completion:
        """Hand over each prompt as it arrives, offline all at once, and wait for the last token."""
        from vllm import SamplingParams, TokensPrompt

        common = {**sampling_options(work.decoding), **FORCED}
        parameters = [SamplingParams(**common, max_tokens=count) for count in work.output_tokens]
        prompts = [TokensPrompt(prompt_token_ids=list(prompt)) for prompt in work.prompts]
        if self._counts is not None:
            self._counts.reset()
        begun_s = time.monotonic()
        try:
            # Prompts are drawn from one seed: the cache would still hold those of an earlier run.
            if self._is_caching and not self._llm.reset_prefix_cache():
                raise RuntimeError(CACHE_IN_USE)
            if work.is_timed:
                answers = _serve(self._llm, prompts, parameters, work.arrival_s, begun_s)
            else:
                answers = self._llm.generate(prompts, parameters, use_tqdm=False)
        except (RuntimeError, ValueError) as error:
            raise failed(error) from error
        ended_s = time.monotonic()
        first_s, finished_s = token_times(answers, [begun_s + after_s for after_s in work.arrival_s], ended_s)
        return Completion(
            input_tokens=tuple(len(answer.prompt_token_ids) for answer in answers),
            output_tokens=tuple(len(answer.outputs[0].token_ids) for answer in answers),
            first_token_s=first_s,
            finished_s=finished_s,
            drafts=None if self._counts is None else self._counts.total(),
        )

    def facts(self) -> Mapping[str, str | None]:
        """The options as vLLM resolved them."""
        return {**resolved_options(self._llm.llm_engine.vllm_config), GPU_UUIDS: self.gpu_uuids()}

    def gpu_uuids(self) -> str | None:
        """The GPU of each worker, in the order of their ranks; None unless all are known."""
        uuids: list[str | None] = []
        with suppress(Exception):
            # Errors of workers come as a bare Exception; a vLLM that does not answer can be measured all the same.
            uuids = self._llm.apply_model(gpu_uuid_of)
        return join_uuids(uuids)

    def close(self) -> None:
        """Stop vLLM's processes."""
        if self._llm is not None:
            self._llm.llm_engine.engine_core.shutdown()
        self._llm = None


def _keep_times(engine: Any) -> None:
    """Have vLLM stamp each request's first and last token, and nothing else.

    Its option for that, ``disable_log_stats=False``, also counts every token of every step into Prometheus histograms
    and prints a line every 10 s, in the middle of a window. The stamps need only two switches, in vLLM 0.25's
    `LLMEngine.step` and `OutputProcessor.add_request`; without these the times stay unknown.
    """
    processor = getattr(engine, "output_processor", None)
    if processor is not None and hasattr(engine, "log_stats") and hasattr(processor, "log_stats"):
        engine.log_stats = processor.log_stats = True


def _serve(
    llm: Any, prompts: Sequence[Any], parameters: Sequence[Any], arrival_s: Sequence[float], begun_s: float
) -> list[Any]:
    """Hand requests over as they arrive, and step vLLM's engine until the last one is finished.

    `LLM.enqueue` adds a request as `LLM.generate` does (with a counted id, answered once, when it is finished).
    `LLMEngine.step` waits for the engine's next step, and is not called while nothing is in flight, when it would wait
    for ever: then we sleep until the next arrival. A request that arrives while a step runs is handed over after it.

    `arrival_s` are seconds after `begun_s`, which is by `time.monotonic`. Returns vLLM's `RequestOutput` of each, in
    the order of `prompts`.
    """
    waiting = sorted(range(len(prompts)), key=lambda index: arrival_s[index])
    order = tuple(waiting)
    finished: list[Any] = []
    while waiting or llm.llm_engine.has_unfinished_requests():
        while waiting and begun_s + arrival_s[waiting[0]] <= time.monotonic():
            index = waiting.pop(0)
            llm.enqueue([prompts[index]], [parameters[index]], use_tqdm=False)
        if llm.llm_engine.has_unfinished_requests():
            finished += [answer for answer in llm.llm_engine.step() if answer.finished]
        elif waiting:
            time.sleep(max(0.0, begun_s + arrival_s[waiting[0]] - time.monotonic()))
    # Ids are counted as requests are handed over, which `LLM.generate` sorts by as well.
    finished.sort(key=lambda answer: int(answer.request_id))
    by_index = dict(zip(order, finished, strict=True))
    return [by_index[index] for index in range(len(prompts))]


def token_times(answers: Sequence[Any], arrived_s: Sequence[float], ended_s: float) -> tuple[Times, Times]:
    """Seconds from each request's arrival to its first token and to its last, as vLLM's engine stamped them.

    The engine's process stamps by `time.monotonic`, on Linux one clock for all processes of a host. The front end's
    own stamps would be late: it reads the first answers only after it has handed over the last request.

    Args:
        answers: vLLM's `RequestOutput`, one per request.
        arrived_s: When each request arrived, by our `time.monotonic`; waiting to be handed over counts.
        ended_s: When all had come back.

    Returns:
        None for both if a request has no stamps, or stamps of another clock: such as lie outside of the run.
    """
    stamps = [getattr(answer, "metrics", None) for answer in answers]
    first = [getattr(stamp, "first_token_ts", 0.0) for stamp in stamps]
    last = [getattr(stamp, "last_token_ts", 0.0) for stamp in stamps]
    stamped = list(zip(arrived_s, first, last, strict=True))
    if not all(came_s < first_s <= last_s <= ended_s for came_s, first_s, last_s in stamped):
        return None, None
    return tuple(f - came_s for came_s, f, _ in stamped), tuple(t - came_s for came_s, _, t in stamped)
