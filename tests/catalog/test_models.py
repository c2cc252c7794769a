"""Finding models by name or path."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from infergy.catalog import get_model, model_config, model_names
from raising import raises


def test_case_does_not_matter_and_the_name_is_the_catalogs() -> None:
    assert get_model("Llama-3.1-8B") == get_model("llama-3.1-8b")


def test_a_file_and_its_folder_are_the_same_model(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(model_config("qwen3-8b")), encoding="utf-8")
    assert get_model(str(path)).parameters == get_model(str(tmp_path)).parameters == get_model("qwen3-8b").parameters
    assert get_model(str(path)).name == str(path)


def test_an_unknown_model_is_answered_with_the_nearest() -> None:
    with raises("unknown-model", name="llama-3.1-8"):
        get_model("llama-3.1-8")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with raises("file-not-found", path=tmp_path / "none.json"):
        get_model(str(tmp_path / "none.json"))
    with raises("file-not-found", path=tmp_path / "config.json"):
        get_model(str(tmp_path))


@pytest.mark.parametrize(
    ("content", "code"), [(b"{", "bad-syntax"), (b"[]", "bad-syntax"), (b"\xff\xfe{", "file-not-readable")]
)
def test_a_file_that_is_no_configuration_is_rejected(tmp_path: Path, content: bytes, code: str) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    with raises(code, path=path):
        get_model(str(path))


def test_a_configuration_may_be_changed_without_harm() -> None:
    model_config("qwen3-8b")["vocab_size"] = 1
    assert get_model("qwen3-8b").vocabulary == 151936


def test_names_are_sorted_and_lower_case() -> None:
    assert list(model_names()) == sorted(name.lower() for name in model_names())


def test_hardware_needs_the_standard_library_only() -> None:
    code = (
        "import sys\n"
        "for name in ('polars', 'pydantic', 'narwhals', 'numpy', 'typer', 'rich', 'torch'): sys.modules[name] = None\n"
        "from infergy.catalog import get_gpu, get_model\n"
        "from infergy.catalog.memory import largest_batch\n"
        "print(largest_batch(get_model('qwen3-8b'), get_gpu('l4'), 512, 64, engine='vllm').batch)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) >= 0
