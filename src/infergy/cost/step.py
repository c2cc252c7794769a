"""Seconds and joules of a step of a server, by what it must move, compute and launch.

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
from typing import Any, NamedTuple

import numpy as np

from infergy.cost.rates import AttentionRates, MatmulRates, PowerRates, Rates

STRETCH = 32
"""Exponent of the smooth corner between free and power-limited steps."""
FREE = 0.8
"""Share of the power limit below which a step is not stretched: by less than 0.01 %."""
GROWTH, SHORTEST = 0.125, 32
"""An entry may lengthen the contexts by an eighth of their sum, or by 32 tokens each: at the sharpest bend between a
memory-bound and a compute-bound step its mean then errs by less than 0.05 %."""


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


def matmul_cost(r: MatmulRates, s: StepSums) -> tuple[Any, Any]:
    """What memory and what arithmetic of a step's matmuls takes, in the unit of the rates."""
    tokens = s.decodes + s.prefill_tokens
    visited = 1.0 - r.miss**tokens
    # A CUDA graph computes its padding too; a mixed batch is never smaller than its tokens.
    return r.weight + r.expert * visited + r.lag * visited**0.5, r.token * (
        tokens + _padding(s, tokens)
    ) + r.head * s.sampled + r.row * visited


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
    """Joules of a step beside those of base power."""
    return sum((*matmul_cost(r.matmul_j, s), *attention_cost(r.attention_j, s, least)))


def free_s(r: Rates, s: StepSums, least: Any = np.minimum) -> Any:
    """Seconds of a step, were there no power limit."""
    h = r.host
    gpu_s = roofline(*matmul_cost(r.matmul_s, s)) + roofline(*attention_cost(r.attention_s, s, least)) + h.launch
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


class Pace:
    """The clock of one server: what each step takes, given the power of those before it."""

    __slots__ = ("_base_w", "_decode", "_limit_w", "_limiter_s", "_linear", "_window", "mean_w", "rates")

    def __init__(self, rates: Rates) -> None:
        self.rates = rates
        power, a, j = rates.power, rates.attention_s, rates.attention_j
        self.mean_w = float(power.idle_w)
        self._base_w, self._limit_w, self._limiter_s = power.base_w, power.limit_w, power.limiter_s
        self._decode: dict[int, tuple[float, float, float, float]] = {}
        # What `attention_cost` and `added_j` make of decode steps: per position and per sequence.
        self._linear = (a.read, a.write + a.state, a.pair, j.read + j.pair, j.write + j.state)
        self._window = (a.window, a.window_read, a.window_pair, j.window_read + j.window_pair)

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
        """Seconds of one step."""
        s = StepSums(decodes, context, prefill_tokens, prefill_pairs, prefills, sampled, padded)
        return self._take(added_j(self.rates, s, min), free_s(self.rates, s, min))

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
        fixed = self._decode.get(decodes)
        if fixed is None:
            fixed = self._decode[decodes] = self._fixed(decodes, padded)
        cost = self._decode_cost
        count = int(GROWTH * context / decodes)
        count = SHORTEST if count < SHORTEST else count
        count = most if most < count else count
        added, seconds = cost(fixed, decodes, context)
        if until_s < math.inf:
            fitting = math.ceil(until_s / seconds) + ahead
            count = fitting if fitting < count else count
        if count > 1:
            added, seconds = cost(fixed, decodes, context + decodes * (count - 1) / 2)
            while count > 1 and (count - 1 - ahead) * seconds >= until_s:
                # Steps grow longer with the context: at their mean fewer reach the event.
                fitting = math.ceil(until_s / seconds) + ahead
                count = fitting if fitting < count else count - 1
                count = 1 if count < 1 else count
                added, seconds = cost(fixed, decodes, context + decodes * (count - 1) / 2)
            if added > (self._limit_w - self._base_w) * seconds * FREE:
                # Near the limit what a step takes hangs on those just before it.
                count = max(1, min(count, int(self._limiter_s / 16 / seconds)))
                added, seconds = cost(fixed, decodes, context + decodes * (count - 1) / 2)
        else:
            count = 1
        return count, self._take(added * count, seconds * count) / count

    def idle(self, seconds: float) -> None:
        """Nothing to do for so long."""
        idle_w = self.rates.power.idle_w
        self.mean_w = idle_w + (self.mean_w - idle_w) * math.exp(-seconds / self._limiter_s)

    def _take(self, added: float, seconds: float) -> float:
        if added > (self._limit_w - self._base_w) * seconds * FREE:
            free = seconds
            seconds = stretched_s(self.rates.power, added, free, self.mean_w, math.exp, max)
            added = slowed_j(self.rates.power, added, free, seconds)
        watts = added / seconds + self._base_w
        self.mean_w = watts + (self.mean_w - watts) * math.exp(-seconds / self._limiter_s)
        return seconds

    def _fixed(self, decodes: int, padded: int) -> tuple[float, float, float, float]:
        """Of a decode step what does not hang on its context: GPU and host seconds, those beside, and joules."""
        r, h = self.rates, self.rates.host
        s = StepSums(decodes, 0.0, 0, 0.0, 0, decodes, padded)
        gpu_s = roofline(*matmul_cost(r.matmul_s, s)) + h.launch + h.exchange * decodes
        return gpu_s, 0.0 if padded else h.eager, h.step + h.sequence * decodes, sum(matmul_cost(r.matmul_j, s))

    def _decode_cost(
        self, fixed: tuple[float, float, float, float], decodes: int, context: float
    ) -> tuple[float, float]:
        """Joules beside base power and free seconds of a decode step: `added_j` and `free_s`, its fixed part known."""
        gpu_s, host_s, other_s, added = fixed
        read, write, pair, read_j, write_j = self._linear
        memory, flops = read * context + write * decodes, pair * context
        added += read_j * context + write_j * decodes
        window, window_read, window_pair, window_j = self._window
        if window is not None:
            seen = min(context, decodes * window)
            memory, flops, added = memory + window_read * seen, flops + window_pair * seen, added + window_j * seen
        memory, flops = memory * memory, flops * flops
        gpu_s += (memory * memory + flops * flops) ** 0.25
        return added, (roofline(gpu_s, host_s) if host_s else gpu_s) + other_s
