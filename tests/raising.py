"""Errors matched by their code and fields, not by their words."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from infergy.errors import InfergyError


@contextmanager
def raises(code: str, **fields: object) -> Iterator[pytest.ExceptionInfo[InfergyError]]:
    """The block raises an error of infergy with this code and, among its fields, these: as they would be in JSON."""
    with pytest.raises(InfergyError) as caught:
        yield caught
    assert seen(caught.value, *fields) == (code, _plain(fields))


@contextmanager
def rejects(code: str, **fields: object) -> Iterator[None]:
    """The block raises this error, alone or among the reasons why a grid is rejected."""
    with pytest.raises(InfergyError) as caught:
        yield
    error = caught.value
    reasons = [(one["code"], one["fields"]) for one in error.fields.get("reasons", ())] or [(error.code, error.fields)]
    assert (code, _plain(fields)) in [(known, _plain(_named(found, fields))) for known, found in reasons]


def seen(error: BaseException | None, *names: str) -> tuple[str, Any]:
    """An error's code, and of its fields those that are named; a missing one is left out."""
    assert isinstance(error, InfergyError)
    return error.code, _plain(_named(error.fields, names))


def keys_of(error: InfergyError) -> list[str]:
    """The keys of a grid that an error names, as ``cells.0.batch``."""
    return [problem["key"] for problem in error.fields["problems"]]


def _named(fields: dict[str, Any], names: Any) -> dict[str, Any]:
    return {name: fields[name] for name in names if name in fields}


def _plain(fields: object) -> Any:
    return json.loads(json.dumps(fields, default=str))
