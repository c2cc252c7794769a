"""Requests and costs for tests of the serving room."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from infergy.serving.config import EngineConfig
from infergy.serving.limits import SchedulerLimits
from infergy.serving.run import Floats, Ints, Steps


@dataclass(frozen=True, kw_only=True)
class Hashes:
    ids: Ints
    offsets: Ints
    block_tokens: int


@dataclass(frozen=True, kw_only=True)
class Columns:
    input_tokens: Ints
    output_tokens: Ints
    arrival_s: Floats | None = None
    prefix_blocks: Hashes | None = None
    after: Ints | None = None
    gap_s: Floats | None = None


@dataclass(frozen=True, kw_only=True)
class Affine:
    """A step's seconds and joules, linear in all that counts."""

    idle_w: float = 100.0
    intake_s: float = 0.0
    base_s: float = 0.01
    each_s: float = 0.0
    context_s: float = 0.0
    token_s: float = 0.0

    def step_s(
        self, decodes: Any, context: Any, prefill_tokens: Any, prefill_pairs: Any, prefills: Any, sampled: Any, padded: Any
    ) -> Any:
        return self.base_s + self.each_s * decodes + self.context_s * context + self.token_s * prefill_tokens

    def evaluate(self, steps: Steps) -> tuple[Floats, Floats]:
        seconds = self.step_s(steps.decodes, steps.context, steps.prefill_tokens, 0, 0, 0, 0)
        return seconds, 500.0 * seconds


@dataclass(frozen=True, kw_only=True)
class Roofline:
    """Llama-3.1-8B on an H200, roughly: a smooth maximum of bytes and FLOPs; above 697 W time is stretched."""

    idle_w: float = 123.7
    intake_s: float = 0.0

    def both(self, decodes: Any, context: Any, tokens: Any, pairs: Any, sampled: Any) -> tuple[Any, Any]:
        moved = 15.0e9 + 131072.0 * (context + tokens + decodes)
        flops, attention = 15.0e9 * (tokens + decodes) + 1.05e9 * sampled, 524288.0 * pairs
        bound = (moved / 4.07e12) ** 4 + (flops / 6.5e14 + attention / 5.74e14) ** 4
        seconds = bound**0.25 + 1.23e-3 + 11e-6 * sampled
        return seconds, 177.0 * seconds + 120e-12 * moved + 0.8e-12 * (flops + attention)

    def step_s(
        self, decodes: Any, context: Any, prefill_tokens: Any, prefill_pairs: Any, prefills: Any, sampled: Any, padded: Any
    ) -> Any:
        seconds, joules = self.both(decodes, context, prefill_tokens, prefill_pairs, sampled)
        return max(seconds, joules / 697.0)

    def evaluate(self, steps: Steps) -> tuple[Floats, Floats]:
        seconds, joules = self.both(
            steps.decodes, steps.context, steps.prefill_tokens, steps.prefill_pairs, steps.sampled
        )
        return np.maximum(seconds, joules / 697.0), joules


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
            max_num_batched_tokens=max_num_batched_tokens, max_num_seqs=max_num_seqs, num_gpu_blocks=num_gpu_blocks, **limits
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
    prefix_blocks: Hashes | None = None,
) -> Columns:
    return Columns(
        input_tokens=np.array([a for a, _ in lengths], dtype=np.int64),
        output_tokens=np.array([b for _, b in lengths], dtype=np.int64),
        arrival_s=None if arrival_s is None else np.array(arrival_s, dtype=np.float64),
        after=None if after is None else np.array(after, dtype=np.int64),
        gap_s=None if gap_s is None else np.array(gap_s, dtype=np.float64),
        prefix_blocks=prefix_blocks,
    )


def hashes(rows: list[list[int]], block_tokens: int) -> Hashes:
    return Hashes(
        ids=np.array([x for row in rows for x in row], dtype=np.int64),
        offsets=np.cumsum([0, *map(len, rows)]),
        block_tokens=block_tokens,
    )
