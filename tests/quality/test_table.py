from __future__ import annotations

import dataclasses
import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from infergy.energy.load import load_table, shipped_tables

from infergy.errors import DataError, UsageError
from infergy.records import STATUS_FAILED, Failure, Measurement
from infergy.records.cell import EngineSetup
from known_tables import (
    INPUTS,
    OUTPUTS,
    power_law,
    rows_of,
    table_of,
    two_engines,
    with_environment,
    write_store,
)
from rows import spread_over

Builder = Callable[..., Measurement]


def test_joules_and_seconds_a_request_are_recomputed_from_the_raw_facts(tmp_path: Path, row: Builder) -> None:
    honest = row(batch=8, energy_j=1000.0, duration_s=2.0)
    assert honest.result is not None
    lying = dataclasses.replace(honest, result=dataclasses.replace(honest.result, energy_per_request_j=1.0))
    (cell,) = table_of(tmp_path, [lying]).setups[0].cells
    assert cell.energy_j == pytest.approx(125.0)
    assert cell.duration_s == pytest.approx(0.25)


def test_each_engine_has_a_table_of_its_own(tmp_path: Path) -> None:
    table = table_of(tmp_path, two_engines())
    assert table.labels("h200", "llama-3.1-8b") == ("transformers", "vllm")
    cells = table.find("h200", "llama-3.1-8b", "vllm").by_length()
    assert set(cells) == {(i, o) for i in INPUTS for o in OUTPUTS}
    assert cells[512, 64].energy_j == pytest.approx(power_law(512, 64))


def test_what_is_not_at_its_default_is_in_the_label(tmp_path: Path, row: Builder) -> None:
    setup = EngineSetup(engine="vllm", model="llama-3.1-8b", dtype="float16", cuda_graphs=False, tensor_parallel=2)
    one = row()
    two = spread_over(one, {"GPU-a": 0.5, "GPU-b": 0.5})
    table = table_of(tmp_path, [dataclasses.replace(two, cell=dataclasses.replace(one.cell, setup=setup))])
    assert table.labels("h200", "llama-3.1-8b") == ("vllm-eager-float16-tp2",)


def test_repetitions_become_their_mean_and_their_spread_is_doubt(tmp_path: Path, row: Builder) -> None:
    (cell,) = table_of(tmp_path, [row(energy_j=900.0), row(energy_j=1100.0)]).setups[0].cells
    assert cell.repetitions == 2
    assert cell.energy_j == pytest.approx(1000.0 / 8)
    assert cell.spread == pytest.approx(0.2)
    assert cell.doubt > 0.1


def test_a_single_measurement_has_no_spread(tmp_path: Path, row: Builder) -> None:
    (cell,) = table_of(tmp_path, [row()]).setups[0].cells
    assert cell.spread is None


def test_the_largest_batch_counts_and_the_others_stay(tmp_path: Path, row: Builder) -> None:
    setup = table_of(tmp_path, [row(batch=b, energy_j=100.0 * b) for b in (1, 64, 8)]).setups[0]
    assert [cell.batch for cell in setup.cells] == [1, 8, 64]
    assert setup.by_length()[512, 64].batch == 64


def test_lengths_measured_at_a_small_batch_do_not_count_where_longer_requests_had_a_large_one(
    tmp_path: Path, row: Builder
) -> None:
    rows = [
        row(input_tokens=300, batch=8),
        row(input_tokens=300, output_tokens=32, batch=17),
        row(input_tokens=512, batch=32),
        row(input_tokens=1024, batch=8),
    ]
    setup = table_of(tmp_path, rows).setups[0]
    assert len(setup.cells) == 4
    assert sorted(setup.by_length()) == [(300, 32), (512, 64), (1024, 64)]
    mine = write_store(tmp_path / "mine.jsonl", rows[:1])
    theirs = write_store(tmp_path / "theirs.jsonl", rows[2:])
    assert (300, 64) in load_table([mine, theirs]).setups[0].by_length(), "what a user measured stands"


