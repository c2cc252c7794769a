"""The store: nothing measured is ever lost."""

from __future__ import annotations

import gzip
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuzzing import damaged
from infergy.errors import InfergyError
from infergy.records import Measurement
from infergy.records.store import StoreWriter, read_store
from raising import raises
from rows import build_row

Row = Callable[..., Measurement]


def test_rows_come_back_in_order(tmp_path: Path, row: Row) -> None:
    rows = [row(batch=size) for size in (1, 2, 4)]
    with StoreWriter(tmp_path / "s.jsonl") as store:
        for measured in rows:
            store.append(measured)
    assert list(read_store(tmp_path / "s.jsonl").rows) == rows


def test_a_compressed_store_reads_the_same(tmp_path: Path, row: Row) -> None:
    (tmp_path / "s.jsonl.gz").write_bytes(gzip.compress(json.dumps(row().to_json()).encode() + b"\n"))
    assert read_store(tmp_path / "s.jsonl.gz").rows == (row(),)


@given(share=st.floats(0.0, 1.0))
def test_cut_anywhere_a_store_keeps_every_whole_row_and_sets_the_rest_aside(share: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "s.jsonl"
        rows = [build_row(batch=size) for size in (1, 2, 3)]
        lines = [json.dumps(measured.to_json()).encode() + b"\n" for measured in rows]
        whole = b"".join(lines)
        cut = int(len(whole) * share)
        path.write_bytes(whole[:cut])
        survivors = sum(sum(map(len, lines[: i + 1])) - 1 <= cut for i in range(3))
        with StoreWriter(path) as store:
            assert list(store.rows) == rows[:survivors]
            assert (store.torn is not None) == (whole[:cut].split(b"\n")[-1] not in (b"", lines[survivors - 1][:-1]))
            store.append(rows[2])
        assert list(read_store(path).rows) == [*rows[:survivors], rows[2]]
        if store.torn is not None:
            assert store.torn.read_bytes() == whole[:cut].split(b"\n")[-1] + b"\n"


def test_two_sweeps_cannot_hold_one_store(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "s.jsonl"), raises("file-locked", path=tmp_path / "s.jsonl"):
        StoreWriter(tmp_path / "s.jsonl")


def test_damage_before_the_last_line_is_told_with_its_line(tmp_path: Path, row: Row) -> None:
    good = json.dumps(row().to_json())
    (tmp_path / "s.jsonl").write_text(f"{good}\n{{half\n{good}\n")
    with raises("bad-syntax", path=tmp_path / "s.jsonl", line=2, form="JSON"):
        read_store(tmp_path / "s.jsonl")


def test_a_foreign_file_is_not_written_to(tmp_path: Path) -> None:
    path = tmp_path / "notes.jsonl"
    path.write_text('{"my": "notes"}\n')
    with raises("wrong-schema", place=f"{path} line 1", found=None):
        StoreWriter(path)
    assert path.read_text() == '{"my": "notes"}\n'


def test_a_missing_store_says_how_to_make_one(tmp_path: Path) -> None:
    with raises("file-not-found", path=tmp_path / "none.jsonl"):
        read_store(tmp_path / "none.jsonl")


@given(number=st.integers(0, 10_000))
def test_rows_are_read_alike_with_and_without_pydantic(number: int) -> None:
    content = damaged("rows", number)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "s.jsonl"
        path.write_bytes(content)

        def outcome() -> str:
            try:
                return repr(read_store(path).rows)
            except InfergyError as error:
                return f"{error.code} {error}"

        fast = outcome()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("infergy.records.store.line_reader", lambda *_: None)
            assert outcome() == fast
