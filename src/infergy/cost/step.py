"""Seconds and joules of a step of a server, by what it must move, compute and launch.

    matmul    = roofline of weights / (eta_w x bandwidth) and FLOPs / (eta_c x peak)
    attention = roofline of KV cache / (eta_kv x bandwidth) and FLOPs / (eta_a x peak)
    gpu       = (matmul + attention) / GPUs + layers x launch + all-reduces
    t         = max(gpu, layers x host) + step + sequences x host + prompts x host        host: 0 inside a CUDA graph
    E         = base x t + e_byte x bytes + e_FLOP x FLOPs

Each roofline and the maximum have a smooth corner, (a^4 + b^4)^(1/4). The power limiter averages over some 0.2 s: a
step is stretched, at base power, so that this average stays under the limit. So a prefill after light decoding runs at
full clocks, and a long one does not. The formulas hold for floats and for numpy columns alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from infergy.cost.rates import AttentionRates, MatmulRates, PowerRates, Rates

STRETCH = 16
"""Exponent of the smooth corner between free and power-limited steps."""
GROWTH = 0.2
"""By which share the context of decode steps may grow before they are counted as another entry."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSums:
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
    return seconds * (1.0 + over**STRETCH) ** (1.0 / STRETCH)


class Pace:
    """The clock of one server: what each step takes, given the power of those before it."""

    __slots__ = ("_decode", "mean_w", "rates")

    def __init__(self, rates: Rates) -> None:
        self.rates = rates
        self.mean_w = float(rates.power.idle_w)
        self._decode: dict[int, tuple[float, float, float, float]] = {}

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
        s = StepSums(
            decodes=decodes,
            context=context,
            prefill_tokens=prefill_tokens,
            prefill_pairs=prefill_pairs,
            prefills=prefills,
            sampled=sampled,
            padded=padded,
        )
        return self._take(added_j(self.rates, s, min), free_s(self.rates, s, min))

    def decode(
        self, decodes: int, context: float, padded: int, most: int, until_s: float = math.inf
    ) -> tuple[int, float]:
        """Decode steps of one batch: how many are alike, and seconds of each, in the mean.

        Args:
            decodes: Sequences.
            context: Positions that the first of the steps attends to; each further one attends to `decodes` more.
            padded: Tokens of the CUDA graph; 0 without.
            most: Steps at most, at least 1.
            until_s: The last step is the first that ends at or after so many seconds from now.
        """
        fixed = self._decode.get(decodes)
        if fixed is None:
            fixed = self._decode[decodes] = self._fixed(decodes, padded)
        count = min(most, 1 + int(GROWTH * context / decodes))
        if count > 1 and until_s < math.inf:
            first_s = self._decode_cost(fixed, decodes, context)[1]
            count = max(1, min(count, math.ceil(until_s / first_s)))
            # Steps grow longer with the context: count again at the mean.
            while (
                count > 1
                and (count - 1) * self._decode_cost(fixed, decodes, context + decodes * (count - 2) / 2)[1] >= until_s
            ):
                count -= 1
        added, seconds = self._decode_cost(fixed, decodes, context + decodes * (count - 1) / 2)
        power = self.rates.power
        if count > 1 and added > (power.limit_w - power.base_w) * seconds:
            count = max(1, min(count, int(power.limiter_s / 8 / seconds)))
            added, seconds = self._decode_cost(fixed, decodes, context + decodes * (count - 1) / 2)
        return count, self._take(added * count, seconds * count) / count

    def idle(self, seconds: float) -> None:
        """Nothing to do for so long."""
        power = self.rates.power
        self.mean_w = power.idle_w + (self.mean_w - power.idle_w) * math.exp(-seconds / power.limiter_s)

    def _take(self, added: float, seconds: float) -> float:
        power = self.rates.power
        if added > (power.limit_w - power.base_w) * seconds * 0.7:
            seconds = stretched_s(power, added, seconds, self.mean_w, math.exp, max)
        watts = added / seconds + power.base_w
        self.mean_w = watts + (self.mean_w - watts) * math.exp(-seconds / power.limiter_s)
        return seconds

    def _fixed(self, decodes: int, padded: int) -> tuple[float, float, float, float]:
        """Of a decode step what does not hang on its context: matmuls, host floor, other seconds, and joules."""
        r, h = self.rates, self.rates.host
        s = StepSums(
            decodes=decodes,
            context=0.0,
            prefill_tokens=0,
            prefill_pairs=0.0,
            prefills=0,
            sampled=decodes,
            padded=padded,
        )
        gpu_s = roofline(*matmul_cost(r.matmul_s, s)) + h.launch + h.exchange * decodes
        return gpu_s, 0.0 if padded else h.eager, h.step + h.sequence * decodes, sum(matmul_cost(r.matmul_j, s))

    def _decode_cost(
        self, fixed: tuple[float, float, float, float], decodes: int, context: float
    ) -> tuple[float, float]:
        """Joules beside base power and free seconds of a decode step: `added_j` and `free_s`, its fixed part known."""
        gpu_s, host_s, other_s, matmul_j = fixed
        a, j = self.rates.attention_s, self.rates.attention_j
        memory, flops = a.read * context + (a.write + a.state) * decodes, a.pair * context
        added = matmul_j + (j.read + j.pair) * context + (j.write + j.state) * decodes
        if a.window is not None:
            seen = min(context, decodes * a.window)
            memory, flops = memory + a.window_read * seen, flops + a.window_pair * seen
            added += (j.window_read + j.window_pair) * seen
        gpu_s += roofline(memory, flops)
        return added, (roofline(gpu_s, host_s) if host_s else gpu_s) + other_s
