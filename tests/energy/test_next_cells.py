"""Which cells come next: those that cut most for their seconds, until the budget or the target is reached."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from infergy.energy.answer import TraceFacts
from infergy.energy.cell_model import CellModel, Server
from infergy.energy.next_cells import Candidate, NextCells, Subject, choose_next
from infergy.energy.physics import Physics
from infergy.energy.posterior import Posterior
from infergy.energy.table import TableCell
from infergy.hardware.gpus import get_gpu
from infergy.hardware.models import get_model

SERVER = Server(shape=get_model("llama-3.1-8b"), gpu=get_gpu("h200"))
TRACE = TraceFacts(
    source="test",
    requests=1,
    input_tokens=1,
    output_tokens=1,
    cached_input_tokens=0,
    failed_requests=0,
    left_out_requests=0,
)
CANDIDATES = tuple(
    Candidate(input_tokens=i, output_tokens=o, batch=16, requests=n, cost_s=10.0)
    for i, o, n in ((128, 8, 5), (512, 64, 100), (2048, 64, 300), (4096, 512, 200), (8192, 8, 50))
)


def choose(
    *subjects: Subject, budget_s: float = 1e6, target: float = 1e-6, candidates: tuple[Candidate, ...] = CANDIDATES
) -> NextCells:
    known = subjects or (Subject(engine="vllm", posterior=Posterior(SERVER), candidates=candidates, load_s=0.0),)
    return choose_next(TRACE, known, model="llama-3.1-8b", gpu="h200", budget_s=budget_s, target=target)


def measured(candidates: tuple[Candidate, ...]) -> list[TableCell]:
    places = np.array([[one.input_tokens, one.output_tokens, one.batch] for one in candidates], dtype=float)
    found = CellModel(SERVER, places).requests(Physics())
    return [
        TableCell(
            input_tokens=one.input_tokens,
            output_tokens=one.output_tokens,
            batch=one.batch,
            energy_j=float(joules),
            duration_s=float(seconds),
            doubt=0.0157,
            spread=None,
            repetitions=1,
            cell_id="x",
            batch_choice="given",
            source="test",
            rank=0,
        )
        for one, joules, seconds in zip(candidates, found.energy_j, found.seconds, strict=True)
    ]


def test_each_cell_narrows_the_interval_until_all_are_measured() -> None:
    found = choose()
    widths = [found.engines[0].half_width, *(one.half_width for one in found.cells)]
    assert len(found.cells) == len(CANDIDATES)
    assert all(later < earlier for earlier, later in pairwise(widths))
    assert found.stopped == "no bin is left to measure"


def test_the_first_cell_is_the_one_that_leaves_the_least() -> None:
    assert choose().cells[0].half_width == pytest.approx(min(map(choose_after, CANDIDATES)), rel=0.05)


def choose_after(one: Candidate) -> float:
    """The interval once `one` is really measured, as the datasheet says it would come out."""
    posterior = Posterior(SERVER, measured((one,)))
    subject = Subject(engine="vllm", posterior=posterior, candidates=CANDIDATES, load_s=0.0)
    return choose(subject, budget_s=0.0).engines[0].half_width


def test_what_it_foretells_is_what_measuring_leaves() -> None:
    found = choose(budget_s=20.0)
    chosen = tuple(
        next(c for c in CANDIDATES if (c.input_tokens, c.output_tokens) == (one.input_tokens, one.output_tokens))
        for one in found.cells
    )
    posterior = Posterior(SERVER, measured(chosen))
    after = choose(Subject(engine="vllm", posterior=posterior, candidates=CANDIDATES, load_s=0.0), budget_s=0.0)
    assert len(chosen) == 2
    assert after.engines[0].half_width == pytest.approx(found.engines[0].half_width_after, rel=0.1)


def test_the_budget_is_kept_and_loading_counts_once() -> None:
    subject = Subject(engine="vllm", posterior=Posterior(SERVER), candidates=CANDIDATES, load_s=100.0)
    found = choose(subject, budget_s=125.0)
    assert [one.cost_s for one in found.cells] == [110.0, 10.0]
    assert found.cost_s == 120.0
    assert found.stopped == "the budget takes no further cell"
    assert choose(subject, budget_s=105.0).cells == ()


def test_it_stops_at_the_target() -> None:
    found = choose(target=0.05)
    assert 0 < len(found.cells) < len(CANDIDATES)
    assert found.engines[0].half_width_after <= 0.05
    assert found.stopped == "every interval is within ± 5.00%"


def test_a_cheap_cell_that_tells_nearly_as_much_comes_first() -> None:
    dear = choose().cells[0]
    candidates = tuple(
        Candidate(
            input_tokens=one.input_tokens,
            output_tokens=one.output_tokens,
            batch=one.batch,
            requests=one.requests,
            cost_s=1000.0 if (one.input_tokens, one.output_tokens) == (dear.input_tokens, dear.output_tokens) else 1.0,
        )
        for one in CANDIDATES
    )
    assert choose(candidates=candidates).cells[0].cost_s == 1.0


def test_of_two_engines_the_less_certain_one_is_measured() -> None:
    sure = Subject(engine="sure", posterior=Posterior(SERVER, measured(CANDIDATES)), candidates=CANDIDATES, load_s=0.0)
    unsure = Subject(engine="unsure", posterior=Posterior(SERVER), candidates=CANDIDATES, load_s=0.0)
    found = choose(sure, unsure, target=0.02)
    assert {one.engine for one in found.cells} == {"unsure"}
    assert [one.measured for one in found.engines] == [len(CANDIDATES), 0]
