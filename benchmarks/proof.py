"""The instrument against a known truth: simulated GPUs, counters and loads drawn at random, seeded.

Each run is one cell, measured as `infergy measure` does; the estimator sees counter ticks and batches only. Next to it, on
the same GPUs and for as many seconds, the counter read at the begin and at the end of the batches, as zeus and codecarbon
do. Needs no GPU.

    coverage    share of the 95 % intervals that contain the truth; expected 93 to 97 %
    bias        mean error; expected within ± 0.5 %
    in target   share that ended within ± 2 %, the others at --max-time
    95 % err    95th percentile of the absolute errors
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median

from infergy.measure.cell import measure_cell, measure_idle
from infergy.measure.environment import Surroundings
from infergy.measure.warmup import make_work
from infergy.meters.simulated import SimulatedMeter
from infergy.records import Cell, EngineSetup, Environment, Measurement, MeasureOptions, PlannedCell, grid_visit
from infergy.records.uncertainty import find_uncertainty
from infergy.records.visits import Alike, Peer, join_visits, peer_of
from infergy.workload.load_generator import make_prompts
from random_gpus import IDENTITY, LOAD, STRATA, DrawnSession, Scenario, draw, draw_scenarios, draw_series

MEMORIES_S = (1.0, 3.0, 10.0, 30.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One random scenario, measured.

    Attributes:
        truth_j: True mean energy of a batch.
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
    def contains_truth(self) -> bool:
        """Whether the interval contains the truth."""
        return self.low_j <= self.truth_j <= self.high_j

    @property
    def error(self) -> float:
        """Measured over true energy, less 1."""
        return self.measured_j / self.truth_j - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """Statistics of many outcomes.

    Attributes:
        coverage: Share of the intervals that contain the truth.
        bias: Mean error, as a fraction.
        within_target: Share of the runs whose half-width is within the target.
        median_half_width: As a fraction.
        median_windows: Windows per cell.
        median_s: Seconds of batches per cell.
        worst_error: 95th percentile of the absolute errors, as a fraction.
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
    """One random scenario with its GPU and its engine, which can be measured again."""

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
    """Measure a random scenario as `infergy measure` measures a cell.

    Raises:
        MeterError: The counter failed.
    """
    row = _Bench(scenario).visit(options, peers)
    return row, _judge(scenario, row, peers)


def _judge(scenario: Scenario, row: Measurement, peers: Sequence[Peer | None]) -> Outcome:
    assert row.result is not None
    assert row.loaded_idle is not None
    power_w, like = row.result.power_w, Alike(peers)
    found = find_uncertainty(row.windows, row.loaded_idle, like.spread(power_w), scatters=like.scatters(power_w))
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
    """Measure scenarios as the cells of one engine config, each with the scatter of those before it."""
    peers: list[Peer | None] = []
    for scenario in scenarios:
        row, outcome = measure_scenario(scenario, options, peers)
        peers.append(peer_of(row))
        yield outcome


def measure_in_rounds(scenarios: Sequence[Scenario], options: MeasureOptions, apart_s: float) -> Iterator[Outcome]:
    """Measure scenarios as the cells of one engine config in `options.repeats` rounds, `apart_s` apart."""
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
    """Bias, coverage and cost of the outcomes."""
    return Proof(
        runs=len(outcomes),
        coverage=fmean(outcome.contains_truth for outcome in outcomes),
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
    """Measure scenarios whose noise is correlated, which the intervals assume to be independent."""
    rng = random.Random(f"{seed} memory")
    drawn = [replace(draw(rng, noise=(0.005, 0.02)), memory_s=memory_s) for _ in range(runs)]
    return [measure_scenario(one, replace(options, seed=place))[1] for place, one in enumerate(drawn)]


def draw_rounds_outcomes(
    runs: int, seed: int, options: MeasureOptions, memory_s: float, cells: int = 8
) -> list[Outcome]:
    """The same noise in engine configs of `cells`, measured `options.repeats` times, three memories apart or more."""
    rng = random.Random(f"{seed} rounds")
    outcomes: list[Outcome] = []
    while len(outcomes) < runs:
        series = [
            replace(one, memory_s=memory_s, noise=min(max(one.noise, 0.005), 0.02)) for one in draw_series(rng, cells)
        ]
        outcomes += measure_in_rounds(series, options, apart_s=max(60.0, 3 * memory_s))
    return outcomes[:runs]


def read_at_both_ends(scenario: Scenario, seconds: float) -> float:
    """The error of the energy per batch by two reads of the counter, as a fraction."""
    gpu = scenario.gpu()
    session = DrawnSession(gpu, scenario)
    work = make_work(make_prompts(LOAD, 1000, 0), LOAD.output_tokens)
    session.run(work)
    begun_j, begun_s, batches = gpu.read(), gpu.now_s(), 0
    while gpu.now_s() - begun_s < seconds:
        session.run(work)
        batches += 1
    return (gpu.read() - begun_j) / batches / scenario.energy_j - 1


def show(name: str, outcomes: list[Outcome], options: MeasureOptions, others: list[float]) -> bool:
    found = prove(outcomes, options.target)
    peer = f"{fmean(others):+8.2%} {sorted(map(abs, others))[int(0.95 * (len(others) - 1))]:8.2%}" if others else ""
    print(
        f"{name:20} {found.coverage:8.1%} {found.bias:+8.3%} {found.within_target:9.1%} ± {found.median_half_width:5.2%} "
        f"{found.median_windows:7g} {found.median_s:7.1f} {found.worst_error:8.2%} {peer}"
    )
    return 0.93 <= found.coverage <= 0.97 and abs(found.bias) < 0.005


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    options = MeasureOptions()
    print(f"{'':88}  two reads of the counter")
    print(
        f"{chosen.runs} runs each".ljust(20)
        + " coverage     bias in target    half windows seconds 95 % err     bias 95 % err"
    )
    held = []
    for name in STRATA:
        outcomes = draw_outcomes(name, chosen.runs, chosen.seed, options)
        drawn = draw_scenarios(name, chosen.runs, chosen.seed)
        others = [read_at_both_ends(one, found.seconds) for one, found in zip(drawn, outcomes, strict=True)]
        held.append(show(name, outcomes, options, others))
    for name, are_long in (("with like cells", False), ("long ones", True)):
        outcomes = draw_series_outcomes(chosen.runs, chosen.seed, options, are_long=are_long)
        held.append(show(name, outcomes, options, []))
    print("engine configs of 8 cells whose noise lasts, each cell visited once, and twice with the others between:")
    for memory_s in (0.0, *MEMORIES_S):
        for repeats in (1, 2):
            some = replace(options, repeats=repeats)
            outcomes = draw_rounds_outcomes(chosen.runs // 4, chosen.seed, some, memory_s)
            show(f"  {memory_s:g} s, {repeats} visit{'s' * (repeats > 1)}", outcomes, options, [])
    print("one cell alone whose noise lasts, which its interval does not know:")
    for memory_s in MEMORIES_S:
        outcomes = draw_remembering_outcomes(chosen.runs // 4, chosen.seed, options, memory_s)
        show(f"  {memory_s:g} s", outcomes, options, [])
    print("as stated" if all(held) else "NOT as stated")
    raise SystemExit(0 if all(held) else 1)


if __name__ == "__main__":
    main()
