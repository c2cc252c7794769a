"""Files that infergy writes: whole or not at all, and never over a file of another kind."""

from __future__ import annotations

import os
import resource
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from infergy.catalog import get_gpu
from infergy.cost.table import write_table
from infergy.estimates.servers import shipped_table
from infergy.files import append_line, check_output, open_beside, write_file
from infergy.measure.doctor import SIMULATED_FULL_W, simulated_gpu
from infergy.measure.grid import make_plan, parse_grid
from infergy.measure.loads import SimulatedLoad
from infergy.measure.square_wave import measure_behaviour
from infergy.meters.simulated import SimulatedMeter
from infergy.records.store import StoreWriter, create_store, read_store
from infergy.testing.recording import record
from raising import raises
from rows import build_row

NOTES = "Things to buy: milk, bread"


def write_plan(path: Path) -> None:
    grid = {"name": "tiny", "gpu": get_gpu("h200").name, "model": "llama-3.1-8b", "engines": [{"engine": "vllm"}]}
    make_plan(parse_grid(grid | {"cells": [{"input_tokens": [64], "output_tokens": [8], "batch": [1]}]}, "test")).save(
        path
    )


def write_behaviour(path: Path) -> None:
    gpu = simulated_gpu()
    measure_behaviour(SimulatedMeter(gpu), SimulatedLoad(gpu, SIMULATED_FULL_W)).save(path)


def write_store(path: Path) -> None:
    with StoreWriter(path) as store:
        store.append(build_row())


