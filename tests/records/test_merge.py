"""Stores that become one: every row, once, in whatever order they come; what contradicts is refused."""

from __future__ import annotations

import itertools
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from typer.testing import CliRunner

from infergy.cli import app
from infergy.cli.schemas import make_schema
from infergy.records import Measurement
from infergy.records.merge import join, merge
from infergy.records.store import StoreWriter, read_store
from known_tables import write_store
from raising import raises
from rows import build_row


def row_at(second: int, **facts: object) -> Measurement:
    return replace(build_row(**facts), measured_utc=f"2026-01-01T00:00:{second:02}.000+00:00")  # type: ignore[arg-type]


@pytest.fixture
def stores(tmp_path: Path) -> list[Path]:
    """Three stores with one row in common, and one cell measured by two of them."""
    shared = row_at(5, input_tokens=64)
    return [
        write_store(tmp_path / "a.jsonl", [row_at(3, input_tokens=32), shared]),
        write_store(tmp_path / "b.jsonl", [shared, row_at(1, input_tokens=128)]),
        write_store(tmp_path / "c.jsonl", [row_at(4, input_tokens=32)]),
    ]


def test_any_order_any_number_of_times_gives_the_same_file(tmp_path: Path, stores: list[Path]) -> None:
    written = set()
    for number, order in enumerate(itertools.permutations(stores)):
        out = tmp_path / f"out-{number}.jsonl"
        merge(out, order)
        once = out.read_bytes()
        assert merge(out, order).before == 4
        merge(out, [out, *order])
        assert out.read_bytes() == once
        written.add(once)
    assert len(written) == 1


def test_one_by_one_gives_what_all_at_once_gives(tmp_path: Path, stores: list[Path]) -> None:
    for path in reversed(stores):
        merge(tmp_path / "slow.jsonl", [path])
    merge(tmp_path / "fast.jsonl", stores)
    assert (tmp_path / "slow.jsonl").read_bytes() == (tmp_path / "fast.jsonl").read_bytes()


@settings(deadline=None, max_examples=40)
@given(
    stores=st.lists(st.lists(st.tuples(st.integers(0, 9), st.sampled_from([32, 64])), max_size=5), max_size=4),
    order=st.randoms(use_true_random=False),
)
def test_a_join_of_any_stores_holds_each_row_once_whatever_the_order_and_the_grouping(
    stores: list[list[tuple[int, int]]], order: random.Random
) -> None:
    named = [
        (str(place), [row_at(second, input_tokens=tokens) for second, tokens in one])
        for place, one in enumerate(stores)
    ]
    joined = join(named)
    assert len(joined) == len({pair for one in stores for pair in one})
    assert join([("joined", joined)]) == joined
    assert join([("joined", joined), *named]) == joined
    half = order.randint(0, len(named))
    assert join([("a", join(named[half:])), ("b", join(named[:half]))]) == joined
    order.shuffle(named)
    assert join(named) == joined


def test_every_row_is_kept_once_by_time_and_inputs_are_left_alone(tmp_path: Path, stores: list[Path]) -> None:
    before = [path.read_bytes() for path in stores]
    merged = merge(tmp_path / "out.jsonl", stores)
    rows = read_store(tmp_path / "out.jsonl").rows
    assert [row.measured_utc[17:19] for row in rows] == ["01", "03", "04", "05"]
    assert [row.cell.load.input_tokens for row in rows] == [128, 32, 32, 64]
    assert [(one.rows, one.added) for one in merged.files] == [(2, 2), (2, 1), (1, 1)]
    assert (merged.before, merged.rows, merged.cells, merged.failed) == (0, 4, 3, 0)
    assert [path.read_bytes() for path in stores] == before


def test_one_row_told_in_two_ways_is_refused_and_nothing_is_written(tmp_path: Path, stores: list[Path]) -> None:
    changed = write_store(tmp_path / "d.jsonl", [replace(row_at(5, input_tokens=64), seed=99)])
    with raises("rows-differ", files=[stores[0], tmp_path / "d.jsonl"]):
        merge(tmp_path / "out.jsonl", [*stores, changed])
    assert not (tmp_path / "out.jsonl").exists()
    old = stores[0].read_bytes()
    with raises("rows-differ"):
        merge(stores[0], [changed])
    assert stores[0].read_bytes() == old


def test_joules_of_another_scope_or_of_no_real_gpu_are_refused(tmp_path: Path, stores: list[Path]) -> None:
    row = row_at(7, input_tokens=16)
    for other, told in (
        (replace(row, simulated=not row.simulated), "simulated"),
        (replace(row, environment=replace(row.environment, scope="cpu-package")), "scope"),
    ):
        path = tmp_path / f"{told}.jsonl"
        write_store(path, [other])
        with raises("environments-differ", fact=told):
            merge(tmp_path / "out.jsonl", [*stores, path])
    assert not (tmp_path / "out.jsonl").exists()


def test_a_half_written_line_is_told_and_left_where_it_is(tmp_path: Path, stores: list[Path]) -> None:
    with stores[2].open("ab") as file:
        file.write(b'{"schema": "infergy.measurem')
    merged = merge(tmp_path / "out.jsonl", stores)
    assert [one.is_torn for one in merged.files] == [False, False, True]
    assert merged.rows == 4
    assert stores[2].read_bytes().endswith(b"measurem")


def test_a_store_that_a_sweep_writes_to_is_left_alone(tmp_path: Path, stores: list[Path]) -> None:
    with StoreWriter(tmp_path / "out.jsonl"), raises("file-locked", path=tmp_path / "out.jsonl"):
        merge(tmp_path / "out.jsonl", stores)


def test_the_verb_says_what_it_did_and_its_json_keeps_its_schema(tmp_path: Path, stores: list[Path]) -> None:
    arguments = ["table", "merge", str(tmp_path / "out.jsonl"), *map(str, stores)]
    told = CliRunner().invoke(app, arguments, catch_exceptions=False).stdout
    assert told.splitlines()[1] == f"{stores[1]}: 2 rows, 1 of them new"
    assert told.splitlines()[-1] == f"{tmp_path / 'out.jsonl'}: 0 rows before, 4 now: 3 cells measured"
    found = json.loads(CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False).stdout)
    Draft202012Validator(make_schema("merge")).validate(found)
    assert (found["before"], found["rows"]) == (4, 4)
