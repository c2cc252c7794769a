"""Prefill and decode apart: against phases that are known, with intervals that hold them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from infergy.catalog import get_gpu, get_model, model_config
from infergy.engines.simulated_engine import SimulatedEngine
from infergy.measure.cell import measure_cell, measure_idle
from infergy.measure.environment import Surroundings
from infergy.measure.planner import Planner
from infergy.meters.simulated import SimulatedGpu, SimulatedMeter
from infergy.quality.phase_regression import DECODE, PREFILL, TERMS, Observed, Regression, fit_phases
from infergy.quality.phases import CellPhases, Joules, SetupPhases, find_phases
from infergy.records import Cell, EngineSetup, Environment, GpuIdentity, Load, Measurement, MeasureOptions, PlannedCell
from infergy.records.store import read_store, shipped_store
from raising import raises
from rows import build_row
from simulated_truth import truth_of

KNOWN = (6.0, 0.016, 3e-7, 2.5, 0.015, 2.4e-5)
"""Coefficients as those of vLLM on an H200."""

LOADS = tuple(
    Load(input_tokens=i, output_tokens=o, batch=b)
    for i in (32, 512, 2048, 8192)
    for o in (8, 64, 512)
    for b in ((1, 16) if i > 512 else (8, 128, 256))
)


def law_j(load: Load, coefficients: Sequence[float] = KNOWN, phase: str | None = None) -> float:
    return sum(
        value * term.count(load) for value, term in zip(coefficients, TERMS, strict=True) if phase in (None, term.phase)
    )


def observe(rng: random.Random, sd: float, loads: Sequence[Load] = LOADS, told: float | None = 0.01) -> list[Observed]:
    return [
        Observed(load=load, energy_j=law_j(load) * (1 + rng.gauss(0, sd)), error=told if told is None else sd)
        for load in loads
    ]


def rows_of(loads: Sequence[Load], coefficients: Sequence[float] = KNOWN, **others: Any) -> list[Measurement]:
    return [
        build_row(
            input_tokens=load.input_tokens,
            output_tokens=load.output_tokens,
            batch=load.batch,
            energy_j=law_j(load, coefficients),
            duration_s=law_j(load, coefficients) / 500,
            **others,
        )
        for load in loads
    ]


def only(rows: Sequence[Measurement]) -> SetupPhases:
    (setup,) = find_phases(rows).setups
    return setup


def cell_of(setup: SetupPhases, output_tokens: int) -> CellPhases:
    (found,) = [cell for cell in setup.cells if cell.output_tokens == output_tokens]
    return found


def holds(joules: Joules, truth_j: float) -> bool:
    assert joules.low_j is not None
    assert joules.high_j is not None
    return joules.low_j <= truth_j <= joules.high_j


def law_holds(law: Regression, load: Load, phase: str) -> bool:
    value, half = law.phase_j(load, phase)
    return abs(value - law_j(load, phase=phase)) <= half


# By fit.


def test_without_noise_the_law_is_found_again() -> None:
    law = fit_phases([Observed(load=load, energy_j=law_j(load), error=0.001) for load in LOADS])
    assert law.values_j == pytest.approx(KNOWN, rel=1e-6)
    assert law.dropped == ()
    assert law.mixed is None
    assert law.error == 0.0
    assert law.phase_j(LOADS[0], DECODE)[0] == pytest.approx(law_j(LOADS[0], phase=DECODE))


@pytest.mark.parametrize("told", [0.01, None], ids=["error told", "error unknown"])
def test_intervals_of_coefficients_and_phases_hold_the_truth_nineteen_times_in_twenty(told: float | None) -> None:
    rng = random.Random(11)
    tables = 300
    coefficients = np.zeros(len(TERMS))
    phases = dict.fromkeys((PREFILL, DECODE), 0)
    for _ in range(tables):
        law = fit_phases(observe(rng, 0.01, told=told))
        for place, truth in enumerate(KNOWN):
            value, half = law.coefficient_j(place)
            coefficients[place] += abs(value - truth) <= half
        for phase in phases:
            phases[phase] += law_holds(law, LOADS[7], phase)
    assert (coefficients >= tables * 0.92).all(), coefficients
    assert (coefficients <= tables * 0.99).all(), coefficients
    assert all(tables * 0.92 <= found for found in phases.values()), phases


def test_what_the_law_misses_beyond_the_spread_of_the_cells_is_told_and_widens_the_intervals() -> None:
    rng = random.Random(12)
    cells = observe(rng, 0.04)
    spread, doubted = fit_phases(cells), fit_phases([replace(one, error=0.001) for one in cells])
    assert spread.error < 0.02
    assert doubted.error == pytest.approx(0.04, rel=0.35)
    assert doubted.phase_j(LOADS[0], PREFILL)[1] > 10 * 0.001 * law_j(LOADS[0], phase=PREFILL)


def test_uncertain_cells_weigh_less() -> None:
    rng = random.Random(13)
    good = observe(rng, 0.001)
    wild = [Observed(load=load, energy_j=3 * law_j(load), error=1.5) for load in LOADS[:4]]
    law = fit_phases([*good, *wild])
    assert law.values_j[1] == pytest.approx(KNOWN[1], rel=0.01)


def test_terms_that_the_grid_cannot_tell_are_left_out_and_named() -> None:
    one_input = [Load(input_tokens=512, output_tokens=o, batch=b) for o in (1, 8, 64, 256) for b in (1, 8, 64)]
    law = fit_phases(observe(random.Random(1), 0.001, one_input))
    assert [one.name for one in law.dropped] == ["a2"]
    assert "a1 (B·I)" in law.dropped[0].reason
    assert law.mixed is None
    no_decode = [Load(input_tokens=i, output_tokens=1, batch=b) for i in (32, 512, 4096) for b in (1, 8, 64)]
    law = fit_phases(observe(random.Random(1), 0.001, no_decode))
    assert [one.name for one in law.dropped] == ["b0", "b1", "b2"]
    assert law.mixed is None


def test_phases_that_the_grid_mixes_are_not_told_by_fit() -> None:
    alike = [Load(input_tokens=512, output_tokens=64, batch=b) for b in (1, 2, 4, 8, 16, 32, 64, 128)]
    setup = only(rows_of(alike))
    assert setup.fit is not None
    assert setup.fit.mixed is not None
    assert "goes with" in setup.fit.mixed
    assert all(cell.fit is None and cell.residual is not None for cell in setup.cells)


def test_few_cells_have_no_fit_and_the_reason_says_how_many_are_needed() -> None:
    setup = only(rows_of(LOADS[:7]))
    assert setup.fit is None
    assert setup.fit_missing == "7 cells; 6 terms need 8 or more: measure more of them"


def test_residuals_are_those_of_the_law_and_the_worst_is_named() -> None:
    rows = rows_of(LOADS)
    off = build_row(
        input_tokens=512,
        output_tokens=300,
        batch=8,
        energy_j=1.5 * law_j(Load(input_tokens=512, output_tokens=300, batch=8)),
    )
    setup = only([*rows, off])
    assert setup.fit is not None
    assert setup.fit.worst_cell.endswith("512→300 × 8")
    assert setup.fit.worst_residual == pytest.approx(cell_of(setup, 300).residual)
    assert -0.4 < setup.fit.worst_residual < -0.2
    for cell in setup.cells:
        assert cell.fit is not None
        total_j = cell.fit.prefill.value_j + cell.fit.decode.value_j
        assert cell.residual == pytest.approx(total_j / cell.energy_j - 1)


def test_a_negative_coefficient_is_kept_and_flagged() -> None:
    setup = only(rows_of(LOADS, (6.0, 0.016, 3e-7, 2.5, 0.015, -1e-6)))
    assert setup.fit is not None
    (flag,) = setup.fit.flags
    assert flag.code == "negative-phase"
    assert "b2 (B·S·(I + O/2)) is -1e-06 J" in flag.reason
    assert "its interval ends at -" in flag.reason
    assert setup.fit.coefficients[-1].joules.value_j == pytest.approx(-1e-6, rel=1e-3)


# By pair.


def pair_of(whole_j: float, prefill_j: float, **others: Any) -> CellPhases:
    rows = [
        build_row(output_tokens=64, energy_j=whole_j, **others),
        build_row(output_tokens=1, energy_j=prefill_j, **others),
    ]
    return cell_of(only(rows), 64)


def test_decode_is_what_a_cell_takes_beyond_its_pair() -> None:
    found = pair_of(1000.0, 300.0).pair
    assert found is not None
    assert found.prefill.value_j == pytest.approx(300.0)
    assert found.decode.value_j == pytest.approx(700.0)
    assert found.decode_token is not None
    assert found.decode_token.value_j == pytest.approx(700.0 / (8 * 63))
    assert found.decode_share == pytest.approx(0.7)
    assert found.flags == ()
    # Each cell's own error, and no less than the larger of them.
    assert found.decode.low_j is not None
    assert found.prefill.low_j is not None
    assert 700.0 - found.decode.low_j > 300.0 - found.prefill.low_j


def test_a_negative_phase_is_kept_and_flagged_never_clipped() -> None:
    found = pair_of(300.0, 400.0).pair
    assert found is not None
    assert found.decode.value_j == pytest.approx(-100.0)
    assert found.decode_token is not None
    assert found.decode_token.value_j < 0
    (flag,) = found.flags
    assert flag.code == "negative-phase"
    assert flag.reason.startswith("decode is -100 J, expected 0 or more; its interval ends at -")
    close = pair_of(400.0, 400.05).pair
    assert close is not None
    assert close.decode.value_j < 0
    assert close.flags == ()


def test_a_phase_of_unknown_spread_has_no_interval_and_if_negative_a_flag_that_says_so() -> None:
    found = pair_of(300.0, 400.0, batches=1, duration_s=10.0).pair
    assert found is not None
    assert found.decode.value_j == pytest.approx(-100.0)
    assert (found.decode.low_j, found.decode.high_j) == (None, None)
    assert "its interval is unknown" in found.flags[0].reason


def test_a_missing_pair_is_told_with_what_to_type() -> None:
    found = cell_of(only([build_row(output_tokens=64), build_row(output_tokens=1, batch=4)]), 64)
    assert found.pair is None
    assert found.pair_missing == "no cell 512→1 × 8 in the file: set paired = true in the grid's cells"
    alone = cell_of(only([build_row(output_tokens=1)]), 1)
    assert alone.pair_missing == "one output token: all of it is prefill"


def test_pairs_are_of_one_set_up_and_rows_of_a_cell_are_its_visits() -> None:
    rows = [
        build_row(output_tokens=64, energy_j=1000.0),
        build_row(output_tokens=1, energy_j=900.0, engine="transformers"),
    ]
    assert all(cell.pair is None for setup in find_phases(rows).setups for cell in setup.cells)
    twice = [*rows, build_row(output_tokens=1, energy_j=200.0), build_row(output_tokens=1, energy_j=250.0)]
    setup = find_phases(twice, label="vllm").setups[0]
    found = cell_of(setup, 64).pair
    assert found is not None
    assert found.prefill.value_j == pytest.approx(225.0)


def test_where_both_ways_answer_their_difference_is_told() -> None:
    loads = [*LOADS, Load(input_tokens=512, output_tokens=1, batch=128)]
    setup = only(rows_of(loads))
    (cell,) = [one for one in setup.cells if (one.input_tokens, one.output_tokens, one.batch) == (512, 64, 128)]
    assert cell.pair is not None
    assert cell.fit is not None
    assert cell.prefill_difference_j == pytest.approx(cell.fit.prefill.value_j - cell.pair.prefill.value_j)
    assert cell.decode_difference_j == pytest.approx(cell.fit.decode.value_j - cell.pair.decode.value_j)
    assert cell.decode_difference_j is not None
    assert abs(cell.decode_difference_j) < 0.01 * cell.energy_j
    others = [one for one in setup.cells if one.pair is None]
    assert all(one.decode_difference_j is None for one in others)


class Flicker:
    """A simulated GPU whose power is never quite the same twice, in the mean what it was asked for."""

    def __init__(self, gpu: SimulatedGpu, rng: random.Random, sd: float) -> None:
        self._gpu, self._rng, self._sd = gpu, rng, sd

    def advance(self, seconds: float, power_w: float) -> None:
        self._gpu.advance(seconds, power_w * (1 + self._rng.gauss(0, self._sd)))


def measure_pair(seed: int, load: Load) -> CellPhases:
    """A cell and its pair on one simulated GPU, as the worker measures them."""
    rng = random.Random(seed)
    identity = GpuIdentity(uuid="GPU-a", name="simulated")
    gpu = SimulatedGpu(identity, idle_w=147.0, phase_s=rng.uniform(0.001, 0.1))
    meter = SimulatedMeter(gpu)
    environment = Environment(
        infergy="0",
        python="3",
        platform="test",
        cpu=None,
        gpus=(identity,),
        driver=None,
        cuda=None,
        meter="simulated",
        scope="gpu-board",
        counter_period_s=0.1,
        weights="none",
    )
    surroundings = Surroundings(environment=environment, vocabulary=1000, is_simulated=True)
    setup = EngineSetup(engine="vllm", model="llama-3.1-8b")
    engine: Any = SimulatedEngine(Flicker(gpu, rng, 0.05), get_gpu("h200"))  # type: ignore[arg-type]
    session = engine.open(setup, model_config("llama-3.1-8b"), 0)
    idle = measure_idle(meter, 5.0)
    rows = [
        measure_cell(
            session,
            meter,
            PlannedCell(
                cell=Cell(setup=setup, load=replace(load, output_tokens=outputs)),
                batch_choice="given",
                forecast_prefill_s=0.1,
                forecast_batch_s=1.0,
            ),
            # Long windows: their idle tail, which draws idle power here and nothing between, weighs little.
            MeasureOptions(min_window_s=10.0, max_time_s=120.0),
            surroundings,
            idle,
        )
        for outputs in (1, load.output_tokens)
    ]
    return cell_of(only(rows), load.output_tokens)


@pytest.mark.slow
def test_intervals_of_pairs_hold_the_true_phases_of_the_simulated_gpu_nineteen_times_in_twenty() -> None:
    load = Load(input_tokens=4096, output_tokens=64, batch=8)
    truth = truth_of(4096, 64, 8)
    runs = 200
    prefill = decode = wide = 0
    for seed in range(runs):
        found = measure_pair(seed, load).pair
        assert found is not None
        prefill += holds(found.prefill, truth.prefill_energy_j)
        decode += holds(found.decode, truth.decode_energy_j)
        wide += found.decode.high_j is not None and found.decode.high_j > 1.2 * truth.decode_energy_j
    assert runs * 0.9 <= prefill <= runs * 0.99
    assert runs * 0.9 <= decode <= runs * 0.99
    # Not by being wide: the difference of two cells, each certain to ± 2 %.
    assert wide < runs * 0.05


# What ships.


def test_the_shipped_table_is_explained_and_agrees_with_what_its_hardware_should_take() -> None:
    """The cost model splits a batch into steps, the regression into two phases: both must agree."""
    rows = read_store(shipped_store()).rows
    setup = next(one for one in find_phases(rows, label="vllm").setups if one.fit is not None)
    assert setup.fit is not None
    assert setup.fit.rows == 45
    assert setup.fit.r2 > 0.99
    assert setup.fit.median_residual < 0.015
    assert abs(setup.fit.worst_residual) < 0.07
    assert setup.fit.flags == ()
    planner = Planner(EngineSetup(engine="vllm", model="llama-3.1-8b"), get_model("llama-3.1-8b"), get_gpu("h200"))
    for cell in setup.cells:
        if cell.batch < 8:
            continue
        whole_j, prefill_j = (
            planner.forecast([(cell.input_tokens, output)] * cell.batch).batch_j for output in (cell.output_tokens, 1)
        )
        assert cell.fit is not None
        assert cell.fit.prefill.value_j == pytest.approx(prefill_j, rel=0.12 if cell.input_tokens < 64 else 0.07)
        # Of a few tokens after long prompts decode is a small part, and hardly to be seen.
        assert cell.fit.decode.value_j == pytest.approx(whole_j - prefill_j, rel=0.05, abs=0.07 * whole_j)


def test_rows_without_a_measured_cell_and_unknown_set_ups_are_told() -> None:
    with raises("no-rows", path="mine.jsonl"):
        find_phases([], file="mine.jsonl")
    with raises("unknown-name", kind="engine of the table", name="vlm", nearest=["vllm"]):
        find_phases([build_row()], label="vlm")


def test_a_pair_of_another_environment_or_of_pretended_joules_is_none() -> None:
    whole, prefill = rows_of([Load(input_tokens=512, output_tokens=one, batch=8) for one in (64, 1)])
    assert cell_of(only([whole, prefill]), 64).pair is not None
    driver = replace(prefill, environment=replace(prefill.environment, driver="9"))
    for other in (driver, replace(prefill, simulated=True)):
        apart = [cell for setup in find_phases([whole, other]).setups for cell in setup.cells]
        assert all(cell.pair is None for cell in apart if cell.output_tokens == 64)
