"""The catalogue of GPUs, as data with sources. Standard library only."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

from infergy.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU by its datasheet.

    Attributes:
        name: Short name in the catalogue: ``h200``.
        title: The vendor's name.
        aliases: Names under which the driver knows it.
        peak_flops: Dense peak FLOP/s by dtype.
        headline_flops: The vendor's headline where it counts sparsity; None where it does not.
        memory_bytes: Memory that the driver shows.
        memory_bandwidth: Bytes a second.
        tdp_w: Board power, in watts.
        source: Where the figures come from.
    """

    name: str
    title: str
    aliases: tuple[str, ...]
    peak_flops: Mapping[str, float]
    headline_flops: float | None
    memory_bytes: int
    memory_bandwidth: float
    tdp_w: float
    source: str


@cache
def _catalogue() -> Mapping[str, Gpu]:
    text = (resources.files("infergy") / "data" / "gpus.toml").read_text(encoding="utf-8")
    gpus: dict[str, Gpu] = {}
    for name, facts in tomllib.loads(text).items():
        gpus[name] = Gpu(name=name, **(facts | {"aliases": tuple(facts["aliases"])}))
    return gpus


def gpu_names() -> tuple[str, ...]:
    """Short names of all GPUs in the catalogue."""
    return tuple(_catalogue())


def get_gpu(name: str) -> Gpu:
    """The GPU called `name`, by short name, title or the driver's name, in any case.

    Raises:
        UsageError: There is none; the message gives the nearest.
    """
    for gpu in _catalogue().values():
        if name.lower() in {gpu.name, gpu.title.lower(), *(alias.lower() for alias in gpu.aliases)}:
            return gpu
    raise UsageError.unknown("GPU", name, gpu_names())


def find_gpu_by_driver_name(name: str) -> Gpu | None:
    """The GPU that a driver calls `name`; None if the catalogue has none."""
    try:
        return get_gpu(name)
    except UsageError:
        return None
