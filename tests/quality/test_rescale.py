"""A table for another chip: joules times a known factor, raw facts as they were, and the factor's interval in all."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from infergy.estimates.build import entries_of_rows
from infergy.quality.compare import compare
from infergy.quality.phases import find_phases
from infergy.quality.rescale import rescale
from infergy.records import Failure, GpuIdentity, Measurement, Result, derive, result_of
from infergy.records.check import check_rows, net_energy_j
from infergy.records.store import read_store
from infergy.records.uncertainty import find_uncertainties
from known_tables import power_law, rows_of, two_engines, with_environment, write_store
from raising import raises
from rows import build_row

HERE = GpuIdentity(uuid="GPU-here", name="NVIDIA H200")
CONTROL_CELLS = (32, 128, 512)
MARKED = (0.99, 1.0, 1.01)
"""How far the ratios of the three controls scatter."""


def here(scale: float, *, scatter: Sequence[float] = MARKED, gpu: GpuIdentity = HERE) -> list[Measurement]:
    """Three cells of the table, measured on another chip that takes `scale` times the joules."""
    return [
        with_environment(row, gpus=(gpu,))
        for i, factor in zip(CONTROL_CELLS, scatter, strict=True)
        for row in slower(power_law, i, scale * factor)
    ]


def slower(law: Any, i: int, scale: float) -> list[Measurement]:
    """One cell at `scale` times the joules in the same seconds."""
    joules, seconds = law(i, 8) * 16 * scale, law(i, 8) * 16 / 100
    return [build_row(input_tokens=i, output_tokens=8, batch=16, energy_j=joules, duration_s=seconds)]


def changes(before: Any, after: Any, factor: float) -> bool:
    """Whether a figure, or each of several, has changed by `factor`."""
    if before is None or isinstance(before, dict):
        before, after = before or {}, after or {}
        return bool({key: pytest.approx(value * factor) for key, value in before.items()} == after)
    return bool(after == pytest.approx(before * factor))


def facts(row: Measurement) -> Measurement:
    """All of a row but what rescaling may change."""
    return replace(row, rescaled=None, result=None)


def test_joules_are_multiplied_by_the_ratio_and_each_row_says_so() -> None:
    table = rows_of()
    made = rescale(table, here(1.10))
    (_, mark), factor = made.factors[0], 1.10 * (0.99 * 1.01) ** (1 / 3)
    assert mark.factor == pytest.approx(factor)
    assert mark.low < factor < mark.high
    assert mark.chips == ("GPU-here",)
    assert len(mark.cells) == 3
    for was, now in zip(table, made.rows, strict=True):
        assert now.rescaled == mark
        before, after = result_of(was), result_of(now)
        assert now.result == after
        for name in (field.name for field in fields(Result)):
            is_scaled = name.endswith(("_j", "_w"))
            assert changes(getattr(before, name), getattr(after, name), factor if is_scaled else 1.0), name
        above_idle = [net_energy_j(row) for row in (was, now)]
        assert above_idle[0] is not None
        assert above_idle[1] == pytest.approx(above_idle[0] * factor)


def test_raw_facts_are_written_and_read_again_as_they_were_measured(tmp_path: Path) -> None:
    table = rows_of()
    path = write_store(tmp_path / "rescaled.jsonl", rescale(table, here(1.10)).rows)
    read = read_store(path).rows
    assert [facts(row) for row in read] == [facts(row) for row in table]
    for was, now in zip(table, read, strict=True):
        assert was.loaded_idle is not None
        assert now.loaded_idle is not None
        assert derive(now.windows, now.loaded_idle) == derive(was.windows, was.loaded_idle)


def test_the_interval_of_the_factor_widens_that_of_each_row_around_the_scaled_joules() -> None:
    table = rows_of()
    made = rescale(table, here(1.10))
    _, mark = made.factors[0]
    assert mark.half_width > 0.02
    for row, was, now in zip(made.rows, find_uncertainties(table), find_uncertainties(made.rows), strict=True):
        assert was is not None
        assert now is not None
        assert now.half_width == pytest.approx(math.hypot(was.half_width, mark.half_width))
        assert now.low_j < result_of(row).energy_j < now.high_j
        assert (now.low_j + now.high_j) / (was.low_j + was.high_j) == pytest.approx(mark.factor)


def test_an_entry_of_a_table_takes_the_scaled_energy_and_its_uncertainty(tmp_path: Path) -> None:
    made = rescale(rows_of(), here(1.10))
    _, mark = made.factors[0]
    plain, scaled = (
        entries_of_rows([write_store(tmp_path / name, rows)], {})[0]
        for name, rows in (("plain.jsonl", rows_of()), ("rescaled.jsonl", made.rows))
    )
    for was, now in zip(plain, scaled, strict=True):
        assert now.energy_j == pytest.approx(was.energy_j * mark.factor)
        assert now.duration_s == was.duration_s
        assert now.energy_sd >= mark.half_width / 1.96
        assert now.energy_sd > was.energy_sd


def test_against_the_gpu_it_stands_for_a_rescaled_table_does_not_differ() -> None:
    found = compare(rescale(rows_of(), here(1.10)).rows, here(1.10))
    assert found.overall.value == pytest.approx(1.0)
    assert not found.overall.is_significant
    assert not any(cell.ratio.is_significant for cell in found.cells)
    assert any(difference.startswith("rescaling: × 1.1") for difference in found.differences)


def test_that_a_row_was_rescaled_is_a_fact_of_it() -> None:
    for row in check_rows(rescale(rows_of(), here(1.10)).rows):
        assert row.flags == ()
        assert row.facts is not None
        assert row.facts.rescaled is not None
        assert row.facts.rescaled.startswith("× 1.1000 (")
    assert all(row.facts is not None and row.facts.rescaled is None for row in check_rows(rows_of()))


def test_each_set_up_has_its_own_factor_and_those_not_measured_again_are_left_out() -> None:
    table = two_engines()
    made = rescale(table, here(1.10))
    assert {row.cell.setup.engine for row in made.rows} == {"vllm"}
    assert made.left_out == len(table) - len(made.rows) == len(rows_of())
    others = [
        with_environment(row, gpus=(HERE,))
        for i, factor in zip(CONTROL_CELLS, MARKED, strict=True)
        for row in rows_of(engine="transformers", inputs=[i], outputs=[8], scale=2.0 * 0.9 * factor)
    ]
    both = dict(rescale(table, [*here(1.10), *others]).factors)
    assert {setup.engine: round(mark.factor, 1) for setup, mark in both.items()} == {"vllm": 1.1, "transformers": 0.9}


def test_failed_rows_stay_as_they_are() -> None:
    failure = Failure(code="out_of_memory", message="no room")
    failed = replace(build_row(input_tokens=16), windows=(), result=None, status="failed", failure=failure)
    assert rescale([*rows_of(), failed], here(1.10)).rows[-1] == failed


def test_what_does_not_differ_is_not_rescaled_unless_forced() -> None:
    alike = here(1.001)
    with raises("no-difference"):
        rescale(rows_of(), alike)
    ((_, mark),) = rescale(rows_of(), alike, force=True).factors
    assert mark.low < 1 < mark.high


@pytest.mark.parametrize(
    ("gpu", "fields"),
    [
        (GpuIdentity(uuid="GPU-here", name="NVIDIA A100-SXM4-80GB"), {"fact": "GPU", "now": "NVIDIA H200"}),
        (
            GpuIdentity(uuid="GPU-here", name="NVIDIA H200", power_limit_w=350.0),
            {"fact": "power limit", "was": "350 W", "now": None},
        ),
    ],
)
def test_no_factor_holds_across_kinds_of_gpus_or_power_limits(gpu: GpuIdentity, fields: dict[str, object]) -> None:
    with raises("environments-differ", **fields):
        rescale(rows_of(), here(1.10, gpu=gpu), force=True)


def test_simulated_rows_tell_nothing_of_measured_ones() -> None:
    with raises("environments-differ", fact="simulated", was="True", now="False"):
        rescale(rows_of(), [replace(row, simulated=True) for row in here(1.10)], force=True)


def test_a_table_is_rescaled_once() -> None:
    made = rescale(rows_of(), here(1.10))
    with raises("rescaled"):
        rescale(made.rows, here(1.30), force=True)


def test_rows_of_several_chips_are_refused_on_either_side() -> None:
    other = GpuIdentity(uuid="GPU-third", name="NVIDIA H200")
    first, *rest = here(1.10)
    with raises("several-gpus", gpus=["GPU-here", "GPU-third"]):
        rescale(rows_of(), [with_environment(first, gpus=(other,)), *rest])
    table = rows_of()
    with raises("several-gpus"):
        rescale([with_environment(table[0], gpus=(other,)), *table[1:]], here(1.10))


def test_one_cell_whose_spread_is_unknown_gives_no_factor() -> None:
    lonely, other = (build_row(batches=1, duration_s=10.0, energy_j=energy_j) for energy_j in (1000.0, 1100.0))
    with raises("too-few-rows"):
        rescale([lonely], [with_environment(other, gpus=(HERE,))], force=True)


def test_a_cell_that_was_not_measured_again_is_no_anchor() -> None:
    table, controls = rows_of(), here(1.10)
    copied = next(row for row in table if row.cell_id == controls[0].cell_id)
    without = rescale(table, controls[1:]).factors
    assert rescale(table, [with_environment(copied, gpus=(HERE,)), *controls[1:]]).factors == without


def test_phases_are_not_told_of_a_rescaled_table() -> None:
    with raises("rescaled"):
        find_phases(rescale(rows_of(), here(1.10)).rows)
    assert find_phases(rows_of()).setups


def test_rows_of_other_cells_are_refused() -> None:
    with raises("no-common-cells"):
        rescale(rows_of(inputs=[2048]), here(1.10))


@pytest.mark.slow
def test_the_interval_is_that_of_a_cell_that_was_not_measured_again() -> None:
    """Three controls whose ratios scatter: another cell's lies in the interval 19 times in 20, their mean's narrower one
    would hold it 16 times only."""
    rng = random.Random(4)
    held = of_mean = 0
    for _ in range(400):
        factors = [math.exp(rng.gauss(0.1, 0.01)) for _ in range(4)]
        mark = rescale(two_engines(), here(1.0, scatter=factors[:3])).rows[-1].rescaled
        assert mark is not None
        held += mark.low <= factors[3] <= mark.high
        inner = [mark.factor * (edge / mark.factor) ** 0.5 for edge in (mark.low, mark.high)]
        of_mean += inner[0] <= factors[3] <= inner[1]
    assert 0.92 <= held / 400 <= 0.98
    assert of_mean / 400 < 0.9