def test_a_small_batch_that_was_asked_for_is_no_full_one_where_twice_its_tokens_were_served(
    tmp_path: Path, row: Builder
) -> None:
    asked = [row(input_tokens=512, batch=512), row(input_tokens=2048, batch=96), row(input_tokens=8192, batch=1)]
    (setup,) = table_of(tmp_path, asked).setups
    assert sorted(setup.by_length()) == [(512, 64), (2048, 64), (8192, 64)]
    assert sorted(setup.full_by_length()) == [(512, 64), (2048, 64)]
    sought = replace(asked[2], batch_choice="largest that fits the memory")
    (setup,) = load_table(write_store(tmp_path / "sought.jsonl", [*asked[:2], sought])).setups
    assert setup.full_by_length() == setup.by_length()


def test_the_first_file_wins_a_cell_even_at_a_smaller_batch(tmp_path: Path, row: Builder) -> None:
    mine = write_store(tmp_path / "mine.jsonl", [row(batch=8, energy_j=80.0)])
    theirs = write_store(tmp_path / "theirs.jsonl", [row(batch=64, energy_j=64.0), row(input_tokens=1024)])
    setup = load_table([mine, theirs]).setups[0]
    assert setup.by_length()[512, 64].energy_j == pytest.approx(10.0)
    assert {cell.source for cell in setup.by_length().values()} == {str(mine), str(theirs)}
    assert load_table([theirs, mine]).setups[0].by_length()[512, 64].energy_j == pytest.approx(1.0)


def test_a_users_table_counts_before_the_shipped_ones(tmp_path: Path, row: Builder) -> None:
    mine = write_store(tmp_path / "mine.jsonl", [row(energy_j=1.0)])
    table = load_table([mine], with_shipped=True)
    assert table.files[0] == str(mine)
    assert len(table.files) == 1 + len(shipped_tables())
    assert all(name.startswith("shipped ") for name in table.files[1:])


def test_other_laws_of_weights_are_not_mixed(tmp_path: Path) -> None:
    real = [with_environment(r, weights="real weights: here") for r in rows_of(inputs=[512], scale=3.0)]
    table = table_of(tmp_path, [*rows_of(), *real])
    assert len(table.setups) == 2
    assert {len(setup.cells) for setup in table.setups} == {len(INPUTS) * len(OUTPUTS), len(OUTPUTS)}


@pytest.mark.parametrize("change", [{"driver": "2"}, {"packages": {"vllm": "9"}}])
def test_two_environments_of_a_set_up_in_one_file_are_refused(
    tmp_path: Path, row: Builder, change: dict[str, object]
) -> None:
    with pytest.raises(
        DataError, match=r"two environments: (driver|package vllm).*--table NEW.jsonl --table OLD.jsonl"
    ):
        table_of(tmp_path, [row(), with_environment(row(input_tokens=1024), **change)])


def test_two_environments_in_two_files_are_told_apart(tmp_path: Path, row: Builder) -> None:
    a = write_store(tmp_path / "a.jsonl", [row()])
    b = write_store(tmp_path / "b.jsonl", [with_environment(row(input_tokens=1024), driver="2")])
    assert [facts.driver for facts in load_table([a, b]).setups[0].sources] == ["1", "2"]


def test_simulated_rows_are_refused_with_the_option_that_allows_them(tmp_path: Path, row: Builder) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl, cell [0-9a-f]{12}.*--allow-simulated"):
        table_of(tmp_path, [row(simulated=True)])


def test_allowed_simulated_rows_stay_apart_from_measured_ones(tmp_path: Path, row: Builder) -> None:
    simulated = with_environment(row(simulated=True), gpus=row().environment.gpus)
    table = table_of(tmp_path, [simulated, row(input_tokens=1024)], allow_simulated=True)
    assert [setup.simulated for setup in table.setups] == [False, True]


