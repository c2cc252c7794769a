"""The study's claims beside ours: every published figure has its line, and ours is what the tables say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from infergy.energy.claims import NOT_MEASURED, claims_markdown, find_claims, published
from infergy.energy.estimate import estimate
from infergy.energy.load import load_table
from known_tables import rows_of, under, write_store

PAGE = Path(__file__).parents[2] / "docs" / "claims.md"
RESULTS = (
    "gap_to_ideal",
    "saving_vllm_graphs_over_pytorch",
    "speculative_decoding",
    "moe_over_dense",
    "tensor_parallel",
    "torch_compile",
    "vllm_cuda_graphs",
    "online_over_offline",
)


def leaves(figures: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, float]]:
    for key, value in figures.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def test_every_published_result_has_its_line_and_figure() -> None:
    told = {one.id: one.theirs for one in find_claims(load_table(with_shipped=True))}
    assert told == dict(leaves({key: published()[key] for key in RESULTS}))


def test_ours_is_what_an_estimate_says() -> None:
    ours = {one.id: one for one in find_claims(load_table(with_shipped=True))}
    answer = estimate("azure-conv-2023", bins="paper")
    vllm = answer.of("vllm")
    gap, saving = ours["gap_to_ideal.azure_conv.vllm"], ours["saving_vllm_graphs_over_pytorch.azure_conv"]
    assert gap.ours == pytest.approx(vllm.gap_to_ideal)
    assert saving.ours == pytest.approx(vllm.saving_vs_baseline)
    assert gap.ours is not None
    assert gap.low is not None
    assert gap.high is not None
    assert gap.low < gap.ours < gap.high


def test_what_nobody_measured_is_said_so() -> None:
    ours = {one.id: one for one in find_claims(load_table(with_shipped=True))}
    for name in ("tensor_parallel.energy.tp2", "torch_compile.rtx_a6000", "speculative_decoding.batch_128"):
        assert (ours[name].ours, ours[name].reason) == (None, NOT_MEASURED)
    assert "the trace does not ship" in str(ours["gap_to_ideal.burstgpt.vllm"].reason)


def test_a_pair_of_set_ups_answers_once_it_is_measured(tmp_path: Path) -> None:
    rows = [
        *rows_of(engine="vllm"),
        *(under(row, cuda_graphs=False) for row in rows_of(engine="vllm", scale=1.25)),
        *(under(row, tensor_parallel=1) for row in rows_of(engine="transformers", scale=2.0)),
        *(under(row, compiled=True) for row in rows_of(engine="transformers", scale=1.4)),
    ]
    table = load_table(write_store(tmp_path / "rows.jsonl", rows))
    ours = {one.id: one.ours for one in find_claims(table)}
    assert ours["vllm_cuda_graphs.rtx_a6000"] == pytest.approx(-0.2)
    assert ours["torch_compile.a100_80gb_pcie"] == pytest.approx(-0.3)
    assert ours["tensor_parallel.energy.tp2"] is None


def test_the_page_is_what_the_tables_say() -> None:
    assert claims_markdown(find_claims(load_table(with_shipped=True))) in PAGE.read_text(encoding="utf-8")
