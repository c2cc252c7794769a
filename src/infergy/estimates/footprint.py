"""Money and carbon of a run, apart from its energy; hosts and cooling around the GPUs are assumptions.

    energy of GPUs ─┐
                    ├─▶ + host watts × GPUs × time ─▶ × PUE ─▶ energy of the site ─▶ × price, × carbon intensity
    hours of a run ─┘

Nothing is assumed of a price or a grid: what is not given is not computed. Carbon is that of the electricity alone,
not of making the hardware.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from infergy.errors import UsageError
from infergy.estimates.carbon import HOURS_OF_DAY, Intensity
from infergy.serving.run import Run, Runs, total
from infergy.units import DAYS_OF_MONTH, JOULES_PER_KWH
from infergy.workload.requests import Window

HOUR_S, DAY_S = 3600.0, 86_400.0
MILLION = 1e6
HIGHEST_PUE = 5.0
CONSTANT, BY_HOUR, MEAN = "constant", "by_hour", "mean"


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Where GPUs stand, as assumed.

    Attributes:
        pue: Power usage effectiveness: energy of the site over that of its computers; 1 leaves cooling out.
        host_w_per_gpu: Watts of CPUs, memory and fans for each GPU, all the time; 0 leaves hosts out.
        price_per_kwh: In any currency; None if not given.
        intensity: Carbon of electricity; None if not given.

    Raises:
        UsageError: A value out of range.
    """

    pue: float = 1.0
    host_w_per_gpu: float = 0.0
    price_per_kwh: float | None = None
    intensity: Intensity | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.pue <= HIGHEST_PUE:
            raise UsageError.bad_value("--pue", self.pue, "energy of the site over that of its computers, as 1.2")
        if not 0 <= self.host_w_per_gpu < math.inf:
            raise UsageError.bad_value("--host-watts", self.host_w_per_gpu, "watts of the host for each GPU, as 150")
        if self.price_per_kwh is not None and not 0 <= self.price_per_kwh < math.inf:
            raise UsageError.bad_value("--price-per-kwh", self.price_per_kwh, "the price of a kWh, as 0.12")

    def energy_j(self, gpu_j: float, gpu_s: float) -> float:
        """Of the site, for the energy of GPUs and the seconds that hosts run for them, summed over GPUs."""
        return self.pue * (gpu_j + self.host_w_per_gpu * gpu_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class HourlyLoad:
    """Energy of GPUs, and seconds, in each of the 24 hours of the day, UTC."""

    energy_j: tuple[float, ...]
    duration_s: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Amount:
    """What something takes: energy of the whole site, and what follows from it.

    Attributes:
        cost: In the currency of the price; None without a price.
        carbon_g: Grams of CO2e; None without an intensity.
    """

    site_energy_j: float
    cost: float | None
    carbon_g: float | None

    def times(self, factor: float) -> Amount:
        """So many of it."""
        cost, carbon_g = (None if part is None else factor * part for part in (self.cost, self.carbon_g))
        return Amount(site_energy_j=factor * self.site_energy_j, cost=cost, carbon_g=carbon_g)


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """What a run costs in money and carbon.

    Attributes:
        site: What was assumed.
        run: Of the run.
        month: Of 30.4 days at this load; None where it cannot go on so.
        per_million_output_tokens: Of the run, by token; None without output.
        run_intensity: How a file's hours were used for the run: ``constant`` (a number), ``by_hour`` (by hour of the
            day, UTC) or ``mean`` (of the file); None without an intensity. `month_intensity` the same for a month: that
            of the run where it lasts a day or longer, else the mean.
    """

    site: Site
    run: Amount
    month: Amount | None
    per_million_output_tokens: Amount | None
    run_intensity: str | None
    month_intensity: str | None


def footprint_of(
    site: Site,
    *,
    energy_j: float,
    duration_s: float,
    gpus: int,
    output_tokens: float,
    hours: HourlyLoad | None = None,
    lasts: bool = True,
) -> Footprint:
    """Money and carbon of a run.

    Args:
        site: What is assumed.
        energy_j: Of all GPUs, idle included.
        duration_s: Of the run.
        gpus: Of all replicas.
        output_tokens: Of the requests that were served.
        hours: When the energy was drawn; None if unknown, or for the mean intensity.
        lasts: Whether the load can go on for a month.
    """
    site_j = site.energy_j(energy_j, gpus * duration_s)
    run_g_per_kwh, used = _intensity_of(site, site_j, gpus, hours)
    run = _amount(site, site_j, run_g_per_kwh)
    is_daily = used != BY_HOUR or duration_s >= DAY_S
    month = None
    if lasts and duration_s > 0:
        grams, _ = (run_g_per_kwh, used) if is_daily else _intensity_of(site, site_j, gpus, None)
        month = _amount(site, site_j * DAYS_OF_MONTH * DAY_S / duration_s, grams)
    return Footprint(
        site=site,
        run=run,
        month=month,
        per_million_output_tokens=run.times(MILLION / output_tokens) if output_tokens else None,
        run_intensity=used,
        month_intensity=None if month is None else used if is_daily else MEAN,
    )


def _intensity_of(site: Site, site_j: float, gpus: int, hours: HourlyLoad | None) -> tuple[float | None, str | None]:
    """Grams per kWh of a run, and how the hours of a file were used; None without an intensity."""
    intensity = site.intensity
    if intensity is None:
        return None, None
    if intensity.hourly_g_per_kwh is None or hours is None or not site_j > 0:
        return intensity.mean_g_per_kwh, CONSTANT if intensity.source is None else MEAN
    pairs = zip(hours.energy_j, hours.duration_s, intensity.hourly_g_per_kwh, strict=True)
    grams = sum(site.energy_j(gpu_j, gpus * time_s) * g_per_kwh for gpu_j, time_s, g_per_kwh in pairs)
    return grams / site_j, BY_HOUR


def _amount(site: Site, site_j: float, g_per_kwh: float | None) -> Amount:
    kwh = site_j / JOULES_PER_KWH
    return Amount(
        site_energy_j=site_j,
        cost=None if site.price_per_kwh is None else kwh * site.price_per_kwh,
        carbon_g=None if g_per_kwh is None else kwh * g_per_kwh,
    )


def footprint_of_runs(site: Site, runs: Runs, *, gpus: int, lasts: bool) -> Footprint:
    """Money and carbon of the runs of a trace's windows."""
    answered = (
        window.weight * run.requests.output_tokens[np.isfinite(run.requests.finished_s)].sum() for run, window in runs
    )
    return footprint_of(
        site,
        energy_j=total(runs, "energy.total_j"),
        duration_s=total(runs, "duration_s"),
        gpus=gpus,
        output_tokens=float(sum(answered)),
        hours=hourly_load(runs),
        lasts=lasts,
    )


def hourly_load(runs: Runs) -> HourlyLoad | None:
    """When runs drew their energy; None where the log has no dates, or arrivals are not known."""
    energy_j, duration_s = np.zeros(HOURS_OF_DAY), np.zeros(HOURS_OF_DAY)
    for run, window in runs:
        if window.requests.origin_unix_s is None or window.requests.arrival_s is None:
            return None
        if len(run.steps):
            _add_hours(run, window, window.requests.origin_unix_s, energy_j, duration_s)
    return HourlyLoad(energy_j=tuple(energy_j.tolist()), duration_s=tuple(duration_s.tolist()))


def _add_hours(run: Run, window: Window, origin_unix_s: float, energy_j: np.ndarray, duration_s: np.ndarray) -> None:
    """A run's energy, steps by their start, idle time where it was; in hours of the day."""
    begin_s, end_s = origin_unix_s + run.start_s, origin_unix_s + run.start_s + run.duration_s
    hours = np.arange(begin_s // HOUR_S, end_s // HOUR_S + 1)
    within_s = np.minimum(end_s, (hours + 1) * HOUR_S) - np.maximum(begin_s, hours * HOUR_S)
    at = ((origin_unix_s + run.steps.start_s) // HOUR_S - hours[0]).astype(np.int64)
    at = at.clip(0, len(hours) - 1)
    busy_s = np.bincount(at, weights=run.steps.duration_s, minlength=len(hours))
    steps_j = np.bincount(at, weights=run.step_energy_j * run.steps.count, minlength=len(hours))
    idle_s = np.maximum(0.0, run.replicas * within_s - busy_s)
    # A step that began in one hour and ended in the next leaves a little more idle time there than there was.
    idle_j = run.energy.idle_j * idle_s / (idle_s.sum() or 1.0)
    of_day = (hours % HOURS_OF_DAY).astype(np.int64)
    np.add.at(energy_j, of_day, window.weight * (steps_j + idle_j))
    np.add.at(duration_s, of_day, window.weight * within_s)
