"""Models by name: the shipped configurations, and any `config.json`. Standard library only."""

from __future__ import annotations

import json
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
    """The `config.json` of a shipped model (in any case), of a file, or of the folder that holds one.

    Raises:
        UsageError: No such model; the message gives the nearest.
        DataError: The file is missing or no JSON object.
    """
    path = Path(name_or_path)
    if name_or_path.lower() in model_names():
        text = (_folder() / f"{name_or_path.lower()}.json").read_text(encoding="utf-8")
    elif path.is_dir() or path.suffix == ".json":
        path = path / "config.json" if path.is_dir() else path
        text = _read(path)
    else:
        raise UsageError.unknown("model", name_or_path, model_names(), "Or give the path of a config.json")
    try:
        config = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: not JSON ({error}). Expected the config.json of a Hugging Face model") from error
    if not isinstance(config, dict):
        raise DataError(f"{path}: expected a JSON object, the config.json of a Hugging Face model")
    return config


def get_model(name_or_path: str) -> ModelShape:
    """The shape of a shipped model, or of a `config.json`.

    Raises:
        UsageError: No such model, or its architecture is not known.
        DataError: The file is not a usable configuration.
    """
    name = name_or_path.lower() if name_or_path.lower() in model_names() else name_or_path
    return ModelShape.from_config(model_config(name), name=name)


def canonical_name(name_or_path: str) -> str:
    """What a model is called in files: a shipped model by its name, another by its folder or file, path left out."""
    if name_or_path.lower() in model_names():
        return name_or_path.lower()
    path = Path(name_or_path)
    if path.suffix != ".json":
        return path.resolve().name
    return path.resolve().parent.name if path.name == "config.json" else path.stem


def _folder() -> Traversable:
    return resources.files("infergy") / "data" / "models"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file. The shipped models: infergy models") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
