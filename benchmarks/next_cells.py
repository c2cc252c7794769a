"""How many cells a trace's joules take to be certain: chosen by `infergy next`, by request count, and all of them.

    python benchmarks/next_cells.py

Nothing measured is known at first, only the datasheet. The bins are those of the shipped traces whose lengths were
measured (both orders choose among the same ones), so that after each cell the model's total can be held against the
measured total, and its interval with it. All seconds count the same here: a cell is a cell. Without a model, what the
bins of most requests leave unpriced must itself be within the bound.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

import infergy
from infergy.energy.answer import TraceFacts
from infergy.energy.load import load_table
from infergy.energy.next_cells import Candidate, Subject, choose_next
from infergy.energy.posterior import Posterior
from infergy.energy.table import TableCell
from infergy.energy.values import server_of

WANTED = (0.1, 0.05, 0.03, 0.02, 0.015)


@dataclass(frozen=True, slots=True)
class Step:
    """The total after so many cells."""

    half_width: float
    error: float


def main() -> None:
    """Print cells needed, and how far the total then was off."""
    table = load_table(with_shipped=True)
    print(
        "cells until 90 % of the joules are within …; how far off the total then was; all steps within their interval"
    )
    for trace in ("azure-conv-2023", "azure-code-2023"):
        answer = infergy.estimate(trace, tables=table)
        for one in answer.estimates:
            setup = table.find("h200", "llama-3.1-8b", one.engine)
            server, counted = server_of(setup), setup.by_length()
            if server is None:
                continue
            make = partial(Posterior, server)
            bins = [(counted[b.input_tokens, b.output_tokens], b.requests) for b in one.bins if b.how == "measured"]
            cells, requests = [cell for cell, _ in bins], [count for _, count in bins]
            by_count = [cells[place] for place in np.argsort(-np.array(requests), kind="stable")]
            chosen = _chosen(make, cells, requests, answer.trace)
            print(f"\n{trace}, {one.engine}: {len(cells)} bins; all of them are {len(cells)} cells")
            for name, order in (("infergy next", chosen), ("by request count", by_count)):
                steps = _follow(make, order, cells, requests)
                needed = [next((n for n, step in enumerate(steps) if step.half_width <= w), None) for w in WANTED]
                told = [
                    f"±{w:.1%}: {'-' if n is None else f'{n:2d} ({steps[n].error:+.1%})'}"
                    for w, n in zip(WANTED, needed, strict=True)
                ]
                inside = sum(abs(np.log1p(step.error)) <= np.log1p(step.half_width) for step in steps)
                print(f"  {name:21s} {'   '.join(told)}   {inside} of {len(steps)}")
            missing = 1 - np.cumsum([0.0, *_joules(by_count, cells, requests)])
            told = [f"±{w:.1%}: {int(np.argmax(missing <= w)):2d}         " for w in WANTED]
            print(f"  {'by count, no model':21s} {'   '.join(told)}")


def _chosen(
    make: Callable[[list[TableCell]], Posterior], cells: list[TableCell], requests: list[int], trace: TraceFacts
) -> list[TableCell]:
    """The order in which cells are chosen, the values of those before known each time."""
    left = dict(zip(map(_key, cells), cells, strict=True))
    known: list[TableCell] = []
    while left:
        candidates = tuple(
            Candidate(input_tokens=c.input_tokens, output_tokens=c.output_tokens, batch=c.batch, requests=n, cost_s=1.0)
            for c, n in zip(cells, requests, strict=True)
        )
        subject = Subject(engine="x", posterior=make(known), candidates=candidates, load_s=0.0)
        found = choose_next(trace, [subject], model="", gpu="", budget_s=len(cells), target=1e-9)
        following = next(one for one in found.cells if (one.input_tokens, one.output_tokens, one.batch) in left)
        known.append(left.pop((following.input_tokens, following.output_tokens, following.batch)))
    return known


def _joules(order: list[TableCell], cells: list[TableCell], requests: list[int]) -> list[float]:
    """Shares of the trace's joules in the bins of `order`: without a model those of the others are not known."""
    joules = {_key(cell): cell.energy_j * count for cell, count in zip(cells, requests, strict=True)}
    return [joules[_key(cell)] / sum(joules.values()) for cell in order]


def _follow(
    make: Callable[[list[TableCell]], Posterior], order: list[TableCell], cells: list[TableCell], requests: list[int]
) -> list[Step]:
    places = np.array([_key(cell) for cell in cells], dtype=float)
    weights = np.array(requests, dtype=float)
    truth = float(weights @ np.array([cell.energy_j for cell in cells]))
    steps = []
    for count in range(len(order) + 1):
        posterior = make(order[:count])
        energy_j = weights * posterior.at(places).energy_j
        share = energy_j / energy_j.sum()
        variance = share @ posterior.covariance(places)[: len(cells), : len(cells)] @ share
        half = float(np.expm1(posterior.half_width * np.sqrt(max(0.0, variance))))
        steps.append(Step(half, float(energy_j.sum() / truth - 1)))
    return steps


def _key(cell: TableCell) -> tuple[int, int, int]:
    return cell.input_tokens, cell.output_tokens, cell.batch


if __name__ == "__main__":
    main()
