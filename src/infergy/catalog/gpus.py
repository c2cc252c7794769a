"""GPUs: the catalog, as data with sources, and GPUs that a TOML file describes (docs/models.md). Standard library only.

memory_bytes = 103_079_215_104          # as the driver reports
memory_bandwidth = 4.0e12               # bytes/s
tdp_w = 400
peak_flops = { bfloat16 = 148e12, fp8 = 296e12 }   # dense, FLOP/s
link = { kind = "NVLink 4", bandwidth = 450e9 }    # bytes/s in one direction, all links together
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

from infergy.errors import DataError, UsageError
from infergy.files import read_toml

SIMULATED_PREFIX = "simulated "
"""Precedes the name of the GPU that a simulated one plays."""

IDLE_SHARE = 0.175
"""Idle power of a GPU with a model loaded, over TDP, where it was not measured: 123 of 700 W on H200s and H100s."""

FIGURES: Mapping[str, tuple[float, str]] = {
    "memory_bytes": (1e9, "bytes: 80 GiB are 85_899_345_920"),
    "memory_bandwidth": (1e10, "bytes per second: 3.35 TB/s are 3.35e12"),
    "tdp_w": (1.0, "watts"),
}
"""Figures that a file must have: the least plausible value (less is another unit), and the unit."""

TEXTS: Mapping[str, str] = {
    "title": "{stem}",
    "compute_capability": "unknown",
    "source": "described by hand in {name}",
    "headline_basis": "its description does not say what a headline would count",
}
"""Texts that a file may have, and their defaults."""

DTYPES = ("float32", "tf32", "bfloat16", "float16", "fp8", "int8", "fp4")
WITHOUT_BFLOAT16 = frozenset({"t4", "t4g", "v100", "v100s", "p100", "p40", "p4", "k80", "m60"})
"""Names of data-center GPUs before Ampere, whose tensor cores have no bfloat16 (CUDA C++ programming guide, "Compute
capabilities")."""
FLOPS = (1e11, "dense FLOP/s: 989.5 TFLOP/s are 989.5e12")
LINK = (1e9, "bytes per second in one direction: PCIe 4.0 x16 has 31.5e9")


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """How a GPU reaches its peers: ``NVLink 4`` or ``PCIe 4.0 x16``, and bytes/s in one direction over all links."""

    kind: str
    bandwidth: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU by its datasheet.

    Attributes:
        name: Short name in the catalog: ``h200``; of a GPU that a file describes, the path of that file.
        title: The vendor's name.
        aliases: Other names, the driver's among them.
        compute_capability: CUDA's version of the architecture: ``9.0``.
        peak_flops: Dense peak FLOP/s (int8: operations/s) by dtype, those in `DTYPES` that the tensor cores support.
        headline_flops: The vendor's leading figure, where it counts sparsity; None where it does not.
        headline_basis: What `headline_flops` counts, or why there is none.
        memory_bytes: Memory as the driver reports it.
        memory_bandwidth: Bytes per second.
        tdp_w: Board power, in watts.
        link: How it reaches its peers.
        source: Where the figures come from.
    """

    name: str
    title: str
    aliases: tuple[str, ...] = ()
    compute_capability: str
    peak_flops: Mapping[str, float]
    headline_flops: float | None = None
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


@cache
def _catalog() -> Mapping[str, Gpu]:
    tables = tomllib.loads((resources.files("infergy") / "data" / "gpus.toml").read_text(encoding="utf-8"))
    return {
        name: Gpu(name=name, **facts | {"aliases": tuple(facts["aliases"]), "link": Link(**facts["link"])})
        for name, facts in tables.items()
    }


def gpu_names() -> tuple[str, ...]:
    """Short names of all GPUs in the catalog."""
    return tuple(_catalog())


def get_gpu(name: str) -> Gpu:
    """The GPU called `name`, by short name, title or the driver's name, in any case; or that a TOML file describes.

    Raises:
        UsageError: There is none; the message gives the nearest.
        DataError: The file lacks a figure, or has an invalid one.
    """
    if name.endswith(".toml"):
        return read_gpu_file(Path(name))
    gpu = find_gpu_by_driver_name(name)
    if gpu is not None:
        return gpu
    words = _words(name)
    if words & WITHOUT_BFLOAT16:
        why = "which every estimate and every measured engine here is in"
        message = f"{name} does not compute in bfloat16, {why}. GPUs that do: infergy list gpus"
        raise UsageError(message, code="unknown-gpu", name=name)
    kinds = [one.name for one in _catalog().values() if words and words <= _words(" ".join((one.name, one.title)))]
    if kinds:
        message = f"unknown GPU {name!r}; of that name there are {', '.join(kinds)}: type one of them"
        raise UsageError(message, code="unknown-gpu", name=name, nearest=kinds)
    hint = "All of them: infergy list gpus. Or describe yours in a small TOML file: docs/models.md"
    raise UsageError.unknown("GPU", name, gpu_names(), hint, code="unknown-gpu")


def _words(name: str) -> set[str]:
    """Words of a name, between blanks and dashes, in lower case, without the vendor's."""
    return set(re.split(r"[\s_-]+", name.lower())) - {"nvidia", "tesla", "geforce", ""}


def catalog_name(driver_name: str) -> str:
    """The catalog's name of a GPU that a driver calls `driver_name`, or that a simulated one plays; else that name."""
    gpu = find_gpu_by_driver_name(driver_name.removeprefix(SIMULATED_PREFIX))
    return driver_name if gpu is None else gpu.name


def find_gpu_by_driver_name(name: str) -> Gpu | None:
    """The GPU that a driver calls `name` (`get_gpu`'s names too); None if the catalog has none.

    The whole name must agree: a slice of a GPU (MIG) is not that GPU.
    """
    wanted = " ".join(name.split()).lower()
    for gpu in _catalog().values():
        if wanted in {gpu.name, gpu.title.lower(), *(alias.lower() for alias in gpu.aliases)}:
            return gpu
    return None


def read_gpu_file(path: Path) -> Gpu:
    """The GPU that `path` describes; its name is that path.

    Raises:
        DataError: The file cannot be read, lacks a figure, or has an invalid one; the message names it.
    """
    facts = read_toml(path, "docs/models.md shows how to describe a GPU; those of the catalog: infergy list gpus")
    _check_keys(path, facts)
    headline = facts.get("headline_flops")
    figures = {key: _figure(path, key, facts[key], rule) for key, rule in FIGURES.items()}
    texts = {key: default.format(stem=path.stem, name=path.name) for key, default in TEXTS.items()}
    return Gpu(
        name=str(path),
        peak_flops=_peaks(path, facts["peak_flops"]),
        headline_flops=None if headline is None else _figure(path, "headline_flops", headline, FLOPS),
        memory_bytes=int(figures["memory_bytes"]),
        memory_bandwidth=figures["memory_bandwidth"],
        tdp_w=figures["tdp_w"],
        link=_link(path, facts["link"]),
        **{key: facts.get(key, default) for key, default in texts.items()},
    )


def _check_keys(path: Path, facts: Mapping[str, object]) -> None:
    needed = (*FIGURES, "peak_flops", "link")
    for key, value in facts.items():
        known = (*needed, *TEXTS, "headline_flops")
        if key not in known:
            raise DataError.unknown_field(path, key, known, "docs/models.md explains each")
        if key in TEXTS and not isinstance(value, str):
            raise DataError.bad_field(path, key, value, "text in quotes")
    missing = [key for key in needed if key not in facts]
    if missing:
        raise DataError.missing_field(path, missing, "docs/models.md shows a whole file")


def _link(path: Path, link: object) -> Link:
    if not isinstance(link, Mapping) or set(link) != {"kind", "bandwidth"} or not isinstance(link["kind"], str):
        raise DataError.bad_field(path, "link", link, "a table of kind and bandwidth")
    return Link(kind=link["kind"], bandwidth=_figure(path, "link.bandwidth", link["bandwidth"], LINK))


def _peaks(path: Path, peaks: object) -> dict[str, float]:
    if not isinstance(peaks, Mapping) or "bfloat16" not in peaks:
        raise DataError.missing_field(path, ["peak_flops.bfloat16"], "a table, as { bfloat16 = 989.5e12 }")
    for dtype in peaks:
        if dtype not in DTYPES:
            raise DataError.unknown_field(f"{path}: peak_flops", dtype, DTYPES)
    return {dtype: _figure(path, f"peak_flops.{dtype}", value, FLOPS) for dtype, value in peaks.items()}


def _figure(path: Path, key: str, value: object, rule: tuple[float, str]) -> float:
    least, unit = rule
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < float("inf"):
        raise DataError.bad_field(path, key, value, f"a number of at least {least:g} ({unit})")
    return float(value)
