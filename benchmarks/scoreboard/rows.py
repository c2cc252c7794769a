"""Rows of served models: what estimators may read, and the measured energy apart.

The rows of `mlenergy_v3.csv` are of the ML.ENERGY benchmark v3 (Chung et al., NeurIPS Datasets and Benchmarks 2025; Apache-2.0):
28 models on H100 and B200 under vLLM, without its columns of power, throughput and latency.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from infergy.catalog.gpus import find_gpu_by_driver_name, get_gpu
from infergy.catalog.models import get_model, shape_of_id
from infergy.catalog.shape import DTYPE_BYTES, ModelShape
from infergy.errors import DataError, UsageError

Column = np.ndarray[Any, Any]

ENERGY = "energy_per_token_joules"
REPEATS = "num_request_repeats"
"""A column that a user's rows may lack: how often the benchmark sent each of its prompts, by its published sweeps."""
TEXT_TASKS = ("lm-arena-chat", "gpqa", "sourcegraph-fim")
GPU_NAMES: Mapping[str, str] = {"H100": "h100-sxm", "H200": "h200", "B200": "b200", "A100": "a100-80gb-sxm"}
"""What the benchmark calls GPUs, and the catalog."""

WORDS = ("task", "model_id", "architecture", "gpu_model", "weight_precision")
COUNTS = ("num_gpus", "tensor_parallel", "expert_parallel", "data_parallel", "max_num_seqs")
NUMBERS = ("total_params_billions", "activated_params_billions", "avg_batch_size", "avg_output_len")
BILLION = 1e9
ARCHITECTURES = ("Dense Transformer", "MoE", "Mamba-Transformer Hybrid")
KNOWN_WORDS: Mapping[str, tuple[str, ...]] = {"architecture": ARCHITECTURES, "weight_precision": tuple(DTYPE_BYTES)}
"""Columns of words that an estimator must know."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Columns of one length n; no measured energy, power, throughput or latency is among them.

    Attributes:
        task: The benchmark's task, as ``lm-arena-chat``.
        model: Name on the hub.
        backbone: One name for all variants of a network (`backbone_of`).
        architecture: ``Dense Transformer``, ``MoE`` or ``Mamba-Transformer Hybrid``.
        gpu: Name in the catalog.
        precision: ``bfloat16``, ``fp8`` or ``mxfp4``, of the weights.
        gpus: GPUs of the server; `tensor_parallel`, `expert_parallel` and `data_parallel` as configured.
        max_num_seqs: Limit of sequences served at once; `batch` their mean.
        output_tokens: Mean length of the answers.
        repeats: Times that each prompt was sent, one round after another; 1 where rows do not say.
        total_parameters: As published; `active_parameters` those that a token uses.
        shapes: Of the models; None where only parameters are known.
    """

    task: Column
    model: Column
    backbone: Column
    architecture: Column
    gpu: Column
    precision: Column
    gpus: Column
    tensor_parallel: Column
    expert_parallel: Column
    data_parallel: Column
    max_num_seqs: Column
    batch: Column
    output_tokens: Column
    repeats: Column
    total_parameters: Column
    active_parameters: Column
    shapes: tuple[ModelShape | None, ...]

    def __len__(self) -> int:
        return len(self.task)

    def take(self, places: Sequence[int] | Column) -> Rows:
        """The rows at these places."""
        columns = {name: getattr(self, name)[places] for name in self.__dataclass_fields__ if name != "shapes"}
        return Rows(**columns, shapes=tuple(self.shapes[int(place)] for place in places))

    def series(self) -> list[str]:
        """A name for each row, equal where rows differ by batch alone."""
        names = (self.task, self.model, self.gpu, self.precision, self.gpus, self.tensor_parallel, self.expert_parallel)
        return ["|".join(map(str, key)) for key in zip(*names, self.data_parallel, strict=True)]


def backbone_of(model_id: str) -> str:
    """One name for all variants of one network: owner, purpose, modality, format and date are left out.

    ``Qwen/Qwen3-VL-8B-Instruct`` and ``Qwen/Qwen3-8B`` are ``qwen3-8b``: a black box that has seen one knows the other.
    """
    name = model_id.rpartition("/")[2].lower()
    # A distilled network is its student's, whatever the teacher is called.
    name = re.sub(r"^deepseek-r1-(\d{4}-)?(distill-)?(?=qwen|llama)", "", name)
    name = re.sub(r"^qwen-(?=[\d.]+b)", "qwen2.5-", re.sub(r"^llama-(?=\d+b)", "llama-3-", name))
    if re.search(r"deepseek-(r1|v3)", name):
        return "deepseek-v3"
    name = re.sub(r"^(meta-|nvidia-)", "", name)
    name = re.sub(r"llama-3\.[123]", "llama-3", name)
    words = "instruct|chat|thinking|base|it|vl|omni|coder|captioner|fp8|bf16|mxfp4|hf|dynamic|reasoning|\\d{4}"
    words += "|math|vision|audio|pt|preview|nvfp4|fp4|fp16|int4|int8|awq|gptq|w4a16|w8a8"
    return re.sub(rf"-({words})(?=-|$)", "", re.sub(rf"-({words})(?=-|$)", "", name))


