"""Carbon intensity of a grid: a number, or an hourly file of Electricity Maps or WattTime.

File ─▶ records ─▶ columns, matched loosely ─▶ mean, and the mean of each hour of the day
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

from infergy.errors import DataError, UsageError
from infergy.files import parse_json, read_text

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
