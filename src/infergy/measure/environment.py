"""The facts of a host, its GPUs and a loaded engine, gathered once for each engine config."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from infergy import VERSION
from infergy.meters import Meter
from infergy.records import Environment


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What is the same for all cells of an engine config; token ids are drawn below `vocabulary`."""

    environment: Environment
    vocabulary: int
    is_simulated: bool


def gather(
    meter: Meter,
    *,
    weights: str,
    packages: Iterable[str],
    engine: Mapping[str, str | None],
    counter_period_s: float | None,
) -> Environment:
    """The environment of all rows of an engine config."""
    facts = meter.facts()
    return Environment(
        infergy=VERSION,
        python=platform.python_version(),
        platform=platform.platform(),
        cpu=cpu_name(),
        gpus=meter.gpus,
        driver=facts.get("driver"),
        cuda=facts.get("cuda"),
        meter=meter.name,
        scope=meter.scope,
        counter_period_s=counter_period_s,
        weights=weights,
        packages={name: version for name in packages if (version := version_of(name)) is not None},
        engine=dict(engine),
    )


def version_of(package: str) -> str | None:
    """The installed version of a distribution; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def cpu_name() -> str | None:
    """The processor's name; None where the system does not report it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or None
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), None)
