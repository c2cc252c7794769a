"""What bounds a step of the engine."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerLimits:
    """What bounds a step, in vLLM's words.

    Attributes:
        num_gpu_blocks: Blocks of the KV cache, the null block included, which no request gets.
        adaptive_threshold: 0.33: a long prompt's chunk is at least an equal share of the budget.
        lone_threshold: 0.25: the threshold applies even where only one request exists.
    """

    max_num_batched_tokens: int
    max_num_seqs: int
    num_gpu_blocks: int
    block_size: int = 16
    enable_prefix_caching: bool = True
    long_prefill_token_threshold: int = 0
    async_scheduling: bool = True
    lone_threshold: bool = True
    adaptive_threshold: bool = False
