"""Money and carbon of a run, apart from its energy; hosts and cooling around the GPUs are assumptions.

    energy of GPUs ─┐
                    ├─▶ + host watts × GPUs × time ─▶ × PUE ─▶ energy of the site ─▶ × price, × carbon intensity
    hours of a run ─┘

Nothing is assumed of a price or a grid: what is not given is not computed. Carbon is that of the electricity alone,
not of making the hardware. Its intensity is a number, or an hourly file of Electricity Maps or WattTime:

    file ─▶ records ─▶ columns, matched loosely ─▶ mean, and the mean of each hour of the day
"""

from __future__ import annotations

import csv
import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from infergy.errors import DataError, UsageError
from infergy.files import parse_json, read_text
from infergy.serving.run import Run, Runs, total
from infergy.units import DAYS_OF_MONTH, JOULES_PER_KWH
from infergy.workload.requests import Window

HOURS_OF_DAY = 24
EXPECTED = (
    "grams of CO2e per kWh, as 400, or a file: a CSV of Electricity Maps, or what /v3/historical of WattTime returns"
)
HINT = f"--carbon takes {EXPECTED}"
TIMES = ("datetimeutc", "datetime", "pointtime", "timestamp", "time")
ZONES = ("zoneid", "zone", "region")
CARBON = re.compile(r"(?:carbonintensity)?(?:avg)?(?:gco2(?:e|eq)?(?:per)?kwh)?(lifecycle|lca|direct)?")
"""A column of intensities, in its plain form; the last part says what it counts."""
KINDS = {
    "lifecycle": "life cycle",
    "lca": "life cycle",
    "direct": "direct",
    "co2moer": "marginal",
    "co2aoer": "average",
}
G_PER_KWH = {"lbsco2permwh": 0.45359237, "kgco2permwh": 1.0, "gco2perkwh": 1.0}
"""By the units of a JSON file, in plain form."""
HIGHEST_G_PER_KWH = 5000.0
"""Above any grid: lignite in old plants emits some 1,300 g/kWh."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Intensity:
    """Carbon intensity of electricity, in grams of CO2e per kWh.

    Attributes:
        mean_g_per_kwh: The number, or the mean of a file.
        hourly_g_per_kwh: Means of the 24 hours of a day, UTC; None of a number, or of a file without each of them.
        source: The file; None of a number.
        kind: What a file counts: ``life cycle``, ``direct``, ``marginal`` or ``average``; None where it does not say.
        values: How many values a file has; `left_out` rows without one.
    """

    mean_g_per_kwh: float
    hourly_g_per_kwh: tuple[float, ...] | None = None
    source: str | None = None
    kind: str | None = None
    values: int = 1
    left_out: int = 0


def parse_intensity(text: str) -> Intensity:
    """The intensity that ``--carbon`` means: a number, or the file of this name.

    Raises:
        UsageError: A number out of range.
        DataError: The file cannot be read, or has no intensities.
    """
    try:
        value = float(text)
    except ValueError:
        return read_intensity(Path(text))
    if 0 < value < 1:
        in_grams = f"grams of CO2e per kWh: {value:g} kg are --carbon {1000 * value:g}"
        raise UsageError.bad_value("--carbon", value, in_grams)
    if not 0 <= value <= HIGHEST_G_PER_KWH:
        raise UsageError.bad_value("--carbon", value, f"{EXPECTED}; a number from 0 to {HIGHEST_G_PER_KWH:,.0f}")
    return Intensity(mean_g_per_kwh=value)


def read_intensity(path: Path) -> Intensity:
    """The intensities of a CSV or JSON file.

    Raises:
        DataError: The file cannot be read, lacks a column, has several zones, or a value that cannot be.
    """
    text = read_text(path, HINT).removeprefix("\ufeff")
    is_json = path.suffix == ".json" or text.lstrip().startswith("{")
    sums: dict[int, list[float]] = {}
    left_out = 0
    try:
        rows, kind, factor = _json_rows(path, text) if is_json else _csv_rows(path, text)
        for place, time, value in rows:
            if value is None or not str(value).strip():
                left_out += 1
            else:
                sums.setdefault(_hour(place, time), []).append(factor * _grams(place, value))
    except csv.Error as error:
        raise DataError.bad_syntax(path, "CSV", error, HINT) from error
    values = [value for hour in sums.values() for value in hour]
    if not values:
        raise DataError(f"{path}: no row has an intensity. {HINT}", code="missing-field", place=str(path), keys=[])
    hourly = tuple(math.fsum(sums[hour]) / len(sums[hour]) for hour in sorted(sums))
    return Intensity(
        mean_g_per_kwh=math.fsum(values) / len(values),
        hourly_g_per_kwh=hourly if len(hourly) == HOURS_OF_DAY else None,
        source=str(path),
        kind=kind,
        values=len(values),
        left_out=left_out,
    )


Rows = tuple[Iterator[tuple[str, Any, Any]], str | None, float]
"""Place, time and value of each row; what they count; grams per kWh of a unit."""


def _csv_rows(path: Path, text: str) -> Rows:
    reader = csv.DictReader(text.splitlines(), restval="")
    heads = {_plain(name): name for name in reader.fieldnames or () if name}
    time, zone = _first_of(heads, TIMES), _first_of(heads, ZONES)
    carbon = {found[1]: heads[name] for name in heads if (found := CARBON.fullmatch(name)) and name not in KINDS}
    if time is None or not carbon:
        lacking = ["Datetime (UTC)"] * (time is None) + ["Carbon intensity gCO2eq/kWh"] * (not carbon)
        raise DataError.missing_field(path, lacking, f"it has {', '.join(heads.values()) or 'none'}. {HINT}")
    kind = next(name for name in ("lifecycle", "lca", "direct", None) if name in carbon)
    rows = _of_one_zone(((f"{path} line {reader.line_num}", row) for row in reader), zone)
    return ((place, row[time], row[carbon[kind]]) for place, row in rows), KINDS.get(kind or ""), 1.0


def _json_rows(path: Path, text: str) -> Rows:
    content = parse_json(text, path, HINT)
    whole = content if isinstance(content, dict) else {"data": content}
    data, meta = whole.get("data", whole.get("history")), whole.get("meta")
    if not isinstance(data, list) or not all(isinstance(row, dict) for row in data):
        raise DataError.missing_field(path, ["data"], f"a list of records. {HINT}")
    meta = meta if isinstance(meta, dict) else {}
    column, factor, units = "carbonintensity", 1.0, _plain(str(meta.get("units")))
    if any("value" in row for row in data):
        if units not in G_PER_KWH:
            expected = "lbs_co2_per_mwh (of the signal co2_moer or co2_aoer)"
            raise DataError.bad_field(path, "meta.units", meta.get("units"), expected)
        column, factor = "value", G_PER_KWH[units]
    rows = ((f"{path} data[{k}]", {_plain(name): value for name, value in row.items()}) for k, row in enumerate(data))
    values = ((place, _first_of(row, TIMES), row.get(column)) for place, row in rows)
    return values, KINDS.get(_plain(str(meta.get("signal_type", "")))), factor


def _of_one_zone(rows: Iterator[tuple[str, dict[str, Any]]], zone: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a file; grids of several zones have no common intensity."""
    first = None
    for place, row in rows:
        first = first or (row[zone] if zone else None)
        if zone and row[zone] != first:
            raise DataError.bad_field(place, zone, row[zone], f"one zone, {first} as above: keep the rows of yours")
        yield place, row


def _first_of(row: Mapping[str, Any], names: Iterable[str]) -> Any:
    return next((row[name] for name in names if name in row), None)


def _plain(name: str) -> str:
    """Letters and digits of a name alone: CO₂ is CO2, and case does not count."""
    return re.sub(r"[^a-z0-9]", "", unicodedata.normalize("NFKC", name).casefold())


def _hour(place: str, time: Any) -> int:
    """Hour of the day, UTC."""
    try:
        instant = datetime.fromisoformat(str(time).strip().removesuffix("UTC").strip())
    except ValueError as error:
        raise DataError.bad_field(place, "time", time, "a date with its time, as 2025-01-01 13:00:00") from error
    return (instant.astimezone(UTC) if instant.tzinfo else instant).hour


def _grams(place: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 <= number < math.inf:
        raise DataError.bad_field(place, "carbon intensity", value, "a number of at least 0, in g/kWh")
    return number


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
