"""Entries of the energy table from stores of rows: raw facts count, and what cannot be used is rejected by name."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from infergy.cost.table import TableEntry, write_table
from infergy.errors import DataError
from infergy.estimates.build import LEAST_SD, build_table, entries_of_rows
from infergy.estimates.servers import SHIPPED_TABLE, load_tables, shipped_table
from infergy.records import GREEDY, STATUS_FAILED, Decoding, Failure, Measurement, Window
from infergy.records.engine_setup import Speculation
from infergy.records.environment import Rescaled
from infergy.records.store import StoreContents, read_store
from known_tables import rows_of, with_environment, write_store
from raising import raises
from rows import UUID, build_row, spread_over


def entries_of(folder: Path, rows: Iterable[Measurement], **options: Any) -> tuple[TableEntry, ...]:
    return entries_of_rows([write_store(folder / "rows.jsonl", rows)], {}, **options)[0]


def with_cell(row: Measurement, *, decoding: Decoding = GREEDY, **setup: Any) -> Measurement:
    cell = replace(row.cell, load=replace(row.cell.load, decoding=decoding), setup=replace(row.cell.setup, **setup))
    return replace(row, cell=cell, cell_id=cell.id)


def with_window(row: Measurement, **changes: Any) -> Measurement:
    return replace(row, windows=(replace(row.windows[0], **changes),))


def failed(row: Measurement) -> Measurement:
    failure = Failure(code="out_of_memory", message="no room")
    return replace(row, status=STATUS_FAILED, windows=(), result=None, failure=failure)


def test_energy_and_seconds_are_computed_from_the_raw_facts(tmp_path: Path) -> None:
    honest = build_row(batch=8, energy_j=1000.0, duration_s=2.0, idle_w=100.0)
    assert honest.result is not None
    (entry,) = entries_of(tmp_path, [replace(honest, result=replace(honest.result, energy_j=1.0, duration_s=9.0))])
    assert entry.energy_j == pytest.approx(1000.0)
    assert entry.duration_s == pytest.approx(2.0)
    assert entry.idle_w == pytest.approx(100.0)
    assert (entry.requests, entry.calls, entry.idle_s) == (8, 1, 0.0)


def test_the_steps_of_an_entry_are_those_of_its_requests(tmp_path: Path) -> None:
    (entry,) = entries_of(tmp_path, [build_row(input_tokens=512, output_tokens=64, batch=8)])
    count, _, decodes, _, prefill_tokens = entry.steps[:, :5].T
    assert count @ prefill_tokens == pytest.approx(8 * 512)
    assert count @ decodes == pytest.approx(8 * 63), "the prefill yields the first token"


def test_an_entry_names_its_origin_and_environment(tmp_path: Path) -> None:
    row = build_row()
    ((entry,), environments) = entries_of_rows([write_store(tmp_path / "mine.jsonl", [row])], {})
    origin = entry.origin
    assert (origin.source, origin.cell_id, origin.unit, origin.simulated) == ("mine.jsonl", row.cell_id, UUID, False)
    assert environments[origin.environment]["driver"] == "1"
    assert (entry.served_by.engine, entry.served_by.model, entry.served_by.gpu) == ("vllm", "llama-3.1-8b", "h200")


def test_gpus_that_share_a_model_are_one_entry(tmp_path: Path) -> None:
    (entry,) = entries_of(tmp_path, [spread_over(build_row(energy_j=1000.0), {"GPU-a": 0.5, "GPU-b": 0.5})])
    assert (entry.served_by.gpus, entry.origin.unit) == (2, "GPU-a+GPU-b")
    assert entry.energy_j == pytest.approx(1000.0)


def test_environments_in_one_file_stay_apart(tmp_path: Path) -> None:
    path = write_store(tmp_path / "a.jsonl", [build_row(), with_environment(build_row(input_tokens=1024), driver="2")])
    entries, environments = entries_of_rows([path], {})
    assert [environments[entry.origin.environment]["driver"] for entry in entries] == ["1", "2"]


def test_the_uncertainty_of_rescaling_is_that_of_the_entry(tmp_path: Path) -> None:
    mark = Rescaled(
        factor=1.1,
        low=1.0,
        high=1.21,
        gpu="NVIDIA H200",
        chips=("GPU-b",),
        cells=("a", "b", "c"),
        measured_utc="2026-01-01T00:00:00.000+00:00",
    )
    lonely = replace(build_row(batches=1, duration_s=10.0), rescaled=mark)
    plain, scaled = (entries_of(tmp_path, [row])[0] for row in (replace(lonely, rescaled=None), lonely))
    assert scaled.energy_j == pytest.approx(1.1 * plain.energy_j)
    assert plain.energy_sd >= LEAST_SD
    assert scaled.energy_sd >= mark.half_width / 1.96 > LEAST_SD


@pytest.mark.parametrize(
    "left_out",
    [
        failed(build_row(input_tokens=1024)),
        with_cell(build_row(), engine="other"),
        with_cell(build_row(), model="no-such-model"),
        with_cell(build_row(engine="transformers"), compiled=True),
        with_cell(build_row(engine="transformers"), decoding=Decoding(beams=4)),
        with_cell(build_row(), decoding=Decoding(temperature=0.8)),
        with_cell(build_row(), speculation=Speculation(draft="llama-3.2-1b", look_ahead=4)),
        with_environment(build_row(input_tokens=1024), gpus=()),
        with_environment(build_row(), gpus=(replace(build_row().environment.gpus[0], name="NVIDIA Unheard-of"),)),
    ],
    ids=["failed", "engine", "model", "compiled", "beams", "sampling", "draft", "no gpu", "gpu"],
)
def test_rows_that_the_cost_model_does_not_know_are_left_out(tmp_path: Path, left_out: Measurement) -> None:
    kept = build_row(input_tokens=64)
    assert [entry.origin.cell_id for entry in entries_of(tmp_path, [left_out, kept])] == [kept.cell_id]
    with raises("no-rows", files=[tmp_path / "rows.jsonl"]):
        entries_of(tmp_path, [left_out])


def test_simulated_rows_need_the_option_that_allows_them(tmp_path: Path) -> None:
    gpu = replace(build_row().environment.gpus[0], name="simulated NVIDIA H200")
    row = with_environment(build_row(simulated=True), gpus=(gpu,))
    path = write_store(tmp_path / "rows.jsonl", [build_row(input_tokens=64), row])
    with raises("simulated-rows", path=path, cell=row.cell_id):
        load_tables([path])
    entries, _ = entries_of_rows([path], {}, allow_simulated=True)
    assert [entry.origin.simulated for entry in entries] == [False, True]
    assert {entry.served_by.gpu for entry in entries} == {"h200"}
    # A table of such rows is no different.
    table = tmp_path / "table.jsonl"
    write_table(build_table([path], None, allow_simulated=True), table)
    with raises("simulated-rows", path=table, cell=row.cell_id):
        load_tables([table])
    assert any("simulated" in note for note in load_tables([table], allow_simulated=True).notes)


def test_a_torn_last_line_leaves_the_others(tmp_path: Path) -> None:
    path = write_store(tmp_path / "torn.jsonl", rows_of(inputs=[32]))
    path.write_text(path.read_text()[:-40])
    assert len(entries_of_rows([path], {})[0]) == len(rows_of(inputs=[32])) - 1
    note = f"{path}: its last line is half-written and left out"
    assert build_table([path]).notes == (note,)
    assert note in load_tables([path]).notes


def test_a_store_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_store(tmp_path / "rows.jsonl", rows_of(inputs=[32]))
    read: list[Path] = []

    def count(path: Path) -> StoreContents:
        read.append(path)
        return read_store(path)

    monkeypatch.setattr("infergy.estimates.build.read_store", count)
    build_table([path])
    load_tables([path])
    assert read == [path, path]


def test_damage_before_the_last_line_is_an_error_that_names_the_line(tmp_path: Path) -> None:
    path = write_store(tmp_path / "bad.jsonl", rows_of(inputs=[32]))
    first, *others = path.read_text().splitlines()
    path.write_text("\n".join([first[:50], *others]) + "\n")
    with raises("bad-syntax", path=path, line=1):
        load_tables([path])


def test_a_row_of_another_schema_is_an_error_that_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "new.jsonl"
    newer = build_row().to_json() | {"schema": "infergy.measurement/99"}
    path.write_text(json.dumps(build_row().to_json()) + "\n" + json.dumps(newer) + "\n")
    with raises("newer-schema", place=f"{path} line 2", found="infergy.measurement/99"):
        load_tables([path])


@pytest.mark.parametrize(
    ("content", "code"),
    [
        ("", "no-rows"),
        ("\n", "no-rows"),
        ("input,output\n", "bad-syntax"),
        ('{"a": 1}\n', "wrong-schema"),
        ("no json and no newline", "bad-syntax"),
        ("\x00\xff", "bad-syntax"),
    ],
)
def test_a_foreign_or_empty_file_is_an_error_that_names_it(tmp_path: Path, content: str, code: str) -> None:
    path = tmp_path / "foreign.jsonl"
    path.write_text(content, encoding="latin-1")
    with raises(code) as error:
        load_tables([path])
    assert str(path) in str(error.value)


def test_an_empty_file_among_others_is_an_error_too(tmp_path: Path) -> None:
    empty = write_store(tmp_path / "empty.jsonl", [])
    with raises("no-rows", path=empty):
        entries_of_rows([write_store(tmp_path / "rows.jsonl", [build_row()]), empty], {})


@pytest.mark.parametrize("read", [load_tables, build_table])
def test_a_missing_file_is_an_error_that_names_it(tmp_path: Path, read: Any) -> None:
    with raises("file-not-found", path=tmp_path / "none.jsonl"):
        read([tmp_path / "none.jsonl"])


def test_a_compressed_store_is_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(build_row().to_json()).encode() + b"\n"))
    assert len(entries_of_rows([path], {})[0]) == 1
    (entry,) = (one for one in load_tables([path]).entries)
    assert entry.origin.source == "rows.jsonl.gz"


def test_a_damaged_compressed_store_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(build_row().to_json()).encode())[:-20])
    with raises("file-not-readable", path=path):
        load_tables([path])


WHOLE = build_row()
WINDOW: Window = WHOLE.windows[0]
OTHERS_CLOSE = {"GPU-other": WINDOW.close[UUID]}
INSTANT = tuple(replace(batch, end_s=batch.start_s) for batch in WINDOW.batches)


@pytest.mark.parametrize(
    "bad",
    [
        replace(WHOLE, loaded_idle=None),
        replace(WHOLE, windows=()),
        with_window(WHOLE, close=WINDOW.open),
        with_window(WHOLE, close={UUID: replace(WINDOW.close[UUID], energy_j=WINDOW.open[UUID].energy_j)}),
        with_window(WHOLE, close={UUID: replace(WINDOW.close[UUID], energy_j=0.0)}),
        with_window(WHOLE, close=OTHERS_CLOSE),
        replace(WHOLE, loaded_idle=replace(WHOLE.loaded_idle, open={}, close={})),  # type: ignore[type-var]
        with_window(WHOLE, batches=INSTANT),
        with_cell(WHOLE, tensor_parallel=2),
    ],
    ids=[
        "no idle window",
        "no windows",
        "stopped clock",
        "stopped counter",
        "reset counter",
        "another GPU",
        "idle of no GPU",
        "no time",
        "a GPU missing",
    ],
)
def test_a_row_without_an_energy_is_an_error_that_names_file_and_line_or_cell(tmp_path: Path, bad: Measurement) -> None:
    path = write_store(tmp_path / "rows.jsonl", [build_row(input_tokens=64), bad])
    with pytest.raises(DataError) as error:
        load_tables([path])
    assert any(f"{path}{place}" in str(error.value) for place in (" line 2", f", cell {bad.cell_id}"))


def test_a_batch_that_took_less_than_idling_is_an_error(tmp_path: Path) -> None:
    row = build_row(energy_j=10.0, tail_s=1.0)
    close = replace(row.windows[0].close[UUID], energy_j=row.windows[0].open[UUID].energy_j + 50.0)
    with raises("bad-row", reason="counter-wrong"):
        entries_of(tmp_path, [with_window(row, close={UUID: close})])


def test_a_meter_of_the_whole_board_need_not_count_gpus(tmp_path: Path) -> None:
    row = with_environment(with_cell(build_row(), tensor_parallel=2), scope="cpu-package")
    (entry,) = entries_of(tmp_path, [row])
    assert entry.served_by.gpus == 2


def test_a_users_rows_count_beside_the_shipped_ones(tmp_path: Path) -> None:
    shipped = shipped_table()
    mine = load_tables([write_store(tmp_path / "mine.jsonl", rows_of(inputs=[512]))])
    assert mine.sources == ("mine.jsonl",)
    changed = [(was, now) for was, now in zip(shipped.measured, mine.measured, strict=True) if was != now]
    assert [(was.served_by, now.rows - was.rows) for was, now in changed] == [
        (changed[0][1].served_by, len(rows_of(inputs=[512])))
    ]
    assert set(mine.environments) > set(shipped.environments)
    assert set(mine.fits) == set(shipped.fits)
    assert load_tables() is shipped


def test_what_the_shipped_table_knows_counts_once(tmp_path: Path) -> None:
    shipped = shipped_table()
    again = load_tables([SHIPPED_TABLE])
    assert again.fits == shipped.fits
    assert again.measured == shipped.measured
    assert len(again.notes) == 1
    mine = write_store(tmp_path / "mine.jsonl", rows_of(inputs=[512]))
    once, twice = load_tables([mine]), load_tables([mine, mine])
    # Energies that were made up are far from the fit, which is said of each such row.
    assert {cell.origin.cell_id for cell in once.entries} >= {one.cell_id for one, _ in once.outliers}
    assert len(once.notes) == len(once.outliers) > 0
    assert twice.measured == once.measured
    assert {name: fit.rows for name, fit in twice.fits.items()} == {name: fit.rows for name, fit in once.fits.items()}
