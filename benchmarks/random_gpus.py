"""GPUs, counters and loads drawn at random, whose true energy is known. Standard library only."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from infergy.engines import Completion, Work
from infergy.meters.simulated import CounterSensor, Sensors, SimulatedGpu
from infergy.records import GpuIdentity, Load

IDENTITY = GpuIdentity(uuid="GPU-simulated-0", name="simulated GPU, drawn at random")
LOAD = Load(input_tokens=4, output_tokens=2, batch=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One pretended GPU with its counter, and the load that it bears.

    Attributes:
        period_s: Time between two ticks of the counter.
        phase_s: When its first tick comes.
        sensors: What else it does to the truth.
        idle_w: Power of the idle GPU, and `hot_idle_w` right after work.
        prefill_s: Mean seconds of the first part of a batch, at `prefill_w`; `decode_s` and `decode_w` of the second.
        noise: Standard deviation of the seconds of one second of work, as a fraction; of a batch less, by the root of
            its seconds. Its power varies by a third of that.
        memory_s: How long noise lasts: of a batch so many seconds later 1 / e of it is left. 0 where batches are
            independent.
        seed: Of the noise.
    """

    period_s: float
    phase_s: float
    sensors: Sensors
    idle_w: float
    hot_idle_w: float
    prefill_s: float
    prefill_w: float
    decode_s: float
    decode_w: float
    noise: float
    seed: int
    memory_s: float = 0.0

    @property
    def batch_s(self) -> float:
        """Mean seconds of a batch."""
        return self.prefill_s + self.decode_s

    @property
    def energy_j(self) -> float:
        """The truth: mean joules of a batch, while it runs."""
        return self.prefill_s * self.prefill_w + self.decode_s * self.decode_w

    def gpu(self) -> DrawnGpu:
        """The pretended GPU, at the begin of its clock."""
        return DrawnGpu(
            IDENTITY,
            idle_w=self.idle_w,
            hot_idle_w=self.hot_idle_w,
            period_s=self.period_s,
            phase_s=self.phase_s,
            sensors=self.sensors,
        )


Draw = Callable[[random.Random], Scenario]


class DrawnGpu(SimulatedGpu):
    """A simulated GPU whose waits for a tick leave out the looks that would show nothing new.

    They stamp what all looks would, a hundred times faster. It shows the joules of a whole process only.
    """

    def pause(self) -> None:
        """Let time pass to the last look before the next tick, or to the one after it."""
        gap_s = self.sensors.read_gap_s
        self.sleep(max(1, int((self.next_tick_s() - self.now_s()) / gap_s)) * gap_s)


def _times(sd: float, drawn: float) -> float:
    """A factor of mean 1 and standard deviation `sd` from a standard normal draw: log-normal, so that time runs on."""
    wide = math.log1p(sd**2)
    return math.exp(math.sqrt(wide) * drawn - wide / 2)


class DrawnSession:
    """Lets the drawn load pass on the drawn GPU."""

    def __init__(self, gpu: SimulatedGpu, scenario: Scenario) -> None:
        self._gpu = gpu
        self._scenario = scenario
        self._random = random.Random(scenario.seed)
        self._drawn: tuple[float, float, float] | None = None
        """When noise was drawn last, of seconds and of power, in standard deviations."""

    def run(self, work: Work) -> Completion:
        """One batch."""
        drawn, sd = self._scenario, self._scenario.noise / self._scenario.batch_s**0.5
        slow, hungry = self._noise()
        slower, hungrier = _times(sd, slow), _times(sd / 3, hungry)
        self._gpu.advance(drawn.prefill_s * slower, drawn.prefill_w * hungrier)
        self._gpu.advance(drawn.decode_s * slower, drawn.decode_w * hungrier)
        return Completion(input_tokens=tuple(map(len, work.prompts)), output_tokens=work.output_tokens)

    def _noise(self) -> tuple[float, float]:
        """Independent draws, or such as remember the last ones (an AR(1) process at the times of the batches)."""
        now_s = self._gpu.now_s()
        slow, hungry = self._random.gauss(0, 1), self._random.gauss(0, 1)
        if self._drawn is not None and self._scenario.memory_s:
            then_s, was_slow, was_hungry = self._drawn
            kept = math.exp((then_s - now_s) / self._scenario.memory_s)
            fresh = math.sqrt(1 - kept**2)
            slow, hungry = kept * was_slow + fresh * slow, kept * was_hungry + fresh * hungry
        self._drawn = (now_s, slow, hungry)
        return slow, hungry

    def facts(self) -> Mapping[str, str | None]:
        """Nothing is resolved."""
        return {}

    def close(self) -> None:
        """Nothing is held."""


