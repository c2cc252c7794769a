"""How few cells narrow the interval of a trace's energy: chosen by `infergy next`, and in random order.

    python benchmarks/next_cells.py

Nothing measured is known at first, only datasheets. The cells are the shipped ones of one H200 and engine. After each
cell the constants are fitted again to what has been measured so far, and the trace is estimated: the half-width of its
90 % interval, and its distance from the estimate by all shipped rows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random

from infergy.cost.fit import make_table
from infergy.cost.table import Table, TableEntry, read_table
from infergy.estimates.estimate import estimate_run, sample_of
from infergy.estimates.next_cells import CellChoice, choose_next
from infergy.estimates.servers import SHIPPED_TABLE, ServerSpec, open_server
from infergy.workload.requests import Sample

TRACES = ("azure-conv-2023", "azure-code-2023")
ENGINES = ("vllm", "transformers")
GPU, MODEL, CELLS, SHUFFLES = "h200", "llama-3.1-8b", 6, 3
NOTHING = Table(fits={}, measured=(), environments={}, sources=())
Cells = Mapping[CellChoice, TableEntry]
Choose = Callable[[Table, Sequence[CellChoice]], CellChoice | None]


@dataclass(frozen=True, slots=True)
class Step:
    """The estimate after so many cells: half-width and error relative to that by all rows."""

    half_width: float
    error: float


def main() -> None:
    """Print interval and error after each cell."""
    full = read_table(SHIPPED_TABLE, entries=True)
    for trace in TRACES:
        sample = sample_of(trace)
        for engine in ENGINES:
            cells = _cells(full, engine)
            spec = ServerSpec(engine=engine, model=MODEL, gpu=GPU)
            wanted_j = estimate_run(sample, open_server(spec, full)).energy_j
            print(f"\n{trace}, {engine}: {len(cells)} cells; half-width (error) after 0, 1, … cells")
            _print("infergy next", [_follow(sample, spec, cells, wanted_j, _next(sample, spec))])
            orders = [_shuffled(cells, seed) for seed in range(SHUFFLES)]
            _print("random order, median", [_follow(sample, spec, cells, wanted_j, order) for order in orders])


def _cells(full: Table, engine: str) -> Cells:
    """Measured batches of equal requests of one H200."""
    found: dict[CellChoice, TableEntry] = {}
    for entry in full.entries:
        by, words = entry.served_by, re.search(r"(\d+)→(\d+)", entry.origin.cell.replace(",", ""))
        is_plain = (by.engine, by.model, by.gpu, by.dtype, by.gpus) == (engine, MODEL, GPU, "bfloat16", 1)
        if words is None or not is_plain or entry.idle_s or entry.duration_s is None or by.is_api:
            continue
        choice = CellChoice(input_tokens=int(words[1]), output_tokens=int(words[2]), batch=entry.requests)
        found.setdefault(choice, entry)
    return found


def _next(sample: Sample, spec: ServerSpec) -> Choose:
    def choose(table: Table, left: Sequence[CellChoice]) -> CellChoice | None:
        found = choose_next(sample, spec, table, budget_s=1e5, target=1e-6, choices=[left])
        if not found.cells:
            return None
        cell = found.cells[0]
        return CellChoice(input_tokens=cell.input_tokens, output_tokens=cell.output_tokens, batch=cell.batch)

    return choose


def _shuffled(cells: Cells, seed: int) -> Choose:
    order = sorted(cells, key=str)
    Random(seed).shuffle(order)
    return lambda _, left: next(choice for choice in order if choice in left)


def _follow(sample: Sample, spec: ServerSpec, cells: Cells, wanted_j: float, choose: Choose) -> list[Step]:
    table, left, known, steps = NOTHING, list(cells), list[TableEntry](), list[Step]()
    while True:
        run = estimate_run(sample, open_server(spec, table))
        steps.append(Step(run.high_j / run.energy_j - 1, run.energy_j / wanted_j - 1))
        choice = choose(table, left)
        if choice is None or len(known) == CELLS:
            return steps
        left.remove(choice)
        known.append(cells[choice])
        table = make_table(known, {})


def _print(name: str, follows: Sequence[Sequence[Step]]) -> None:
    middle = len(follows) // 2
    words = []
    for steps in zip(*follows, strict=True):
        half = sorted(step.half_width for step in steps)[middle]
        error = sorted((step.error for step in steps), key=abs)[middle]
        words.append(f"±{half:.1%} ({error:+.1%})")
    # Without a cell all series have one estimate.
    measured = [step for steps in follows for step in steps[1:]]
    inside = sum(-step.half_width <= step.error <= step.half_width for step in measured)
    print(f"  {name:21s} {'  '.join(words)}   {inside} of {len(measured)} inside", flush=True)


if __name__ == "__main__":
    main()
