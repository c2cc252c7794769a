"""Seconds and energy of a step of a server, by what it must move, compute and launch.

    matmul    = roofline of weights / (eta_w x bandwidth) and FLOPs / (eta_c x peak)
    attention = roofline of KV cache / (eta_kv x bandwidth) and FLOPs / (eta_a x peak)
    gpu       = (matmul + attention) / GPUs + layers x launch + all-reduces
    t         = max(gpu, layers x host) + step + sequences x host + prompts x host        host: 0 inside a CUDA graph
    E         = base x t + (e_byte x bytes + e_FLOP x FLOPs) x (t at full clocks / t)^slowing

Each roofline and the maximum have a smooth corner, (a^4 + b^4)^(1/4). The power limiter averages over some 0.2 s: a
step is stretched, at base power, so that this average stays under the limit. So a prefill after light decoding runs at
full clocks, and a long one does not. The formulas hold for floats and for numpy columns alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from infergy.cost.compiled import Symbol, compile_formula, least, most
from infergy.cost.constants import Column
from infergy.cost.rates import AttentionRates, ExpertRates, MatmulRates, PowerRates, Rates

STRETCH = 32
"""Exponent of the smooth corner between free and power-limited steps."""
FREE = 0.8
"""Share of the power limit below which a step is not stretched: by less than 0.01 %."""
GROWTH, SHORTEST = 0.125, 32
"""An entry may lengthen the contexts by an eighth of their sum, or by 32 tokens each: at the sharpest bend between a
memory-bound and a compute-bound step its mean then errs by less than 0.05 %."""

MOST = 160
DOUBLINGS = 256
"""More than half doublings of any number of tokens."""

DecodeCost = Callable[[float], tuple[float, float]]


class StepSums(NamedTuple):
    """The sums that a step costs by; floats, or columns of one length.

    Attributes:
        decodes: Sequences that decode one token; `context` positions that they attend to, together.
        prefill_tokens: Prompt tokens computed; `prefill_pairs` positions that they attend to, together.
        prefills: Prompts, or chunks of one; `sampled` sequences that sample a token.
        padded: Tokens after padding to a CUDA graph; 0 without a graph.
    """

    decodes: Any
    context: Any
    prefill_tokens: Any
    prefill_pairs: Any
    prefills: Any
    sampled: Any
    padded: Any


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Steps:
    """Steps of the engine; an entry is `count` consecutive steps of one batch. All columns are float64.

    Attributes:
        start_s: When the first of the steps began.
        count: Steps.
        decodes: Sequences that decode one token.
        context: Tokens that they attend to, new ones included, summed over them; mean over the steps.
        prefill_tokens: New prompt tokens.
        prefill_pairs: Positions that these attend to, summed: n × c + n (n + 1) / 2 for n tokens behind c.
        prefills: Sequences with prompt tokens in the step.
        sampled: Sequences that sample a token.
        padded: Tokens of the step after padding to a CUDA graph's size; 0 where none fits.
        kv_blocks: Blocks in use.
        waiting: Requests in the queue.
        step_s: Seconds of one step; mean over the steps.
    """

    start_s: Column
    count: Column
    decodes: Column
    context: Column
    prefill_tokens: Column
    prefill_pairs: Column
    prefills: Column
    sampled: Column
    padded: Column
    kv_blocks: Column
    waiting: Column
    step_s: Column

    def __len__(self) -> int:
        return self.start_s.size

    @property
    def duration_s(self) -> Column:
        """Seconds of all steps of an entry."""
        return self.count * self.step_s


def sums_of(steps: Steps) -> StepSums:
    """The sums of each entry."""
    return StepSums(*(getattr(steps, name) for name in StepSums._fields))


def compress(steps: Steps, most: int = MOST) -> Column:
    """Entries as rows, their columns those of `Steps`: at most some more than `most`.

    Many are sorted by kind (prompts or not, CUDA graph or not, sequences and tokens to the half doubling) and joined at
    their means, so that their sums are kept.
    """
    table: Column = np.vstack([steps.count, steps.step_s, *sums_of(steps)])
    if table.shape[1] <= most:
        return table.T
    decodes, context, tokens, pairs, prefills, _, padded = table[2:]
    kinds = ((prefills > 0) * 2 + (padded > 0)) * DOUBLINGS + half_doublings(decodes)
    kinds = kinds * DOUBLINGS + half_doublings(tokens)
    order = np.lexsort((pairs, context, kinds))
    table, kinds = table[:, order], kinds[order]
    groups = np.split(np.arange(len(kinds)), np.flatnonzero(np.diff(kinds)) + 1)
    parts = [part for group in groups for part in np.array_split(group, max(1, len(group) * most // len(kinds)))]
    table[1:] *= table[0]
    joined = np.add.reduceat(table, [part[0] for part in parts], axis=1)
    joined[1:] /= joined[0]
    return joined.T


def half_doublings(values: Column) -> Column:
    """Sizes to the half doubling."""
    sizes: Column = np.floor(2 * np.log2(np.maximum(values, 0.5)))
    return sizes


def matmul_cost(r: MatmulRates, s: StepSums) -> tuple[Any, Any]:
    """What memory and what arithmetic of a step's matmuls takes, routed experts apart, in the unit of the rates."""
    tokens = s.decodes + s.prefill_tokens
    # A CUDA graph computes its padding too; a mixed batch is never smaller than its tokens.
    return r.weight, r.token * (tokens + _padding(s, tokens)) + r.head * s.sampled


