"""The constants of the step-cost model for one GPU, from the windows of a file that `infergy calibrate` made.

History of the schema:
    1   first release
    2   sd and prior_sd, which were spread and prior_sd; busy_share over idle power for base_share, byte_j for
        byte_share
    3   without `seen`, figures that entered no constant
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

import numpy as np

from infergy.catalog.gpus import SIMULATED_PREFIX, Gpu, find_gpu_by_driver_name, get_gpu
from infergy.cost.calibration_fit import DOUBT, Calibrated, fit, is_used
from infergy.cost.constants import Fit, constants_of
from infergy.errors import DataError, UsageError
from infergy.records.calibration import CalibrationWindow, latest, read_calibration_file

CALIBRATION_SCHEMA = "infergy.calibration/3"
SHIPPED = Path(str(resources.files("infergy"))) / "data" / "calibrations"

ENGINES_DIFFER = 0.1
"""Standard deviation of the logarithm of an engine's constant over that of plain kernels: our own estimate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """The step-cost model's constants for one GPU.

    Attributes:
        gpu: Name in the catalog, or the file that describes it; `title` the vendor's.
        driver_name: Name reported by the driver.
        uuids: The GPUs that were measured.
        measured_from: First window, UTC; `measured_to` the last one.
        simulated: Whether they come from a model instead of a GPU.
        windows: How many were used.
        power_limit_w: Of the GPU; None where the driver reports none.
        notes: What was left out or counts less, and why.
    """

    gpu: str
    title: str
    driver_name: str
    uuids: tuple[str, ...]
    measured_from: str
    measured_to: str
    simulated: bool
    windows: int
    power_limit_w: float | None
    constants: tuple[Calibrated, ...]
    notes: tuple[str, ...]
    schema: str = CALIBRATION_SCHEMA

    @property
    def measured(self) -> tuple[tuple[str, float, float], ...]:
        """Constants on which windows bear: name, value, standard deviation of its logarithm."""
        return tuple((c.name, c.value, c.sd) for c in self.constants if c.windows)

    def constants_of(self, gpu: Gpu) -> tuple[tuple[str, float, float], ...]:
        """`measured`, of this GPU.

        Raises:
            UsageError: `gpu` is another one.
        """
        reject_other(self.driver_name, gpu)
        return self.measured


def narrow(fit: Fit, gpu: str, constants: Sequence[tuple[str, float, float]]) -> Fit:
    """A fit, given what a calibration of one kind of GPU found.

    Both are Gaussian in logarithms: the fit of what the constants are in all GPUs and how this one differs, the
    calibration of their sum, with `ENGINES_DIFFER` more.

    Args:
        fit: Of rows of an engine, or its priors.
        gpu: Kind of the calibrated GPU.
        constants: Name, value, and standard deviation of its logarithm; what the engine has no constant for is ignored.
    """
    priors, old = constants_of(fit.engine), len(fit.names)
    known = [(priors[name], value, sd) for name, value, sd in constants if name in priors]
    if not known:
        return fit
    sds = {c.name: c.sd for c, _, _ in known} | {f"{c.name}@{gpu}": c.gpu_sd for c, _, _ in known if c.gpu_sd}
    names = tuple(dict.fromkeys((*fit.names, *sds)))
    mean = np.concatenate([fit.mean, np.zeros(len(names) - old)])
    covariance = np.diag([sds.get(name, 0.0) ** 2 for name in names])
    covariance[:old, :old] = fit.covariance
    select = np.array([[float(name in (c.name, f"{c.name}@{gpu}")) for name in names] for c, _, _ in known])
    logs = np.array([math.log(value / c.value) for c, value, _ in known])
    noise = np.diag([sd**2 + ENGINES_DIFFER**2 for _, _, sd in known])
    gain = np.linalg.solve(select @ covariance @ select.T + noise, select @ covariance).T
    left = np.eye(len(names)) - gain @ select
    # Joseph's form, which stays symmetric and positive.
    return replace(
        fit,
        names=names,
        mean=mean + gain @ (logs - select @ mean),
        covariance=left @ covariance @ left.T + gain @ noise @ gain.T,
    )


def shipped_calibrations() -> tuple[str, ...]:
    """Names of the calibrations inside the package, in alphabetical order."""
    return tuple(sorted(path.stem for path in SHIPPED.glob("*.jsonl")))


def find_calibration(name: str | Path) -> Path:
    """The file of a calibration: a string may name a shipped one, which stands before a file of that name.

    Raises:
        UsageError: The string is no shipped name and no file, nor is it written like one.
    """
    path, shipped = Path(name), shipped_calibrations()
    if not isinstance(name, Path) and name in shipped:
        return SHIPPED / f"{name}.jsonl"
    if isinstance(name, Path) or path.suffix or len(path.parts) > 1 or path.is_file():
        return path
    message = (
        f"unknown calibration {name!r}; shipped: {', '.join(shipped)}. Make a file on a GPU of yours, which takes "
        f"minutes: infergy calibrate -o {name or 'gpu'}.jsonl; then --calibration {name or 'gpu'}.jsonl"
    )
    raise UsageError(message, code="unknown-calibration", name=name, known=list(shipped))


def load_calibration(name: str | Path, gpu: Gpu | None = None) -> Calibration:
    """What the windows of a file say.

    Args:
        name: A file that `infergy calibrate` made; a string may also name a shipped one (`shipped_calibrations`).
        gpu: The GPU's datasheet; None looks it up in the catalog by the driver's name.

    Raises:
        DataError: The file is missing, foreign or damaged.
        UsageError: No such shipped one, or the file holds windows of several kinds of GPU, or of one that is not in
            the catalog or another.
    """
    return fit_calibration(read_calibration_file(find_calibration(name)), gpu, str(name))


def fit_calibration(windows: Sequence[CalibrationWindow], gpu: Gpu | None = None, name: str = "these") -> Calibration:
    """The likeliest constants given the windows and the priors. Deterministic.

    Args:
        windows: In any order; of each workload and GPU the last whole one counts.
        gpu: As for `load_calibration`.
        name: Of the file, for messages.

    Raises:
        DataError: No window is whole.
        UsageError: As for `load_calibration`.
    """
    kept = latest(windows)
    whole = [window for window in kept if window.is_whole]
    if not whole:
        message = f"{name}: no whole window. Measure some: infergy calibrate -o {name}"
        raise DataError(message, code="no-rows", path=str(name))
    drivers = sorted({window.environment.gpus[0].name for window in windows if window.is_whole})
    if len(drivers) > 1:
        message = f"{name}: windows of several GPUs ({', '.join(drivers)}): give each a file of its own"
        raise UsageError(message, code="several-gpus", place=str(name), gpus=drivers)
    gpu = _datasheet(drivers[0], gpu, name)
    used = [window for window in whole if is_used(window)]
    stamps = sorted(window.measured_utc for window in whole)
    return Calibration(
        gpu=gpu.name,
        title=gpu.title,
        driver_name=drivers[0],
        uuids=tuple(sorted({window.environment.gpus[0].uuid for window in whole})),
        measured_from=stamps[0],
        measured_to=stamps[-1],
        simulated=any(window.simulated for window in whole),
        windows=len(used),
        power_limit_w=whole[0].environment.gpus[0].power_limit_w,
        constants=fit(used, gpu),
        notes=tuple(_notes(kept, gpu)),
    )


def reject_other(driver_name: str, gpu: Gpu) -> None:
    """Reject a calibration of another kind of GPU.

    Raises:
        UsageError: `gpu` is not what the driver calls so.
    """
    name = driver_name.removeprefix(SIMULATED_PREFIX)
    if name.lower() in {known.lower() for known in (gpu.name, gpu.title, *gpu.aliases)}:
        return
    known = find_gpu_by_driver_name(name)
    fix = f'describe it in a TOML file with title = "{name}"' if known is None else f"give --gpu {known.name}"
    message = f"the calibration is of {name}, not of {gpu.title}: {fix}, or calibrate here: infergy calibrate"
    raise UsageError(message, code="other-gpu", found=name, expected=gpu.name)


def _datasheet(driver: str, gpu: Gpu | None, name: str) -> Gpu:
    if gpu is not None:
        reject_other(driver, gpu)
        return gpu
    known = find_gpu_by_driver_name(driver.removeprefix(SIMULATED_PREFIX))
    if known is None:
        message = (
            f"{name}: {driver} is not in the catalog: describe it in a TOML file with title = "
            f'"{driver}" (docs/models.md), and give it with --gpu mine.toml'
        )
        raise UsageError(message, code="unknown-gpu", place=str(name), name=driver)
    return get_gpu(known.name)


def _notes(kept: Sequence[CalibrationWindow], gpu: Gpu) -> Iterator[str]:
    limits: set[float | None] = set()
    for window in kept:
        name = window.workload.name
        limits.update(gpu.power_limit_w for gpu in window.environment.gpus)
        if not window.is_whole:
            yield f"{name}: left out: {window.reason}"
            continue
        if window.doubts and is_used(window):
            yield f"{name}: uncertainty multiplied by {DOUBT:g}: {'; '.join(window.doubts)}"
        if window.workload.in_graph and window.in_graph is False:
            yield f"{name}: without a CUDA graph: the host's speed is in its time"
    for limit in sorted(filter(None, limits)):
        if abs(limit / gpu.tdp_w - 1) > 0.02:
            datasheet = f"not the {gpu.tdp_w:g} W of the datasheet"
            yield f"measured at a power limit of {limit:g} W, {datasheet}: the constants are valid at that limit"
