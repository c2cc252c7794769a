"""Frozen dataclasses to JSON objects and back, with the standard library only.

A field equal to its default is still written: a row must be readable without this code. Reading is strict, so
that a foreign or truncated file is told at once: a missing or unknown key is a `DataError` naming its place.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from infergy.errors import DataError

T = TypeVar("T")


def to_json(value: Any) -> Any:
    """Dataclasses, mappings, tuples and scalars as plain JSON values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    return value


def from_json(cls: type[T], data: Any, place: str = "") -> T:
    """Build the dataclass `cls` from a JSON object.

    Args:
        cls: A dataclass whose fields are scalars, dataclasses, tuples, dicts, or unions of one of these with None.
        data: What `json.loads` gave.
        place: Where the object stands, for the message: ``rows.jsonl line 3``.

    Raises:
        DataError: A key is missing, unknown, or of another type than declared.
    """
    if not isinstance(data, Mapping):
        raise DataError(f"{place or cls.__name__}: expected an object, found {type(data).__name__}")
    hints = _hints(typing.cast(type, cls))
    unknown = sorted(set(data) - set(hints))
    if unknown:
        raise DataError(f"{place or cls.__name__}: unknown key {unknown[0]!r}; {cls.__name__} has {', '.join(hints)}")
    values: dict[str, Any] = {}
    for field in dataclasses.fields(typing.cast(Any, cls)):
        where = f"{place}.{field.name}" if place else f"{cls.__name__}.{field.name}"
        if field.name in data:
            values[field.name] = _read(hints[field.name], data[field.name], where)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise DataError(f"{where}: missing")
    return cls(**values)


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    """Types by field: looked up once a class, for files hold thousands of the same."""
    return typing.get_type_hints(cls)


def _read(hint: Any, value: Any, place: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        (inner,) = [arg for arg in args if arg is not type(None)]
        return _read(inner, value, place)
    if origin is tuple:
        if not isinstance(value, list):
            raise DataError(f"{place}: expected a list, found {value!r:.60}")
        return tuple(_read(args[0], item, f"{place}[{i}]") for i, item in enumerate(value))
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise DataError(f"{place}: expected an object, found {value!r:.60}")
        return {key: _read(args[1], item, f"{place}.{key}") for key, item in value.items()}
    if dataclasses.is_dataclass(hint):
        return from_json(typing.cast(type, hint), value, place)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, bool) and hint is not bool:
        raise DataError(f"{place}: expected {hint.__name__}, found {value!r}")
    if not isinstance(value, hint):
        raise DataError(f"{place}: expected {hint.__name__}, found {value!r:.60}")
    return value
