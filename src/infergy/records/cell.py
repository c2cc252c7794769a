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

GRAPHS_BY_DEFAULT = {"transformers": False, "vllm": True}
"""Whether an engine replays CUDA graphs unless told otherwise."""

ENGINES = tuple(GRAPHS_BY_DEFAULT)
"""All engines that serve a model; the simulated one plays them."""

DEFAULT_DTYPE = "bfloat16"
DTYPES = (DEFAULT_DTYPE, "float16")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSetup:
    """All that must be loaded before the first token: cells that share a set-up share a process.

    Attributes:
        engine: Name of the engine: ``transformers``, ``vllm``, ``simulated``.
        model: Name of a model shape in the catalogue or in the plan's `models`.
        dtype: Arithmetic and weights: ``bfloat16`` or ``float16``.
        cuda_graphs: Whether decode steps replay CUDA graphs, where that is not the engine's own default; None where
            it is (vllm: yes; transformers: has none).
        weights: ``random``, ``random-uniform``, or the folder or hub name of real weights.
        tensor_parallel: GPUs the model is sharded over, at least 1.
    """

    engine: str
    model: str
    dtype: str = DEFAULT_DTYPE
    cuda_graphs: bool | None = None
    weights: str = RANDOM_WEIGHTS
    tensor_parallel: int = 1

    def __post_init__(self) -> None:
        if self.tensor_parallel < 1:
            raise UsageError(f"tensor_parallel must be at least 1, not {self.tensor_parallel}")
        if self.cuda_graphs is GRAPHS_BY_DEFAULT.get(self.engine):
            # One set-up has one id, whether its default was written out or not.
            object.__setattr__(self, "cuda_graphs", None)

    @property
    def label(self) -> str:
        """The engine and whatever is not at its default: ``vllm``, ``vllm-eager``, ``vllm-float16-tp2``."""
        eager = "-eager" if self.cuda_graphs is False else ""
        dtype = "" if self.dtype == DEFAULT_DTYPE else f"-{self.dtype}"
        parallel = "" if self.tensor_parallel == 1 else f"-tp{self.tensor_parallel}"
        return f"{self.engine}{eager}{dtype}{parallel}"

    @classmethod
    def parse_label(cls, label: str) -> dict[str, Any]:
        """The fields that a `label` stands for, those at their default left out.

        Raises:
            UsageError: A part of it means nothing.
        """
        engine, *parts = label.split("-")
        fields: dict[str, Any] = {"engine": engine}
        for part in parts:
            if part == "eager":
                fields["cuda_graphs"] = False
            elif part in DTYPES:
                fields["dtype"] = part
            elif part.startswith("tp") and part[2:].isdigit():
                fields["tensor_parallel"] = int(part[2:])
            else:
                raise UsageError.unknown(
                    f"part of the engine label {label!r}",
                    part,
                    ("eager", *DTYPES, "tp2"),
                    "A label is an engine and what is not at its default: vllm-eager-float16-tp2",
                )
        return fields

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


GRID_VISIT, START_VISIT, END_VISIT = "grid", "start", "end"
"""When a cell is measured: in the shuffled grid, or as an anchor before and after it."""


def visit_key(cell_id: str, visit: str) -> str:
    """One visit of a cell: the cell's id, and the visit if it is not that of the grid."""
    return cell_id if visit == GRID_VISIT else f"{cell_id}/{visit}"


def _without_defaults(record: Any) -> dict[str, Any]:
    return {
        field.name: to_json(getattr(record, field.name))
        for field in dataclasses.fields(record)
        if getattr(record, field.name) != field.default
    }


def _digest(content: dict[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]
