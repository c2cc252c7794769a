"""Money and carbon on the command line: after the energy, apart from it, and only of what is given."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from infergy.cli import app
from raising import raises, seen

SHORT = ("estimate", "azure-conv-2023", "--from", "10m", "--for", "20s")
GIVEN = ("--price-per-kwh", "0.12", "--carbon", "400", "--pue", "1.2", "--host-watts", "150")


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, [*SHORT, *arguments])


def answer(*arguments: str) -> dict[str, Any]:
    done = invoke(*arguments, "--json")
    assert done.exit_code == 0, done.output
    (one,) = json.loads(done.stdout)["estimates"]
    found: dict[str, Any] = one
    return found


def grid(tmp_path: Path, hours: int) -> str:
    path = tmp_path / "grid.csv"
    rows = [f"2025-01-01 {hour:02d}:00:00,{100 + hour}" for hour in range(hours)]
    path.write_text("\n".join(["Datetime (UTC),Carbon intensity gCO2eq/kWh (Life cycle)", *rows]))
    return str(path)


def test_the_energy_is_the_same_with_and_without_money() -> None:
    plain, given = answer(), answer(*GIVEN)
    assert plain["footprint"] is None
    footprint = given.pop("footprint")
    assert given == {key: value for key, value in plain.items() if key != "footprint"}
    run = given["served"]
    site_j = 1.2 * (run["energy_j"] + 150 * run["duration_s"])
    assert footprint["run"]["site_energy_j"] == pytest.approx(site_j)
    assert footprint["run"]["cost"] == pytest.approx(0.12 * site_j / 3.6e6)
    assert footprint["run"]["carbon_g"] == pytest.approx(400 * site_j / 3.6e6)
    assert footprint["month"]["cost"] == pytest.approx(footprint["run"]["cost"] * 30.4 * 86_400 / run["duration_s"])
    assert footprint["site"]["host_w_per_gpu"] == 150


def test_money_is_printed_after_the_energy_with_what_is_assumed() -> None:
    text, plain = invoke(*GIVEN).stdout, invoke().stdout
    assert text.startswith(plain)
    rest = text.removeprefix(plain)
    for words in (
        "PUE 1.2",
        "150 W of host",
        "0.12 per kWh",
        "400 g CO2e",
        "per million output tokens",
        "Cost",
        "Carbon",
    ):
        assert words in rest
    assert "Cost" not in plain
    assert "Carbon" not in invoke("--price-per-kwh", "0.12").stdout.split("\n", 1)[1].replace("Money and carbon", "")


def test_several_servers_have_a_column_each() -> None:
    done = invoke("--gpu", "h200", "--gpu", "h100-sxm", "--carbon", "400").stdout
    (heads,) = [line for line in done.split("Money and carbon")[1].splitlines() if "h200" in line]
    assert heads.split() == ["h200", "h100-sxm"]


@pytest.mark.parametrize(("hours", "used"), [(24, "by_hour"), (5, "mean")])
def test_hours_of_a_file_are_used_where_it_has_each(tmp_path: Path, hours: int, used: str) -> None:
    path = grid(tmp_path, hours)
    footprint = answer("--carbon", path)["footprint"]
    assert (footprint["run_intensity"], footprint["month_intensity"]) == (used, "mean")
    kwh = footprint["run"]["site_energy_j"] / 3.6e6
    # The window begins at 18:25.
    mean = 100 + (hours - 1) / 2
    assert footprint["run"]["carbon_g"] == pytest.approx(kwh * (118 if used == "by_hour" else mean))
    assert footprint["month"]["carbon_g"] == pytest.approx(footprint["month"]["site_energy_j"] / 3.6e6 * mean)
    text = " ".join(invoke("--carbon", path).stdout.split())
    assert ("at each hour of the day" if used == "by_hour" else "lacks values of some hours") in text
    undated = " ".join(invoke("--carbon", path, "--all-at-once").stdout.split())
    assert "file's mean" in undated


def test_bins_have_no_run_that_money_could_be_of() -> None:
    error = invoke("--method", "ceiling", "--pue", "1.2").exception
    assert seen(error, "options") == ("options-conflict", {"options": {"--pue": 1.2}})


def test_a_grid_is_read_before_anything_is_served(tmp_path: Path) -> None:
    with raises("file-not-found", path=str(tmp_path / "none.csv")):
        raise invoke("--carbon", str(tmp_path / "none.csv")).exception or AssertionError
