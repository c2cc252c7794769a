"""Models without a checkpoint: a folder with their `config.json`, and random weights, the same in every engine.

Engines' own dummy weights differ (vLLM draws U(±1e-3), norms too; transformers draws N(0, 0.02)), and the power of
a matmul depends on its operands. So infergy draws them itself, after loading, in place.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infergy.catalog.quantization import without_quantization
from infergy.records import RANDOM_WEIGHTS, UNIFORM_WEIGHTS

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn

STANDARD_DEVIATION = 0.02
"""The usual `initializer_range` of Hugging Face configurations."""

TEMPORARY = "infergy-model-"
"""How the names of temporary folders begin, before the process."""

UNIFORM_BOUND = 1e-3
"""That of vLLM's `load_format="dummy"`."""

LAWS: Mapping[str, str] = {
    RANDOM_WEIGHTS: "random weights: matrices N(0, 0.02), norms 1, biases 0",
    UNIFORM_WEIGHTS: "random weights: all U(-0.001, 0.001), norms and biases too",
}
"""Initialisations by the name that `EngineSetup.weights` gives; any other name stands for real weights."""


def config_folder(config: Mapping[str, Any]) -> Path:
    """A folder that holds `config` as its `config.json`: for equal configurations the same one, kept.

    Random weights are in the format of the cell, whatever that of the published checkpoint.

    It lies in the user's cache (`XDG_CACHE_HOME`, else ``~/.cache``). vLLM finds the graphs it compiled before by the
    path of their model: from a new folder each time it compiles again, 45 s for Llama-3.1-8B on an H200. If the cache
    cannot be written, it is a temporary folder, removed when the process ends.
    """
    text = json.dumps(without_quantization(config), sort_keys=True, indent=1)
    name = hashlib.sha256(text.encode()).hexdigest()[:16]
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "infergy" / "models" / name
        _write(folder, text)
    except (OSError, RuntimeError):
        folder = Path(tempfile.mkdtemp(prefix=f"{TEMPORARY}{os.getpid()}-"))
        atexit.register(remove_folders, os.getpid())
        _write(folder, text)
    return folder


def remove_folders(process: int) -> None:
    """Remove the temporary folders of a process, which may have been killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{TEMPORARY}{process}-*"):
        shutil.rmtree(folder, ignore_errors=True)


def _write(folder: Path, text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.json"
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return
    handle, part = tempfile.mkstemp(dir=folder, text=True)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    # Whole or not at all: another sweep may read it now.
    os.replace(part, path)


def describe_weights(name: str) -> str:
    """An environment's description of the weights: the initialisation, or whose they are."""
    return LAWS.get(name, f"weights of {name}")


def draw_weights(model: nn.Module, law: str, seed: int) -> int:
    """Fill all parameters of a loaded model by one of `LAWS`; returns how many values were drawn or set.

    Runs inside the engine's own process (vLLM ships it to its workers), so it takes and returns plain values.
    """
    import torch

    count = 0
    generator: torch.Generator | None = None
    with torch.no_grad():
        parameters = dict(model.named_parameters())
        for name, parameter in sorted(parameters.items()):
            if not parameter.is_floating_point() or parameter.numel() == 1:
                continue
            if generator is None:
                generator = torch.Generator(device=parameter.device).manual_seed(seed)
            if name.endswith("_scale") and name.removesuffix("_scale") in parameters:
                continue  # set with its matrices
            if parameter.dtype == torch.float8_e4m3fn:
                _fill_fp8(parameter, parameters.get(f"{name}_scale"), law, generator)
            elif law == UNIFORM_WEIGHTS or parameter.dim() >= 2:
                _draw(parameter, law, generator)
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
            count += parameter.numel()
    return count


def _draw(matrix: Tensor, law: str, generator: Generator) -> None:
    if law == UNIFORM_WEIGHTS:
        matrix.uniform_(-UNIFORM_BOUND, UNIFORM_BOUND, generator=generator)
    else:
        matrix.normal_(0.0, STANDARD_DEVIATION, generator=generator)


def _fill_fp8(parameter: Tensor, scale: Tensor | None, law: str, generator: Generator) -> None:
    """Random values as vLLM's quantisation leaves them: the largest of a matrix becomes the largest of e4m3.

    Matrices of experts lie along the first dimension, each with a scale of its own.
    """
    import torch

    experts = parameter.shape[0] if parameter.dim() == 3 else 1
    if scale is None or scale.numel() != experts:
        raise RuntimeError("an fp8 matrix without one scale of its own: weights cannot be drawn into it")
    units = scale.view(experts)
    for index, matrix in enumerate(parameter if parameter.dim() == 3 else [parameter]):
        drawn = torch.empty(matrix.shape, dtype=torch.float32, device=matrix.device)
        _draw(drawn, law, generator)
        units[index] = drawn.abs().max() / torch.finfo(matrix.dtype).max
        matrix.copy_((drawn / units[index]).to(matrix.dtype))
