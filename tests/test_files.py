"""Files of JSON and TOML whose values cannot be meant: an error that names the file and the key, never a traceback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from infergy.catalog.gpus import read_gpu_file
from infergy.catalog.models import get_model, model_config
from infergy.errors import DataError, InfergyError
from infergy.files import DEEPEST, parse_json, read_toml
from infergy.measure import grid
from infergy.records import Plan

HUGE = "9" * 400
NESTED = "[" * 3000 + "]" * 3000


@pytest.mark.parametrize("value", [HUGE, "-" + HUGE, "1e400", "NaN", "Infinity", "9" * 30])
def test_numbers_out_of_range_are_named_by_their_key(value: str) -> None:
    with pytest.raises(DataError) as caught:
        parse_json(f'{{"a": [1, {{"b": {value}}}]}}', Path("x.json"), "hint")
    assert (caught.value.code, caught.value.fields["key"]) == ("bad-field", "a[1].b")


@pytest.mark.parametrize("value", [str(2**63 - 1), "1.5e308", "-3", "true", "null", "0.1"])
def test_other_values_are_read_as_they_are(value: str) -> None:
    assert parse_json(value, Path("x.json"), "hint") == json.loads(value)


@pytest.mark.parametrize("value", [HUGE, "9" * 5000, "inf", "nan", "[" * DEEPEST * 2 + "]" * DEEPEST * 2, NESTED])
def test_toml_files(tmp_path: Path, value: str) -> None:
    path = tmp_path / "some.toml"
    path.write_text(f"name = {value}\n", encoding="utf-8")
    for read in (lambda: read_toml(path, "hint"), lambda: read_gpu_file(path), lambda: grid.read_toml(path)):
        with pytest.raises(DataError) as caught:
            read()
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("value", [HUGE, NESTED, "NaN", "1e400", "-1"])
@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers", "vocab_size"])
def test_configurations_of_models(tmp_path: Path, key: str, value: str) -> None:
    path = tmp_path / "config.json"
    text = json.dumps(model_config("llama-3.1-8b") | {key: "VALUE"}).replace('"VALUE"', value)
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InfergyError) as caught:
        get_model(str(path))
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("text", [NESTED, f'{{"schema": {HUGE}}}', '{"schema": "infergy.plan/1", "cells": [{}]}', "{"])
def test_plans(tmp_path: Path, text: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        Plan.load(path)
    assert str(path) in str(caught.value)
