"""Files with one value changed at random: every reader ends in an answer or in an error of infergy, never otherwise."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infergy.cost.table import SHIPPED_TABLE, read_table
from infergy.errors import InfergyError
from infergy.estimates.build import build_table
from infergy.estimates.servers import load_tables
from infergy.measure.grid import make_plan, parse_grid, read_toml
from infergy.measure.studies import study_path
from infergy.quality.compare import compare
from infergy.quality.phases import find_phases
from infergy.records import Plan
from infergy.records.check import check_rows
from infergy.records.codec import to_json
from infergy.records.store import read_store, shipped_rows
from infergy.workload import Histogram, open_requests, open_trace
from infergy.workload.histograms import requests_of_histogram

VALUES: tuple[Any, ...] = (
    *(None, True, "", "x", [], {}, [1], {"a": 1}),
    *(0, 1, -1, 2**31, 2**63, -(2**63), 10**400),
    *(0.5, -0.5, 1e-300, 1e30, 1e300, float("inf"), float("-inf"), float("nan")),
)
GONE = object()


def leaves(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all values, of those that hold others too."""
    if path:
        yield path
    inner = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in inner:
        yield from leaves(value, (*path, key))


def changed(text: str, path: tuple[Any, ...], value: object) -> str:
    """JSON with the value at a path replaced or taken out."""
    data = json.loads(text)
    parent = data
    for key in path[:-1]:
        parent = parent[key]
    if value is GONE:
        del parent[path[-1]]
    else:
        parent[path[-1]] = value
    return json.dumps(data)


def use_rows(path: Path) -> None:
    rows = read_store(path).rows
    check_rows(rows)
    compare(rows, rows)
    find_phases(rows)
    build_table([path])


def use_table(path: Path) -> None:
    read_table(path)
    load_tables([path])


def use_histogram(path: Path) -> None:
    requests = open_requests(path)
    if isinstance(requests, Histogram):
        requests_of_histogram(requests, at_most=1000)


@cache
def rows_text() -> tuple[str, ...]:
    """Two short rows: a batch and a run of arrivals."""
    lines = [line for path in shipped_rows() for line in path.read_text(encoding="utf-8").splitlines()]
    offline = min((line for line in lines if '"arrivals":null' in line), key=len)
    online = min((line for line in lines if '"law":"poisson"' in line), key=len)
    return offline, online


@cache
def table_text() -> tuple[str, str]:
    """The header and the first entry of the shipped table."""
    header, entry = SHIPPED_TABLE.read_text(encoding="utf-8").splitlines()[:2]
    first = json.loads(header)
    first["entries"] = first["entries"][:1]
    return json.dumps(first), entry


@cache
def histogram_text() -> str:
    histogram = open_trace("azure-code-2023").histogram()
    return json.dumps(to_json(histogram) | {"requests": histogram.requests})


@cache
def plan_text() -> str:
    return json.dumps(to_json(make_plan(parse_grid(read_toml(study_path("quick")), "quick"))))


def texts(kind: str) -> tuple[tuple[str, Callable[[str], str]], ...]:
    """Of each JSON value of a file: its text, and the file with it put back."""
    if kind == "rows":
        return tuple((line, lambda text: text + "\n") for line in rows_text())
    if kind == "table":
        header, entry = table_text()
        return (header, lambda text: f"{text}\n{entry}\n"), (entry, lambda text: f"{header}\n{text}\n")
    return ((histogram_text() if kind == "histogram" else plan_text(), str),)


USES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "rows": ("rows.jsonl", use_rows),
    "table": ("table.jsonl", use_table),
    "histogram": ("bins.json", use_histogram),
    "plan": ("plan.json", Plan.load),
}


@pytest.mark.parametrize("kind", USES)
@settings(max_examples=150)
@given(data=st.data())
def test_a_file_with_a_changed_value_is_read_or_rejected(kind: str, data: st.DataObject) -> None:
    text, whole = texts(kind)[data.draw(st.integers(0, len(texts(kind)) - 1))]
    path = data.draw(st.sampled_from(tuple(leaves(json.loads(text)))))
    value = data.draw(st.sampled_from((*VALUES, GONE)))
    name, use = USES[kind]
    with TemporaryDirectory() as folder:
        file = Path(folder) / name
        file.write_text(whole(changed(text, path, value)), encoding="utf-8")
        with suppress(InfergyError):
            use(file)
