"""Codes of errors are stable: those that `src` raises are those that docs/errors.md lists."""

from __future__ import annotations

import ast
import json
import pickle
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from infergy.engines.engine import EngineOutOfMemoryError
from infergy.errors import DataError, GpuLostError, InfergyError, MissingError, UsageError
from infergy.measure.cell import WrongTokensError
from infergy.measure.child import HangError

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "infergy"
KINDS: Mapping[str, type[InfergyError]] = {
    kind.__name__: kind
    for base in InfergyError.__subclasses__()
    for kind in (base, *base.__subclasses__(), HangError, WrongTokensError, EngineOutOfMemoryError)
}


def calls(tree: ast.AST) -> Iterator[tuple[ast.Call, type[InfergyError] | None]]:
    """Calls that make an error, each with its class; None where that is known only when it runs."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name in KINDS:
            for call in ast.walk(node):
                if isinstance(call, ast.Call) and ast.unparse(call.func) in ("cls", "cls.unknown"):
                    yield call, KINDS[node.name]
        if isinstance(node, ast.Call):
            name, _, made_by = ast.unparse(node.func).partition(".")
            if name in KINDS and made_by in ("", "unknown"):
                yield node, KINDS[name]
            elif name == "kind" and any(one.arg == "code" for one in node.keywords):
                yield node, None


def code_of(call: ast.Call) -> str | None:
    found = next((one.value for one in call.keywords if one.arg == "code"), None)
    return found.value if isinstance(found, ast.Constant) and isinstance(found.value, str) else None


def test_each_error_has_a_code() -> None:
    without = []
    for path in sorted(SOURCE.rglob("*.py")):
        name = str(path.relative_to(SOURCE))
        for call, kind in calls(ast.parse(path.read_text(encoding="utf-8"))):
            if code_of(call) is None and kind is not EngineOutOfMemoryError:
                without.append(f"{name} line {call.lineno}: {ast.unparse(call)}")
    assert without == []


def test_the_page_lists_all_codes_with_their_exit_statuses() -> None:
    raised: dict[str, set[int]] = defaultdict(set)
    raised["out-of-memory"].add(EngineOutOfMemoryError.exit_code)
    # What was not foreseen, shown by the command line.
    raised["bug"].add(InfergyError.exit_code)
    for path in SOURCE.rglob("*.py"):
        for call, kind in calls(ast.parse(path.read_text(encoding="utf-8"))):
            code = code_of(call)
            if code is not None:
                raised[code] |= set() if kind is None else {kind.exit_code}
    page = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    listed = {
        code: {int(status) for status in statuses.split(",")}
        for code, statuses in re.findall(r"^\| `([a-z-]+)` \| ([\d, ]+) \|", page, flags=re.MULTILINE)
    }
    assert listed == dict(raised)
    assert list(listed) == sorted(listed)


@pytest.mark.parametrize(
    "error",
    [
        UsageError("no", code="bad-value", option="--x", value=[1, 2]),
        GpuLostError("gone", code="gpu-lost", uuid="GPU-a"),
        EngineOutOfMemoryError("full", is_usable=True, batch=3),
        DataError.bad_field("a.toml", "key", 3, "text"),
        MissingError("of another package"),
    ],
)
def test_errors_cross_processes_whole(error: InfergyError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert (str(again), again.code, again.fields) == (str(error), error.code, error.fields)
    assert vars(again) == vars(error)


def test_an_error_within_a_place_keeps_its_code() -> None:
    error = UsageError.unknown("GPU", "h20", ["h200"], code="unknown-gpu").within("a grid", grid="g")
    assert str(error) == "a grid: unknown GPU 'h20'; did you mean h200?"
    assert error.code == "unknown-gpu"
    assert error.fields == {"kind": "GPU", "name": "h20", "known": ["h200"], "nearest": ["h200"], "grid": "g"}


def test_fields_are_json() -> None:
    error = UsageError.conflict({"compiled": True, "decoding": "beam4", "--meter": "zeus", "--simulate": True}, "no")
    assert str(error) == 'compiled = true and decoding = "beam4" and --meter zeus and --simulate: no'
    assert json.loads(json.dumps(error.fields)) == error.fields