def draw(
    rng: random.Random,
    *,
    noise: tuple[float, float],
    batch_s: tuple[float, float] = (0.05, 3.0),
    delay_s: float = 0.1,
    share: float = 0.2,
) -> Scenario:
    """A scenario: log-uniform in what spans decades, uniform in all else.

    Args:
        rng: Where it is drawn from.
        noise: Range of `Scenario.noise`.
        batch_s: Range of `Scenario.batch_s`.
        delay_s: Longest delay of the counter, in s.
        share: It looks at this share of each of its periods at least.
    """
    seconds, period_s = _log_uniform(rng, *batch_s), _log_uniform(rng, 0.01, 0.1)
    prefill, idle_w, power_w = rng.uniform(0.02, 0.6), rng.uniform(60.0, 130.0), rng.uniform(200.0, 700.0)
    sensors = Sensors(
        counter=CounterSensor(
            step_j=_log_uniform(rng, 0.001, 1.0),
            delay_s=rng.uniform(0.0, delay_s),
            share=rng.uniform(share, 1.0) if share < 1 else 1.0,
            drift_per_s=rng.uniform(-1e-5, 1e-5),
            jitter_s=rng.uniform(0.0, 0.1) * period_s,
        ),
        read_gap_s=min(_log_uniform(rng, 0.0005, 0.02), period_s / 3),
        seed=rng.randrange(2**32),
    )
    return Scenario(
        period_s=period_s,
        phase_s=rng.uniform(0.0, period_s),
        sensors=sensors,
        idle_w=idle_w,
        hot_idle_w=idle_w * rng.uniform(1.0, 1.5),
        prefill_s=prefill * seconds,
        prefill_w=rng.uniform(power_w, 700.0),
        decode_s=(1 - prefill) * seconds,
        decode_w=power_w,
        noise=rng.uniform(*noise),
        seed=rng.randrange(2**32),
    )


def _log_uniform(rng: random.Random, low: float, high: float) -> float:
    return float(low * (high / low) ** rng.random())


STRATA: Mapping[str, Draw] = {
    "prompt counter": lambda rng: draw(rng, noise=(0.002, 0.01), delay_s=0.0, share=1.0),
    "late counter": lambda rng: draw(rng, noise=(0.002, 0.01), share=1.0),
    "part-time counter": lambda rng: draw(rng, noise=(0.002, 0.01), delay_s=0.0),
    "waits for its host": lambda rng: draw(rng, noise=(0.02, 0.05)),
    "long batches": lambda rng: draw(rng, noise=(0.005, 0.05), batch_s=(5.0, 12.0)),
    "anything": lambda rng: draw(rng, noise=(0.002, 0.05), batch_s=(0.02, 12.0)),
}
"""What counters and loads may be, by name."""


def draw_scenarios(name: str, runs: int, seed: int) -> list[Scenario]:
    """Scenarios of a stratum of `STRATA`."""
    rng = random.Random(f"{seed} {name}")
    return [STRATA[name](rng) for _ in range(runs)]


def draw_series(rng: random.Random, cells: int, *, are_long: bool = False) -> list[Scenario]:
    """The cells of one engine config: one GPU and one counter, batches of other lengths and powers, noise within a half.

    Long ones take 4 to 18 s, so that a window is a batch, and differ in their noise by a factor of 2 to either side.
    """
    batch_s, lengths, noises = (0.05, 3.0), (0.2, 5.0), (0.67, 1.5)
    if are_long:
        batch_s, lengths, noises = (6.0, 12.0), (0.7, 1.5), (0.5, 2.0)
    first = draw(rng, noise=(0.002, 0.03), batch_s=batch_s)

    def vary(seconds: float, watts: float) -> Scenario:
        return replace(
            first,
            phase_s=rng.uniform(0.0, first.period_s),
            prefill_s=first.prefill_s * seconds,
            decode_s=first.decode_s * seconds,
            prefill_w=min(700.0, first.prefill_w * watts),
            decode_w=first.decode_w * watts,
            noise=first.noise * _log_uniform(rng, *noises),
            seed=rng.randrange(2**32),
        )

    return [vary(_log_uniform(rng, *lengths), rng.uniform(0.95, 1.05)) for _ in range(cells)]