WRITERS: dict[str, Callable[[Path], None]] = {
    "plan": write_plan,
    "behaviour": write_behaviour,
    "table": lambda path: write_table(shipped_table(), path),
    "recording": lambda path: record(SimulatedMeter(simulated_gpu()), path, 0.2),
    "text": lambda path: write_file(path, "mine: 1\n", "file of mine", "mine: "),
}
"""What is written at once."""
ALL = WRITERS | {"store": write_store, "line": lambda path: append_line(path, "mine: 1")}


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """A disk that is full after so many bytes of a file: Python ignores the signal, and the call fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("name", ALL)
def test_a_full_disk_is_an_error_that_names_the_file_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    with files_of_at_most(1), raises("file-not-writable", path=tmp_path / "out.json"):
        ALL[name](tmp_path / "out.json")
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 1


@pytest.mark.parametrize("name", WRITERS)
def test_on_a_full_disk_what_was_written_before_stays(tmp_path: Path, name: str) -> None:
    path = tmp_path / "out.json"
    WRITERS[name](path)
    before = path.read_bytes()
    with files_of_at_most(len(before) // 2), raises("file-not-writable", path=path):
        WRITERS[name](path)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["out.json"]


def test_a_row_that_does_not_fit_on_the_disk_leaves_the_store_as_it_was(tmp_path: Path) -> None:
    write_store(tmp_path / "s.jsonl")
    before = (tmp_path / "s.jsonl").read_bytes()
    with (
        StoreWriter(tmp_path / "s.jsonl") as store,
        files_of_at_most(len(before) + 100),
        raises("file-not-writable", path=tmp_path / "s.jsonl"),
    ):
        store.append(build_row(batch=2))
    assert (tmp_path / "s.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    "content", [NOTES, NOTES + "\n", "num_tokens,output\n1,2\n", '{"prompt": "x"}\n', '{"prompt": ']
)
@pytest.mark.parametrize("name", [*WRITERS, "store"])
def test_a_file_of_another_kind_is_not_written_over(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / "notes.txt"
    path.write_text(content)
    code = ("bad-syntax", "bad-row", "wrong-schema", "missing-field", "unknown-field", "bad-field", "file-exists")
    with pytest.raises(Exception, match="notes") as caught:
        ALL[name](path)
    assert getattr(caught.value, "code", None) in code
    assert path.read_text() == content
    assert [each.name for each in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_of_the_same_kind_and_an_empty_one_are_replaced(tmp_path: Path, name: str) -> None:
    path = tmp_path / "out.json"
    path.touch(mode=0o640)
    WRITERS[name](path)
    assert path.stat().st_size
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    WRITERS[name](path)


def test_of_a_link_the_file_is_replaced_that_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    for text in ("mine: 1", "mine: 2"):
        write_file(tmp_path / "a", text, "file of mine", "mine")
        assert (tmp_path / "b").read_text() == text
    assert (tmp_path / "a").is_symlink()


def test_a_device_is_written_as_it_is(tmp_path: Path) -> None:
    write_file(Path(os.devnull), "mine: 1", "file of mine", "mine")
    with raises("file-not-writable", path="/dev/full"):
        write_file(Path("/dev/full"), "mine: 1", "file of mine", "mine")
    with raises("file-not-writable", path="/dev/full"):
        append_line(Path("/dev/full"), "mine: 1")
    with raises("file-not-writable", path=os.devnull):
        StoreWriter(Path(os.devnull))


@pytest.mark.parametrize("name", ["none/out.json", "a-file/out.json", "folder", "loop"])
def test_what_cannot_be_written_is_said_before_its_content_is_computed(tmp_path: Path, name: str) -> None:
    (tmp_path / "a-file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    with raises("file-not-writable", path=tmp_path / name):
        check_output(tmp_path / name, "file of mine", "mine")
    with raises("file-not-writable", path=tmp_path / name):
        write_file(tmp_path / name, "mine", "file of mine", "mine")


def test_a_line_is_appended_to_a_line_that_was_cut_off_as_a_new_one(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("half")
    append_line(tmp_path / "f", "whole")
    append_line(tmp_path / "f", "more")
    assert (tmp_path / "f").read_text() == "half\nwhole\nmore\n"


def test_a_half_written_line_is_not_written_into_a_file_that_a_link_leads_to(tmp_path: Path) -> None:
    write_store(tmp_path / "s.jsonl")
    whole = (tmp_path / "s.jsonl").read_bytes()
    (tmp_path / "s.jsonl").write_bytes(whole + whole[:100])
    (tmp_path / "theirs").write_text("theirs")
    (tmp_path / "s.jsonl.torn").symlink_to(tmp_path / "theirs")
    with raises("file-not-writable", path=tmp_path / "s.jsonl.torn"):
        StoreWriter(tmp_path / "s.jsonl")
    with raises("file-not-writable", path=tmp_path / "s.jsonl.torn"):
        open_beside(tmp_path / "s.jsonl.torn")
    assert (tmp_path / "theirs").read_text() == "theirs"
    assert (tmp_path / "s.jsonl").read_bytes() == whole + whole[:100]


@pytest.mark.parametrize("is_replaced", [False, True])
def test_a_store_that_is_removed_or_replaced_is_noticed_and_its_rows_are_kept(
    tmp_path: Path, is_replaced: bool
) -> None:
    path = tmp_path / "s.jsonl"
    for number in (1, 2):
        with StoreWriter(path) as store:
            store.append(build_row(batch=number))
            store.demand_in_place()
            rows = store.read().rows
            path.unlink()
            if is_replaced:
                create_store(path, [build_row(batch=8)])
            store.append(build_row(batch=4))
            kept = tmp_path / f"s.kept-{number}.jsonl"
            with raises("store-replaced", path=path, kept=kept):
                store.demand_in_place()
        assert read_store(kept).rows == (*rows, build_row(batch=4))


def test_a_store_whose_folder_is_gone_is_kept_in_a_new_one(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "a" / "s.jsonl") as store:
        store.append(build_row())
        (tmp_path / "a").rename(tmp_path / "b")
        with raises("store-replaced", path=tmp_path / "a" / "s.jsonl"):
            store.demand_in_place()
    assert read_store(tmp_path / "a" / "s.kept-1.jsonl").rows == (build_row(),)


def test_what_inherits_a_store_writes_into_it_also_if_another_has_its_name(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    with StoreWriter(path) as store:
        path.unlink()
        path.write_text("another")
        with StoreWriter(path, inherited=os.dup(store.fileno())) as child:
            child.append(build_row())
        assert store.read().rows == (build_row(),)
    assert path.read_text() == "another"
