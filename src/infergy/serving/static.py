"""transformers on a clock: the first requests that wait, padded, run to the longest answer, then the next."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

from infergy.errors import UsageError
from infergy.serving.arrivals import Arrivals
from infergy.serving.replica import ENTRY, StepCost


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticConfig:
    """Static batching.

    Attributes:
        max_num_seqs: Requests of a batch, at most.
        max_model_len: Longest request, prompt and answer together; None: not bounded.
        tensor_parallel_size: GPUs of a replica.
        has_graphs: Whether decode steps are compiled and replay CUDA graphs.
        notes: What had to be assumed, in sentences.
    """

    max_num_seqs: int
    max_model_len: int | None = None
    tensor_parallel_size: int = 1
    has_graphs: bool = False
    notes: tuple[str, ...] = ()

    def padded_sizes(self) -> list[int]:
        """By tokens of a step, its tokens in a CUDA graph: a decode step's own, where there are graphs."""
        return list(range(self.max_num_seqs + 1)) if self.has_graphs else [0]

    def options(self) -> dict[str, Any]:
        """All options, by name."""
        return {
            "max_num_seqs": self.max_num_seqs,
            "max_model_len": self.max_model_len,
            "tensor_parallel_size": self.tensor_parallel_size,
            "compiled": self.has_graphs,
        }

    def __post_init__(self) -> None:
        if self.max_num_seqs < 1:
            raise UsageError.bad_value("--max-num-seqs", self.max_num_seqs, "a number of at least 1")


class StaticReplica:
    """One process of transformers' `generate`, batch after batch.

    Prompts are padded to the longest of the batch, and every sequence is computed until the longest answer is complete,
    so padding counts in all columns of the steps. `generate` returns the answers together: a request is finished when
    its batch is.
    """

    def __init__(
        self,
        inputs: Sequence[int],
        outputs: Sequence[int],
        config: StaticConfig,
        cost: StepCost,
        arrivals: Arrivals,
        first_s: list[float],
        finished_s: list[float],
    ) -> None:
        self.arrivals = arrivals
        self.log = bytearray()
        self.hit_tokens: dict[int, int] = {}
        self.preempted: dict[int, int] = {}
        self.recomputed_tokens = 0
        self._inputs, self._outputs = inputs, outputs
        self._most = config.max_num_seqs
        self._pace = cost.start()
        self._has_graphs = config.has_graphs
        self._first_s, self._finished_s = first_s, finished_s
        self._waiting: deque[int] = deque()
        self._running: list[int] = []
        self._now = 0.0

    @property
    def load(self) -> int:  # noqa: D102
        return len(self._waiting) + len(self._running) + self.arrivals.waiting

    def run(self, until: float = inf) -> None:
        """Advance to the first end of a batch at `until` or later, or until nothing is left to do."""
        while True:
            upcoming = self.arrivals.take(self._now, self._waiting.append)
            if self._now >= until:
                return
            self._running = []
            if not self._waiting:
                if upcoming >= until:
                    return
                self._pace.idle(max(0.0, upcoming - self._now))
                self._now = max(self._now, upcoming)
                continue
            self._running = [self._waiting.popleft() for _ in range(min(self._most, len(self._waiting)))]
            self._generate(self._running)

    def _generate(self, batch: list[int]) -> None:
        size = len(batch)
        longest = max(self._inputs[request] for request in batch)
        tokens, pairs = size * longest, size * longest * (longest + 1) // 2
        self._log(1, 0, 0.0, tokens, pairs, size, self._pace.step(0, 0.0, tokens, pairs, size, size, 0))
        for request in batch:
            self._first_s[request] = self._now
        left, seen = max(self._outputs[request] for request in batch) - 1, longest + 1
        while left > 0:
            count, seconds = self._pace.decode(size, size * seen, size if self._has_graphs else 0, left, inf, 0)
            self._log(count, size, size * (seen + (count - 1) / 2), 0, 0, size, seconds)
            left, seen = left - count, seen + count
        for request in batch:
            self._finished_s[request] = self._now
        self.arrivals.answer(batch, self._now)

    def _log(
        self, count: int, decodes: int, context: float, tokens: int, pairs: int, size: int, seconds: float
    ) -> None:
        prefills, waiting = 0 if decodes else size, len(self._waiting)
        self.log += ENTRY.pack(self._now, count, decodes, context, tokens, pairs, prefills, size, 0, waiting, seconds)
        self._now += count * seconds
