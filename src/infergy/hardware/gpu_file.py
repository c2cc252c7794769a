"""A GPU that the catalogue lacks, described in a small TOML file (docs/models.md). Standard library only.

memory_bytes = 103_079_215_104          # what the driver shows
memory_bandwidth = 4.0e12               # bytes a second
tdp_w = 400
peak_flops = { bfloat16 = 148e12, fp8 = 296e12 }   # dense, FLOP/s
link = { kind = "NVLink 4", bandwidth = 450e9 }    # bytes a second in one direction, all links together
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from infergy.errors import DataError
from infergy.hardware.gpus import Gpu, Link

FIGURES: Mapping[str, tuple[float, str]] = {
    "memory_bytes": (1e9, "bytes: 80 GiB are 85_899_345_920"),
    "memory_bandwidth": (1e10, "bytes a second: 3.35 TB/s are 3.35e12"),
    "tdp_w": (1.0, "watts"),
}
"""Needed figures: the least that can be meant (less is another unit), and the unit in words."""

WORDS = ("title", "compute_capability", "source", "headline_basis")
OTHERS = ("peak_flops", "link", "headline_flops")
DTYPES = ("float32", "tf32", "bfloat16", "float16", "fp8", "int8", "fp4")
LEAST_FLOPS = 1e11
LEAST_LINK = 1e9


def read_gpu_file(path: Path) -> Gpu:
    """The GPU that `path` describes, called by that path.

    Raises:
        DataError: The file cannot be read, lacks a figure, or has one that cannot be meant; the message names it.
    """
    facts = _load(path)
    known = (*FIGURES, *WORDS, *OTHERS)
    for key in facts:
        if key not in known:
            raise DataError.unknown_field(path, key, known, "docs/models.md says what each is")
    missing = [repr(key) for key in (*FIGURES, "peak_flops", "link") if key not in facts]
    if missing:
        raise DataError.missing_field(
            path,
            [key for key in (*FIGURES, "peak_flops", "link") if key not in facts],
            "docs/models.md shows a whole file",
        )
    for key in WORDS:
        if not isinstance(facts.get(key, ""), str):
            raise DataError.bad_field(path, key, facts[key], "text in quotes")
    figures = {key: _figure(path, key, facts[key], *rule) for key, rule in FIGURES.items()}
    headline = facts.get("headline_flops")
    return Gpu(
        name=str(path),
        title=facts.get("title", path.stem),
        aliases=(),
        compute_capability=facts.get("compute_capability", "not told"),
        peak_flops=_peaks(path, facts["peak_flops"]),
        headline_flops=None if headline is None else _flops(path, "headline_flops", headline),
        headline_basis=facts.get("headline_basis", "its description does not tell what a headline would count"),
        memory_bytes=int(figures["memory_bytes"]),
        memory_bandwidth=figures["memory_bandwidth"],
        tdp_w=figures["tdp_w"],
        link=_link(path, facts["link"]),
        source=facts.get("source", f"described by hand in {path.name}"),
    )


def _load(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError.not_found(path, "The GPUs of the catalogue: infergy list gpus") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError.not_readable(path, error) from error
    except tomllib.TOMLDecodeError as error:
        raise DataError.bad_syntax(path, "TOML", error, "docs/models.md shows how to describe a GPU") from error


def _peaks(path: Path, peaks: object) -> dict[str, float]:
    if not isinstance(peaks, Mapping) or "bfloat16" not in peaks:
        raise DataError.missing_field(path, ["peak_flops.bfloat16"], "a table, as { bfloat16 = 989.5e12 }")
    for dtype in peaks:
        if dtype not in DTYPES:
            raise DataError.unknown_field(f"{path}: peak_flops", dtype, DTYPES)
    return {dtype: _flops(path, f"peak_flops.{dtype}", value) for dtype, value in peaks.items()}


def _link(path: Path, link: object) -> Link:
    if not isinstance(link, Mapping) or set(link) != {"kind", "bandwidth"} or not isinstance(link["kind"], str):
        raise DataError.bad_field(path, "link", link, "a table of kind and bandwidth")
    unit = "bytes a second in one direction: PCIe 4.0 x16 has 31.5e9"
    return Link(kind=link["kind"], bandwidth=_figure(path, "link.bandwidth", link["bandwidth"], LEAST_LINK, unit))


def _flops(path: Path, key: str, value: object) -> float:
    return _figure(path, key, value, LEAST_FLOPS, "dense FLOP/s: 989.5 TFLOP/s are 989.5e12")


def _figure(path: Path, key: str, value: object, least: float, unit: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < float("inf"):
        raise DataError.bad_field(path, key, value, f"a number of at least {least:g} ({unit})")
    return float(value)
