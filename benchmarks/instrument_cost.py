"""What the instrument costs: its reads, and the process that takes the power timeline.

    python benchmarks/instrument_cost.py                          reads only, of a counter that costs nothing
    python benchmarks/instrument_cost.py --meter nvml             reads of a real one
    infergy measure -e vllm --input 512 --output 64 --batch 1,8,128 --plan plan.json
    python benchmarks/instrument_cost.py --meter nvml --plan plan.json
                                                                  and the plan's cells, with and without the timeline
    … --plan plan.json --keep FOLDER                              goes on where it was interrupted

Reads: those of one window of 3 s times what one takes, over the window; expected under 0.1 % where a read takes 1 µs.
None of them is made while batches run. A/B: the cells are measured by infergy's own sweep in the order A B B A, with and
without the timeline; expected is a ratio of joules whose 95 % interval lies within ± 0.5 %. Standard library and the
meter only.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median

from infergy.measure.block import window
from infergy.measure.sweep import sweep
from infergy.meters import Meter, open_meter
from infergy.meters.simulated import SteadyMeter
from infergy.quality.compare import compare
from infergy.records import Measurement, Plan
from infergy.records.store import read_store
from infergy.units import format_si

WINDOW_S = 3.0
READS = 300


class CountingMeter:
    """A meter that counts how often it is read."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self.name, self.scope, self.is_simulated = meter.name, meter.scope, meter.is_simulated
        self.clock, self.gpus, self.states, self.facts, self.close = (
            meter.clock,
            meter.gpus,
            meter.states,
            meter.facts,
            meter.close,
        )
        self.reads = 0

    def read(self) -> Mapping[str, float]:
        """As the meter reads."""
        self.reads += 1
        return self._meter.read()


def show_reads(meter: Meter) -> None:
    costs_s = []
    for _ in range(READS):
        begun_s = time.perf_counter()
        meter.read()
        costs_s.append(time.perf_counter() - begun_s)
    counting = CountingMeter(meter)
    begun_s = time.perf_counter()
    with window(meter=counting):
        during = counting.reads
        time.sleep(WINDOW_S)
        during = counting.reads - during
    taken_s = time.perf_counter() - begun_s
    share = counting.reads * median(costs_s) / taken_s
    print(
        f"{meter.name}: {counting.reads} reads of {format_si(median(costs_s), 's', 2)} (median of {READS}) in a window "
        f"of {taken_s:.2f} s: {share:.4%}, expected under 0.1 %; {during} of them while the work ran"
    )


def show_timeline(plan: Plan, rounds: int, keep: Path | None, *, simulate: bool, meter: str) -> None:
    """A round is A B B A; each A and B a sweep of its own."""
    found: dict[bool, list[Measurement]] = {True: [], False: []}
    sweeps = {True: 0, False: 0}
    with tempfile.TemporaryDirectory() as folder:
        for number, has_timeline in enumerate((True, False, False, True) * rounds):
            path = (keep or Path(folder)) / f"{number}-{'with' if has_timeline else 'without'}.jsonl"
            every_s = plan.options.timeline_s if has_timeline else 0.0
            changed = replace(plan, options=replace(plan.options, timeline_s=every_s))
            for _ in sweep(changed, path, simulate=simulate, meter=meter):
                pass
            # compare takes the last row of a cell: each visit of each sweep gets a name of its own.
            sweeps[has_timeline] += 1
            found[has_timeline] += [
                replace(row, cell_id=f"{row.key} {sweeps[has_timeline]}") for row in read_store(path).rows if row.is_ok
            ]
    for row in found[True]:
        if not row.timeline:
            print(f"{row.cell}: no timeline was taken: {row.timeline_reason}")
    compared = compare(found[False], found[True])
    overall = compared.overall
    if overall.low is None or overall.high is None:
        print("the interval is unknown: measure more cells or rounds")
        return
    print(
        f"joules with the timeline over those without: {overall.value:.4f} ({overall.low:.4f} .. {overall.high:.4f}), "
        f"{len(compared.cells)} pairs of cells; expected within 0.995 .. 1.005"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--meter", default="simulated", help="nvml, or a plug-in's name")
    parser.add_argument("--plan", type=Path, help="cells for the A/B")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep the rows there, and go on from them")
    chosen = parser.parse_args()
    simulate = chosen.meter == "simulated"
    meter: Meter = SteadyMeter() if simulate else open_meter(chosen.meter, 1)
    show_reads(meter)
    meter.close()
    if chosen.plan is not None:
        show_timeline(
            Plan.load(chosen.plan),
            chosen.rounds,
            chosen.keep,
            simulate=simulate,
            meter="nvml" if simulate else chosen.meter,
        )


if __name__ == "__main__":
    main()
