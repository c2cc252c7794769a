"""Frozen dataclasses to JSON objects and back, with the standard library only.

A field equal to its default is still written: a row must be readable without this code. Reading is strict, so
that a foreign or truncated file is found at once: a missing or unknown key is a `DataError` naming its place.
"""

from __future__ import annotations

import dataclasses
import functools
import marshal
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from infergy.errors import DataError, UsageError
from infergy.files import LARGEST_INTEGER

T = TypeVar("T")

SIGNED = frozenset({"seed", "temperature_c", "after"})
"""Fields whose numbers may be below 0: those of all others count or measure something."""
MOST_SHARED = 10_000
MARSHAL_WITHOUT_REFERENCES = 2
LARGEST = 1e30
"""Of a number: no quantity of a row is larger, and squares of larger ones are out of range."""


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
        DataError: A key is missing, unknown, or of another type than declared; a number is below 0 or too large, or a
            class rejects its values.
    """
    try:
        return typing.cast(T, _reader_of(typing.cast(Any, cls))(data))
    except _MisfitError as error:
        place, key = place or cls.__name__, "".join(reversed(error.path)).lstrip(".")
        message = ": ".join(filter(None, (place, key, str(error))))
        raise DataError(message, code="bad-row", place=place, key=key, reason=str(error)) from None


@functools.cache
def line_reader(cls: type, shared: tuple[str, ...] = ()) -> Callable[[bytes], Any] | None:
    """What reads lines of JSON as `cls` in a third of the time; None without pydantic, as on a node that measures.

    It rejects what `from_json` rejects, and does not say where: by a ValueError or the error of a class.

    Args:
        cls: As of `from_json`.
        shared: Fields that thousands of lines have alike: each value is read once, and kept once.
    """
    try:
        from pydantic_core import SchemaValidator
    except ImportError:
        return None
    known: dict[bytes, Any] = {}

    def share(value: Any, read: Callable[[Any], Any], facts: Any) -> Any:
        # 1, 1.0 and true are equal as values, and differ as bytes.
        key = marshal.dumps((facts.field_name, value), MARSHAL_WITHOUT_REFERENCES)
        if key not in known:
            if len(known) >= MOST_SHARED:
                known.clear()
            known[key] = read(value)
        return known[key]

    schema: dict[str, Any] = _schema(cls)
    for field in schema["schema"]["fields"]:
        if field["name"] in shared:
            function = {"type": "with-info", "function": share}
            # The default of a missing key is not read.
            holder = field["schema"] if field["schema"]["type"] == "default" else field
            holder["schema"] = {"type": "function-wrap", "function": function, "schema": holder["schema"]}
    return SchemaValidator(typing.cast(Any, schema)).validate_json


def _schema(hint: Any, *, is_signed: bool = True) -> dict[str, Any]:
    """A type, as pydantic's core takes it."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return {"type": "any"}
    if origin in (typing.Union, types.UnionType):
        (inner,) = [_schema(arg, is_signed=is_signed) for arg in args if arg is not type(None)]
        return {"type": "nullable", "schema": inner}
    if origin is tuple:
        items = [_schema(arg, is_signed=is_signed) for arg in args if arg is not Ellipsis]
        return {"type": "tuple", "items_schema": items} | ({"variadic_item_index": 0} if args[-1] is Ellipsis else {})
    if origin is not None and issubclass(origin, Mapping):
        return {"type": "dict", "values_schema": _schema(args[1], is_signed=is_signed)}
    if dataclasses.is_dataclass(hint):
        return _schema_of_fields(hint)
    finite = {"allow_inf_nan": False} if hint is float else {}
    most = {int: LARGEST_INTEGER, float: LARGEST}.get(hint)
    limits = {} if most is None else {"ge": -most if is_signed else 0, "le": most}
    return {"type": hint.__name__, "strict": True} | limits | finite


def _schema_of_fields(cls: Any) -> dict[str, Any]:
    hints, fields = typing.get_type_hints(cls), []
    for field in dataclasses.fields(cls):
        schema = _schema(hints[field.name], is_signed=field.name in SIGNED)
        if field.default is not dataclasses.MISSING:
            schema = {"type": "default", "schema": schema, "default": field.default}
        elif field.default_factory is not dataclasses.MISSING:
            schema = {"type": "default", "schema": schema, "default_factory": field.default_factory}
        fields.append({"type": "dataclass-field", "name": field.name, "kw_only": True, "schema": schema})
    inner = {"type": "dataclass-args", "dataclass_name": cls.__name__, "fields": fields, "extra_behavior": "forbid"}
    names = [field["name"] for field in fields]
    made = {"slots": True, "post_init": hasattr(cls, "__post_init__")}
    return {"type": "dataclass", "cls": cls, "fields": names, "schema": inner} | made


