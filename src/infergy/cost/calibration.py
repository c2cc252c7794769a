"""The step-cost model's constants for one GPU: a pure function of the file that `infergy calibrate` made.

What they are beside the datasheet's, how certain, and on how many windows they rest; `infergy.cost.calibration_fit`
finds them.

History of the schema:
    1   first release
    2   sd and prior_sd, which were spread and prior_sd; busy_share over idle power for base_share, byte_j for
        byte_share
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

import numpy as np

from infergy.cost.calibration_fit import BEARS, DOUBT, SIGMAS_90, SMALL_SUM, Found, fit, is_used, prior_sd
from infergy.cost.constants import BY_NAME, Constant, constants_of
from infergy.cost.fit import Fit
from infergy.errors import DataError, UsageError
from infergy.hardware.gpus import SIMULATED_PREFIX, Gpu, find_gpu_by_driver_name, get_gpu
from infergy.records.calibration import (
    COPY,
    IDLE,
    LAUNCH,
    REDUCE,
    CalibrationWindow,
    latest,
    read_calibration_file,
)

CALIBRATION_SCHEMA = "infergy.calibration/2"
ENGINES_DIFFER = 0.1
"""Standard deviation of the logarithm of an engine's constant over that of plain kernels: our own estimate."""
SHIPPED = Path(str(resources.files("infergy"))) / "data" / "calibrations"

