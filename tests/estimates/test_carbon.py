"""Carbon intensities: numbers, CSVs of Electricity Maps, answers of WattTime."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infergy.errors import DataError
from infergy.estimates.footprint import parse_intensity, read_intensity
from raising import raises

MAPS = (
    "Datetime (UTC),Country,Zone name,Zone id,Carbon intensity gCO₂eq/kWh (direct),"
    "Carbon intensity gCO₂eq/kWh (Life cycle),Carbon-free energy percentage (CFE%),Renewable energy percentage (RE%),"
    "Data source,Data estimated,Data estimation method"
)
OLDER = (
    "Datetime (UTC),Country,Zone Name,Zone Id,Carbon Intensity gCO₂eq/kWh (direct),"
    "Carbon Intensity gCO₂eq/kWh (LCA),Low Carbon Percentage,Renewable Percentage,Data Source,Data Estimated,"
    "Data Estimation Method"
)


def maps_row(time: str, direct: object, whole: object, zone: str = "SE") -> str:
    return f"{time},Sweden,Sweden,{zone},{direct},{whole},99.42,60.13,svk.se,false,"


def write(tmp_path: Path, text: str, name: str = "grid.csv") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def write_watttime(tmp_path: Path, values: list[object], **meta: object) -> Path:
    data = [{"point_time": f"2025-01-01T{k:02d}:00:00+00:00", "value": value} for k, value in enumerate(values)]
    content = {"data": data, "meta": {"region": "CAISO_NORTH", "signal_type": "co2_moer", **meta}}
    return write(tmp_path, json.dumps(content), "moer.json")


@pytest.mark.parametrize("header", [MAPS, OLDER, MAPS.replace("₂", "2").upper(), "\ufeff" + MAPS])
def test_columns_of_electricity_maps_are_matched_loosely_and_the_life_cycle_is_read(
    tmp_path: Path, header: str
) -> None:
    rows = [maps_row(f"2025-01-01 {hour:02d}:00:00", 10, 100 + hour) for hour in range(24)]
    found = read_intensity(write(tmp_path, "\n".join([header, *rows])))
    assert found.kind == "life cycle"
    assert found.hourly_g_per_kwh == tuple(100.0 + hour for hour in range(24))
    assert found.mean_g_per_kwh == pytest.approx(111.5)
    assert (found.values, found.left_out) == (24, 0)


def test_a_day_without_each_hour_has_a_mean_alone_and_empty_rows_are_counted(tmp_path: Path) -> None:
    rows = [maps_row("2025-01-01 00:00:00", 10, 100), maps_row("2025-01-01 01:00:00", "", "")]
    found = read_intensity(write(tmp_path, "\n".join([MAPS, *rows])))
    assert (found.mean_g_per_kwh, found.hourly_g_per_kwh, found.values, found.left_out) == (100.0, None, 1, 1)


def test_several_days_and_time_zones_are_means_of_the_hour_of_the_day_in_utc(tmp_path: Path) -> None:
    rows = [f"2025-01-{day:02d}T{hour:02d}:30:00+02:00,{hour * day}" for day in (1, 3) for hour in range(24)]
    found = read_intensity(write(tmp_path, "\n".join(["datetime,carbonIntensity", *rows])))
    assert found.hourly_g_per_kwh is not None
    assert found.kind is None
    # 02:30 of a zone two hours ahead is 00:30 UTC.
    assert found.hourly_g_per_kwh[:3] == (4.0, 6.0, 8.0)


def test_pounds_per_megawatt_hour_of_watttime_are_marginal_grams_per_kilowatt_hour(tmp_path: Path) -> None:
    found = read_intensity(write_watttime(tmp_path, [1000.0] * 24, units="lbs_co2_per_mwh"))
    assert found.mean_g_per_kwh == pytest.approx(453.59237)
    assert found.kind == "marginal"
    assert found.hourly_g_per_kwh == pytest.approx([453.59237] * 24)


def test_what_the_api_of_electricity_maps_returns_is_read_too(tmp_path: Path) -> None:
    history = [{"zone": "DE", "carbonIntensity": 302, "datetime": "2025-04-25T18:07:00.350Z"}]
    found = read_intensity(write(tmp_path, json.dumps({"zone": "DE", "history": history})))
    assert found.mean_g_per_kwh == 302


@given(st.floats(1, 5000))
def test_a_number_is_grams_per_kilowatt_hour(grams: float) -> None:
    assert parse_intensity(repr(grams)).mean_g_per_kwh == grams
    assert parse_intensity(repr(grams)).source is None


@pytest.mark.parametrize("text", ["0.4", "-1", "nan", "inf", "400000"])
def test_numbers_that_are_no_grams_per_kilowatt_hour_are_rejected(text: str) -> None:
    with raises("bad-value", option="--carbon"):
        parse_intensity(text)


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with raises("file-not-found"):
        parse_intensity(str(tmp_path / "none.csv"))


@pytest.mark.parametrize(
    ("header", "lacking"),
    [
        ("hour,load", ["Datetime (UTC)", "Carbon intensity gCO2eq/kWh"]),
        ("Datetime (UTC),Carbon intensity kgCO2eq/kWh", ["Carbon intensity gCO2eq/kWh"]),
        ("Carbon intensity gCO₂eq/kWh (direct)", ["Datetime (UTC)"]),
    ],
)
def test_a_csv_without_its_columns_is_an_error(tmp_path: Path, header: str, lacking: list[str]) -> None:
    with raises("missing-field", keys=lacking):
        read_intensity(write(tmp_path, f"{header}\n1,2\n"))


@pytest.mark.parametrize(
    ("row", "key"),
    [
        (maps_row("2025-01-01 01:00:00", 1, "many"), "carbon intensity"),
        (maps_row("2025-01-01 01:00:00", 1, -5), "carbon intensity"),
        (maps_row("yesterday", 1, 100), "time"),
        (maps_row("2025-01-01 01:00:00", 1, 100, zone="DK"), "Zone id"),
    ],
)
def test_an_invalid_row_is_named(tmp_path: Path, row: str, key: str) -> None:
    path = write(tmp_path, "\n".join([MAPS, maps_row("2025-01-01 00:00:00", 10, 100), row]))
    with raises("bad-field", place=f"{path} line 3", key=key):
        read_intensity(path)


def test_units_that_are_no_mass_per_energy_are_rejected(tmp_path: Path) -> None:
    with raises("bad-field", key="meta.units", value="usd_per_mwh"):
        read_intensity(write_watttime(tmp_path, [1.0], units="usd_per_mwh", signal_type="health_damage"))


@pytest.mark.parametrize("text", ["{", '{"data": 3}', '{"data": []}', MAPS])
def test_files_without_values_are_errors(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError):
        read_intensity(write(tmp_path, text))