def read_rows(
    path: Path | None = None, configs: Path | None = None, warn: Callable[[str], None] = lambda _: None
) -> tuple[Rows, Any]:
    """Rows, and their energy per output token in J.

    Args:
        path: A CSV with the columns of `mlenergy_v3.csv`; None for that.
        configs: A folder with the `config.json` of models (`find_shape`), preferred to those that infergy ships.
        warn: Called with files that cannot be used, and with models of which only parameters are known.

    Raises:
        DataError: A column is missing, or a value is invalid; the row is named.
        UsageError: A GPU is not in the catalog.
    """
    import polars as pl

    source = path or Path(__file__).with_name("mlenergy_v3.csv")
    try:
        frame = pl.read_csv(str(source), infer_schema_length=None)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(f"{source}: cannot be read as CSV ({error})") from error
    missing = [name for name in (*WORDS, *COUNTS, *NUMBERS, ENERGY) if name not in frame.columns]
    if missing:
        columns = ", ".join((*WORDS, *COUNTS, *NUMBERS, ENERGY))
        raise DataError(f"{source}: no column {', '.join(missing)}; expected the columns {columns}")
    if not len(frame):
        raise DataError(f"{source}: no rows; expected a measured configuration per line below the header")
    for name in WORDS:
        _check_words(frame[name].cast(pl.String).to_list(), name, str(source))
    for name in (*COUNTS, *NUMBERS, ENERGY):
        values = frame[name].cast(pl.Float64, strict=False)
        _check_numbers(values.to_list(), frame[name].to_list(), name, str(source))
        frame = frame.with_columns(values.alias(name))
    if REPEATS not in frame.columns:
        frame = frame.with_columns(pl.lit(1.0).alias(REPEATS))
    models = frame["model_id"].to_list()
    shapes = {model: find_shape(model, configs, warn) for model in dict.fromkeys(models)}
    for model in (model for model, shape in shapes.items() if shape is None):
        warn(f"{model}: no configuration; a usual shape with as many parameters is assumed (--configs FOLDER)")
    rows = Rows(
        task=frame["task"].to_numpy(),
        model=frame["model_id"].to_numpy(),
        backbone=np.array([backbone_of(model) for model in models], dtype=object),
        architecture=frame["architecture"].to_numpy(),
        gpu=np.array([gpu_name(name) for name in frame["gpu_model"]], dtype=object),
        precision=frame["weight_precision"].to_numpy(),
        gpus=frame["num_gpus"].to_numpy(),
        tensor_parallel=frame["tensor_parallel"].to_numpy(),
        expert_parallel=frame["expert_parallel"].to_numpy(),
        data_parallel=frame["data_parallel"].to_numpy(),
        max_num_seqs=frame["max_num_seqs"].to_numpy(),
        batch=frame["avg_batch_size"].to_numpy(),
        output_tokens=frame["avg_output_len"].to_numpy(),
        repeats=frame[REPEATS].to_numpy(),
        total_parameters=frame["total_params_billions"].to_numpy() * BILLION,
        active_parameters=frame["activated_params_billions"].to_numpy() * BILLION,
        shapes=tuple(shapes[model] for model in models),
    )
    return rows, frame[ENERGY].to_numpy()


def _check_words(values: Sequence[str | None], name: str, source: str) -> None:
    known = KNOWN_WORDS.get(name, ())
    for row, value in enumerate(values, start=1):
        if not value or not value.strip() or (known and value not in known):
            expected = f"one of {', '.join(known)}" if known else "a name"
            raise DataError(f"{source}: row {row}: {name} is {value!r}; expected {expected}")


def _check_numbers(values: Sequence[float | None], written: Sequence[Any], name: str, source: str) -> None:
    whole = name in COUNTS
    for row, value in enumerate(values, start=1):
        if value is None or not 0 < value < math.inf or (whole and value != int(value)):
            expected = "a whole number of at least 1" if whole else "a number above 0"
            raise DataError(f"{source}: row {row}: {name} is {written[row - 1]!r}; expected {expected}")


@cache
def gpu_name(name: str) -> str:
    """The catalog's name of a GPU that the benchmark, a driver or the catalog names.

    Raises:
        UsageError: It is in none of them.
    """
    known = find_gpu_by_driver_name(name)
    return get_gpu(GPU_NAMES.get(name, known.name if known is not None else name)).name


def find_shape(
    model_id: str, configs: Path | None = None, warn: Callable[[str], None] = lambda _: None
) -> ModelShape | None:
    """The shape of a model of the hub: from `configs` if it is there, else the shipped one; None if neither.

    A file in `configs` is a model's if its path there, less ``config.json``, is the model's name with or without its
    owner, in any spelling of word separators: ``Qwen/Qwen3-8B/config.json``, ``Qwen__Qwen3-8B.json``, ``qwen3-8b.json``.
    A file that cannot be read is skipped with a warning.
    """
    if configs is not None:
        names = {_letters(model_id), _letters(model_id.rpartition("/")[2])}
        for path in sorted(configs.rglob("*.json")):
            place = path.relative_to(configs).with_suffix("")
            if _letters(str(place.parent if place.name == "config" else place)) in names:
                try:
                    return get_model(str(path))
                except (UsageError, DataError) as error:
                    warn(f"{path}: skipped: {error}")
    try:
        return shape_of_id(model_id)
    except (UsageError, DataError):
        return None


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
