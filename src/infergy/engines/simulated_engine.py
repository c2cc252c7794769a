"""A stand-in for any engine on simulated GPUs: each step takes exactly what the cost model says with its priors.

Priors do not change when the shipped table grows, so tests keep comparing with the same truth.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from infergy.catalog import Gpu, ModelShape, read_shape
from infergy.catalog.models import Draft, find_draft
from infergy.engines.engine import (
    STATIC_BATCHES,
    Completion,
    EngineOutOfMemoryError,
    Work,
    check_assisted_batch,
    check_no_beams,
    check_transformers,
    check_vllm,
)
from infergy.errors import UsageError
from infergy.records import GREEDY, Arrivals, Decoding, EngineSetup
from infergy.records.cell import Links
from infergy.records.latency import EngineCounts
from infergy.records.window import Drafts
from infergy.serving.blocks import blocks_of_prompts
from infergy.serving.config import EngineConfig
from infergy.serving.run import Run
from infergy.serving.setups import config_of_setup, cost_of_setup, memory_fault, serve_setup
from infergy.serving.simulate import requests_of_lengths

GAP_S = 1e-9
"""Rounding of times; a longer gap between two steps is time in which the GPUs idle."""


class Device(Protocol):
    """Simulated GPUs that share a virtual clock."""

    @property
    def gpus(self) -> Sequence[object]:
        """The GPUs."""
        ...

    def sleep(self, seconds: float) -> None:
        """Let time pass while they idle."""
        ...

    def advance(self, seconds: float, power_w: float) -> None:
        """Let time pass while they draw `power_w` together."""
        ...


class SimulatedEngine:
    """Plays the engine that a config names; needs neither it nor a GPU."""

    name = "simulated"
    packages: tuple[str, ...] = ()

    def __init__(self, device: Device, gpu: Gpu) -> None:
        self._device = device
        self._gpu = gpu

    def check(self, setup: EngineSetup, decoding: Decoding = GREEDY, arrivals: Arrivals | None = None) -> None:
        """Reject what these simulated GPUs, or the engine itself, cannot play."""
        count = len(self._device.gpus)
        if setup.tensor_parallel != count:
            raise UsageError.bad_value("tensor_parallel", setup.tensor_parallel, f"{count}, the simulated GPUs")
        if setup.engine == "transformers":
            check_transformers(setup, decoding, arrivals)
        else:
            check_vllm(setup, decoding)

    def open(
        self, setup: EngineSetup, config: Mapping[str, Any], seed: int, draft: Mapping[str, Any] | None = None
    ) -> SimulatedSession:
        """Nothing is loaded."""
        shape, speculation = read_shape(config, name=setup.model), setup.speculation
        drafting = None if speculation is None or draft is None else find_draft(setup, {speculation.draft: draft})
        return SimulatedSession(self._device, self._gpu, shape, setup, drafting)


class SimulatedSession:
    """Lets virtual time pass at the power of simulated steps."""

    def __init__(
        self, device: Device, gpu: Gpu, shape: ModelShape, setup: EngineSetup, draft: Draft | None = None
    ) -> None:
        self._device = device
        self._gpu = gpu
        self._shape = shape
        self._setup = setup
        self._draft = draft
        self._cost = cost_of_setup(setup, shape, gpu, draft=draft)
        # Windows repeat one batch: its run is kept.
        self._served: tuple[Work, Run] | None = None

    def run(self, work: Work) -> Completion:
        """Spend the time and energy that serving `work` takes.

        Raises:
            UsageError: The simulated engine serves static batches, and requests arrive one after the other.
            EngineOutOfMemoryError: They do not fit.
        """
        self._check(work)
        beams = work.decoding.beams
        order: Sequence[int] = range(len(work.prompts))
        if not work.after:
            order = sorted(order, key=lambda index: work.arrival_s[index])
        if self._served is None or self._served[0] != work:
            self._served = work, self._serve(work, [index for index in order for _ in range(beams)])
        run = self._served[1]
        if run.counts.rejected_requests:
            raise EngineOutOfMemoryError("not one request fits", is_usable=True)
        self._spend(run)
        served, rank = run.requests, {index: place * beams for place, index in enumerate(order)}
        first_s, finished_s = (
            tuple(float(column[rank[index]] - served.arrival_s[rank[index]]) for index in range(len(order)))
            for column in (served.first_token_s, served.finished_s)
        )
        return Completion(
            input_tokens=tuple(len(prompt) for prompt in work.prompts),
            output_tokens=work.output_tokens,
            first_token_s=first_s,
            finished_s=finished_s,
            drafts=self._play_drafts(work),
            experts_touched=self._experts_touched(work),
            counts=None if self._setup.engine == "transformers" else self._count(run),
        )

    def _serve(self, work: Work, order: Sequence[int]) -> Run:
        """The run of a work's requests in the order of their arrival."""
        setup = self._setup
        lengths = [(len(work.prompts[index]), work.output_tokens[index]) for index in order]
        links = Links(after=work.after, gap_s=work.gap_s)
        requests = requests_of_lengths(setup.label, lengths, [work.arrival_s[index] for index in order], links)
        if setup.prefix_caching:
            requests = replace(requests, prefix_blocks=blocks_of_prompts([work.prompts[index] for index in order]))
        return serve_setup(setup, self._shape, self._gpu, self._cost, requests)

    def _count(self, run: Run) -> EngineCounts:
        """What vLLM counts of a run."""
        config = config_of_setup(self._setup, self._shape, self._gpu, run.requests)
        assert isinstance(config, EngineConfig)
        counts = run.counts
        return EngineCounts(
            steps=round(float(run.steps.count.sum())),
            preemptions=counts.preemptions,
            cached_tokens=counts.hit_tokens,
            peak_running=counts.peak_running,
            peak_waiting=counts.peak_waiting,
            peak_cache_share=counts.peak_kv_blocks / (config.limits.num_gpu_blocks - 1),
        )

    def _check(self, work: Work) -> None:
        """Whether the engine serves `work`, and the memory takes it.

        Equal requests at once are one batch, whose size is the user's: all of them must fit together.
        """
        setup, lengths = self._setup, list(zip(map(len, work.prompts), work.output_tokens, strict=True))
        is_timed, is_static = work.is_timed, setup.engine == "transformers"
        if is_static and is_timed:
            raise UsageError.engine_lacks("transformers", "arrivals", "timed", STATIC_BATCHES)
        fits_at_once = setup.max_sequences is None or len(lengths) <= setup.max_sequences
        is_batch = len(set(lengths)) == 1 and fits_at_once and not is_timed
        if not is_batch:
            check_no_beams(work.decoding)
        elif is_static and setup.speculation is not None:
            check_assisted_batch(setup.speculation, len(lengths))
        sequences = lengths * work.decoding.beams
        fault = memory_fault(setup, self._shape, self._gpu, sequences, self._draft, together=is_batch)
        if fault is not None:
            reason = f"batch {len(lengths)} does not fit: {fault}" if is_batch else "not one request fits"
            raise EngineOutOfMemoryError(reason, is_usable=True)

    def _spend(self, run: Run) -> None:
        """Let the time of a run pass, at the power of each of its steps."""
        now_s = 0.0
        columns = (run.steps.start_s, run.steps.duration_s, run.steps.count * run.step_energy_j)
        for start_s, seconds, joules in zip(*(column.tolist() for column in columns), strict=True):
            if start_s - now_s > GAP_S:
                self._device.sleep(start_s - now_s)
            self._device.advance(seconds, joules / seconds)
            now_s = start_s + seconds

    def _experts_touched(self, work: Work) -> float | None:
        """What transformers reports and vLLM does not, under uniform routing."""
        experts = self._shape.experts
        if not work.count_experts or experts is None or self._setup.engine != "transformers":
            return None
        return experts.expected_coverage(len(work.prompts) * work.decoding.beams)

    def _play_drafts(self, work: Work) -> Drafts | None:
        """The expected number of rounds: each adds a token of the model to those that it accepts."""
        if self._draft is None:
            return None
        tokens = sum(count - 1 for count in work.output_tokens)
        rounds = math.ceil(tokens / self._draft.tokens_per_round)
        return Drafts(rounds=rounds, drafted_tokens=rounds * self._draft.look_ahead, accepted_tokens=tokens - rounds)

    def facts(self) -> Mapping[str, str | None]:
        """What is simulated."""
        return {"simulated": f"{self._setup.label} on {self._gpu.title}"}

    def close(self) -> None:
        """Nothing is held."""
