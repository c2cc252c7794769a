"""Estimates: the sum over bins, its brackets, what it is compared with, and where it comes from."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infergy.energy.answer import Estimate
from infergy.energy.estimate import estimate
from infergy.energy.load import load_table
from infergy.energy.options import METHODS
from infergy.energy.table import EnergyTable
from infergy.errors import DataError, UsageError
from infergy.hardware import get_gpu, get_model
from infergy.measure.grid import make_plan, parse_grid
from infergy.measure.sweep import sweep
from infergy.records import Decoding, GpuIdentity, Measurement
from infergy.workload import Bins
from known_tables import (
    BATCH,
    histogram_of,
    linear_law,
    power_law,
    rows_of,
    table_of,
    two_engines,
    with_environment,
    write_store,
)
from rows import build_row, spread_over

GRID = Bins.powers_of_two(16384, 2048)
FULL = ["transformers", "vllm"]
"""Shipped set-ups that were measured at many lengths."""
LENGTHS = st.lists(st.tuples(st.integers(1, 16384), st.integers(1, 2048)), min_size=1, max_size=30)


@pytest.fixture(scope="module")
def shipped() -> EnergyTable:
    return load_table(with_shipped=True)


@pytest.fixture
def table(tmp_path: Path) -> EnergyTable:
    return table_of(tmp_path, two_engines())


def only(source: Any, table: EnergyTable, **options: Any) -> Estimate:
    return estimate(source, tables=table, engines=["vllm"], **options).of("vllm")


TWO = {"GPU-test-0": 0.4, "GPU-test-1": 0.6}
ONE = [(512, 64)]


def only_of(engine: str, source: Any, table: EnergyTable) -> Estimate:
    return estimate(source, tables=table, engines=[engine]).of(engine)


def test_a_measured_bin_costs_requests_over_batch_times_the_measured_batch(table: EnergyTable) -> None:
    found = only(histogram_of([(512, 64)] * 1000), table)
    energy_j = 1000 / BATCH * (BATCH * power_law(512, 64))
    assert found.energy_j == pytest.approx(energy_j)
    assert found.duration_s == pytest.approx(energy_j / 100)
    assert (found.coverage, found.coverage_output_tokens) == (1.0, 1.0)
    assert (found.interpolated, found.extrapolated) == (0.0, 0.0)


def test_all_figures_follow_from_energy_time_and_tokens(table: EnergyTable) -> None:
    found = only(histogram_of([(512, 60)] * 1000), table)
    energy_j, duration_s = found.energy_j, found.duration_s
    assert energy_j is not None
    assert duration_s is not None
    assert found.energy_wh == pytest.approx(energy_j / 3600)
    assert found.gpu_hours == pytest.approx(duration_s / 3600)
    assert found.power_w == pytest.approx(energy_j / duration_s)
    assert found.energy_per_request_j == pytest.approx(energy_j / 1000)
    assert found.energy_per_output_token_j == pytest.approx(energy_j / 60_000)
    assert found.output_tokens_per_s == pytest.approx(60_000 / duration_s)
    assert found.tokens_per_s == pytest.approx(572_000 / duration_s)


def test_tensor_parallel_counts_the_time_of_each_gpu(tmp_path: Path) -> None:
    row = spread_over(build_row(energy_j=800.0, duration_s=4.0, batch=8), TWO)
    found = only_of("vllm-tp2", histogram_of([(512, 64)] * 8), table_of(tmp_path, [row]))
    assert found.gpus == 2
    assert found.energy_j == pytest.approx(800.0)
    assert found.duration_s == pytest.approx(8.0)
    assert found.gpu_hours == pytest.approx(8.0 / 3600)
    assert found.power_w == pytest.approx(100.0)
    assert found.output_tokens_per_s == pytest.approx(8 * 64 / 4.0)


def test_one_gpu_and_two_stand_beside_one_ideal_and_are_compared_by_all_their_joules(tmp_path: Path) -> None:
    histogram = histogram_of([(512, 64)] * 8)
    rows = [build_row(energy_j=600.0), spread_over(build_row(energy_j=900.0), TWO)]
    found = estimate(histogram, tables=table_of(tmp_path, rows), baseline="vllm")
    one, two = found.of("vllm"), found.of("vllm-tp2")
    # At the peak and TDP each of n GPUs takes an n-th of the time: the joules are the same.
    assert found.ideal is not None
    assert one.ideal_energy_j == two.ideal_energy_j == found.ideal.energy_j
    assert two.saving_vs_baseline == pytest.approx(1 - 900 / 600)
    assert two.provenance.sources[0].gpu_uuids == ("GPU-test-0", "GPU-test-1")


def test_two_gpus_are_two_chips_only_if_another_engine_ran_on_neither(tmp_path: Path) -> None:
    def noted(chip: str) -> bool:
        alone = with_environment(build_row(), gpus=(GpuIdentity(uuid=chip, name="NVIDIA H200"),))
        table = table_of(tmp_path, [alone, spread_over(build_row(), TWO)])
        return any("not all measured on one chip" in note for note in estimate(histogram_of(ONE), tables=table).notes)

    assert not noted("GPU-test-0")
    assert noted("GPU-test-2")


def test_a_row_that_holds_the_joules_of_too_few_gpus_is_refused(tmp_path: Path) -> None:
    row = spread_over(build_row(), TWO)
    counted_one = spread_over(build_row(), {"GPU-test-0": 1.0})
    with pytest.raises(DataError, match="the joules of 1 GPUs, its set-up works on 2"):
        table_of(tmp_path, [replace(counted_one, cell=row.cell, cell_id=row.cell_id)])


def test_simulated_rows_of_two_gpus_are_priced_when_asked_for(tmp_path: Path) -> None:
    grid = {
        "name": "two",
        "gpu": "h200",
        "model": "llama-3.1-8b",
        "engines": [{"engine": "vllm", "tensor_parallel": 2}],
        "cells": [{"input_tokens": [512], "output_tokens": [64], "batch": [32]}],
    }
    (event,) = [
        one for one in sweep(make_plan(parse_grid(grid, "test")), tmp_path / "two.jsonl", simulate=True) if one.row
    ]
    assert event.row is not None
    assert event.row.result is not None
    with pytest.raises(DataError, match="--allow-simulated"):
        load_table([tmp_path / "two.jsonl"])
    table = load_table([tmp_path / "two.jsonl"], allow_simulated=True)
    found = only_of("vllm-tp2", histogram_of([(512, 64)] * 32), table)
    assert found.energy_j == pytest.approx(sum(event.row.result.energy_by_gpu_j.values()))
    assert found.gpu_hours == pytest.approx(2 * event.row.result.duration_s / 3600)


def test_whole_batches_are_charged_when_asked_for(table: EnergyTable) -> None:
    one = histogram_of([(512, 64)])
    whole, fractional = only(one, table, rare="whole"), only(one, table)
    assert whole.energy_j == pytest.approx(BATCH * (fractional.energy_j or 0.0))
    assert "whole" in whole.provenance.rare_rule
    assert "ride along" in fractional.provenance.rare_rule


@settings(max_examples=30)
@given(LENGTHS, LENGTHS)
def test_disjoint_traces_add_up(shipped: EnergyTable, one: list[tuple[int, int]], other: list[tuple[int, int]]) -> None:
    def energies(pairs: list[tuple[int, int]]) -> float | None:
        return only(histogram_of(pairs, GRID), shipped).energy_j

    both, first, second = energies(one + other), energies(one), energies(other)
    assert both is not None
    assert first is not None
    assert second is not None
    assert both == pytest.approx(first + second)


@settings(max_examples=30)
@given(LENGTHS, st.sampled_from(METHODS), st.sampled_from(["fractional", "whole"]))
def test_an_estimate_lies_between_its_bounds(
    shipped: EnergyTable, pairs: list[tuple[int, int]], method: str, rare: str
) -> None:
    answer = estimate(histogram_of(pairs, GRID), tables=shipped, engines=FULL, method=method, rare=rare)
    for found in answer.estimates:
        assert found.low_j is not None
        assert found.energy_j is not None
        assert found.high_j is not None
        assert found.low_j <= found.energy_j <= found.high_j
        assert 0 <= found.coverage <= 1
        assert found.coverage + found.modelled + found.interpolated + found.extrapolated == pytest.approx(1)


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(33, 2048), st.integers(9, 512)), min_size=1, max_size=30))
def test_the_truth_lies_between_the_bounds_where_cells_surround_it(pairs: list[tuple[int, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        table = table_of(Path(folder), rows_of(linear_law))
    found = only(histogram_of(pairs, GRID), table)
    truth = sum(linear_law(i, o) for i, o in pairs)
    assert found.low_j is not None
    assert found.high_j is not None
    assert found.low_j <= truth <= found.high_j


def test_an_unmeasured_bin_is_modelled_marked_and_counted(table: EnergyTable) -> None:
    found = only(histogram_of([(512, 64)] * 3 + [(512, 128), (4096, 1024)]), table)
    assert (found.coverage, found.modelled, found.interpolated, found.extrapolated) == (0.6, 0.4, 0.0, 0.0)
    assert [b.how for b in found.bins] == ["measured", "modelled", "modelled"]
    assert found.energy_j is not None
    assert found.interval_low_j is not None
    assert found.interval_high_j is not None
    assert found.interval_low_j < found.energy_j < found.interval_high_j
    assert found.provenance.errors.modelled is not None
    assert found.provenance.errors.modelled.points == 12


def test_by_table_an_unmeasured_bin_is_interpolated_marked_and_counted(table: EnergyTable) -> None:
    found = only(histogram_of([(512, 64)] * 3 + [(512, 128)]), table, method="table")
    assert found.interval_low_j is None
    assert "curves" in (found.interval_reason or "")
    assert (found.coverage, found.interpolated, found.extrapolated) == (0.75, 0.25, 0.0)
    assert found.coverage_output_tokens == pytest.approx(3 * 64 / (3 * 64 + 128))
    assert [b.how for b in found.bins] == ["measured", "interpolated"]
    assert found.energy_j == pytest.approx(3 * power_law(512, 64) + power_law(512, 128))


def test_bins_beyond_the_measured_are_marked_extrapolated(table: EnergyTable) -> None:
    found = only(histogram_of([(4096, 1024)]), table, method="table")
    assert (found.coverage, found.modelled, found.interpolated, found.extrapolated) == (0.0, 0.0, 0.0, 1.0)


def test_one_measured_cell_prices_any_trace_more_certainly_than_none(tmp_path: Path) -> None:
    table = table_of(tmp_path, rows_of(inputs=[512], outputs=[64]))
    found = only(histogram_of([(2048, 512)]), table)
    assert (found.modelled, found.coverage) == (1.0, 0.0)
    assert found.energy_j is not None
    assert found.interval_high_j is not None
    assert found.provenance.errors.modelled is None, "one cell cannot be left out"
    assert any("error unknown" in note for note in estimate(histogram_of([(2048, 512)]), tables=table).notes)


def test_what_does_not_fit_the_memory_is_not_modelled(tmp_path: Path) -> None:
    found = only(histogram_of([(2_000_000, 64)]), table_of(tmp_path, rows_of()))
    assert (found.modelled, found.extrapolated) == (0.0, 1.0)


def test_where_the_model_does_not_apply_curves_do(tmp_path: Path) -> None:
    beams = Decoding(beams=4)
    rows = [
        replace(row, cell=(cell := replace(row.cell, load=replace(row.cell.load, decoding=beams))), cell_id=cell.id)
        for row in rows_of(engine="transformers")
    ]
    found = only_of("transformers-beam4", histogram_of([(512, 128)]), table_of(tmp_path, rows))
    assert (found.modelled, found.interpolated) == (0.0, 1.0)
    assert "does not apply" in (found.interval_reason or "")


def test_a_trace_that_no_cell_is_in_line_with_has_no_figures_but_reasons(tmp_path: Path) -> None:
    table = table_of(tmp_path, rows_of(inputs=[512], outputs=[64]))
    found = only(histogram_of([(2048, 512)]), table, method="table")
    assert found.energy_j is found.low_j is found.high_j is found.gap_to_ideal is None
    for reason in (found.energy_reason, found.low_reason, found.high_reason):
        assert reason is not None
        assert "too few cells" in reason
    assert found.gap_reason == "there is no estimate to compare"


def test_a_trace_past_the_last_bin_has_no_figures_but_reasons(table: EnergyTable) -> None:
    result = estimate(histogram_of([(9000, 600)], Bins.paper()), tables=table)
    found = result.of("vllm")
    assert result.trace.left_out_requests == 1
    assert result.ideal is None
    assert found.energy_j is found.gap_to_ideal is None
    assert result.ideal_reason == found.energy_reason == "no request lies in a bin"
    assert (found.coverage, found.interpolated, found.extrapolated) == (0.0, 0.0, 0.0)


def test_saving_and_gap_are_told_against_the_baseline_and_the_ideal(table: EnergyTable) -> None:
    result = estimate(histogram_of([(512, 64)] * 10), tables=table)
    base, better = result.of("transformers"), result.of("vllm")
    assert base.saving_vs_baseline == pytest.approx(0.0)
    assert better.saving_vs_baseline == pytest.approx(0.5)
    assert result.ideal is not None
    assert better.energy_j is not None
    assert better.gap_to_ideal == pytest.approx(better.energy_j / result.ideal.energy_j - 1)
    assert "dense bfloat16" in result.ideal.basis


def test_without_the_baseline_the_saving_is_unknown_and_says_why(tmp_path: Path) -> None:
    found = only(histogram_of([(512, 64)]), table_of(tmp_path, rows_of()))
    assert found.saving_vs_baseline is None
    assert found.saving_reason == "the baseline transformers has no rows for this model and GPU, or too few"


def test_the_papers_ideal_takes_the_headline_and_the_roofline_adds_bytes(table: EnergyTable) -> None:
    sparse, dense = get_gpu("h200").headline_flops, get_gpu("h200").dense_flops("bfloat16")
    assert sparse is not None
    shape = get_model("llama-3.1-8b")
    masked = shape.request_flops(512, 64, causal=False) / shape.request_flops(512, 64)
    histogram = histogram_of([(512, 64)])
    gaps = {kind: only(histogram, table, ideal=kind).gap_to_ideal for kind in ("dense", "paper", "roofline")}
    assert all(gap is not None for gap in gaps.values())
    assert (gaps["paper"] or 0) + 1 == pytest.approx(((gaps["dense"] or 0) + 1) * sparse / dense / masked)
    assert (gaps["roofline"] or 0) < (gaps["dense"] or 0)


def test_the_users_rows_stand_before_the_shipped_ones(tmp_path: Path) -> None:
    mine = write_store(tmp_path / "mine.jsonl", rows_of(lambda i, o: 1.0, inputs=[512], outputs=[64], batch=8))
    found = estimate(histogram_of([(512, 64)]), tables=[mine]).of("vllm")
    assert found.energy_j == pytest.approx(1.0)
    first, second = found.provenance.sources
    assert (first.file, first.lengths) == (str(mine), 1)
    assert (second.file, second.lengths) == ("shipped h200-llama-3.1-8b.jsonl", 37)
    assert "random weights: test; random weights: matrices N(0, 0.02)" in found.provenance.weights


def test_without_names_the_users_table_says_which_gpu_and_model(tmp_path: Path) -> None:
    rows = [
        with_environment(row, gpus=(GpuIdentity(uuid="GPU-test-0", name="NVIDIA A100-SXM4-80GB"),)) for row in rows_of()
    ]
    mine = write_store(tmp_path / "mine.jsonl", rows)
    found = estimate(histogram_of([(512, 64)]), tables=str(mine)).of("vllm")
    assert found.gpu == "a100-80gb-sxm"
    assert found.energy_j == pytest.approx(power_law(512, 64))


def test_a_table_of_several_gpus_asks_which_unless_the_default_is_among_them(tmp_path: Path) -> None:
    def of(name: str) -> list[Measurement]:
        gpus = (GpuIdentity(uuid="GPU-test-0", name=name),)
        return [with_environment(row, gpus=gpus) for row in rows_of()]

    two = of("NVIDIA A100-SXM4-80GB") + of("NVIDIA L4")
    with pytest.raises(UsageError, match="several: a100-80gb-sxm, l4. Name one with --gpu"):
        estimate(histogram_of([(512, 64)]), tables=table_of(tmp_path, two))
    assert only(histogram_of([(512, 64)]), table_of(tmp_path, two + rows_of())).gpu == "h200"


def test_a_table_that_has_nothing_to_say_is_named(tmp_path: Path) -> None:
    rows = [with_environment(row, gpus=(GpuIdentity(uuid="GPU-test-0", name="NVIDIA L4"),)) for row in rows_of()]
    mine = write_store(tmp_path / "mine.jsonl", rows)
    notes = estimate(histogram_of([(512, 64)]), tables=[mine], gpu="h200").notes
    assert any(f"{mine}: none of its rows is of llama-3.1-8b on h200" in note for note in notes)


def test_cells_measured_on_two_chips_widen_the_bounds_of_all(tmp_path: Path) -> None:
    first = write_store(tmp_path / "a.jsonl", rows_of())
    second = write_store(tmp_path / "b.jsonl", rows_of(inputs=[512], outputs=[64], scale=1.25))
    histogram = histogram_of([(128, 8)] * BATCH)
    one, two = only(histogram, load_table([first])), only(histogram, load_table([first, second]))
    assert two.energy_j == one.energy_j
    assert two.high_j == pytest.approx((one.high_j or 0) * 1.25)
    assert two.low_j == pytest.approx((one.low_j or 0) / 1.25)
    assert two.provenance.errors.repeat is not None
    assert [source.file for source in two.provenance.sources] == [str(first)]


def test_chips_are_held_against_each_other_two_by_two(tmp_path: Path) -> None:
    """Of 1, 1.1 and 1.21: twice 10 %, once 21 %; a second cell, of two files, counts as much."""
    stores = [write_store(tmp_path / "0.jsonl", rows_of())]
    for number, (scale, outputs) in enumerate(((1.1, [64, 512]), (1.21, [64])), 1):
        stores.append(write_store(tmp_path / f"{number}.jsonl", rows_of(inputs=[512], outputs=outputs, scale=scale)))
    repeat = only(histogram_of([(128, 8)]), load_table(stores)).provenance.errors.repeat
    assert repeat is not None
    assert (repeat.points, repeat.median, repeat.maximum) == pytest.approx((2, 0.1, 0.21))


def test_rows_at_another_power_limit_are_no_repetitions(tmp_path: Path) -> None:
    limited = GpuIdentity(uuid="GPU-test-0", name="NVIDIA H200", power_limit_w=350.0)
    first = write_store(tmp_path / "a.jsonl", rows_of())
    second = write_store(tmp_path / "b.jsonl", [with_environment(row, gpus=(limited,)) for row in rows_of(scale=0.5)])
    assert only(histogram_of([(128, 8)]), load_table([first, second])).provenance.errors.repeat is None


def test_cached_input_leaves_no_upper_bound_and_says_why(table: EnergyTable) -> None:
    found = only(replace(histogram_of([(512, 64)]), cached_input_tokens=1000), table)
    assert found.low_j is not None
    assert found.high_j is None
    assert found.high_reason == "decode reads cached input too, which is not priced"


def test_rows_of_the_same_weights_in_two_files_make_one_table(tmp_path: Path) -> None:
    mine = write_store(tmp_path / "mine.jsonl", rows_of(lambda i, o: 1.0, inputs=[512], outputs=[64]))
    theirs = write_store(tmp_path / "theirs.jsonl", rows_of())
    found = only(histogram_of([(512, 64), (128, 8)]), load_table([mine, theirs]))
    assert found.energy_j == pytest.approx(1.0 + power_law(128, 8))
    assert found.provenance.weights == "random weights: test"


def test_simulated_rows_are_refused_unless_asked_for_and_then_marked(tmp_path: Path) -> None:
    mine = write_store(tmp_path / "sim.jsonl", rows_of(simulated=True))
    with pytest.raises(DataError, match="--allow-simulated"):
        estimate(histogram_of([(512, 64)]), tables=[mine])
    result = estimate(histogram_of([(512, 64)]), tables=[mine], allow_simulated=True)
    assert result.of("vllm").provenance.simulated
    assert result.of("vllm").energy_j == pytest.approx(power_law(512, 64))
    assert not result.of("transformers").provenance.simulated
    assert result.of("vllm").saving_reason == "one of the two is simulated, the other measured"
    assert any(note.startswith("SIMULATED") for note in result.notes)


def test_engines_on_two_chips_are_told(tmp_path: Path) -> None:
    other = GpuIdentity(uuid="GPU-other", name="NVIDIA H200")
    rows = rows_of(engine="transformers") + [with_environment(row, gpus=(other,)) for row in rows_of()]
    notes = estimate(histogram_of([(512, 64)]), tables=table_of(tmp_path, rows)).notes
    assert any("not all measured on one chip: GPU-other, GPU-test-0" in note for note in notes)


def test_a_batch_counts_only_if_it_ends_in_time(tmp_path: Path) -> None:
    # 512→64: 16 requests take 2.3 s, 160 of them 23 s and half as many joules each.
    rows = rows_of() + rows_of(inputs=[512], outputs=[64], batch=160, scale=0.5)
    table = table_of(tmp_path, rows)
    histogram = histogram_of([(512, 64)])
    seconds = 160 * power_law(512, 64) / 2 / 100
    within, beyond = (
        only(histogram, table, max_batch_s=seconds + 0.1),
        only(histogram, table, max_batch_s=seconds - 0.1),
    )
    assert within.energy_j == pytest.approx(power_law(512, 64) / 2)
    assert beyond.energy_j == pytest.approx(power_law(512, 64))
    notes = estimate(histogram, tables=table, max_batch_s=seconds - 0.1).notes
    assert any("160 instead of 16 at 512→64 take 50.0 % fewer joules a request" in note for note in notes)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model": "llama-3.1-9b"}, "did you mean llama-3.1-8b"),
        ({"gpu": "h100x"}, "unknown measured GPU 'h100x'"),
        ({"engines": ["vlm"]}, "did you mean vllm"),
        ({"method": "floor"}, "unknown method 'floor'"),
        ({"ideal": "perfect"}, "unknown ideal"),
        ({"rare": "ignored"}, "unknown rare"),
        ({"max_batch_s": 0.0}, "more than 0 with --max-batch-s"),
        ({"max_batch_s": float("nan")}, "more than 0 with --max-batch-s"),
    ],
)
def test_an_option_that_cannot_be_is_told_with_what_can(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        estimate(histogram_of([(512, 64)]), **options)


def test_unknown_bins_give_those_there_are() -> None:
    with pytest.raises(UsageError, match="unknown bins 'deciles'; known: paper, powers-of-two"):
        estimate("azure-code-2023", bins="deciles")


@pytest.mark.parametrize(
    ("text", "words"),
    [("", "holds no measurement"), ('{"a": 1}\n', "not an infergy measurement"), ("{\n{}\n", "line 1: not JSON")],
)
def test_a_foreign_or_empty_table_is_told(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=words):
        estimate("azure-code-2023", tables=[path])
