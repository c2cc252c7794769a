"""The physical model given cells: it returns to its prior, follows what was measured, and knows how far it may be off."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from infergy.energy.cell_model import CACHE_TRAFFIC, CellModel, Server
from infergy.energy.demand import decode_demand, prefill_demand
from infergy.energy.load import load_table
from infergy.energy.physics import Chips, Physics
from infergy.energy.posterior import NORMAL_90, Posterior
from infergy.energy.table import EnergyTable, TableCell
from infergy.hardware.gpus import get_gpu
from infergy.hardware.models import get_model

LLAMA, H200 = get_model("llama-3.1-8b"), get_gpu("h200")
VLLM = Server(shape=LLAMA, gpu=H200)
EAGER = Server(shape=LLAMA, gpu=H200, engine="transformers", has_graphs=False)
PLACES = np.array([[i, o, b] for i in (32.0, 512.0, 4096.0) for o in (8.0, 64.0, 512.0) for b in (1.0, 16.0, 64.0)])


def cell(place: Any, energy_j: float, duration_s: float, **others: Any) -> TableCell:
    known = {"doubt": 0.01, "spread": None, "repetitions": 1, "cell_id": "x", "batch_choice": "given", "source": "test"}
    return TableCell(
        input_tokens=int(place[0]),
        output_tokens=int(place[1]),
        batch=int(place[2]),
        energy_j=energy_j,
        duration_s=duration_s,
        **{"rank": 0, **known, **others},
    )


def cells_of(server: Server, physics: Physics, places: Any, noise: float = 0.0, seed: int = 0) -> list[TableCell]:
    """Cells that measure a GPU whose constants are known."""
    found = CellModel(server, places).requests(physics)
    drawn = np.random.default_rng(seed).normal(0.0, noise, len(places)) if noise else np.zeros(len(places))
    return [
        cell(place, float(joules * np.exp(off)), float(seconds))
        for place, joules, seconds, off in zip(places, found.energy_j, found.seconds, drawn, strict=True)
    ]


@pytest.fixture(scope="module")
def shipped() -> EnergyTable:
    return load_table(with_shipped=True)


def test_a_request_costs_a_prefill_and_a_step_for_each_further_token() -> None:
    found = CellModel(VLLM, np.array([[512.0, 64.0, 8.0]])).requests(Physics())
    chips, batch = Chips.of([H200], ["bfloat16"]), np.array([8.0])
    prefill = Physics().passes(prefill_demand(LLAMA, batch, np.array([512.0])), chips)
    step = Physics().passes(decode_demand(LLAMA, batch, np.array([544.0])), chips)
    assert found.energy_j == pytest.approx((prefill.energy_j + 63 * step.energy_j) / 8)
    assert found.seconds == pytest.approx((prefill.seconds + 63 * step.seconds) / 8)


def test_many_constants_at_once_are_each_of_them_alone() -> None:
    model = CellModel(EAGER, PLACES)
    factors = np.random.default_rng(0).normal(0, 0.3, (5, len(EAGER.constants)))
    together = model.logs(factors, EAGER.constants)
    for one, told in zip(factors, together, strict=True):
        assert model.logs(one[None, :], EAGER.constants)[0] == pytest.approx(told)


def test_launches_without_graphs_run_ahead_of_the_gpu() -> None:
    busy = np.array([[8192.0, 2.0, 16.0]])
    graphs = CellModel(VLLM, busy)
    alone = Physics(values={"layer_s": 1e-9, "step_s": 1e-9, "sequence_s": 1e-9})
    assert graphs.requests(Physics(runs_ahead=True)).seconds == pytest.approx(graphs.requests(alone).seconds, rel=1e-3)
    assert graphs.requests(Physics()).seconds > graphs.requests(alone).seconds


def test_a_cache_that_grows_by_concatenation_moves_more_bytes() -> None:
    assert CACHE_TRAFFIC in [replace(one, spread=CACHE_TRAFFIC.spread) for one in EAGER.constants]
    assert "cache_traffic" not in {one.name for one in VLLM.constants}
    long = CellModel(EAGER, np.array([[4096.0, 512.0, 16.0]]))
    assert long.requests(Physics(), 3.0).energy_j > long.requests(Physics(), 1.0).energy_j


def test_without_a_cell_it_is_the_datasheet_and_says_how_little_that_is() -> None:
    found = Posterior(VLLM).at(PLACES)
    assert found.energy_j == pytest.approx(CellModel(VLLM, PLACES).requests(Physics()).energy_j)
    assert (found.spread > 0.15).all()


def test_cells_make_it_more_certain_everywhere_and_never_less() -> None:
    cells = cells_of(VLLM, Physics(), PLACES)
    before = Posterior(VLLM).at(PLACES).spread
    for count in (1, 2, 5, 12, 27):
        now = Posterior(VLLM, cells[:count]).at(PLACES).spread
        assert (now <= before + 1e-9).all()
        before = now
    assert before.max() < 0.02


def test_where_it_was_measured_it_is_what_was_measured() -> None:
    cells = [replace(one, energy_j=one.energy_j * 1.3) for one in cells_of(VLLM, Physics(), PLACES)]
    found = Posterior(VLLM, cells).at(PLACES)
    assert found.energy_j == pytest.approx([one.energy_j for one in cells], rel=0.01)
    assert found.duration_s == pytest.approx([one.duration_s for one in cells], rel=0.02)


def test_a_few_cells_find_another_gpus_constants() -> None:
    other = Physics(values={"weight_efficiency": 0.95, "base_share": 0.2, "byte_share": 0.6, "layer_s": 25e-6})
    truth = cells_of(VLLM, other, PLACES)
    measured = cells_of(VLLM, other, PLACES[[0, 4, 8, 14, 20, 26]], noise=0.003)
    wanted = np.array([one.energy_j for one in truth])

    def error(posterior: Posterior) -> float:
        return float(np.median(np.abs(np.log(posterior.at(PLACES).energy_j / wanted))))

    assert error(Posterior(VLLM)) > 0.02
    assert error(Posterior(VLLM, measured)) < 0.01


def test_the_better_ranked_of_two_measurements_of_a_cell_counts() -> None:
    good, bad = cell((512, 64, 8), 30.0, 0.05), cell((512, 64, 8), 90.0, 0.05, rank=1)
    assert Posterior(VLLM, [bad, good]).cells == (good,)


def on_chip(cells: list[TableCell], name: str, factor: float) -> list[TableCell]:
    return [replace(one, chips=(name,), energy_j=one.energy_j * factor) for one in cells]


def test_chips_that_differ_do_not_make_the_model_look_wrong() -> None:
    cells = cells_of(VLLM, Physics(), PLACES, noise=0.002)
    mixed = on_chip(cells[::2], "one", 1.0) + on_chip(cells[1::2], "other", 1.05)
    told, blind = Posterior(VLLM, mixed), Posterior(VLLM, [replace(one, chips=()) for one in mixed])
    assert told.half_width < 1.2 * NORMAL_90
    assert blind.half_width > 1.5 * NORMAL_90
    errors = [np.median([abs(one.error) for one in posterior.left_out]) for posterior in (told, blind)]
    assert errors[0] < 0.5 * errors[1]


def test_it_tells_of_the_chip_of_most_cells_of_the_best_ranked_file() -> None:
    cells = cells_of(VLLM, Physics(), PLACES, noise=0.002)
    truth = np.array([one.energy_j for one in cells])
    for few, many in (("a", "b"), ("b", "a")):
        posterior = Posterior(VLLM, on_chip(cells[:9], few, 1.0) + on_chip(cells[9:], many, 1.05))
        off = np.log(posterior.at(PLACES).energy_j / truth)
        assert np.median(off) == pytest.approx(np.log(1.05), abs=0.01)
    others = [replace(one, rank=1) for one in on_chip(cells[9:], "many", 1.05)]
    own = Posterior(VLLM, on_chip(cells[:9], "own", 1.0) + others)
    assert np.median(np.log(own.at(PLACES[:9]).energy_j / truth[:9])) == pytest.approx(0.0, abs=0.005)
    assert len(own.cells) == len(own.left_out) == 27


def test_shipped_cells_know_their_chips(shipped: EnergyTable) -> None:
    cells = shipped.find("h100-sxm", "llama-3.1-8b", "vllm").cells
    alone = {cell.chips for cell in cells if len(cell.chips) == 1}
    assert len(alone) == 11
    pairs = shipped.find("h100-sxm", "llama-3.1-8b", "vllm-tp2").cells
    assert {len(cell.chips) for cell in pairs} == {2}


def test_intervals_hold_what_cells_left_out_measured() -> None:
    inside = told = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        values = {one.name: one.value * float(np.exp(rng.normal(0, one.spread))) for one in VLLM.constants}
        cells = cells_of(VLLM, Physics(values=values), PLACES, noise=0.005, seed=seed)
        chosen = set(rng.permutation(len(cells))[:6].tolist())
        posterior = Posterior(VLLM, [one for place, one in enumerate(cells) if place in chosen])
        rest = [place for place in range(len(cells)) if place not in chosen]
        found = posterior.at(PLACES[rest])
        off = np.abs(np.log(found.energy_j / np.array([cells[place].energy_j for place in rest])))
        inside += int((off <= posterior.half_width * np.hypot(found.spread, 0.005)).sum())
        told += len(rest)
    assert inside / told > 0.85


def test_a_wrong_model_makes_its_own_intervals_wider() -> None:
    rng = np.random.default_rng(1)
    honest = cells_of(VLLM, Physics(), PLACES)
    wild = [replace(one, energy_j=one.energy_j * float(np.exp(rng.normal(0, 0.5)))) for one in honest]
    assert Posterior(VLLM, honest).half_width == NORMAL_90
    assert Posterior(VLLM, wild).half_width > 2 * NORMAL_90


def test_a_cell_left_out_is_what_a_model_without_it_says() -> None:
    cells = cells_of(VLLM, Physics(values={"base_share": 0.3}), PLACES, noise=0.03)
    whole = Posterior(VLLM, cells)
    for place in (0, 13, 26):
        others = Posterior(VLLM, [*cells[:place], *cells[place + 1 :]])
        alone = float(np.log(others.at(PLACES[[place]]).energy_j[0] / cells[place].energy_j))
        # The closed form keeps the constants where all cells put them, where the model is made linear.
        assert whole.left_out[place].error == pytest.approx(alone, abs=0.005)


@pytest.mark.parametrize(("label", "median", "most"), [("vllm", 0.01, 0.1), ("transformers", 0.02, 0.1)])
def test_each_shipped_cell_is_told_by_the_others(shipped: EnergyTable, label: str, median: float, most: float) -> None:
    setup = shipped.find("h200", "llama-3.1-8b", label)
    posterior = Posterior(VLLM if label == "vllm" else EAGER, setup.cells)
    errors = np.abs([one.error for one in posterior.left_out])
    assert len(errors) >= 45
    assert np.median(errors) < median
    assert errors.max() < most
    inside = [abs(one.standardised) <= posterior.half_width for one in posterior.left_out]
    assert np.mean(inside) >= 0.85
