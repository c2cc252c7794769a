"""Models that plain numbers tell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from infergy.catalog import ModelShape, canonical_name, get_model, read_shape
from infergy.catalog.layers import Window
from raising import raises

LLAMA: dict[str, Any] = {
    "layers": 32,
    "hidden": 4096,
    "heads": 32,
    "kv_heads": 8,
    "intermediate": 14336,
    "vocabulary": 128256,
}
NEMOTRON: dict[str, Any] = {
    "layers": 62,
    "attention_layers": 6,
    "mlp_layers": 28,
    "hidden": 5120,
    "heads": 40,
    "kv_heads": 8,
    "head_dim": 128,
    "intermediate": 20480,
    "gated": False,
    "vocabulary": 131072,
    "mamba": {"layers": 28, "heads": 128, "head_dim": 80, "state": 128, "groups": 8},
}
QWEN: dict[str, Any] = {
    "layers": 48,
    "hidden": 2048,
    "heads": 32,
    "kv_heads": 4,
    "head_dim": 128,
    "intermediate": 0,
    "vocabulary": 151936,
    "experts": {"count": 128, "per_token": 8, "intermediate": 768},
}


def read(numbers: dict[str, Any], **changes: Any) -> ModelShape:
    """The shape that `numbers` tell with `changes`; None removes a key."""
    changed = {key: value for key, value in (numbers | changes).items() if value is not None}
    return read_shape(changed, name="mine")


@pytest.mark.parametrize(
    ("numbers", "shipped"),
    [(LLAMA, "llama-3.1-8b"), (NEMOTRON, "nemotron-nano-12b-v2"), (QWEN, "qwen3-30b-a3b")],
)
def test_numbers_by_hand_describe_the_same_model_as_its_configuration(numbers: dict[str, Any], shipped: str) -> None:
    told, known = read(numbers), get_model(shipped)
    assert told.parameters == pytest.approx(known.parameters, rel=1e-4)
    assert told.active_parameters == pytest.approx(known.active_parameters, rel=1e-4)
    assert told.matmul_parameters == known.matmul_parameters
    assert told.decode_flops(2048) == known.decode_flops(2048)
    assert told.kv_bytes(2048) == known.kv_bytes(2048)
    assert told.state_bytes == known.state_bytes
    assert told.output_bytes(2048, 2, 8) == pytest.approx(known.output_bytes(2048, 2, 8), rel=1e-4)


def test_a_toml_file_and_a_json_file_describe_the_same(tmp_path: Path) -> None:
    toml, other = tmp_path / "mine.toml", tmp_path / "mine.json"
    toml.write_text("\n".join(f"{key} = {value}" for key, value in LLAMA.items()), encoding="utf-8")
    other.write_text(json.dumps(LLAMA), encoding="utf-8")
    assert get_model(str(toml)).parameters == get_model(str(other)).parameters == read(LLAMA).parameters
    assert canonical_name(str(toml)) == canonical_name(str(other)) == "mine"


def test_a_window_holds_in_all_layers_unless_set_otherwise() -> None:
    assert read(LLAMA, window_tokens=1024).attention.window == Window(tokens=1024, layers=32)
    assert read(LLAMA, window_tokens=1024, window_layers=16).attention.window == Window(tokens=1024, layers=16)
    assert read(LLAMA).attention.window is None


@pytest.mark.parametrize("key", ["hidden", "heads", "intermediate", "vocabulary"])
def test_a_missing_number_is_named(key: str) -> None:
    with raises("missing-field", place="mine", keys=[key]):
        read(LLAMA, **{key: None})


@pytest.mark.parametrize(
    ("changes", "code", "fields"),
    [
        (
            {"layer": 3},
            "unknown-field",
            {"place": "mine", "key": "layer", "nearest": ["layers", "mlp_layers", "window_layers"]},
        ),
        ({"layers": 0}, "bad-field", {"key": "layers", "value": 0}),
        ({"layers": 2.5}, "bad-field", {"key": "layers", "value": 2.5}),
        ({"layers": True}, "bad-field", {"key": "layers", "value": True}),
        ({"tied": 1}, "bad-field", {"key": "tied", "expected": "true or false"}),
        ({"kv_heads": 5}, "bad-field", {"key": "kv_heads", "value": 5}),
        ({"hidden": 4097}, "bad-field", {"key": "hidden", "value": 4097}),
        ({"intermediate": 0}, "bad-field", {"key": "intermediate", "value": 0}),
        ({"experts": 8}, "bad-field", {"place": "mine: [experts]", "expected": "a table"}),
        (
            {"experts": {"count": 8}},
            "missing-field",
            {"place": "mine: [experts]", "keys": ["per_token", "intermediate"]},
        ),
        ({"experts": QWEN["experts"] | {"per_token": 200}}, "bad-field", {"key": "experts.per_token", "value": 200}),
        ({"experts": QWEN["experts"] | {"layers": 33}}, "bad-field", {"key": "experts.layers", "value": 33}),
        ({"mamba": NEMOTRON["mamba"]}, "missing-field", {"place": "mine", "keys": ["attention_layers"]}),
        ({"attention_layers": 40}, "bad-field", {"key": "attention_layers", "value": 40}),
        ({"window_tokens": 10, "window_layers": 33}, "bad-field", {"key": "window_layers", "value": 33}),
    ],
)
def test_numbers_that_cannot_be_meant_are_rejected_by_name(
    changes: dict[str, Any], code: str, fields: dict[str, Any]
) -> None:
    with raises(code, **fields):
        read(LLAMA, **changes)


def test_a_configuration_that_no_reader_knows_is_never_taken_for_numbers() -> None:
    with raises("unknown-architecture", name="mamba9"):
        read(LLAMA, model_type="mamba9")


def test_a_file_that_is_no_toml_is_named(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text("layers = ", encoding="utf-8")
    with raises("bad-syntax", path=path, form="TOML"):
        get_model(str(path))
    with raises("file-not-found", path=tmp_path / "none.toml"):
        get_model(str(tmp_path / "none.toml"))
