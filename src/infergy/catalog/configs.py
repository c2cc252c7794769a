"""Reads the shape of a model from its `config.json`, or from plain numbers.

What no reader knows can be described by hand (docs/models.md):

    layers = 32
    hidden = 4096
    heads = 32
    kv_heads = 8            # default: as many as heads
    head_dim = 128          # default: hidden / heads
    intermediate = 14336    # 0: no layer has a dense MLP
    vocabulary = 128256

    [experts]               # left out: a dense model
    count = 128
    per_token = 8
    intermediate = 768

Norms and biases have no keys there (below 0.1 % of the parameters): each layer is taken to have two norms.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from infergy.catalog.config_parts import Config, Reader
from infergy.catalog.layers import AttentionShape, ExpertShape, MambaShape, MlpShape, Window
from infergy.catalog.multimodal import MULTIMODAL, TEXT
from infergy.catalog.quantization import find_quantization, with_quantization
from infergy.catalog.shape import Checkpoint, ModelShape
from infergy.errors import DataError, UsageError

BY_HAND_HINT = "Or give its numbers by hand in a small TOML file: docs/models.md"
BY_HAND = "by hand"
"""The architecture of such a model."""

REQUIRED = {
    "": ("layers", "hidden", "heads", "intermediate", "vocabulary"),
    "experts": ("count", "per_token", "intermediate"),
    "mamba": ("layers", "heads", "head_dim", "state", "groups"),
}
"""Keys of the file ("") and of its tables that must be there."""

OPTIONAL = {
    "": (
        *("kv_heads", "head_dim", "tied", "gated", "attention_layers", "mlp_layers", "window_tokens", "window_layers"),
        *("experts", "mamba"),
    ),
    "experts": ("shared_intermediate", "layers", "gated"),
    "mamba": ("kernel",),
}
FLAGS = frozenset({"tied", "gated"})
MAY_BE_ZERO = frozenset({"intermediate", "shared_intermediate", "mlp_layers", "window_layers"})


READERS: Mapping[str, Reader] = {**TEXT, **MULTIMODAL}
"""By `model_type`."""


def read_shape(config: Mapping[str, Any], *, name: str) -> ModelShape:
    """The shape that `config` describes, a Hugging Face configuration or numbers by hand; `name` is for messages.

    Raises:
        UsageError: Its `model_type` is not known.
        DataError: A key is missing or has an invalid value.
    """
    # Configurations of the hub have a `model_type`.
    if "model_type" not in config and "layers" in config:
        return _read_by_hand(config, name)
    kind = config.get("model_type")
    if not isinstance(kind, str):
        raise DataError.missing_field(name, ["model_type"], BY_HAND_HINT)
    if kind not in READERS:
        what = f"architecture (model_type of {name})"
        fields = {"place": name, "key": "model_type"}
        raise UsageError.unknown(what, kind, READERS, BY_HAND_HINT, code="unknown-architecture", **fields)
    shape = READERS[kind](Config(data=config, name=name))
    quantization = find_quantization(config)
    return shape if quantization is None else with_quantization(shape, quantization)


def _read_by_hand(config: Mapping[str, Any], name: str) -> ModelShape:
    own = _checked(config, "", name)
    parts = {title: _checked(own[title], title, name) for title in ("experts", "mamba") if title in own}
    layers, heads = own["layers"], own["heads"]
    kv_heads = own.get("kv_heads", heads)
    if heads % kv_heads:
        raise DataError.bad_field(name, "kv_heads", kv_heads, f"a divisor of heads ({heads})")
    if "head_dim" not in own and own["hidden"] % heads:
        raise DataError.bad_field(name, "hidden", own["hidden"], f"a multiple of heads ({heads}), or head_dim")
    head_dim = own.get("head_dim", own["hidden"] // heads)
    window = (
        Window(tokens=own["window_tokens"], layers=own.get("window_layers", layers)) if "window_tokens" in own else None
    )
    experts = _experts(parts["experts"], layers) if "experts" in parts else None
    shape = ModelShape(
        name=name,
        layers=layers,
        hidden=own["hidden"],
        vocabulary=own["vocabulary"],
        tied=own.get("tied", False),
        attention=AttentionShape(
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            value_dim=head_dim,
            window=window,
        ),
        attention_layers=own.get("attention_layers", layers),
        mlp=MlpShape(
            intermediate=own["intermediate"],
            layers=own.get("mlp_layers", layers - (experts.layers if experts else 0)),
            gated=own.get("gated", True),
        ),
        experts=experts,
        mamba=MambaShape(**parts["mamba"]) if "mamba" in parts else None,
        other_parameters=(2 * layers + 1) * own["hidden"],
        checkpoint=Checkpoint(architecture=BY_HAND),
    )
    _check_layers(shape, own)
    return shape


def _experts(table: dict[str, Any], layers: int) -> ExpertShape:
    counts = {"experts": table.pop("count"), "experts_per_token": table.pop("per_token")}
    return ExpertShape(**{"layers": layers} | table | counts)


def _check_layers(shape: ModelShape, own: Mapping[str, Any]) -> None:
    """Reject parts with more layers than the model, and tokens that visit more experts than there are."""
    experts, window = shape.experts, shape.attention.window
    whole = f"layers ({shape.layers})"
    limits = [
        ("attention_layers", shape.attention_layers, shape.layers, whole),
        ("mlp_layers", own.get("mlp_layers", 0), shape.layers, whole),
        ("mamba.layers", shape.mamba.layers if shape.mamba else 0, shape.layers, whole),
        ("experts.layers", experts.layers if experts else 0, shape.layers, whole),
        (
            "window_layers",
            window.layers if window else 0,
            shape.attention_layers,
            f"the layers with attention ({shape.attention_layers})",
        ),
    ]
    if experts is not None:
        most = f"experts.count ({experts.experts})"
        limits.append(("experts.per_token", experts.experts_per_token, experts.experts, most))
    for key, value, limit, what in limits:
        if value > limit:
            raise DataError.bad_field(shape.name, key, value, f"at most {what}")
    if shape.mamba is not None and "attention_layers" not in own:
        raise DataError.missing_field(shape.name, ["attention_layers"], "which a table [mamba] needs")
    if not shape.mlp.intermediate and shape.mlp.layers:
        raise DataError.bad_field(shape.name, "intermediate", 0, "above 0, or mlp_layers = 0")


def _checked(table: object, title: str, name: str) -> dict[str, Any]:
    """The table `title`, each key known and valid, none missing."""
    where = f"{name}: [{title}]" if title else name
    if not isinstance(table, Mapping):
        raise DataError.bad_field(where, title, str(table), "a table")
    required = REQUIRED[title]
    known = (*required, *OPTIONAL[title])
    missing = [key for key in required if key not in table]
    for key, value in table.items():
        if key not in known:
            raise DataError.unknown_field(where, str(key), known, "docs/models.md explains each")
        if key not in REQUIRED and not missing:
            _check_value(where, key, value)
    if missing:
        raise DataError.missing_field(where, missing, "whole numbers; docs/models.md explains each")
    return dict(table)


def _check_value(where: str, key: str, value: object) -> None:
    if key in FLAGS:
        if not isinstance(value, bool):
            raise DataError.bad_field(where, key, value, "true or false")
        return
    least = 0 if key in MAY_BE_ZERO else 1
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise DataError.bad_field(where, key, value, f"a whole number of at least {least}")
