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

    def chunk_threshold(self, requests: int) -> int:
        """Tokens of a prompt's chunk at most where so many requests exist; 0 for any."""
        if not self.long_prefill_token_threshold or (requests <= 1 and not self.lone_threshold):
            return 0
        least = self.max_num_batched_tokens // requests if self.adaptive_threshold else 0
        return max(self.long_prefill_token_threshold, least)
