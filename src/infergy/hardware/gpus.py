"""The catalogue of GPUs, as data with sources, and GPUs that a file describes. Standard library only."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from infergy.errors import UsageError

SIMULATED_PREFIX = "simulated "
"""The simulated GPU puts this before the name of the one it plays."""

IDLE_SHARE = 0.175
"""Idle power of a GPU with a model loaded, over TDP, where it was not measured: 123 of 700 W on H200s and H100s."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """How a GPU reaches its peers.

    Attributes:
        kind: The technology: ``NVLink 4``, ``PCIe 4.0 x16``.
        bandwidth: Bytes a second in one direction, all links of the GPU together.
    """

    kind: str
    bandwidth: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU by its datasheet.

    Attributes:
        name: Short name in the catalogue: ``h200``; of a GPU that a file describes, the path of that file.
        title: The vendor's name.
        aliases: Other names, the driver's among them.
        compute_capability: CUDA's version of the architecture: ``9.0``.
        peak_flops: Dense peak FLOP/s (int8: operations/s) by dtype: ``float32``, ``tf32``, ``bfloat16``, ``float16``,
            ``fp8``, ``int8``, ``fp4``; a dtype that the tensor cores do not know is missing.
        headline_flops: The figure the vendor leads with, where it counts sparsity; None where it does not.
        headline_basis: What `headline_flops` counts, or why there is none.
        memory_bytes: Memory that the driver shows.
        memory_bandwidth: Bytes a second.
        tdp_w: Board power, in watts.
        link: How it reaches its peers.
        source: Where the figures come from.
    """

    name: str
    title: str
    aliases: tuple[str, ...]
    compute_capability: str
    peak_flops: Mapping[str, float]
    headline_flops: float | None
    headline_basis: str
    memory_bytes: int
    memory_bandwidth: float
    tdp_w: float
    link: Link
    source: str

    def dense_flops(self, dtype: str) -> float:
        """Dense peak FLOP/s at `dtype`.

        Raises:
            UsageError: The GPU has no arithmetic of that dtype.
        """
        if dtype not in self.peak_flops:
            raise UsageError.unknown(
                f"dtype of {self.title}", dtype, self.peak_flops, code="unknown-name", gpu=self.name
            )
        return self.peak_flops[dtype]

    def has_units(self, dtype: str) -> bool:
        """Whether its tensor cores know a dtype."""
        return dtype in self.peak_flops


def _read_gpu(name: str, facts: Mapping[str, Any]) -> Gpu:
    return Gpu(
        name=name,
        **{
            "headline_flops": None,
            **facts,
            "aliases": tuple(facts["aliases"]),
            "link": Link(**facts["link"]),
        },
    )


@cache
def _catalogue() -> Mapping[str, Gpu]:
    text = (resources.files("infergy") / "data" / "gpus.toml").read_text(encoding="utf-8")
    return {name: _read_gpu(name, facts) for name, facts in tomllib.loads(text).items()}


def gpu_names() -> tuple[str, ...]:
    """Short names of all GPUs in the catalogue."""
    return tuple(_catalogue())


def get_gpu(name: str) -> Gpu:
    """The GPU called `name`, by short name, title or the driver's name, in any case; or that a TOML file describes.

    Raises:
        UsageError: There is none; the message gives the nearest.
        DataError: The file lacks a figure, or has one that cannot be meant.
    """
    if name.endswith(".toml"):
        from infergy.hardware.gpu_file import read_gpu_file

        return read_gpu_file(Path(name))
    gpu = find_gpu_by_driver_name(name)
    if gpu is None:
        hint = "All of them: infergy list gpus. Or describe yours in a small TOML file: docs/models.md"
        raise UsageError.unknown("GPU", name, gpu_names(), hint, code="unknown-gpu")
    return gpu


def catalogue_name(driver_name: str) -> str:
    """The catalogue's name of a GPU that a driver calls `driver_name`, or that one plays; else that name itself."""
    gpu = find_gpu_by_driver_name(driver_name.removeprefix(SIMULATED_PREFIX))
    return driver_name if gpu is None else gpu.name


def find_gpu_by_driver_name(name: str) -> Gpu | None:
    """The GPU that a driver calls `name` (`get_gpu`'s names too); None if the catalogue has none.

    The whole name must agree: a slice of a GPU (MIG) is not that GPU.
    """
    wanted = " ".join(name.split()).lower()
    for gpu in _catalogue().values():
        if wanted in {gpu.name, gpu.title.lower(), *(alias.lower() for alias in gpu.aliases)}:
            return gpu
    return None