def expert_cost(r: ExpertRates, s: StepSums) -> tuple[Any, Any]:
    """What memory and what arithmetic of a step's routed experts takes, in the unit of the rates."""
    if not isinstance(r.row, np.ndarray) and r.row == 0:
        return 0.0, 0.0
    tokens = s.decodes + s.prefill_tokens
    visited = 1.0 - r.miss**tokens
    rows = r.small + (r.large - r.small) * (tokens > r.few)
    rows = rows * (visited + (1.0 - visited) * r.padded) + r.rows * tokens
    rows = rows + s.prefill_tokens / (s.prefills + (s.prefills == 0)) * r.waiting
    return r.read * visited + r.lag * visited**0.5 + r.gathered * s.decodes, r.row * rows


def _padding(s: StepSums, tokens: Any) -> Any:
    """Tokens that fill a CUDA graph."""
    return (s.padded - tokens) * (s.padded > 0)


def attention_cost(r: AttentionRates, s: StepSums, least: Any = np.minimum) -> tuple[Any, Any]:
    """What memory and what arithmetic of a step's attention takes, in the unit of the rates."""
    tokens = s.decodes + s.prefill_tokens
    memory = r.read * s.context + r.write * tokens + r.state * (s.decodes + s.prefills)
    flops = r.pair * (s.context + r.ratio * s.prefill_pairs)
    if r.window is not None:
        seen, pairs = least(s.context, s.decodes * r.window), least(s.prefill_pairs, s.prefill_tokens * r.window)
        memory = memory + r.window_read * seen
        flops = flops + r.window_pair * (seen + r.ratio * pairs)
    return memory, flops


def added_j(r: Rates, s: StepSums, least: Any = np.minimum) -> Any:
    """Energy of a step beside those of base power."""
    return sum((*matmul_cost(r.matmul_j, s), *expert_cost(r.experts_j, s), *attention_cost(r.attention_j, s, least)))


def free_s(r: Rates, s: StepSums, least: Any = np.minimum) -> Any:
    """Seconds of a step, were there no power limit."""
    h = r.host
    gpu_s = roofline(*matmul_cost(r.matmul_s, s)) + roofline(*expert_cost(r.experts_s, s))
    gpu_s = gpu_s + roofline(*attention_cost(r.attention_s, s, least)) + h.launch
    gpu_s = gpu_s + h.exchange * (s.decodes + s.prefill_tokens)
    host_s = h.eager * (s.padded == 0) + h.piecewise * ((s.padded > 0) & (s.prefills > 0))
    host_s = host_s + h.mixed * ((s.prefills > 0) & (s.decodes > 0))
    return roofline(gpu_s, host_s) + h.step + h.sequence * s.sampled + h.prefill * s.prefills


def roofline(memory: Any, compute: Any) -> Any:
    """The smooth maximum, (memory^4 + compute^4)^(1/4)."""
    memory, compute = memory * memory, compute * compute
    return (memory * memory + compute * compute) ** 0.25


def stretched_s(power: PowerRates, added: Any, seconds: Any, mean_w: Any, exp: Any, most: Any) -> Any:
    """Seconds of a step, or of an entry of steps, under the power limit.

    Args:
        power: Limits.
        added: Joules beside base power.
        seconds: Without a limit.
        mean_w: What the limiter's average stands at when the step begins.
        exp: Exponential for the type of the arguments.
        most: Maximum for that type.
    """
    # The limiter's average a(t) follows power with a time constant; what keeps a(end) at the limit is allowed.
    fade = exp(-seconds / power.limiter_s)
    allowed = most(power.limit_w, (power.limit_w - mean_w * fade) / (1.0 - fade + 1e-12))
    over = added / ((allowed - power.base_w) * seconds)
    # Slower clocks run at a lower voltage: power falls by more than time grows.
    return seconds * (1.0 + over**STRETCH) ** (1.0 / (STRETCH * (1.0 + power.slowing)))


def slowed_j(power: PowerRates, added: Any, free: Any, seconds: Any) -> Any:
    """Joules beside base power of work that takes `seconds` in place of `free` ones: at least as many."""
    return added * (free / seconds) ** power.slowing