class _MisfitError(Exception):
    """A value of another type than declared; `path` leads to it, the innermost step first."""

    def __init__(self, words: str) -> None:
        super().__init__(words)
        self.path: list[str] = []


@functools.cache
def _reader_of(cls: type) -> Callable[[Any], Any]:
    """What reads a JSON value as a class: made once, for files hold thousands of the same."""
    return _reader(_schema(cls))


def _reader(schema: Mapping[str, Any]) -> Callable[[Any], Any]:
    """What reads a JSON value by a schema."""
    kind = schema["type"]
    if kind == "any":
        return lambda value: value
    if kind == "nullable":
        inner = _reader(schema["schema"])
        return lambda value: None if value is None else inner(value)
    if kind == "tuple":
        length = None if "variadic_item_index" in schema else len(schema["items_schema"])
        return functools.partial(_read_tuple, _reader(schema["items_schema"][0]), length)
    if kind == "dict":
        return functools.partial(_read_mapping, _reader(schema["values_schema"]))
    if kind == "dataclass":
        fields = {}
        for field in schema["schema"]["fields"]:
            own, is_needed = field["schema"], field["schema"]["type"] != "default"
            fields[field["name"]] = (_reader(own if is_needed else own["schema"]), is_needed)
        return functools.partial(_read_fields, schema["cls"], fields)
    read = _read_number if kind in ("int", "float") else _read_scalar
    return functools.partial(read, schema)


def _read_each(parts: Iterable[tuple[object, Any, Callable[[Any], Any]]], step: str) -> Iterator[Any]:
    """Parts of a value, each with its place in it and what reads it."""
    for place, value, read in parts:
        try:
            yield read(value)
        except _MisfitError as error:
            error.path.append(step.format(place))
            raise


def _read_missing(_: object) -> Any:
    raise _MisfitError("missing")


def _read_fields(cls: type, fields: Mapping[str, tuple[Callable[[Any], Any], bool]], value: Any) -> Any:
    if not isinstance(value, Mapping):
        raise _MisfitError(f"expected an object, found {type(value).__name__}")
    if not value.keys() <= fields.keys():
        unknown = sorted(value.keys() - fields.keys())
        raise _MisfitError(f"unknown key {unknown[0]!r}; {cls.__name__} has {', '.join(fields)}")
    names = [name for name, (_, is_needed) in fields.items() if is_needed or name in value]
    parts = ((name, value.get(name), fields[name][0] if name in value else _read_missing) for name in names)
    try:
        return cls(**dict(zip(names, _read_each(parts, ".{}"), strict=True)))
    except UsageError as error:
        raise _MisfitError(str(error)) from error


def _read_tuple(read: Callable[[Any], Any], length: int | None, value: Any) -> tuple[Any, ...]:
    if not isinstance(value, list) or length not in (None, len(value)):
        raise _MisfitError(f"expected a list{'' if length is None else f' of {length}'}, found {value!r:.60}")
    return tuple(_read_each(((place, item, read) for place, item in enumerate(value)), "[{}]"))


def _read_mapping(read: Callable[[Any], Any], value: Any) -> dict[Any, Any]:
    if not isinstance(value, Mapping):
        raise _MisfitError(f"expected an object, found {value!r:.60}")
    return dict(zip(value, _read_each(((key, item, read) for key, item in value.items()), ".{}"), strict=True))


def _read_number(schema: Mapping[str, Any], value: Any) -> Any:
    kind, least, most = schema["type"], schema["ge"], schema["le"]
    if type(value) not in ((float, int) if kind == "float" else (int,)):
        raise _MisfitError(f"expected {kind}, found {value!r:.60}")
    # Not a number lies in no range.
    if not least <= value <= most:
        expected = f"at least {least:g}" if value < least else f"at most {most:g}"
        raise _MisfitError(f"expected a number of {expected}, found {value!r:.60}")
    return float(value) if kind == "float" else value


def _read_scalar(schema: Mapping[str, Any], value: Any) -> Any:
    if type(value).__name__ != schema["type"]:
        raise _MisfitError(f"expected {schema['type']}, found {value!r:.60}")
    return value
