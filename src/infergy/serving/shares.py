"""What each request of a run takes of the energy of its steps: by the tokens and the context that it brings to each.

    own    = what the cost model adds for its tokens, its samples, its sequence, the positions that it attends to
    shared = energy of the step less what is all requests' own: weights, launches, base power     by tokens
    energy of a request = sum over its steps of own + tokens / tokens of the step x shared

Own work counts at the clocks of its step. Tokens of a step are those that it computes: one of a decode, all of a
prompt's chunk. Computed again after a preemption, they count again. Requests of a static batch share alike: its
padding is computed for each. Waiting (idle power) is no part of it. Shares add up to the energy of the steps.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from infergy.cost.model import StepCost
from infergy.cost.rates import Rates
from infergy.cost.step import Steps, added_j, sums_of
from infergy.serving.replica import ENTRY, Replica, StaticReplica
from infergy.serving.run import Floats
from infergy.serving.scheduler import Scheduler


class LoggedScheduler(Scheduler):
    """Notes whom it preempts, and where each request stands."""

    __slots__ = ("lost",)

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.lost: list[int] = []

    def _preempt_last(self) -> int:
        request = super()._preempt_last()
        self.lost.append(request)
        return request

    def origin(self, request: int) -> int:
        """What a decoding request has computed after step t, less t."""
        return self._origin[request]


class LoggedReplica(Replica):
    """Notes which requests are in each step.

    Attributes:
        ticks: Steps taken until the end of each entry of the log.
        chunks: Of prompts: entry, request, tokens, positions that they attend to, whether it samples.
        spans: Of decoding: request, first entry and last, and what it attends to at step t less t.
    """

    __slots__ = ("_decoding", "chunks", "spans", "ticks")

    scheduler: LoggedScheduler

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.ticks: list[int] = []
        self.chunks: list[tuple[int, int, int, float, bool]] = []
        self.spans: list[tuple[int, int, int, int]] = []
        self._decoding: dict[int, tuple[int, int]] = {}  # first entry, and origin

    def _decode(self, limit: int, upcoming: float) -> None:
        super()._decode(limit, upcoming)
        self.ticks.append(self.scheduler.tick)
        self._end(len(self.ticks) - 1)

    def _step(self) -> None:
        scheduler, entry = self.scheduler, len(self.ticks)
        scheduler.lost.clear()
        super()._step()
        if len(self.log) > entry * ENTRY.size:
            self.ticks.append(scheduler.tick)
        for request in (*scheduler.starved, *scheduler.lost):
            if request in self._decoding:
                first, origin = self._decoding.pop(request)
                if first < entry:
                    self.spans.append((request, first, entry - 1, origin))
                if request in scheduler.starved:  # it goes on with the next step
                    self._decoding[request] = len(self.ticks), scheduler.origin(request)
        completed = set(scheduler.completed)
        for request, tokens, computed in scheduler.chunks:
            pairs = tokens * computed + tokens * (tokens + 1) / 2
            self.chunks.append((entry, request, tokens, pairs, request in completed))
        self._end(entry)
        for request in completed.difference(scheduler.ended):
            self._decoding[request] = len(self.ticks), scheduler.origin(request)

    def _end(self, entry: int) -> None:
        for request in self.scheduler.ended:
            if request in self._decoding:
                first, origin = self._decoding.pop(request)
                self.spans.append((request, first, entry, origin))


class LoggedStaticReplica(StaticReplica):
    """Notes which requests are in each batch: its padding is computed for all of them alike."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.batches: list[tuple[list[int], slice]] = []

    def _generate(self, batch: list[int]) -> None:
        first = len(self.log) // ENTRY.size
        super()._generate(batch)
        self.batches.append((list(batch), slice(first, len(self.log) // ENTRY.size)))


class Own(NamedTuple):
    """What one of each adds to the energy of a step of each entry, in joules.

    Attributes:
        token: A token; `sample` and `sequence` the same.
        position: A position that a decode attends to; `pair` one that a prompt's token does.
    """

    token: Floats
    sample: Floats
    sequence: Floats
    position: Floats
    pair: Floats


def own_energy(rates: Rates, steps: Steps, step_energy_j: Floats) -> Own:
    """By the terms of the cost model that grow with a request, at the clocks of each step."""
    m, a = rates.matmul_j, rates.attention_j
    added = np.maximum(added_j(rates, sums_of(steps)), 1e-300)
    slowed = np.clip((step_energy_j - float(rates.power.base_w) * steps.step_s) / added, 0.0, 1.0)
    position, pair = slowed * (a.read + a.pair), slowed * a.pair * a.ratio
    if a.window is not None:
        seen = np.minimum(1.0, steps.decodes * a.window / np.maximum(steps.context, 1.0))
        pairs = np.minimum(1.0, steps.prefill_tokens * a.window / np.maximum(steps.prefill_pairs, 1.0))
        position = position + slowed * seen * (a.window_read + a.window_pair)
        pair = pair + slowed * pairs * a.window_pair * a.ratio
    return Own(slowed * (m.token + a.write), slowed * m.head, slowed * a.state, position, pair)


LOGGED: tuple[type[StaticReplica], type[Replica], type[Scheduler]] = LoggedStaticReplica, LoggedReplica, LoggedScheduler
"""What notes who is in each step."""


def request_shares(server: object, cost: object, steps: Steps, requests: int) -> Floats:
    """Energy of each of so many requests in the steps of one server of `LOGGED`.

    Args:
        server: After it has served.
        cost: What its steps cost, by `infergy.cost.model`.
        steps: Entries in the order of its log.
        requests: How many there are.
    """
    assert isinstance(cost, StepCost)
    energy_j, step_energy_j = np.zeros(requests), cost.step_energy_j(steps)
    if isinstance(server, LoggedStaticReplica):
        for batch, entries in server.batches:
            energy_j[batch] += float(steps.count[entries] @ step_energy_j[entries]) / len(batch)
        return energy_j
    assert isinstance(server, LoggedReplica)
    own = own_energy(cost.rates, steps, step_energy_j)
    tokens = steps.decodes + steps.prefill_tokens
    own_j = own.token * tokens + own.sample * steps.sampled + own.sequence * (steps.decodes + steps.prefills)
    own_j += own.position * steps.context + own.pair * steps.prefill_pairs
    shared = (step_energy_j - own_j) / np.maximum(tokens, 1.0)
    if server.chunks:
        entry, request, size, pairs, samples = (np.array(column) for column in zip(*server.chunks, strict=True))
        parts = size * (shared + own.token)[entry] + own.sequence[entry] + samples * own.sample[entry]
        np.add.at(energy_j, request, parts + pairs * own.pair[entry])
    if server.spans:
        request, first, last, origin = (np.array(column) for column in zip(*server.spans, strict=True))
        ticks = np.array(server.ticks) - (steps.count - 1) / 2
        position = steps.count * own.position
        each = steps.count * (shared + own.token + own.sample + own.sequence)
        alike, by_origin, by_tick = (
            sums[last + 1] - sums[first]
            for sums in (np.append(0.0, np.cumsum(values)) for values in (each, position, position * ticks))
        )
        np.add.at(energy_j, request, alike + origin * by_origin + by_tick)
    return energy_j
