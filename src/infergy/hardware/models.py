"""Models by name: the shipped configurations, any `config.json`, and numbers by hand. Standard library only."""

from __future__ import annotations

import dataclasses
import json
import re
import tomllib
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from infergy.errors import DataError, UsageError
from infergy.hardware.shape import ModelShape


def model_names() -> tuple[str, ...]:
    """Names of the shipped configurations, in alphabetical order."""
    return tuple(sorted(f.name.removesuffix(".json") for f in _folder().iterdir() if f.name.endswith(".json")))


def model_config(name_or_path: str) -> dict[str, Any]:
    """The `config.json` of a shipped model (in any case), of a file, or of its folder.

    A file may also tell plain numbers, in TOML or JSON (`infergy.hardware.by_hand`).

    Raises:
        UsageError: No such model; the message gives the nearest.
        DataError: The file is missing or no JSON object.
    """
    path = Path(name_or_path)
    if name_or_path.lower() in model_names():
        text = (_folder() / f"{name_or_path.lower()}.json").read_text(encoding="utf-8")
    elif path.suffix == ".toml":
        return _read_toml(path)
    elif path.is_dir() or path.suffix == ".json":
        path = path / "config.json" if path.is_dir() else path
        text = _read(path)
    else:
        shipped = shape_of_id(name_or_path)
        if shipped is not None:
            message = f"{name_or_path} goes by the shape of {shipped.name} here: type {shipped.name}"
            raise UsageError(message, code="unknown-model", name=name_or_path, nearest=[shipped.name])
        hint = "Or give the path of a config.json, or numbers by hand: docs/models.md"
        raise UsageError.unknown("model", name_or_path, model_names(), hint, code="unknown-model")
    try:
        config = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError.bad_syntax(path, "JSON", error, "Expected the config.json of a Hugging Face model") from error
    if not isinstance(config, dict):
        message = f"{path}: expected a JSON object, the config.json of a Hugging Face model"
        raise DataError(message, code="bad-syntax", path=str(path), format="JSON object")
    return config


def get_model(name_or_path: str) -> ModelShape:
    """The shape of a shipped model, of a `config.json`, or of numbers by hand.

    Raises:
        UsageError: No such model, or its architecture is not known.
        DataError: The file is not a usable configuration.
    """
    name = name_or_path.lower() if name_or_path.lower() in model_names() else name_or_path
    return ModelShape.from_config(model_config(name), name=name)


@cache
def shape_of_id(model_id: str) -> ModelShape | None:
    """The shape of the model that Hugging Face calls `model_id`, from what is shipped; None if it is not.

    `model_id` may lack the owner. Variants of one network share a shape (base, instruct, thinking, a date), and are
    listed in data/model_ids.toml; a suffix that tells the format of the weights (``-FP8``) sets `checkpoint_dtype`, and
    `scaled_in_blocks` where the fp8 weights of that family are.
    """
    rules = id_rules()
    name, dtype = model_id.rsplit("/", 1)[-1].lower(), None
    for ending, meant in rules["dtypes"].items():
        if name.endswith(ending):
            name, dtype = name.removesuffix(ending), meant
            break
    patterns = {shipped: re.escape(shipped) for shipped in model_names()}
    for table in (patterns, rules["models"]):
        for shipped, pattern in table.items():
            if re.fullmatch(f"({pattern}){rules['variants']}", name):
                shape = get_model(shipped)
                if dtype is None:
                    return shape
                blocks = shape.scaled_in_blocks or re.fullmatch(rules["blocks"], shipped) is not None
                blocks = blocks and ending in rules["block_endings"]
                return dataclasses.replace(shape, checkpoint_dtype=dtype, scaled_in_blocks=blocks)
    return None


@cache
def id_rules() -> dict[str, Any]:
    """What data/model_ids.toml says."""
    return tomllib.loads((resources.files("infergy") / "data" / "model_ids.toml").read_text(encoding="utf-8"))


def canonical_name(name_or_path: str) -> str:
    """What a model is called in files: a shipped model by its name, another by its folder or file, path left out."""
    if name_or_path.lower() in model_names():
        return name_or_path.lower()
    path = Path(name_or_path)
    if path.suffix == ".toml":
        return path.stem
    if path.suffix != ".json":
        return path.resolve().name
    return path.resolve().parent.name if path.name == "config.json" else path.stem


def _folder() -> Traversable:
    return resources.files("infergy") / "data" / "models"


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(_read(path))
    except tomllib.TOMLDecodeError as error:
        raise DataError.bad_syntax(path, "TOML", error, "Expected the numbers of a model: docs/models.md") from error


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise DataError.not_found(path, "The shipped models: infergy list models") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError.not_readable(path, error) from error
