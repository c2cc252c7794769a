"""Money and carbon: units, what is assumed of hosts and cooling, and hours of the day."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infergy.estimates.estimate import estimate, sample_of, serve_sample
from infergy.estimates.footprint import HourlyLoad, Intensity, Site, footprint_of, hourly_load
from infergy.estimates.servers import ServerSpec, load_tables, open_server
from infergy.workload.requests import Requests
from raising import raises

KWH_J = 3.6e6
BY_HOUR = Intensity(
    mean_g_per_kwh=11.5, hourly_g_per_kwh=tuple(float(hour) for hour in range(24)), source="grid.csv", values=24
)
sites = st.builds(
    Site,
    pue=st.floats(1, 3),
    host_w_per_gpu=st.floats(0, 1000),
    price_per_kwh=st.floats(0, 10),
    intensity=st.just(BY_HOUR),
)
energies, times = st.floats(1, 1e12), st.floats(1, 1e8)


def requests_at(origin_unix_s: float | None, *arrivals: float) -> Requests:
    count = len(arrivals)
    return Requests(
        source="log",
        input_tokens=np.full(count, 500),
        output_tokens=np.full(count, 50),
        arrival_s=np.array(arrivals),
        origin_unix_s=origin_unix_s,
    )


def test_a_million_tokens_at_one_joule_cost_their_share_of_a_kilowatt_hour() -> None:
    # A published formula divides J/token × price/kWh × 10^6 by 3,600, a thousand times too much: a kWh is 3.6 × 10^6 J.
    found = footprint_of(Site(price_per_kwh=0.36), energy_j=1e6, duration_s=1000, gpus=1, output_tokens=1e6)
    assert found.per_million_output_tokens is not None
    assert found.per_million_output_tokens.cost == pytest.approx(0.1)
    assert found.per_million_output_tokens.cost != pytest.approx(1.0 * 0.36 / 3600 * 1e6)


def test_the_carbon_of_a_million_tokens_is_in_grams() -> None:
    # A published example has 6,500 kg for 50 × 10^9 tokens as 0.13 g per million tokens; they are 130 g.
    site = Site(intensity=Intensity(mean_g_per_kwh=500))
    found = footprint_of(site, energy_j=13_000 * KWH_J, duration_s=1e6, gpus=8, output_tokens=50e9)
    assert found.run.carbon_g == pytest.approx(6_500_000)
    assert found.per_million_output_tokens is not None
    assert found.per_million_output_tokens.carbon_g == pytest.approx(130)


def test_hosts_and_cooling_are_added_to_the_energy_of_gpus() -> None:
    site = Site(pue=1.2, host_w_per_gpu=150, price_per_kwh=0.1, intensity=Intensity(mean_g_per_kwh=400))
    found = footprint_of(site, energy_j=KWH_J, duration_s=3600, gpus=2, output_tokens=0)
    assert found.run.site_energy_j == pytest.approx(1.2 * 1.3 * KWH_J)
    assert found.run.cost == pytest.approx(0.156)
    assert found.run.carbon_g == pytest.approx(624)
    assert found.per_million_output_tokens is None
    assert found.month is not None
    assert found.month.cost == pytest.approx(0.156 * 24 * 30.4)


def test_what_is_not_given_is_not_computed() -> None:
    found = footprint_of(Site(), energy_j=5.0, duration_s=1, gpus=1, output_tokens=1, lasts=False)
    assert (found.run.site_energy_j, found.run.cost, found.run.carbon_g) == (5.0, None, None)
    assert (found.month, found.run_intensity, found.month_intensity) == (None, None, None)


@given(sites, energies, times, st.integers(1, 8), st.floats(0.1, 10))
def test_figures_scale_with_the_run(site: Site, energy_j: float, duration_s: float, gpus: int, factor: float) -> None:
    def of(times: float) -> Any:
        return footprint_of(
            site, energy_j=times * energy_j, duration_s=times * duration_s, gpus=gpus, output_tokens=times * 1e6
        )

    once, more = of(1), of(factor)
    assert more.run.cost == pytest.approx(factor * once.run.cost)
    assert more.run.carbon_g == pytest.approx(factor * once.run.carbon_g)
    assert more.month.carbon_g == pytest.approx(once.month.carbon_g)
    assert more.per_million_output_tokens.cost == pytest.approx(once.per_million_output_tokens.cost)


@given(sites, st.lists(energies, min_size=24, max_size=24), st.lists(times, min_size=24, max_size=24))
def test_carbon_by_hour_lies_between_the_cleanest_hour_and_the_dirtiest(
    site: Site, energy_j: list[float], duration_s: list[float]
) -> None:
    hours = HourlyLoad(energy_j=tuple(energy_j), duration_s=tuple(duration_s))
    totals: dict[str, Any] = {"energy_j": sum(energy_j), "duration_s": sum(duration_s), "output_tokens": 1}
    found = footprint_of(site, gpus=2, hours=hours, **totals)
    assert found.run_intensity == "by_hour"
    assert found.run.carbon_g is not None
    assert 0 <= found.run.carbon_g <= 23.001 * found.run.site_energy_j / KWH_J
    # The same intensity at each hour is that intensity, whatever the hours.
    flat = replace(site, intensity=replace(BY_HOUR, hourly_g_per_kwh=(11.5,) * 24))
    by_hour, by_mean = (footprint_of(flat, gpus=2, hours=when, **totals) for when in (hours, None))
    assert by_hour.run.carbon_g == pytest.approx(by_mean.run.carbon_g)


def test_the_month_of_a_trace_shorter_than_a_day_has_the_mean_intensity() -> None:
    energy_j = tuple(KWH_J if hour == 3 else 0.0 for hour in range(24))
    hours = HourlyLoad(energy_j=energy_j, duration_s=tuple(3600.0 if hour == 3 else 0.0 for hour in range(24)))
    site = Site(intensity=BY_HOUR)
    short = footprint_of(site, energy_j=KWH_J, duration_s=3600, gpus=1, output_tokens=1, hours=hours)
    assert short.run.carbon_g == pytest.approx(3)
    assert short.month is not None
    assert short.month.carbon_g == pytest.approx(11.5 * 24 * 30.4)
    assert (short.run_intensity, short.month_intensity) == ("by_hour", "mean")
    day = footprint_of(site, energy_j=KWH_J, duration_s=86_400, gpus=1, output_tokens=1, hours=hours)
    assert day.month is not None
    assert day.month.carbon_g == pytest.approx(3 * 30.4)
    assert day.month_intensity == "by_hour"


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("--pue", {"pue": 0.9}),
        ("--pue", {"pue": float("nan")}),
        ("--pue", {"pue": 120}),
        ("--host-watts", {"host_w_per_gpu": -1}),
        ("--price-per-kwh", {"price_per_kwh": float("inf")}),
    ],
)
def test_values_out_of_range_are_rejected(option: str, values: dict[str, float]) -> None:
    with raises("bad-value", option=option):
        Site(**values)  # type: ignore[arg-type]


def test_hours_keep_the_energy_and_the_time_of_a_run() -> None:
    server = open_server(ServerSpec(replicas=2), load_tables(()))
    # From 23:50 UTC, so that idle time reaches into the next day.
    sample = sample_of(requests_at(1_700_006_400 - 600.0, 0.0, 30.0, 660.0, 4000.0))
    runs = serve_sample(sample, server)
    hours = hourly_load(runs)
    assert hours is not None
    assert sum(hours.energy_j) == pytest.approx(runs[0][0].energy_j)
    assert sum(hours.duration_s) == pytest.approx(runs[0][0].duration_s)
    assert [hour for hour in range(24) if hours.duration_s[hour]] == [0, 23]
    assert hours.duration_s[23] == pytest.approx(600)
    assert hours.energy_j[0] > hours.energy_j[23] > 0


def test_an_estimate_has_the_footprint_of_its_run_where_a_site_is_given() -> None:
    site = Site(pue=1.5, intensity=BY_HOUR)
    dated, undated = requests_at(1_700_000_000.0, 0.0, 1.0, 200.0), requests_at(None, 0.0, 1.0, 200.0)
    spec = ServerSpec(replicas=2)
    (plain,) = estimate(dated, spec, paper=False).estimates
    assert plain.footprint is None
    for source, used in ((dated, "by_hour"), (undated, "mean"), (dated.all_at_once(), "mean")):
        (one,) = estimate(source, spec, paper=False, site=site).estimates
        assert one.footprint is not None
        assert one.footprint.run.site_energy_j == pytest.approx(1.5 * one.run.energy_j)
        assert one.footprint.run_intensity == used
        assert one.footprint.per_million_output_tokens is not None
        tokens = 1e6 * one.footprint.run.site_energy_j / one.footprint.per_million_output_tokens.site_energy_j
        assert tokens == pytest.approx(150)
    (again,) = estimate(dated, spec, paper=False, site=site).estimates
    assert replace(again, footprint=None) == plain
