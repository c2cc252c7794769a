"""The scheduler of vLLM V1, stepped without a clock or a cost.

Rules: `vllm/v1/core/sched/scheduler.py`, `async_scheduler.py` and `vllm/v1/core/block_pool.py` of vLLM 0.25.0 and
0.33.0, policy fcfs, one KV cache group of full attention, no speculation, no watermark. Steps are equal to those of the
real classes (benchmarks/schedule_fidelity.py).

Decoding requests are not visited one by one: all advance one token a step, so each is an offset to the step's number,
its end a number in a heap, and the blocks that a step needs are a count by remainder. Requests are visited in their
order only where that order matters: where blocks or the token budget do not suffice for all.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Mapping, Sequence, Set
from heapq import heapify, heappop, heappush

from infergy.serving.blocks import BlockPool, Hit, Path
from infergy.serving.config import SchedulerLimits

ENDLESS = 1 << 60
NOBODY: frozenset[int] = frozenset()
NO_CHUNKS: list[tuple[int, int, int]] = []  # never filled: lists that are not made take no time
NO_REQUESTS: list[int] = []


class Scheduler:
    """vLLM's scheduler: `add` requests, `schedule` a step, `settle` the result of the step that ended.

    Asynchronously a step's result is known one step later: `settle` after each `schedule` then ends the requests whose
    last token the step before sampled. `steady` says how many steps may be taken at once by `repeat`.

    Args:
        inputs: Prompt tokens of each request.
        outputs: Output tokens of each request, at least 1.
        limits: What bounds a step.
        paths: Shared beginning of prompts (prefixes.py); `cached`: tokens that a log says were hits. Others missing.

    Attributes:
        waiting: Requests in the order of admission.
        running: Requests in the order of admission; ended ones until their result is settled.
        decodes: Requests that decode one token in the next step.
        context: Their computed tokens, summed.
        attended: Tokens that the last step's decodes attended to, summed, new ones included.
        chunks: (request, tokens, computed before) of the last step's prefill chunks.
        completed: Requests whose prompt the last step completed: it samples their next token.
        ended: Requests whose last token the last step samples.
        starved: Decoding requests that the last step left out, for want of budget.
        hit_tokens: Tokens found in the prefix cache at a request's first admission; those without are missing.
        preempted: How often a request was preempted; those that never were are missing.
        recomputed_tokens: Tokens of preempted requests that were computed again.
    """

    __slots__ = (
        "_asynchronous", "_block", "_blocked", "_cached", "_caching", "_computed_before", "_ends", "_held", "_known",
        "_limits", "_origin", "_partial", "_paths", "_remainders", "_size", "_threshold", "_totals", "attended",
        "chunks", "completed", "context", "decodes", "ended", "hit_tokens", "pool", "preempted", "recomputed_tokens",
        "running", "starved", "tick", "unsettled", "waiting",
    )  # fmt: skip

    def __init__(
        self,
        inputs: Sequence[int],
        outputs: Sequence[int],
        limits: SchedulerLimits,
        paths: Mapping[int, Path] | None = None,
        cached: Mapping[int, int] | None = None,
    ) -> None:
        self._limits, self._block = limits, limits.block_size
        self._caching, self._asynchronous = limits.enable_prefix_caching, limits.async_scheduling
        self._paths: Mapping[int, Path] = (paths or {}) if self._caching else {}
        self._cached, self._size = (cached or {}) if self._caching else {}, len(inputs)
        self._known = list(inputs)  # tokens known at the (latest) admission
        self._totals = [a + b for a, b in zip(inputs, outputs, strict=True)]
        self._origin = [0] * self._size  # tokens computed after step t: origin + t
        self._partial: dict[int, int] = {}  # tokens computed of prompts that are not complete
        self._held: dict[int, list[Hit]] = {}  # blocks known to others
        self._computed_before: dict[int, int] = {}  # of preempted requests
        self._remainders = [0] * self._block  # decodes by the step, modulo the block size, that needs a new block
        self._ends: list[int] = []  # heap of last step * size + request
        self.unsettled: list[int] = []  # ended, result not settled
        self._blocked = False  # the head of the queue must wait until a request ends
        self._threshold = limits.long_prefill_token_threshold
        self.pool = BlockPool(limits.num_gpu_blocks - 1)
        self.waiting: deque[int] = deque()
        self.running: dict[int, None] = {}
        self.tick = self.decodes = self.context = self.attended = self.recomputed_tokens = 0
        self.chunks: list[tuple[int, int, int]] = []
        self.completed: list[int] = []
        self.ended: list[int] = []
        self.starved: Set[int] = NOBODY
        self.hit_tokens: dict[int, int] = {}
        self.preempted: dict[int, int] = {}

    def add(self, request: int) -> None:
        """Queue a request."""
        self.waiting.append(request)

    def steady(self) -> int:
        """Steps that only decode what runs now, until anything changes by itself; 0: the next one does more."""
        decodes = self.decodes
        if self._partial or not decodes or (self.waiting and not self._blocked):
            return 0
        steps = self._ends[0] // self._size - self.tick
        most = (steps // self._block + 1) * decodes
        if self.unsettled and steps > 1:
            blank = self.pool.blank
            if self.waiting or (most > blank and self._needed(steps) > blank):
                steps = 1  # what the ended ones free may be taken from the second step on
        free = self.pool.free
        if most > free and self._needed(steps) > free:
            steps = bisect_right(range(1, steps), free, key=self._needed)
        return steps

    def repeat(self, steps: int) -> None:
        """Take as many steps at once as `steady` allows, or fewer."""
        needed = self._needed(steps)
        if needed:
            self.pool.take(needed)
        self.tick += steps
        self.context += steps * self.decodes
        self.chunks, self.completed, self.ended, self.starved = NO_CHUNKS, NO_REQUESTS, NO_REQUESTS, NOBODY
        if self._ends[0] < (self.tick + 1) * self._size:
            self.ended = []
            self._end_decodes()

    def schedule(self) -> int:
        """Schedule one step; returns its decodes. `chunks`, `completed`, `ended` say what else is in it."""
        self.tick += 1
        self.chunks, self.completed, self.ended, self.starved = [], [], [], NOBODY
        if self._limits.long_prefill_token_threshold:
            self._threshold = self._limits.chunk_threshold(len(self.running) + len(self.waiting))
        budget = self._limits.max_num_batched_tokens
        decodes = self.decodes
        needed = self._remainders[self.tick % self._block]
        plan: list[tuple[int, int, int]] | None = []
        if self._partial:
            plan, blocks = self._plan_chunks(budget - decodes)
            needed += blocks
        preempted = False
        if plan is None or needed > self.pool.free:
            decodes, budget, preempted = self._schedule_in_order(budget)
        else:
            if needed:
                self.pool.take(needed)
            budget -= decodes
            self.context += decodes
            self.attended = self.context
            for request, tokens, computed in plan:
                budget -= tokens
                self._advance(request, tokens, computed)
        if self.waiting and not preempted and not self._blocked:
            self._admit(budget)
        if self._ends and self._ends[0] < (self.tick + 1) * self._size:
            self._end_decodes()
        self._start_decodes()
        return decodes

    def settle(self) -> None:
        """Take in the result of the step before (asynchronous) or of the last one: what ended is freed."""
        results = self.unsettled if self._asynchronous else self.ended
        if results:
            self._blocked = False
            block, pool = self._block, self.pool
            for request in results:
                del self.running[request]
                computed = self._totals[request] - 1
                if not self._caching:
                    pool.discard(0, -(-computed // block))
                    continue
                held = self._held.pop(request, None) if self._held else None
                known = held[-1].end if held else 0
                pool.discard(computed // block - known, 1 if computed % block else 0)
                if held:
                    pool.release(held)
                if self._computed_before.pop(request, None) is not None:
                    pool.forget_run(-1 - request)
        if self._asynchronous:
            self.unsettled = self.ended

    def scheduled(self) -> list[tuple[int, int]]:
        """(request, tokens) of the last step in the order of scheduling; call before `settle`."""
        chunks = {request: tokens for request, tokens, _ in self.chunks}
        left_out = {*self.starved, *self._partial, *self.unsettled}
        kept = [request for request in self.running if request in chunks or request not in left_out]
        return [(request, chunks.get(request, 1)) for request in kept]

    def _needed(self, steps: int) -> int:
        """Blocks that the decodes take in the next steps."""
        block, remainders = self._block, self._remainders
        first = (self.tick + 1) % block
        last = first + steps % block
        needed = steps // block * self.decodes + sum(remainders[first:last])
        return needed + sum(remainders[: last - block]) if last > block else needed

    def _plan_chunks(self, budget: int) -> tuple[list[tuple[int, int, int]] | None, int]:
        """Chunks of the prompts under way, and their blocks; None where the order of requests decides."""
        plan, blocks, block = [], 0, self._block
        last = len(self._partial) == 1 and next(reversed(self.running)) in self._partial
        for request, computed in self._partial.items():
            tokens = self._chunk(request, computed)
            if tokens > budget:
                if not last or budget <= 0:
                    return None, 0
                tokens = budget
            budget -= tokens
            blocks += -(-(computed + tokens) // block) - -(-computed // block)
            plan.append((request, tokens, computed))
        return plan, blocks

    def _chunk(self, request: int, computed: int) -> int:
        """Tokens of a prompt's next chunk, were there budget for all."""
        tokens = self._known[request] - computed
        return self._threshold if 0 < self._threshold < tokens else tokens

    def _advance(self, request: int, tokens: int, computed: int) -> None:
        """Record a chunk whose blocks are taken; what others could share of it is known from now on."""
        self.chunks.append((request, tokens, computed))
        computed += tokens
        if self._paths and request in self._paths:
            self._commit(request, self._paths[request], computed // self._block)
        if computed == self._known[request]:
            if self._partial:
                self._partial.pop(request, None)
            self.completed.append(request)
        else:
            self._partial[request] = computed

    def _commit(self, request: int, path: Path, full: int) -> None:
        held = self._held.setdefault(request, [])
        known = held[-1].end if held else 0
        for run, end in path:
            if known >= full:
                break
            if end > known:
                self.pool.commit(held, run, known, min(end, full))
                known = min(end, full)
                self._blocked = False  # a longer prefix may now be found by who waits

    def _start_decodes(self) -> None:
        for request in self.completed:
            origin = self._known[request] - self.tick
            self._origin[request] = origin
            end = self._totals[request] - 1 - origin
            if end == self.tick:
                self.ended.append(request)
                continue
            self.decodes += 1
            self.context += self._known[request]
            self._remainders[(1 - origin) % self._block] += 1
            heappush(self._ends, end * self._size + request)

    def _end_decodes(self) -> None:
        limit, ends, size = (self.tick + 1) * self._size, self._ends, self._size
        while ends and ends[0] < limit:
            request = heappop(ends) % size
            self.decodes -= 1
            self.context -= self._totals[request] - 1
            self._remainders[(1 - self._origin[request]) % self._block] -= 1
            self.ended.append(request)

    def _admit(self, budget: int) -> None:
        """Admit from the head of the queue: no request overtakes, and the whole known sequence must fit."""
        # One function: a simulation spends its time here.
        block, pool, waiting, running = self._block, self.pool, self.waiting, self.running
        while waiting and budget > 0:
            if len(running) >= self._limits.max_num_seqs:
                self._blocked = True
                return
            request = waiting[0]
            known = self._known[request]
            needed = -(-known // block)
            shared = computed = 0
            hits: list[Hit] = []
            again = self._computed_before.get(request) if self._computed_before else None
            if self._paths or self._cached or again is not None:
                hits, computed = self._find_computed(request, known, is_new=again is None)
                if hits:
                    shared = hits[-1].end
                    needed += sum(end - first for extent, first, end in hits if not extent.users) - shared
            if needed > pool.free:
                self._blocked = True
                return
            waiting.popleft()
            if hits:
                self._held[request] = pool.use(hits)
            tokens = known - computed
            if 0 < self._threshold < tokens:
                tokens = self._threshold
            if tokens > budget:
                tokens = budget
            budget -= tokens
            pool.take(-(-(computed + tokens) // block) - shared)
            running[request] = None
            if again is not None:
                self.recomputed_tokens += max(0, again - computed)
            elif computed:
                self.hit_tokens[request] = computed
            self._advance(request, tokens, computed)

    def _find_computed(self, request: int, known: int, *, is_new: bool) -> tuple[list[Hit], int]:
        """Blocks that the prefix cache holds of a request, and tokens known with those that a log says were hits."""
        hits: list[Hit] = []
        if self._caching and (not is_new or request in self._paths):
            path = (*self._paths.get(request, ()), (-1 - request, ENDLESS))
            hits = self.pool.find(path, (known - 1) // self._block)
        logged = min(self._cached.get(request, 0), known - 1) // self._block if is_new else 0
        return hits, ((hits[-1].end if hits else 0) + logged) * self._block

    def _schedule_in_order(self, budget: int) -> tuple[int, int, bool]:
        """Visit the running requests one by one; returns decodes, the budget left, whether one was preempted."""
        unsettled, decodes, preempted, block = set(self.unsettled), 0, False, self._block
        partial, origin, before, pool = self._partial, self._origin, self.tick - 1, self.pool
        attended, starved = 0, set[int]()
        for request in list(self.running):
            if request not in self.running:
                break  # preempted, and with it all behind it
            if request in unsettled:
                continue
            decoding = request not in partial
            if budget <= 0:
                if decoding:
                    starved.add(request)
                continue
            if decoding:
                computed, tokens = origin[request] + before, 1
            else:
                computed = partial[request]
                tokens = min(self._chunk(request, computed), budget)
            needed = -(-(computed + tokens) // block) - -(-computed // block)
            if needed:
                while needed > pool.free:
                    preempted = True
                    if self._preempt_last() == request:
                        break
                if request not in self.running:
                    break
                pool.take(needed)
            budget -= tokens
            if decoding:
                decodes += 1
                attended += computed + 1
            else:
                self._advance(request, tokens, computed)
        self.attended, self.context = attended, self.context + decodes
        self.starved = starved
        self._delay(starved)
        return decodes, budget, preempted

    def _delay(self, requests: set[int]) -> None:
        """Move decodes that this step leaves out by one step."""
        if not requests:
            return
        for request in requests:
            self._remainders[(1 - self._origin[request]) % self._block] -= 1
            self._origin[request] -= 1
            self._remainders[(1 - self._origin[request]) % self._block] += 1
        size = self._size
        self._ends = [end + size if end % size in requests else end for end in self._ends]
        heapify(self._ends)

    def _preempt_last(self) -> int:
        """Take the blocks of the request that was admitted last, and queue it again, first."""
        request, _ = self.running.popitem()
        self.preempted[request] = self.preempted.get(request, 0) + 1
        self._blocked = False
        requeue, computed = True, self._partial.pop(request, -1)
        cached = computed
        if computed < 0:
            if request in self.unsettled:
                self.unsettled.remove(request)
                requeue, computed = False, self._totals[request] - 1
            else:
                computed = self._origin[request] + self.tick - 1
                self.decodes -= 1
                self.context -= computed
                self._remainders[(1 - self._origin[request]) % self._block] -= 1
                self._ends.remove((self._totals[request] - 1 - self._origin[request]) * self._size + request)
                heapify(self._ends)
            # Asynchronously the last step's result is not in, and the block it may have filled not known yet.
            cached = max(self._known[request], computed - 1) if self._asynchronous else computed
            self._known[request] = computed + 1
        self._free_preempted(request, computed, cached)
        if requeue:
            self._computed_before[request] = computed
            self.waiting.appendleft(request)
        return request

    def _free_preempted(self, request: int, computed: int, cached: int) -> None:
        blocks, full = -(-computed // self._block), cached // self._block
        if not self._caching:
            self.pool.discard(0, blocks)
            return
        held = self._held.pop(request, [])
        known = held[-1].end if held else 0
        if full > known:
            self.pool.commit(held, -1 - request, known, full)
        self.pool.release(held)
        self.pool.discard(0, blocks - full)
