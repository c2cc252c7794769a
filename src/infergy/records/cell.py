"""What is measured: a cell is an engine set-up under a load."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any

from infergy.errors import UsageError
from infergy.records.codec import to_json

RANDOM_WEIGHTS = "random"
UNIFORM_WEIGHTS = "random-uniform"
"""Names of the laws by which infergy draws weights itself; see `infergy.engines.weights.LAWS`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSetup:
    """All that must be loaded before the first token: cells that share a set-up share a process.

    Attributes:
        engine: Name of the engine: ``transformers``, ``vllm``, ``simulated``.
        model: Name of a model shape in the catalogue or in the plan's `models`.
        dtype: Arithmetic and weights: ``bfloat16`` or ``float16``.
        cuda_graphs: Whether decode steps replay CUDA graphs; None leaves the engine's own default
            (vllm: yes; transformers: has none).
        weights: ``random``, ``random-uniform``, or the folder or hub name of real weights.
        tensor_parallel: GPUs the model is sharded over, at least 1.
    """

    engine: str
    model: str
    dtype: str = "bfloat16"
    cuda_graphs: bool | None = None
    weights: str = RANDOM_WEIGHTS
    tensor_parallel: int = 1

    def __post_init__(self) -> None:
        if self.tensor_parallel < 1:
            raise UsageError(f"tensor_parallel must be at least 1, not {self.tensor_parallel}")

    @property
    def label(self) -> str:
        """Short name of the engine and how it runs: ``transformers``, ``vllm``, ``vllm-eager``."""
        return f"{self.engine}-eager" if self.cuda_graphs is False else self.engine

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits; fields at their default do not enter, so that new axes keep old ids."""
        return _digest(_without_defaults(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Fixed lengths: `batch` requests at once, each of `input_tokens` in and exactly `output_tokens` out."""

    input_tokens: int
    output_tokens: int
    batch: int

    def __post_init__(self) -> None:
        for name in ("input_tokens", "output_tokens", "batch"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, not {getattr(self, name)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One point of a grid: an engine set-up and a load."""

    setup: EngineSetup
    load: Load

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits that name this cell in every file."""
        return _digest({"setup": _without_defaults(self.setup), "load": to_json(self.load)})

    def __str__(self) -> str:
        load = self.load
        return f"{self.setup.label} {self.setup.model} {load.input_tokens}→{load.output_tokens} × {load.batch}"


def _without_defaults(record: Any) -> dict[str, Any]:
    return {
        field.name: to_json(getattr(record, field.name))
        for field in dataclasses.fields(record)
        if getattr(record, field.name) != field.default
    }


def _digest(content: dict[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]
