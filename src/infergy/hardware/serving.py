"""Continuous batching under arrivals, played by the forecast's costs of a prefill and of a decode step.

    arrivals ──▶ waiting ──▶ prefill of all that wait ──▶ decode steps of all that run ──▶ finished
                    ▲ joins at the next step, where the memory has room

It plans, and it is what the simulated engine plays; no estimate rests on it. An engine that mixes prefill and decode in
one step, as vLLM's chunked prefill does, is taken to do one after the other.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from infergy.hardware.draft import Draft
from infergy.hardware.forecast import Forecast, forecast
from infergy.hardware.gpus import Gpu
from infergy.hardware.memory import largest_batch
from infergy.hardware.shape import ModelShape
from infergy.records import EngineSetup


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """Some seconds of one kind of work.

    Attributes:
        seconds: How long.
        energy_j: Joules of all GPUs; None where they had nothing to do.
    """

    seconds: float
    energy_j: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """A run that was played.

    Attributes:
        stretches: One after the other from the first arrival, at 0 s, to the last token.
        first_token_s: From each request's own arrival, in the order in which they were given; `finished_s` likewise.
    """

    stretches: tuple[Stretch, ...]
    first_token_s: tuple[float, ...]
    finished_s: tuple[float, ...]

    @property
    def duration_s(self) -> float:
        """Seconds from 0 to the last token."""
        return sum(stretch.seconds for stretch in self.stretches)

    def energy_j(self, idle_w: float) -> float:
        """Joules of all GPUs, which draw `idle_w` together where they have nothing to do."""
        idle_s = sum(stretch.seconds for stretch in self.stretches if stretch.energy_j is None)
        return idle_s * idle_w + sum(stretch.energy_j or 0.0 for stretch in self.stretches)


@dataclass(slots=True)
class _Run:
    """What is waiting, running and done; a request is its place in the order of arrival."""

    arrival_s: Sequence[float]
    lengths: Sequence[tuple[int, int]]
    most: int
    now_s: float = 0.0
    joined: int = 0
    running: dict[int, int] = field(default_factory=dict)
    first_s: dict[int, float] = field(default_factory=dict)
    last_s: dict[int, float] = field(default_factory=dict)

    @property
    def next_s(self) -> float:
        """When the next request comes; never after the last."""
        return self.arrival_s[self.joined] if self.joined < len(self.arrival_s) else math.inf

    def admit(self) -> list[int]:
        """Let in those that wait, as far as there is room; their input tokens."""
        prompts = []
        while self.next_s <= self.now_s and len(self.running) < self.most:
            self.running[self.joined] = 0
            prompts.append(self.lengths[self.joined][0])
            self.joined += 1
        return prompts

    def make(self, tokens: int, *, only_new: bool) -> None:
        """Note that requests have so many tokens more by now."""
        for one, made in list(self.running.items()):
            if only_new != (made == 0):
                continue
            self.first_s.setdefault(one, self.now_s)
            self.running[one] = made + tokens
            if self.running[one] >= self.lengths[one][1]:
                del self.running[one]
                self.last_s[one] = self.now_s


def _decode(run: _Run, cost: Callable[[int, int, int], Forecast]) -> tuple[int, Stretch]:
    """Decode steps of all that run, as many as until one of them ends or the next request can join.

    A step at a context is the second token of a request that is one token shorter.
    """
    batch = len(run.running)
    context = sum(run.lengths[one][0] + made for one, made in run.running.items()) / batch
    steps = min(run.lengths[one][1] - made for one, made in run.running.items())
    if batch < run.most and run.next_s < math.inf:
        step_s = cost(round(context) - 1, 2, batch).decode_s
        steps = min(steps, max(1, math.ceil((run.next_s - run.now_s) / step_s)))
    mean = cost(round(context + (steps - 1) / 2) - 1, 2, batch)
    return steps, Stretch(seconds=steps * mean.decode_s, energy_j=steps * mean.decode_energy_j)


def _serve(run: _Run, cost: Callable[[int, int, int], Forecast]) -> Iterator[Stretch]:
    """Serve until the last request is finished; `cost` is that of input and output tokens and a batch."""
    while len(run.last_s) < len(run.arrival_s):
        if joined := run.admit():
            for tokens, count in Counter(joined).items():
                prefill = cost(tokens, 1, count)
                run.now_s += prefill.prefill_s
                yield Stretch(seconds=prefill.prefill_s, energy_j=prefill.prefill_energy_j)
            run.make(1, only_new=True)
        elif run.running:
            steps, stretch = _decode(run, cost)
            run.now_s += stretch.seconds
            run.make(steps, only_new=False)
            yield stretch
        else:
            yield Stretch(seconds=run.next_s - run.now_s, energy_j=None)
            run.now_s = run.next_s


def _play_static(
    lengths: Sequence[tuple[int, int]],
    size: int,
    fits: Callable[[float, float], int],
    cost: Callable[[int, int, int], Forecast],
) -> Played | None:
    """Batches of `size` in the order given, each as long as its longest prompt and its longest answer."""
    now_s = 0.0
    stretches: list[Stretch] = []
    first_s: list[float] = []
    last_s: list[float] = []
    for start in range(0, len(lengths), size):
        batch = lengths[start : start + size]
        tokens_in, tokens_out = (max(tokens) for tokens in zip(*batch, strict=True))
        if fits(tokens_in, tokens_out) < len(batch):
            return None
        took = cost(tokens_in, tokens_out, len(batch))
        stretches.append(Stretch(seconds=took.prefill_s, energy_j=took.prefill_energy_j))
        if took.decode_s:
            stretches.append(Stretch(seconds=took.decode_s, energy_j=took.decode_energy_j))
        first_s += [now_s + took.prefill_s] * len(batch)
        now_s += took.prefill_s + took.decode_s
        last_s += [now_s] * len(batch)
    return Played(stretches=tuple(stretches), first_token_s=tuple(first_s), finished_s=tuple(last_s))


def play(
    shape: ModelShape,
    gpu: Gpu,
    setup: EngineSetup,
    lengths: Sequence[tuple[int, int]],
    arrival_s: Sequence[float],
    draft: Draft | None = None,
) -> Played | None:
    """Serve requests of so many input and output tokens that arrive at `arrival_s`, in seconds.

    By continuous batching as many run at once as the memory holds of mean lengths, and the set-up's bound allows;
    transformers takes static batches of its bound, or of all, one after the other.

    Returns:
        None if the longest of them does not fit the memory, or a static batch.

    Raises:
        UsageError: The engine is not known, or the GPU has no such dtype.
    """

    def fits(input_tokens: float, output_tokens: float) -> int:
        return largest_batch(
            shape,
            gpu,
            math.ceil(input_tokens),
            math.ceil(output_tokens),
            engine=setup.engine,
            dtype=setup.dtype,
            tensor_parallel=setup.tensor_parallel,
            draft=draft,
        ).batch

    inputs, outputs = zip(*lengths, strict=True)
    if fits(max(inputs), max(outputs)) < 1:
        return None
    most = min(fits(sum(inputs) / len(inputs), sum(outputs) / len(outputs)), setup.max_sequences or len(lengths))

    def cost(length: int, output: int, batch: int) -> Forecast:
        return forecast(
            shape,
            gpu,
            length,
            output,
            batch,
            engine=setup.engine,
            cuda_graphs=setup.cuda_graphs,
            tensor_parallel=setup.tensor_parallel,
            compiled=setup.compiled,
            dtype=setup.dtype,
            draft=draft,
        )

    if setup.engine == "transformers":
        return _play_static(lengths, setup.max_sequences or len(lengths), fits, cost)
    order = sorted(range(len(arrival_s)), key=lambda place: arrival_s[place])
    run = _Run(arrival_s=[arrival_s[place] for place in order], lengths=[lengths[place] for place in order], most=most)
    stretches = tuple(_serve(run, cost))
    back = {place: rank for rank, place in enumerate(order)}
    ranks = [back[place] for place in range(len(order))]
    return Played(
        stretches=stretches,
        first_token_s=tuple(run.first_s[rank] - run.arrival_s[rank] for rank in ranks),
        finished_s=tuple(run.last_s[rank] - run.arrival_s[rank] for rank in ranks),
    )
