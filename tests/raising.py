"""Errors matched by their code and fields, not by their words."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from infergy.errors import InfergyError


@contextmanager
def raises(code: str, **fields: object) -> Iterator[pytest.ExceptionInfo[InfergyError]]:
    """The block raises an error of infergy with this code and, among its fields, these: as they would be in JSON."""
    with pytest.raises(InfergyError) as caught:
        yield caught
    assert seen(caught.value, *fields) == (code, json.loads(json.dumps(fields, default=str)))


def seen(error: InfergyError, *names: str) -> tuple[str, dict[str, object]]:
    """An error's code, and of its fields those that are named; a missing one is left out."""
    found = {name: error.fields[name] for name in names if name in error.fields}
    return error.code, json.loads(json.dumps(found, default=str))


def keys_of(error: InfergyError) -> list[str]:
    """The keys of a grid that an error names, as ``cells.0.batch``."""
    return [problem["key"] for problem in error.fields["problems"]]
