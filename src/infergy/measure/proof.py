"""The instrument against a known truth: GPUs, counters and loads drawn at random, measured as any cell is.

The estimator knows nothing of what was drawn: it sees ticks and batches only. Standard library only.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from infergy.measure.cell import measure_cell, measure_idle
from infergy.measure.drawn import IDENTITY, LOAD, DrawnSession, Scenario, draw, draw_scenarios, draw_series
from infergy.measure.environment import Surroundings
from infergy.meters.simulated import SimulatedMeter
from infergy.records import (
    Cell,
    EngineSetup,
    Environment,
    Measurement,
    MeasureOptions,
    PlannedCell,
    grid_visit,
)
from infergy.records.uncertainty import Peer, find_uncertainty, peer_of, scatters_at, spread_at
from infergy.records.visits import join_visits


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One drawn scenario measured.

    Attributes:
        truth_j: True mean joules of a batch.
        low_j: Lower end of the stated 95 % interval; `high_j` the upper.
        half_width: Half of the interval, as a fraction.
        seconds: Seconds of batches that it took.
    """

    truth_j: float
    measured_j: float
    low_j: float
    high_j: float
    half_width: float
    windows: int
    seconds: float

    @property
    def holds(self) -> bool:
        """Whether the interval holds the truth."""
        return self.low_j <= self.truth_j <= self.high_j

    @property
    def error(self) -> float:
        """Measured over true joules, less 1."""
        return self.measured_j / self.truth_j - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What many outcomes show.

    Attributes:
        coverage: Share of the intervals that hold the truth.
        bias: Mean error, as a fraction.
        within_target: Share of the runs whose half-width is within the target.
        median_half_width: As a fraction.
        median_windows: Windows a cell.
        median_s: Seconds of batches a cell.
        worst_error: What 95 % of the errors do not exceed, to either side, as a fraction.
    """

    runs: int
    coverage: float
    bias: float
    within_target: float
    median_half_width: float
    median_windows: float
    median_s: float
    worst_error: float


class _Bench:
    """One drawn scenario with its GPU and its engine, which can be visited again."""

    def __init__(self, scenario: Scenario, name: str = "drawn") -> None:
        self.scenario = scenario
        self.gpu = scenario.gpu()
        self._meter = SimulatedMeter(self.gpu)
        self._session = DrawnSession(self.gpu, scenario)
        self._idle = measure_idle(self._meter, 2.0)
        self._planned = PlannedCell(
            cell=Cell(setup=EngineSetup(engine="simulated", model=name), load=LOAD),
            batch_choice="drawn",
            forecast_prefill_s=scenario.prefill_s,
            forecast_batch_s=scenario.batch_s,
        )

    def visit(
        self, options: MeasureOptions, peers: Sequence[Peer | None], earlier: Sequence[Measurement] = ()
    ) -> Measurement:
        """Measure it as `infergy measure` measures a cell.

        Raises:
            MeterError: The counter failed.
        """
        planned = replace(self._planned, visit=grid_visit(len(earlier) + 1))
        return measure_cell(
            self._session,
            self._meter,
            planned,
            options,
            _surroundings(self.scenario.period_s),
            self._idle,
            peers,
            earlier=[row.windows for row in earlier],
        )


def measure_scenario(
    scenario: Scenario, options: MeasureOptions, peers: Sequence[Peer | None] = ()
) -> tuple[Measurement, Outcome]:
    """Measure a drawn scenario as `infergy measure` measures a cell.

    Raises:
        MeterError: The counter failed.
    """
    row = _Bench(scenario).visit(options, peers)
    return row, _judge(scenario, row, peers)


def _judge(scenario: Scenario, row: Measurement, peers: Sequence[Peer | None]) -> Outcome:
    assert row.result is not None
    assert row.loaded_idle is not None
    power_w = row.result.power_w
    found = find_uncertainty(
        row.windows, row.loaded_idle, spread_at(power_w, peers), scatters=scatters_at(power_w, peers)
    )
    assert found is not None
    return Outcome(
        truth_j=scenario.energy_j,
        measured_j=row.result.energy_j,
        low_j=found.low_j,
        high_j=found.high_j,
        half_width=found.half_width,
        windows=len(row.windows),
        seconds=row.result.duration_s * row.result.batches,
    )


def measure_series(scenarios: Sequence[Scenario], options: MeasureOptions) -> Iterator[Outcome]:
    """Measure scenarios as the cells of one set-up: each knows what those before it tell of the spread."""
    peers: list[Peer | None] = []
    for scenario in scenarios:
        row, outcome = measure_scenario(scenario, options, peers)
        peers.append(peer_of(row))
        yield outcome


def measure_in_rounds(scenarios: Sequence[Scenario], options: MeasureOptions, apart_s: float) -> Iterator[Outcome]:
    """Measure scenarios as the cells of one set-up in `options.repeats` rounds, a cell's visits `apart_s` apart."""
    benches = [_Bench(scenario, f"drawn {place}") for place, scenario in enumerate(scenarios)]
    rows: list[list[Measurement]] = [[] for _ in benches]
    for _ in range(options.repeats):
        for place, bench in enumerate(benches):
            others = [row for other, visits in enumerate(rows) if other != place for row in visits]
            peers = [peer_of(row) for row in join_visits(others)]
            rows[place].append(bench.visit(replace(options, seed=place), peers, rows[place]))
            bench.gpu.sleep(apart_s)
    joined = [join_visits(visits)[0] for visits in rows]
    for place, (scenario, row) in enumerate(zip(scenarios, joined, strict=True)):
        yield _judge(scenario, row, [peer_of(one) for other, one in enumerate(joined) if other != place])


