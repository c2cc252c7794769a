"""What a study's grid asks for and no row holds is named."""

from __future__ import annotations

from infergy.measure.studies import study_cells
from infergy.records import RANDOM_WEIGHTS, Cell, EngineSetup, Load
from infergy.report.page import find_gaps


def cell(batch: int, input_tokens: int = 512, engine: str = "vllm", weights: str = RANDOM_WEIGHTS) -> Cell:
    load = Load(input_tokens=input_tokens, output_tokens=64, batch=batch)
    return Cell(setup=EngineSetup(engine=engine, model="llama-3.1-8b", weights=weights), load=load)


def test_cells_without_a_row_are_told_by_set_up_and_lengths_with_why_they_failed() -> None:
    asked = [cell(8), cell(1), cell(4, 4096), cell(1, engine="transformers"), cell(1, weights="random-uniform")]
    lines = list(find_gaps("mine", "a GPU", asked, {asked[0].id, asked[3].id}, {asked[2].id: "out_of_memory"}))
    assert lines == [
        ("mine", "a GPU", "vllm llama-3.1-8b", "1 of 3", "512→64 × 1; 4,096→64 × 4 (out of memory)"),
        ("mine", "a GPU", "vllm llama-3.1-8b, weights random-uniform", "0 of 1", "512→64 × 1"),
    ]


def test_a_grid_that_is_measured_has_no_line() -> None:
    asked = [cell(1), cell(8)]
    assert list(find_gaps("mine", "a GPU", asked, {one.id for one in asked}, {})) == []


def test_studies_tell_their_cells_and_replays_have_no_lengths_to_tell() -> None:
    cells = study_cells("h100-sxm")
    assert len(cells["paper-bins"]) == 134
    lines = list(find_gaps("tasks-mixed", "a GPU", cells["tasks-mixed"], (), {}))
    assert {line[-1] for line in lines} == {"× 256, 1,024"}
