"""Rows are checked against physics and themselves when read: no alarm on any row that was measured."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path

import pytest

from infergy.records.measurement import SCHEMA
from infergy.records.store import read_store, shipped_rows

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def stores() -> Iterator[Path]:
    """All files of rows, those of the evaluation too."""
    yield from shipped_rows()
    for path in sorted((*BENCHMARKS.rglob("*.jsonl"), *BENCHMARKS.rglob("*.jsonl.gz"))):
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
            if SCHEMA.partition("/")[0] in file.readline():
                yield path


@pytest.mark.parametrize("path", list(stores()), ids=lambda path: path.stem)
def test_no_measured_row_is_rejected(path: Path) -> None:
    assert read_store(path).rows
