"""A model told in plain numbers, for what no reader knows (docs/models.md). Standard library only.

    layers = 32
    hidden = 4096
    heads = 32
    kv_heads = 8            # left out: as many as heads
    head_dim = 128          # left out: hidden / heads
    intermediate = 14336    # 0: no layer has a dense MLP
    vocabulary = 128256

    [experts]               # left out: a dense model
    count = 128
    per_token = 8
    intermediate = 768

Norms and biases are not asked for (below 0.1 % of the parameters): each layer is taken to have two norms.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from infergy.errors import DataError
from infergy.hardware.layers import AttentionShape, ExpertShape
from infergy.hardware.mamba import MambaShape
from infergy.hardware.shape import ModelShape

BY_HAND = "by hand"
"""The architecture of such a model."""

TABLES: Mapping[str, Mapping[str, bool]] = {
    "": {
        "layers": True,
        "hidden": True,
        "heads": True,
        "kv_heads": False,
        "head_dim": False,
        "intermediate": True,
        "vocabulary": True,
        "tied": False,
        "gated": False,
        "attention_layers": False,
        "mlp_layers": False,
        "window_tokens": False,
        "window_layers": False,
        "experts": False,
        "mamba": False,
    },
    "experts": {
        "count": True,
        "per_token": True,
        "intermediate": True,
        "shared_intermediate": False,
        "layers": False,
        "gated": False,
    },
    "mamba": {
        "layers": True,
        "heads": True,
        "head_dim": True,
        "state": True,
        "groups": True,
        "kernel": False,
    },
}
"""Keys of the file ("") and of its tables, and whether they must be there."""

SWITCHES = frozenset({"tied", "gated"})
MAY_BE_NONE = frozenset({"intermediate", "shared_intermediate", "mlp_layers", "window_layers"})
"""Numbers that may be 0."""


def is_by_hand(config: Mapping[str, Any]) -> bool:
    """Whether `config` is told by hand: it has `layers`, and no `model_type` as configurations of the hub have."""
    return "model_type" not in config and "layers" in config


def read_by_hand(config: Mapping[str, Any], *, name: str) -> ModelShape:
    """The shape that plain numbers tell.

    Raises:
        DataError: A number is missing, unknown or cannot be meant; the message names it.
    """
    own = _checked(config, "", name)
    experts = None if "experts" not in own else _checked(own["experts"], "experts", name)
    mamba = None if "mamba" not in own else _checked(own["mamba"], "mamba", name)
    layers, heads = own["layers"], own["heads"]
    kv_heads = own.get("kv_heads", heads)
    if heads % kv_heads:
        raise DataError.bad_field(name, "kv_heads", kv_heads, f"a divisor of heads ({heads})")
    if "head_dim" not in own and own["hidden"] % heads:
        raise DataError.bad_field(name, "hidden", own["hidden"], f"a multiple of heads ({heads}), or head_dim")
    head_dim = own.get("head_dim", own["hidden"] // heads)
    shape = ModelShape(
        name=name,
        architecture=BY_HAND,
        layers=layers,
        hidden=own["hidden"],
        intermediate=own["intermediate"],
        vocabulary=own["vocabulary"],
        tied=own.get("tied", False),
        gated=own.get("gated", True),
        attention=AttentionShape(
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            value_dim=head_dim,
            window_tokens=own.get("window_tokens"),
            window_layers=own.get("window_layers", layers if "window_tokens" in own else 0),
        ),
        norm_parameters=own["hidden"],
        attention_layers=own.get("attention_layers"),
        mlp_layers=own.get("mlp_layers"),
        experts=None if experts is None else _experts(experts, layers),
        mamba=None if mamba is None else MambaShape(**({"kernel": 4} | mamba)),
    )
    _check_layers(shape)
    return shape


def _experts(table: Mapping[str, Any], layers: int) -> ExpertShape:
    return ExpertShape(
        experts=table["count"],
        experts_per_token=table["per_token"],
        intermediate=table["intermediate"],
        shared_intermediate=table.get("shared_intermediate", 0),
        layers=table.get("layers", layers),
        gated=table.get("gated", True),
    )


def _check_layers(shape: ModelShape) -> None:
    """Refuse parts that have more layers than the model, and tokens that visit more experts than there are."""
    parts = {"attention_layers": shape.attending_layers, "mlp_layers": shape.mlp_layers or 0}
    if shape.mamba is not None:
        parts["mamba.layers"] = shape.mamba.layers
    if shape.experts is not None:
        parts["experts.layers"] = shape.experts.layers
        if shape.experts.experts_per_token > shape.experts.experts:
            raise DataError.bad_field(
                shape.name,
                "experts.per_token",
                shape.experts.experts_per_token,
                f"at most experts.count ({shape.experts.experts})",
            )
    for key, count in parts.items():
        if count > shape.layers:
            raise DataError.bad_field(shape.name, key, count, f"at most layers ({shape.layers})")
    if shape.attention.window_layers > shape.attending_layers:
        raise DataError.bad_field(
            shape.name,
            "window_layers",
            shape.attention.window_layers,
            f"at most the layers with attention ({shape.attending_layers})",
        )
    if shape.mamba is not None and shape.attention_layers is None:
        raise DataError.missing_field(shape.name, ["attention_layers"], "which a table [mamba] needs")
    if not shape.intermediate and shape.dense_layers:
        raise DataError.bad_field(shape.name, "intermediate", 0, "above 0, or mlp_layers = 0")


def _checked(table: object, title: str, name: str) -> dict[str, Any]:
    """The table `title`, each key known and of its kind, none missing."""
    where = f"{name}: [{title}]" if title else name
    if not isinstance(table, Mapping):
        raise DataError.bad_field(where, title, str(table), "a table")
    known = TABLES[title]
    for key in table:
        if key not in known:
            raise DataError.unknown_field(where, str(key), known, "docs/models.md says what each is")
    missing = [key for key, needed in known.items() if needed and key not in table]
    if missing:
        raise DataError.missing_field(where, missing, "whole numbers; docs/models.md says what each is")
    for key, value in table.items():
        if key in SWITCHES:
            if not isinstance(value, bool):
                raise DataError.bad_field(where, key, value, "true or false")
        elif key not in TABLES:
            least = 0 if key in MAY_BE_NONE else 1
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise DataError.bad_field(where, key, value, f"a whole number of at least {least}")
    return dict(table)


def _join(words: Iterable[str]) -> str:
    return ", ".join(repr(word) for word in words)
