"""The instrument against a known truth: simulated GPUs, counters and loads drawn at random, seeded.

Each run is one cell, measured as `infergy measure` does, by an estimator that knows nothing of what was drawn. Beside it,
on the same GPUs and for as many seconds, the counter read at the begin and at the end of the batches, as zeus and
codecarbon do. Needs no GPU.

    coverage    how many of the 95 % intervals hold the truth; expected 93 to 97 %
    bias        mean error; expected within ± 0.5 %
    in target   how many ended within ± 2 %, the others at --max-time
    95 % err    what 95 % of the errors do not exceed
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from statistics import fmean

from infergy.measure.drawn import LOAD, STRATA, DrawnSession, Scenario, draw_scenarios
from infergy.measure.proof import (
    Outcome,
    draw_outcomes,
    draw_remembering_outcomes,
    draw_rounds_outcomes,
    draw_series_outcomes,
    prove,
)
from infergy.measure.warmup import make_work
from infergy.records import MeasureOptions
from infergy.workload.prompts import make_prompts

MEMORIES_S = (1.0, 3.0, 10.0, 30.0)


def read_at_both_ends(scenario: Scenario, seconds: float) -> float:
    """The error of joules a batch by two reads of the counter, as a fraction."""
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
    for name, are_long in (("told by like cells", False), ("long ones", True)):
        outcomes = draw_series_outcomes(chosen.runs, chosen.seed, options, are_long=are_long)
        held.append(show(name, outcomes, options, []))
    print("set-ups of 8 cells whose noise lasts, each cell visited once, and twice with the others between:")
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