def test_a_failed_cell_is_kept_aside_with_its_reason(tmp_path: Path, row: Builder) -> None:
    failed = dataclasses.replace(
        row(input_tokens=8192),
        status=STATUS_FAILED,
        windows=(),
        result=None,
        failure=Failure(code="out_of_memory", message="no room"),
    )
    table = table_of(tmp_path, [row(), failed])
    assert [(f.cell_id, f.reason) for f in table.failed] == [(failed.cell_id, "out_of_memory: no room")]
    assert table_of(tmp_path, [failed, row(input_tokens=8192)]).failed == ()


def test_a_half_written_last_line_is_set_aside_and_told(tmp_path: Path) -> None:
    path = write_store(tmp_path / "torn.jsonl", rows_of(inputs=[32]))
    path.write_text(path.read_text()[:-40])
    table = load_table([path])
    assert len(table.setups[0].cells) == len(OUTPUTS) - 1
    assert "torn.jsonl: its last line is half-written" in table.notes[0].text


def test_damage_before_the_last_line_is_an_error_that_names_the_line(tmp_path: Path) -> None:
    path = write_store(tmp_path / "bad.jsonl", rows_of(inputs=[32]))
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0][:50], *lines[1:]]) + "\n")
    with pytest.raises(DataError, match=r"bad\.jsonl line 1: not JSON"):
        load_table([path])


def test_a_wrong_schema_is_an_error_that_names_the_line(tmp_path: Path, row: Builder) -> None:
    path = tmp_path / "new.jsonl"
    newer = row().to_json() | {"schema": "infergy.measurement/99"}
    path.write_text(json.dumps(row().to_json()) + "\n" + json.dumps(newer) + "\n")
    with pytest.raises(DataError, match=r"new\.jsonl line 2: schema 'infergy.measurement/99'"):
        load_table([path])


@pytest.mark.parametrize("content", ["", "\n", "input,output\n", '{"a": 1}\n', "no json and no newline"])
def test_a_foreign_or_empty_file_is_an_error_that_names_it(tmp_path: Path, content: str) -> None:
    path = tmp_path / "foreign.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match=r"foreign\.jsonl.*infergy measure|foreign\.jsonl line 1"):
        load_table([path])


def test_a_missing_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none.jsonl: no such file"):
        load_table([tmp_path / "none.jsonl"])


def test_a_row_that_cannot_be_judged_names_its_cell(tmp_path: Path, row: Builder) -> None:
    whole = row()
    (window,) = whole.windows
    still = dataclasses.replace(window, close=window.open)
    for bad, said in (
        (dataclasses.replace(whole, loaded_idle=None), "loaded-idle window are missing"),
        (dataclasses.replace(whole, windows=(still,)), "moved by 0.0 J|zero seconds"),
    ):
        with pytest.raises(DataError, match=said) as told:
            table_of(tmp_path, [bad])
        assert whole.cell_id in str(told.value)


def test_compressed_stores_are_read(tmp_path: Path, row: Builder) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(row().to_json()).encode() + b"\n"))
    assert len(load_table([path]).setups) == 1


@pytest.mark.parametrize(
    ("gpu", "model", "label", "said"),
    [
        ("h20", "llama-3.1-8b", "vllm", r"GPU 'h20'; did you mean h200\?.*--gpu h20 --model llama-3.1-8b"),
        ("h200", "llama-3.1-9b", "vllm", r"model 'llama-3.1-9b'; did you mean llama-3.1-8b\?"),
        ("h200", "llama-3.1-8b", "vlm", r"engine 'vlm'; did you mean vllm\?.*--engine vlm"),
    ],
)
def test_what_was_not_measured_is_told_with_the_nearest_and_the_command(
    tmp_path: Path, gpu: str, model: str, label: str, said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        table_of(tmp_path, two_engines()).find(gpu, model, label)


def test_shipped_tables_load_and_hold_measured_rows_only() -> None:
    table = load_table(with_shipped=True)
    assert shipped_tables()
    assert not any(setup.simulated for setup in table.setups)
    assert {"transformers", "vllm"} <= set(table.labels("h200", "llama-3.1-8b"))
