"""Requests and costs for tests of the serving room."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from infergy.catalog.gpus import get_gpu
from infergy.catalog.models import get_model
from infergy.cost.constants import prior_fit
from infergy.cost.model import Server, StepCost
from infergy.cost.step import Steps
from infergy.cost.work import server_work
from infergy.serving.config import EngineConfig, SchedulerLimits
from infergy.serving.run import Floats
from infergy.workload.requests import PrefixBlocks, Requests


@dataclass(frozen=True, kw_only=True)
class Affine:
    """A step's seconds, linear in all that counts; 500 W."""

    idle_w: float = 100.0
    intake_s: float = 0.0
    intake_gap_s: float = 0.0
    masked_attention: float = 1.0
    base_s: float = 0.01
    each_s: float = 0.0
    context_s: float = 0.0
    token_s: float = 0.0

    def start(self) -> Clock:
        return Clock(self)

    def step_energy_j(self, steps: Steps) -> Floats:
        return 500.0 * steps.step_s


@dataclass(frozen=True)
class Clock:
    """The affine cost's clock."""

    cost: Affine

    def step(
        self,
        decodes: int,
        context: float,
        prefill_tokens: int,
        prefill_pairs: float,
        prefills: int,
        sampled: int,
        padded: int,
    ) -> float:
        c = self.cost
        return c.base_s + c.each_s * decodes + c.context_s * context + c.token_s * prefill_tokens

    def decode(
        self, decodes: int, context: float, padded: int, most: int, until_s: float, ahead: int
    ) -> tuple[int, float]:
        count, ends_s = 0, 0.0
        while count < most:
            ends_s += self.step(decodes, context + count * decodes, 0, 0, 0, decodes, padded)
            count += 1
            if ends_s >= until_s - 1e-12:
                break
        count = min(most, count + ahead) if ends_s >= until_s - 1e-12 else count
        if until_s <= 0:
            count = min(most, max(1, ahead))
        return count, self.step(decodes, context + (count - 1) * decodes / 2, 0, 0, 0, decodes, padded)

    def idle(self, seconds: float) -> None:
        assert seconds >= 0


def llama_on_h200() -> StepCost:
    """The model of a step's cost, by its priors."""
    shape, gpu = get_model("llama-3.1-8b"), get_gpu("h200")
    server = Server(engine="vllm", model="llama-3.1-8b", work=server_work(shape), gpu=gpu, idle_w=123.7, is_api=True)
    return StepCost(server, prior_fit("vllm"))


def engine(
    *,
    max_num_batched_tokens: int = 8192,
    max_num_seqs: int = 256,
    num_gpu_blocks: int = 50_000,
    max_model_len: int = 100_000,
    sizes: tuple[int, ...] = (1, 2, 4, 8, 16),
    **limits: Any,
) -> EngineConfig:
    return EngineConfig(
        version="0.25",
        usage_context="server",
        limits=SchedulerLimits(
            max_num_batched_tokens=max_num_batched_tokens,
            max_num_seqs=max_num_seqs,
            num_gpu_blocks=num_gpu_blocks,
            **limits,
        ),
        max_model_len=max_model_len,
        tensor_parallel_size=1,
        gpu_memory_utilization=0.92,
        cudagraph_capture_sizes=sizes,
    )


def ask(
    lengths: list[tuple[int, int]],
    arrival_s: list[float] | None = None,
    *,
    after: list[int] | None = None,
    gap_s: list[float] | None = None,
    prefix_blocks: PrefixBlocks | None = None,
    cached: list[int] | None = None,
) -> Requests:
    return Requests(
        source="a test",
        input_tokens=np.array([a for a, _ in lengths], dtype=np.int64),
        output_tokens=np.array([b for _, b in lengths], dtype=np.int64),
        arrival_s=None if arrival_s is None else np.array(arrival_s, dtype=np.float64),
        after=None if after is None else np.array(after, dtype=np.int64),
        gap_s=None if gap_s is None else np.array(gap_s, dtype=np.float64),
        prefix_blocks=prefix_blocks,
        cached_tokens=None if cached is None else np.array(cached, dtype=np.int64),
    )


def hashes(rows: list[list[int]], block_tokens: int) -> PrefixBlocks:
    return PrefixBlocks(
        ids=np.array([x for row in rows for x in row], dtype=np.int64),
        offsets=np.cumsum([0, *map(len, rows)]),
        block_tokens=block_tokens,
    )
