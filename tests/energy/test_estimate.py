"""Estimates: the sum over bins, its brackets, and what it is compared with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infergy.energy import EnergyTable, Estimate, estimate, load_rows, tables_of
from infergy.energy.estimate import price
from infergy.energy.surface import Surface, holdout_error
from infergy.energy.table import SourcedRow
from infergy.errors import DataError, UsageError
from infergy.records import Measurement, derive
from infergy.workload import Bin, BinCount, Bins, Histogram

Row = Callable[..., Measurement]


def shipped(label: str) -> EnergyTable:
    return next(table for table in tables_of(load_rows()) if table.setup.label == label)


def histogram_of(pairs: list[tuple[int, int]]) -> Histogram:
    bins = Bins.powers_of_two(16384, 2048)
    counts: dict[Bin, list[tuple[int, int]]] = {}
    for pair in pairs:
        place = bins.find(*pair)
        assert place is not None
        counts.setdefault(place, []).append(pair)
    return Histogram(
        source="test",
        bins=bins,
        counts=tuple(
            BinCount(
                bin=place,
                requests=len(inside),
                input_tokens=sum(i for i, _ in inside),
                output_tokens=sum(o for _, o in inside),
            )
            for place, inside in sorted(counts.items())
        ),
    )


def write(path: Path, rows: list[Measurement]) -> Path:
    path.write_text("".join(json.dumps(row.to_json()) + "\n" for row in rows), encoding="utf-8")
    return path


def test_shipped_rows_are_real_and_of_one_gpu() -> None:
    rows = [sourced.row for sourced in load_rows()]
    assert len(rows) >= 69
    assert not any(row.simulated for row in rows)
    assert len({gpu.uuid for row in rows for gpu in row.environment.gpus}) == 1
    assert {row.environment.weights for row in rows} == {"random weights: matrices N(0, 0.02), norms 1, biases 0"}


def test_shipped_figures_follow_from_their_raw_facts() -> None:
    for sourced in load_rows():
        row = sourced.row
        assert row.window is not None
        assert row.loaded_idle is not None
        assert row.result == derive(row.window, row.batches, row.loaded_idle)


def test_both_engines_were_given_the_same_tokens() -> None:
    hashes: dict[Any, set[str | None]] = {}
    for sourced in load_rows():
        hashes.setdefault(sourced.row.cell.load, set()).add(sourced.row.prompt_sha256)
    assert all(len(each) == 1 for each in hashes.values())


def test_a_measured_bin_costs_requests_over_batch_times_the_measured_batch() -> None:
    table = shipped("vllm")
    point = next(p for p in table.points if (p.input_tokens, p.output_tokens) == (512, 64))
    histogram = histogram_of([(512, 64)] * 1000)
    (found,) = estimate(histogram, engines=["vllm"]).estimates
    assert found.energy_j == pytest.approx(1000 / point.batch * point.energy_j)
    assert found.coverage == found.coverage_output_tokens == 1.0
    assert found.interpolated == found.extrapolated == 0.0


def test_whole_batches_are_charged_when_asked_for() -> None:
    histogram = histogram_of([(512, 64)])
    fractional, whole = (
        estimate(histogram, engines=["vllm"], rare=rule).estimates[0] for rule in ("fractional", "whole")
    )
    assert whole.energy_j == pytest.approx(256 * fractional.energy_j)


LENGTHS = st.lists(st.tuples(st.integers(1, 16384), st.integers(1, 1024)), min_size=1, max_size=30)


@settings(max_examples=30)
@given(LENGTHS, LENGTHS)
def test_estimates_of_two_disjoint_traces_add_up(one: list[tuple[int, int]], other: list[tuple[int, int]]) -> None:
    def total(pairs: list[tuple[int, int]]) -> float:
        charges = price(histogram_of(pairs), TABLE, "ceiling", "fractional")
        return sum(c.charged * c.value.energy_j for c in charges if c is not None)

    assert total(one + other) == pytest.approx(total(one) + total(other))


@settings(max_examples=30)
@given(LENGTHS, st.sampled_from(["ceiling", "mean"]), st.sampled_from(["fractional", "whole"]))
def test_an_estimate_lies_between_its_bounds(pairs: list[tuple[int, int]], method: str, rare: str) -> None:
    for found in estimate(histogram_of(pairs), method=method, rare=rare).estimates:
        assert found.high_j is not None
        assert found.low_j <= found.energy_j <= found.high_j
        assert 0 <= found.coverage <= 1
        assert found.coverage + found.interpolated + found.extrapolated == pytest.approx(1)


TABLE = shipped("vllm")


def test_saving_and_gap_are_told_against_the_baseline_and_the_ideal() -> None:
    result = estimate("azure-conv-2023")
    by_engine: dict[str, Estimate] = {found.engine: found for found in result.estimates}
    base, better = by_engine["transformers"], by_engine["vllm"]
    assert base.saving_vs_baseline is None
    assert base.saving_vs_baseline_reason == "this is the baseline"
    assert better.saving_vs_baseline == pytest.approx(1 - better.energy_j / base.energy_j)
    assert better.gap_to_ideal == pytest.approx(better.energy_j / result.ideal.energy_j - 1)
    assert "dense bfloat16" in result.ideal.basis


def test_bins_beyond_the_measured_are_marked_extrapolated() -> None:
    found = estimate(histogram_of([(16000, 1000)]), engines=["vllm"]).estimates[0]
    assert found.extrapolated == 1.0
    assert found.coverage == 0.0


def test_interpolation_is_exact_where_cost_is_a_power_of_length(row: Row) -> None:
    rows = [row(input_tokens=512, output_tokens=o, batch=1, energy_j=10.0 * o**0.5) for o in (8, 16, 64, 512)]
    (table,) = tables_of(SourcedRow(row=measured, source="t") for measured in rows)
    surface = Surface([p for p in table.points if p.output_tokens != 16])
    value = surface.at(512, 16)
    assert value is not None
    assert value.method == "interpolated"
    assert value.energy_j == pytest.approx(40.0)
    held = holdout_error(table)
    assert held.bins == 1
    assert held.worst == pytest.approx(0.0, abs=1e-9)


def test_own_rows_stand_before_shipped_ones(tmp_path: Path, row: Row) -> None:
    mine = write(tmp_path / "mine.jsonl", [row(input_tokens=512, output_tokens=64, batch=8, energy_j=8.0)])
    found = estimate(histogram_of([(512, 64)]), tables=[mine], engines=["vllm"]).estimates[0]
    assert found.energy_j == pytest.approx(1.0)
    assert found.provenance.tables == (str(mine),)


def test_simulated_rows_are_refused_unless_asked_for(tmp_path: Path, row: Row) -> None:
    mine = write(tmp_path / "sim.jsonl", [row(simulated=True)])
    with pytest.raises(DataError, match="--allow-simulated"):
        estimate(histogram_of([(512, 64)]), tables=[mine])
    found = estimate(histogram_of([(512, 64)]), tables=[mine], allow_simulated=True)
    assert any(each.provenance.is_simulated for each in found.estimates)


def test_rows_of_two_engine_versions_do_not_make_one_table(row: Row) -> None:
    from dataclasses import replace

    first = row()
    second = replace(first, environment=replace(first.environment, packages={"vllm": "0.1"}))
    with pytest.raises(DataError, match="differ in engine version"):
        tables_of([SourcedRow(row=first, source="a"), SourcedRow(row=second, source="b")])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model": "llama-3.1-9b"}, "did you mean llama-3.1-8b"),
        ({"gpu": "h100x"}, "unknown GPU 'h100x'"),
        ({"engines": ["vlm"]}, "did you mean vllm"),
        ({"method": "floor"}, "unknown method 'floor'"),
        ({"ideal": "perfect"}, "unknown ideal"),
    ],
)
def test_unknown_names_give_the_nearest(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        estimate(histogram_of([(512, 64)]), **options)


def test_unknown_bins_give_those_there_are() -> None:
    with pytest.raises(UsageError, match="unknown bins 'deciles'; known: paper, powers-of-two"):
        estimate("azure-code-2023", bins="deciles")


@pytest.mark.parametrize(
    ("text", "words"),
    [("", "no measurement in it"), ('{"a": 1}\n', "not an infergy measurement"), ("{\n{}\n", "line 1: not JSON")],
)
def test_a_foreign_or_empty_table_is_told(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=words):
        estimate("azure-code-2023", tables=[path])