class Compiled(NamedTuple):
    """The formulas above for single steps of one server.

    Attributes:
        step: Of `StepSums`: joules beside base power, and free seconds.
        graphed: Of `decodes` and `padded` a function of `context` that returns the same of a step that only decodes,
            in a CUDA graph; `eager`, of `decodes`, without one.
        limited: Of joules, free seconds and the limiter's average: both under the power limit.
    """

    step: Callable[..., tuple[float, float]]
    graphed: Callable[[int, int], DecodeCost]
    eager: Callable[[int], DecodeCost]
    limited: Callable[[float, float, float], tuple[float, float]]


@lru_cache(maxsize=64)
def compile_steps(rates: Rates) -> Compiled:
    """The formulas of a server whose rates are numbers."""

    def step(*sums: Any) -> tuple[Any, Any]:
        s = StepSums(*sums)
        return added_j(rates, s, least), free_s(rates, s, least)

    def graphed(decodes: Any, padded: Any, context: Any) -> tuple[Any, Any]:
        return step(decodes, context, 0, 0, 0, decodes, padded)

    def eager(decodes: Any, context: Any) -> tuple[Any, Any]:
        return graphed(decodes, 0, context)

    def limited(added: Any, free: Any, mean_w: Any) -> tuple[Any, Any]:
        seconds = stretched_s(rates.power, added, free, mean_w, Symbol.exp, most)
        return slowed_j(rates.power, added, free, seconds), seconds

    return Compiled(
        step=compile_formula(step, StepSums._fields),
        graphed=compile_formula(graphed, ("decodes", "padded"), ("context",), positive=True),
        eager=compile_formula(eager, ("decodes",), ("context",), positive=True),
        limited=compile_formula(limited, ("added", "free", "mean_w")),
    )


class Pace:
    """The clock of one server: what each step takes, given the power of those before it."""

    __slots__ = ("_base_w", "_compiled", "_decode", "_free_w", "_idle_w", "_limiter_s", "_step", "mean_w")

    def __init__(self, rates: Rates) -> None:
        power = rates.power
        self._base_w, self._idle_w, self._limiter_s = float(power.base_w), float(power.idle_w), float(power.limiter_s)
        self._free_w = float(power.limit_w - power.base_w) * FREE  # beside base power: below it no step is stretched
        self.mean_w = self._idle_w
        self._compiled = compile_steps(rates)
        self._step = self._compiled.step
        self._decode: dict[int, DecodeCost] = {}

    def step(
        self, decodes: int, context: float, prefill_tokens: int, prefill_pairs: float, prefills: int, sampled: int,
        padded: int,
    ) -> float:  # fmt: skip
        """Seconds of one step."""
        return self._take(*self._step(decodes, context, prefill_tokens, prefill_pairs, prefills, sampled, padded))

    def decode(
        self, decodes: int, context: float, padded: int, most: int, until_s: float = math.inf, ahead: int = 0
    ) -> tuple[int, float]:
        """Decode steps of one batch: how many are alike, and seconds of each, in the mean.

        Args:
            decodes: Sequences.
            context: Positions that the first of the steps attends to; each further one attends to `decodes` more.
            padded: Tokens of the CUDA graph; 0 without.
            most: Steps at most, at least 1.
            until_s: They stop `ahead` steps after the first that ends at or after so many seconds from now.
            ahead: See there.
        """
        cost = self._decode.get(decodes)
        if cost is None:
            known = self._compiled
            cost = self._decode[decodes] = known.graphed(decodes, padded) if padded else known.eager(decodes)
        count = int(GROWTH * context / decodes)
        count = SHORTEST if count < SHORTEST else count
        count = most if most < count else count
        if until_s < math.inf:
            count = max(1, min(count, math.ceil(until_s / cost(context)[1]) + ahead))
        added, seconds = cost(context + decodes * (count - 1) / 2)
        while count > 1 and (count - 1 - ahead) * seconds >= until_s:
            # Steps grow longer with the context: at their mean fewer reach the event.
            fitting = math.ceil(until_s / seconds) + ahead
            count = fitting if 0 < fitting < count else count - 1
            added, seconds = cost(context + decodes * (count - 1) / 2)
        if count > 1 and added > self._free_w * seconds:
            # Near the limit what a step takes depends on those just before it.
            count = max(1, min(count, int(self._limiter_s / 16 / seconds)))
            added, seconds = cost(context + decodes * (count - 1) / 2)
        return count, self._take(added * count, seconds * count) / count

    def idle(self, seconds: float) -> None:
        """Nothing to do for so long."""
        self.mean_w = self._idle_w + (self.mean_w - self._idle_w) * math.exp(-seconds / self._limiter_s)

    def _take(self, added: float, seconds: float) -> float:
        if added > self._free_w * seconds:
            added, seconds = self._compiled.limited(added, seconds, self.mean_w)
        watts = added / seconds + self._base_w
        self.mean_w = watts + (self.mean_w - watts) * math.exp(-seconds / self._limiter_s)
        return seconds