UNITS: Mapping[str, str] = {
    "weight_efficiency": "of bandwidth",
    "cache_efficiency": "of bandwidth",
    "compute_efficiency": "of peak",
    "layer_s": "s",
    "busy_share": "of TDP",
    "byte_j": "J",
    "flop_share": "of TDP",
    "reduce_s": "s",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibrated:
    """One constant.

    Attributes:
        name: As in `infergy.cost.constants.CONSTANTS`.
        unit: ``s``, ``J``, ``of TDP``, ``of bandwidth``, ``of peak``; ``ratio`` otherwise.
        prior: Its value from the datasheet alone.
        prior_sd: Standard deviation of the prior's logarithm, for a GPU that nobody measured.
        value: What the windows say, given the prior.
        low: 90 % of what the windows leave open lies above `low` and below `high`; not how engines' kernels differ.
        sd: Standard deviation of its logarithm, likewise.
        windows: How many bear on it; 0 leaves the prior.
    """

    name: str
    unit: str
    prior: float
    prior_sd: float
    value: float
    low: float
    high: float
    sd: float
    windows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A figure that was measured beside the constants, and enters none of them.

    Attributes:
        unit: SI.
        window: Where it is from.
    """

    name: str
    value: float
    unit: str
    window: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """The step-cost model's constants for one GPU.

    Attributes:
        gpu: Name in the catalogue, or the file that describes it; `title` the vendor's.
        driver_name: What the driver calls it.
        uuids: The chips that were measured.
        measured_from: First window, UTC; `measured_to` the last one.
        simulated: Whether they come from a model instead of a GPU.
        windows: How many were used.
        power_limit_w: Of the GPU; None where the driver does not tell.
        seen: What was measured beside the constants.
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
    seen: tuple[Seen, ...]
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
        refuse_other(self.driver_name, gpu)
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
    priors = constants_of(fit.engine)
    known = [(priors[name], value, sd) for name, value, sd in constants if name in priors]
    if not known:
        return fit
    sds = {c.name: c.sd for c, _, _ in known} | {f"{c.name}@{gpu}": c.gpu_sd for c, _, _ in known if c.gpu_sd}
    added = [name for name in sds if name not in fit.names]
    names = (*fit.names, *added)
    mean = np.concatenate([fit.mean, np.zeros(len(added))])
    covariance = np.zeros((len(names), len(names)))
    covariance[: len(fit.names), : len(fit.names)] = fit.covariance
    for name in added:
        covariance[names.index(name), names.index(name)] = sds[name] ** 2
    select = np.zeros((len(known), len(names)))
    for row, (constant, _, _) in enumerate(known):
        for name in {constant.name, f"{constant.name}@{gpu}"} & set(names):
            select[row, names.index(name)] = 1.0
    found = np.array([math.log(value / constant.value) for constant, value, _ in known])
    noise = np.diag([sd**2 + ENGINES_DIFFER**2 for _, _, sd in known])
    gain = np.linalg.solve(select @ covariance @ select.T + noise, select @ covariance).T
    left = np.eye(len(names)) - gain @ select
    # Joseph's form, which stays symmetric and positive.
    return replace(
        fit,
        names=names,
        mean=mean + gain @ (found - select @ mean),
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
    path = Path(name)
    if isinstance(name, Path) or path.suffix or len(path.parts) > 1:
        return path
    shipped = shipped_calibrations()
    if name in shipped:
        return SHIPPED / f"{name}.jsonl"
    if path.is_file():
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
        gpu: What the datasheet says of the GPU; None looks for it in the catalogue by the driver's name.

    Raises:
        DataError: The file is missing, foreign or damaged.
        UsageError: No such shipped one, or the file holds windows of several kinds of GPU, or of one that is not in
            the catalogue or another.
    """
    return fit_calibration(read_calibration_file(find_calibration(name)), gpu, str(name))


def fit_calibration(windows: Sequence[CalibrationWindow], gpu: Gpu | None = None, name: str = "these") -> Calibration:
    """The likeliest constants given the windows and the priors. Deterministic.

    Args:
        windows: In any order; of each workload and chip the last whole one counts.
        gpu: As for `load_calibration`.
        name: Of the file, for messages.

    Raises:
        DataError: No window is whole.
        MissingError: scipy is missing.
        UsageError: As for `load_calibration`.
    """
    kept = latest(windows)
    whole = [one for one in kept if one.is_whole]
    if not whole:
        message = f"{name}: no whole window. Measure some: infergy calibrate -o {name}"
        raise DataError(message, code="no-rows", path=str(name))
    drivers = {one.environment.gpus[0].name for one in windows if one.is_whole}
    if len(drivers) > 1:
        message = f"{name}: windows of several GPUs ({', '.join(sorted(drivers))}): give each a file of its own"
        raise UsageError(message, code="several-gpus", place=str(name), gpus=sorted(drivers))
    (driver,) = drivers
    chip = _chip(driver, gpu, name)
    used = [one for one in whole if is_used(one)]
    stamps = sorted(one.measured_utc for one in whole)
    identity = whole[0].environment.gpus[0]
    return Calibration(
        gpu=chip.name,
        title=chip.title,
        driver_name=driver,
        uuids=tuple(sorted({one.environment.gpus[0].uuid for one in whole})),
        measured_from=stamps[0],
        measured_to=stamps[-1],
        simulated=any(one.simulated for one in whole),
        windows=len(used),
        power_limit_w=identity.power_limit_w,
        constants=tuple(
            _calibrated(BY_NAME[name], one, sum(map(BEARS[name], used))) for name, one in fit(used, chip).items()
        ),
        seen=tuple(_seen(whole)),
        notes=tuple(_notes(kept, chip)),
    )


def refuse_other(driver_name: str, gpu: Gpu) -> None:
    """Refuse a calibration of another kind of GPU.

    Raises:
        UsageError: `gpu` is not what the driver calls so.
    """
    name = driver_name.removeprefix(SIMULATED_PREFIX)
    if name.lower() in {one.lower() for one in (gpu.name, gpu.title, *gpu.aliases)}:
        return
    known = find_gpu_by_driver_name(name)
    cure = f'describe it in a TOML file with title = "{name}"' if known is None else f"give --gpu {known.name}"
    message = f"the calibration is of {name}, not of {gpu.title}: {cure}, or calibrate here: infergy calibrate"
    raise UsageError(message, code="other-gpu", found=name, expected=gpu.name)


def _chip(driver: str, gpu: Gpu | None, name: str) -> Gpu:
    if gpu is not None:
        refuse_other(driver, gpu)
        return gpu
    found = find_gpu_by_driver_name(driver.removeprefix(SIMULATED_PREFIX))
    if found is None:
        message = (
            f"{name}: {driver} is not in the catalogue: describe it in a TOML file with title = "
            f'"{driver}" (docs/models.md), and give it with --gpu mine.toml'
        )
        raise UsageError(message, code="unknown-gpu", place=str(name), name=driver)
    return get_gpu(found.name)


def _calibrated(constant: Constant, found: Found, windows: int) -> Calibrated:
    value, sd = found.value, found.sd
    return Calibrated(
        name=constant.name,
        unit=UNITS.get(constant.name, "ratio"),
        prior=constant.value,
        prior_sd=prior_sd(constant),
        value=value,
        low=value * math.exp(-SIGMAS_90 * sd),
        high=value * math.exp(SIGMAS_90 * sd),
        sd=sd,
        windows=windows,
    )


def _seen(whole: Sequence[CalibrationWindow]) -> list[Seen]:
    """Figures beside the constants."""
    found = []
    for one in whole:
        work, name = one.workload, one.workload.name
        if work.kind == IDLE and one.power_w is not None:
            found.append(Seen(name="idle power", value=one.power_w, unit="W", window=name))
        elif work.kind == COPY:
            within = "" if work.memory_bytes else " within L2"
            value = 2 * work.sizes[0] / one.call_s
            found.append(Seen(name=f"bandwidth of copies{within}", value=value, unit="B/s", window=name))
        elif work.kind == LAUNCH and not work.in_graph:
            found.append(Seen(name="a launch without a graph", value=one.call_s, unit="s", window=name))
        elif work.kind == REDUCE and work.sizes[0] > SMALL_SUM:
            value = work.link_bytes / one.call_s
            found.append(Seen(name="bandwidth of the link", value=value, unit="B/s", window=name))
    best: dict[str, Seen] = {}
    for figure in found:
        if figure.name not in best or (figure.unit == "B/s" and figure.value > best[figure.name].value):
            best[figure.name] = figure
    return list(best.values())


def _notes(kept: Sequence[CalibrationWindow], chip: Gpu) -> list[str]:
    notes = [f"{one.workload.name}: left out: {one.reason}" for one in kept if not one.is_whole]
    notes += [
        f"{one.workload.name}: taken for {DOUBT:g} times as uncertain: {'; '.join(one.doubts)}"
        for one in kept
        if one.is_whole and one.doubts and is_used(one)
    ]
    limits = {gpu.power_limit_w for one in kept for gpu in one.environment.gpus if gpu.power_limit_w is not None}
    notes += [
        f"measured at a power limit of {limit:g} W, not the {chip.tdp_w:g} W of the datasheet: they hold at that limit"
        for limit in sorted(limits)
        if abs(limit / chip.tdp_w - 1) > 0.02
    ]
    eager = [one.workload.name for one in kept if one.is_whole and one.workload.in_graph and one.in_graph is False]
    notes += [f"{name}: no CUDA graph could be had: the host's speed is in its time" for name in eager]
    return notes
