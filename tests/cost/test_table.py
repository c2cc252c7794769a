"""The energy table as a file: what is written is read again, and the shipped one follows from the shipped rows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infergy.cost.fit import make_table
from infergy.cost.table import (
    BOX,
    SHIPPED_TABLE,
    Table,
    TableEntry,
    fit_of,
    is_table,
    read_table,
    shipped_table,
    write_table,
)
from infergy.errors import DataError
from infergy.estimates.build import build_table, entries_of_rows
from infergy.records.store import shipped_rows
from known_tables import rows_of, write_store
from raising import raises


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Table:
    rows = rows_of(inputs=[128, 512], outputs=[8, 64]) + rows_of(engine="transformers", inputs=[128], outputs=[8])
    path = write_store(tmp_path_factory.mktemp("rows") / "mine.jsonl", rows)
    return make_table(*entries_of_rows([path], {}))


@pytest.fixture(scope="module")
def whole() -> Table:
    return read_table(SHIPPED_TABLE, entries=True)


def close(was: Any, now: Any, tolerance: float) -> bool:
    return bool(np.allclose(np.asarray(was, dtype=float), np.asarray(now, dtype=float), rtol=tolerance, atol=1e-12))


def assert_same(was: Table, now: Table, tolerance: float = 1e-6) -> None:
    assert (now.schema, now.sources, now.environments) == (was.schema, was.sources, was.environments)
    assert now.fits.keys() == was.fits.keys()
    for name, one in was.fits.items():
        other = now.fits[name]
        assert (other.engine, other.names, other.rows) == (one.engine, one.names, one.rows)
        assert close(one.mean, other.mean, tolerance)
        assert np.allclose(one.covariance, other.covariance, rtol=1e-3, atol=1e-3 * np.abs(one.covariance).max())
    for a, b in zip(was.measured, now.measured, strict=True):
        assert (b.served_by, b.rows) == (a.served_by, a.rows)
        assert close((*a.low, *a.high, a.idle_w), (*b.low, *b.high, b.idle_w), tolerance)
    assert_same_entries(was.entries, now.entries, tolerance)


def assert_same_entries(was: tuple[TableEntry, ...], now: tuple[TableEntry, ...], tolerance: float) -> None:
    names = ("requests", "energy_j", "energy_sd", "duration_s", "idle_w", "idle_s", "calls")
    for a, b in zip(was, now, strict=True):
        assert (b.served_by, b.origin) == (a.served_by, a.origin)
        # An unknown duration is equal to another, as NaN is here.
        x, y = (np.array([getattr(entry, name) for name in names], dtype=float) for entry in (a, b))
        assert np.allclose(x, y, rtol=tolerance, equal_nan=True)
        assert close(a.steps, b.steps, tolerance)


def test_what_is_written_is_read_again(tmp_path: Path, small: Table) -> None:
    path = tmp_path / "table.jsonl"
    write_table(small, path)
    assert is_table(path)
    assert_same(small, read_table(path, entries=True))


def test_the_same_table_gives_the_same_bytes_and_reading_loses_none(tmp_path: Path, small: Table) -> None:
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    write_table(small, first)
    write_table(read_table(first, entries=True), second)
    assert first.read_bytes() == second.read_bytes()


def test_measured_rows_are_not_replaced_by_a_table(tmp_path: Path) -> None:
    store = tmp_path / "rows.jsonl"
    write_store(store, rows_of()[:3])
    before = store.read_bytes()
    built = build_table([store])
    with raises("file-exists", path=str(store)):
        write_table(built, store)
    assert store.read_bytes() == before
    with raises("file-not-writable"):
        write_table(built, tmp_path / "no" / "table.jsonl")


def test_a_server_that_both_tables_measured_counts_once_with_the_range_of_both(small: Table) -> None:
    few = [entry for entry in small.entries if entry.served_by == small.entries[0].served_by][:1]
    other = replace(few[0], origin=replace(few[0].origin, measured_utc="2030-01-01T00:00:00Z"), steps=3 * few[0].steps)
    joined = make_table([other], small.environments, prior=small)
    was, now = small.find(few[0].served_by), joined.find(few[0].served_by)
    assert was is not None
    assert now is not None
    assert len(joined.measured) == len(small.measured)
    assert now.rows == was.rows + 1
    assert all(a <= b for a, b in zip(now.low, was.low, strict=True))
    assert all(a >= b for a, b in zip(now.high, was.high, strict=True))
    assert now.high != was.high


def test_the_header_is_read_alone(tmp_path: Path, small: Table) -> None:
    path = tmp_path / "table.jsonl"
    write_table(small, path)
    header, *entries = path.read_text().splitlines()
    assert len(entries) == len(small.entries) == 5
    path.write_text(f"{header}\nno entry\n")
    assert_same(replace(small, entries=()), read_table(path))
    with raises("bad-syntax", line=2):
        read_table(path, entries=True)


@pytest.mark.parametrize("entry", ["{}", "[1]", '{"served_by": {}, "origin": {}, "steps": []}', '"x"', "{", "1"])
def test_a_damaged_entry_is_an_error_that_names_its_line(tmp_path: Path, small: Table, entry: str) -> None:
    path = tmp_path / "table.jsonl"
    write_table(small, path)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], entry, *lines[3:]]) + "\n")
    with pytest.raises(DataError, match="line 3"):
        read_table(path, entries=True)


@pytest.mark.parametrize("kept", [1, 2, -1])
def test_a_table_cut_at_the_end_of_a_line_is_rejected(tmp_path: Path, small: Table, kept: int) -> None:
    path = tmp_path / "table.jsonl"
    write_table(small, path)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:kept]))
    with raises("table-cut", path=path, expected=5):
        read_table(path, entries=True)
    path.write_text("".join([*lines, lines[-1]]))
    with raises("table-cut", path=path, expected=5, found=6):
        read_table(path, entries=True)


def test_a_table_of_the_first_schema_stays_readable(tmp_path: Path, small: Table) -> None:
    path = tmp_path / "table.jsonl"
    write_table(small, path)
    header, *entries = path.read_text().splitlines(keepends=True)
    old = {key: value for key, value in json.loads(header).items() if key != "entries"} | {"schema": "infergy.table/1"}
    path.write_text("".join([json.dumps(old) + "\n", *entries]))
    assert_same(small, read_table(path, entries=True))
    assert read_table(path, entries=True).identities == small.identities


def test_an_entry_counts_once(small: Table) -> None:
    twice = make_table((*small.entries, *small.entries), small.environments)
    assert twice.repeated == len(small.entries) == len(small.identities)
    assert_same(small, twice)
    again = make_table(small.entries, small.environments, prior=small)
    assert again.repeated == len(small.entries)
    assert again.fits == small.fits
    assert again.measured == small.measured


@pytest.mark.parametrize(
    ("content", "code"),
    [
        *((text, "wrong-schema") for text in (b"", b"\n", b"no json\n", b"[1]\n", b'{"schema": "infergy.table/99"}\n')),
        (b"\xff\xfe\x00\n", "file-not-readable"),
    ],
)
def test_what_is_no_table_is_an_error_that_names_file_and_verb(tmp_path: Path, content: bytes, code: str) -> None:
    path = tmp_path / "other.jsonl"
    path.write_bytes(content)
    with raises(code, path=path):
        read_table(path)


def test_a_header_that_lacks_a_part_is_an_error_that_names_the_file(tmp_path: Path, small: Table) -> None:
    path = tmp_path / "table.jsonl"
    write_table(small, path)
    header = json.loads(path.read_text().splitlines()[0])
    for name in ("fits", "measured", "environments", "sources"):
        path.write_text(json.dumps({key: value for key, value in header.items() if key != name}) + "\n")
        with raises("bad-row", place=f"{path} line 1"):
            read_table(path)


def test_a_missing_table_is_an_error_that_names_it(tmp_path: Path) -> None:
    assert not is_table(tmp_path / "none.jsonl")
    with raises("file-not-readable", path=tmp_path / "none.jsonl"):
        read_table(tmp_path / "none.jsonl")


def test_rows_are_no_table(tmp_path: Path) -> None:
    assert not is_table(write_store(tmp_path / "rows.jsonl", rows_of(inputs=[128])))


def test_measured_ranges_are_those_of_the_entries(small: Table) -> None:
    for server in small.measured:
        own = [entry for entry in small.entries if entry.served_by == server.served_by]
        assert server.rows == len(own)
        decodes = np.concatenate([entry.steps[:, 2] for entry in own])
        assert (server.low[BOX.index("decodes")], server.high[BOX.index("decodes")]) == (decodes.min(), decodes.max())
        assert server.idle_w == pytest.approx(100.0)
        assert small.find(server.served_by) == server
    assert small.idle_w("h200") == pytest.approx(100.0)
    assert small.idle_w("l4") is None


def test_a_prior_keeps_its_servers_and_gives_the_constants_that_rows_do_not_show(small: Table) -> None:
    shipped = shipped_table()
    vllm = [entry for entry in small.entries if entry.served_by.engine == "vllm"]
    alone = make_table(vllm, small.environments)
    informed = make_table(vllm, small.environments, prior=shipped)
    assert alone.fits.keys() == {"vllm"}
    assert informed.fits.keys() == shipped.fits.keys()
    assert informed.fits["transformers"] is shipped.fits["transformers"]
    asked = {one.served_by for one in alone.measured}
    others = [one for one in shipped.measured if one.served_by not in asked]
    assert [one for one in informed.measured if one.served_by not in asked] == others
    assert informed.entries == tuple(vllm)
    # What many rows showed is known better than datasheets know it.
    widths = {name: float(np.trace(fit_of(one, "vllm").covariance)) for name, one in
              (("alone", alone), ("informed", informed))}  # fmt: skip
    assert widths["informed"] < widths["alone"]


def test_the_shipped_table_is_fitted_to_all_shipped_rows(whole: Table) -> None:
    assert list(whole.sources) == [path.name for path in shipped_rows()]


@pytest.mark.slow
def test_the_shipped_table_is_what_the_shipped_rows_give(tmp_path: Path, whole: Table) -> None:
    rebuilt = tmp_path / "table.jsonl"
    write_table(build_table(shipped_rows()), rebuilt)
    if rebuilt.read_bytes() != SHIPPED_TABLE.read_bytes():
        # Builds of numpy differ in the last digits of sums.
        assert_same(whole, read_table(rebuilt, entries=True), tolerance=1e-4)