def prove(outcomes: Sequence[Outcome], target: float) -> Proof:
    """What the outcomes show of bias, coverage and cost."""
    from statistics import fmean, median

    return Proof(
        runs=len(outcomes),
        coverage=fmean(outcome.holds for outcome in outcomes),
        bias=fmean(outcome.error for outcome in outcomes),
        within_target=fmean(outcome.half_width <= target for outcome in outcomes),
        median_half_width=median(outcome.half_width for outcome in outcomes),
        median_windows=median(outcome.windows for outcome in outcomes),
        median_s=median(outcome.seconds for outcome in outcomes),
        worst_error=sorted(abs(outcome.error) for outcome in outcomes)[int(0.95 * (len(outcomes) - 1))],
    )


def _surroundings(period_s: float) -> Surroundings:
    environment = Environment(
        infergy="0",
        python="3",
        platform="simulated",
        cpu=None,
        gpus=(IDENTITY,),
        driver=None,
        cuda=None,
        meter="simulated",
        scope="gpu-board",
        counter_period_s=period_s,
        weights="none",
    )
    return Surroundings(environment=environment, vocabulary=1000, is_simulated=True)


def draw_outcomes(name: str, runs: int, seed: int, options: MeasureOptions) -> list[Outcome]:
    """Measure `runs` scenarios of a stratum, each alone."""
    drawn = draw_scenarios(name, runs, seed)
    return [measure_scenario(one, replace(options, seed=place))[1] for place, one in enumerate(drawn)]


def draw_series_outcomes(
    runs: int, seed: int, options: MeasureOptions, cells: int = 8, *, are_long: bool = False
) -> list[Outcome]:
    """Measure series of `cells` until `runs` cells are measured."""
    rng = random.Random(f"{seed} series")
    outcomes: list[Outcome] = []
    while len(outcomes) < runs:
        outcomes += measure_series(draw_series(rng, cells, are_long=are_long), options)
    return outcomes[:runs]


def draw_remembering_outcomes(runs: int, seed: int, options: MeasureOptions, memory_s: float) -> list[Outcome]:
    """Measure scenarios whose noise lasts: what the intervals take to be independent is not."""
    rng = random.Random(f"{seed} memory")
    drawn = [replace(draw(rng, noise=(0.005, 0.02)), memory_s=memory_s) for _ in range(runs)]
    return [measure_scenario(one, replace(options, seed=place))[1] for place, one in enumerate(drawn)]


def draw_rounds_outcomes(
    runs: int, seed: int, options: MeasureOptions, memory_s: float, cells: int = 8
) -> list[Outcome]:
    """The same noise in set-ups of `cells`, visited `options.repeats` times, three memories apart or more."""
    rng = random.Random(f"{seed} rounds")
    outcomes: list[Outcome] = []
    while len(outcomes) < runs:
        series = [
            replace(one, memory_s=memory_s, noise=min(max(one.noise, 0.005), 0.02)) for one in draw_series(rng, cells)
        ]
        outcomes += measure_in_rounds(series, options, apart_s=max(60.0, 3 * memory_s))
    return outcomes[:runs]
