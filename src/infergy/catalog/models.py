"""Models by name: shipped configurations, any `config.json`, numbers by hand; draft models. Standard library only."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from infergy.catalog.configs import read_shape
from infergy.catalog.quantization import find_quantization
from infergy.catalog.shape import ModelShape, with_checkpoint
from infergy.errors import DataError, UsageError
from infergy.files import demand_shallow, parse_json, read_text, read_toml
from infergy.records import EngineSetup
from infergy.records.engine_setup import tokens_per_round

SHIPPED_MODELS = "The shipped models: infergy list models"

LIKELY_ACCEPTANCE = 0.7
"""Assumed in forecasts where the acceptance will be measured: the middle of the 0.5 to 0.9 of published draft models
(Leviathan et al. 2023, arXiv 2211.17192, section 4.2). No measured row depends on it."""

CONTEXT_KEYS = (
    *("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_sequence_length"),
    "model_max_length",
)
TEXT_PARTS = ("text_config", "llm_config", "thinker_config")
"""Keys of the longest context, and parts of a configuration that may have them."""


@cache
def model_names() -> tuple[str, ...]:
    """Names of the shipped configurations, in alphabetical order."""
    return tuple(sorted(f.name.removesuffix(".json") for f in _folder().iterdir() if f.name.endswith(".json")))


def model_config(name_or_path: str) -> dict[str, Any]:
    """The `config.json` of a shipped model (in any case), of a file, or of its folder.

    A file may also hold plain numbers, in TOML or JSON (docs/models.md).

    Raises:
        UsageError: No such model; the message gives the nearest.
        DataError: The file is missing or no JSON object.
    """
    path = Path(name_or_path)
    if name_or_path.lower() in model_names():
        text = (_folder() / f"{name_or_path.lower()}.json").read_text(encoding="utf-8")
    elif path.suffix == ".toml":
        return read_toml(path, f"Expected the numbers of a model (docs/models.md). {SHIPPED_MODELS}")
    elif _is_folder(path) or path.suffix == ".json":
        path = path / "config.json" if path.is_dir() else path
        text = read_text(path, SHIPPED_MODELS)
    else:
        shipped = shape_of_id(name_or_path)
        if shipped is not None:
            message = f"{name_or_path} has the shape of {shipped.name} here: type {shipped.name}"
            raise UsageError(message, code="unknown-model", name=name_or_path, nearest=[shipped.name])
        hint = "Or give the path of a config.json, or numbers by hand: docs/models.md"
        raise UsageError.unknown("model", name_or_path, model_names(), hint, code="unknown-model")
    config = parse_json(text, path, "Expected the config.json of a Hugging Face model", finite=False)
    demand_shallow(config, path)
    if not isinstance(config, dict):
        message = f"{path}: expected a JSON object, the config.json of a Hugging Face model"
        raise DataError(message, code="bad-syntax", path=str(path), format="JSON object")
    beside = path.with_name("hf_quant_config.json")
    if path.name == "config.json" and find_quantization(config) is None and beside.is_file():
        # Where ModelOpt keeps the format of its checkpoints.
        expected = "Expected what NVIDIA ModelOpt writes"
        config["quantization_config"] = parse_json(read_text(beside, expected), beside, expected)
        demand_shallow(config, beside)
    return config


def model_context(config: Mapping[str, Any]) -> int | None:
    """The longest context that a `config.json`, or its part of the text, states; None if it states none."""
    found = (config[key] for key in CONTEXT_KEYS if isinstance(config.get(key), int))
    parts = (config[part] for part in TEXT_PARTS if isinstance(config.get(part), Mapping))
    return next(found, None) or next(filter(None, map(model_context, parts)), None)


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        # Too long for a name.
        return False


def get_model(name_or_path: str) -> ModelShape:
    """The shape of a shipped model, of a `config.json`, or of numbers by hand.

    Raises:
        UsageError: No such model, or its architecture is not known.
        DataError: The file is not a usable configuration.
    """
    name = name_or_path.lower() if name_or_path.lower() in model_names() else name_or_path
    return read_shape(model_config(name), name=name)


@cache
def shipped_model(name: str) -> ModelShape:
    """`get_model` of a shipped model, read once: thousands of rows name the same.

    Raises:
        UsageError: No such model.
    """
    return get_model(name)


@cache
def shape_of_id(model_id: str) -> ModelShape | None:
    """The shape of the model that Hugging Face calls `model_id`, if it ships; else None.

    `model_id` may lack the owner. Variants of one network share a shape (base, instruct, thinking, a date), and are
    listed in data/model_ids.toml; a suffix that names the format of the weights (``-FP8``) sets the checkpoint's
    `dtype`, and `scaled_in_blocks` where the fp8 weights of that family are.
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
                blocks = shape.checkpoint.scaled_in_blocks or re.fullmatch(rules["blocks"], shipped) is not None
                blocks = blocks and ending in rules["block_endings"]
                return with_checkpoint(shape, dtype=dtype, scaled_in_blocks=blocks)
    return None


@cache
def id_rules() -> dict[str, Any]:
    """The content of data/model_ids.toml."""
    return tomllib.loads((resources.files("infergy") / "data" / "model_ids.toml").read_text(encoding="utf-8"))


def canonical_name(name_or_path: str) -> str:
    """A model's name in files: a shipped model's own, another's folder or file without its path."""
    if name_or_path.lower() in model_names():
        return name_or_path.lower()
    path = Path(name_or_path)
    if path.suffix == ".toml":
        return path.stem
    if path.suffix != ".json":
        return path.resolve().name
    return path.resolve().parent.name if path.name == "config.json" else path.stem


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """The draft model of speculative decoding.

    A round is `look_ahead` decode steps of the draft, then one step of the model over `look_ahead` + 1 tokens per
    request.

    Attributes:
        shape: Its shape.
        look_ahead: Tokens drafted per round.
        acceptance: Probability that each is accepted, given those before it.
    """

    shape: ModelShape
    look_ahead: int
    acceptance: float

    @property
    def tokens_per_round(self) -> float:
        """Expected tokens per round."""
        return tokens_per_round(self.acceptance, self.look_ahead)


def find_draft(setup: EngineSetup, models: Mapping[str, Mapping[str, Any]]) -> Draft | None:
    """The draft model of an engine config, its configuration among `models`; None if it has none.

    Raises:
        UsageError: Its architecture is not known.
        KeyError: `models` lacks it.
    """
    speculation = setup.speculation
    if speculation is None:
        return None
    return Draft(
        shape=read_shape(models[speculation.draft], name=speculation.draft),
        look_ahead=speculation.look_ahead,
        acceptance=LIKELY_ACCEPTANCE if speculation.acceptance is None else speculation.acceptance,
    )


def _folder() -> Traversable:
    return resources.files("infergy") / "data" / "models"
