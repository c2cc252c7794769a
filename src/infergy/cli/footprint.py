"""Options for money and carbon, and how they are printed: apart from the energy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from textwrap import fill
from typing import TYPE_CHECKING

import typer

from infergy.cli.options import option
from infergy.cli.output import NONE, WIDTH, print_figures
from infergy.errors import UsageError
from infergy.units import JOULES_PER_KWH, count_of, format_number, format_si

if TYPE_CHECKING:
    from infergy.estimates.footprint import Amount, Footprint, Intensity, Site


@dataclass(frozen=True, slots=True, kw_only=True)
class FootprintSelection:
    """Money and carbon; without one of these options neither is computed."""

    price_per_kwh: float | None = option("Price of a kWh, in your currency: adds what the run costs")
    carbon: str | None = option(
        "Grams of CO2e per kWh, or a file of a grid's hours (Electricity Maps CSV, WattTime JSON): adds the carbon",
        metavar="G|FILE",
    )
    pue: float | None = option("Energy of the site over that of its computers, as 1.2 [default: 1.0, no cooling]")
    host_watts: float | None = option("Watts of the host for each GPU, as 150 [default: 0, GPUs alone]")

    def site(self, *, needs_runs: bool = False) -> Site | None:
        """Where the GPUs stand; None if no option is given.

        Args:
            needs_runs: Whether the verb has no run that money and carbon could be of.

        Raises:
            UsageError: A value out of range, or an option with `needs_runs`.
            DataError: The file of a grid cannot be read.
        """
        given = {f"--{name.replace('_', '-')}": value for name, value in asdict(self).items() if value is not None}
        if not given:
            return None
        if needs_runs:
            raise UsageError.conflict(given, "of runs alone, and --method ceiling has none: leave it out")
        from infergy.estimates.footprint import Site, parse_intensity

        return Site(
            pue=1.0 if self.pue is None else self.pue,
            host_w_per_gpu=0.0 if self.host_watts is None else self.host_watts,
            price_per_kwh=self.price_per_kwh,
            intensity=None if self.carbon is None else parse_intensity(self.carbon),
        )


def print_footprints(columns: Sequence[tuple[str, Footprint]]) -> None:
    """Print what is assumed of a site, and money and carbon of runs by their labels; nothing of none."""
    if not columns:
        return
    first = columns[0][1]
    typer.echo("\n" + fill(_assumed(first.site), WIDTH))
    print_figures(columns, list(_figures(first.site)))
    for line in _hours_used(first):
        typer.echo(fill(line, WIDTH))


def _figures(site: Site) -> Iterator[tuple[str, Callable[[Footprint], str]]]:
    shown: list[tuple[str, Callable[[Amount], str]]] = [
        ("Energy of the site", lambda amount: f"{format_number(amount.site_energy_j / JOULES_PER_KWH)} kWh")
    ]
    if site.price_per_kwh is not None:
        shown.append(("Cost", lambda amount: format_number(amount.cost or 0.0)))
    if site.intensity is not None:
        shown.append(("Carbon", lambda amount: f"{format_si(amount.carbon_g or 0.0, 'g')} CO2e"))
    for name, text in shown:
        yield name, partial(_text, field="run", text=text)
        yield "  per month at this load", partial(_text, field="month", text=text)
        yield "  per million output tokens", partial(_text, field="per_million_output_tokens", text=text)


def _text(found: Footprint, *, field: str, text: Callable[[Amount], str]) -> str:
    amount = getattr(found, field)
    return NONE if amount is None else text(amount)


def _assumed(site: Site) -> str:
    facts = [f"PUE {site.pue:g} (--pue)", f"{site.host_w_per_gpu:g} W of host per GPU (--host-watts)"]
    facts += [] if site.price_per_kwh is None else [f"{site.price_per_kwh:g} per kWh"]
    if site.intensity is not None:
        facts += [f"{format_number(site.intensity.mean_g_per_kwh)} g CO2e per kWh{_of_file(site.intensity)}"]
    return f"Money and carbon, which the energy above does not contain. Assumed: {', '.join(facts)}."


def _of_file(intensity: Intensity) -> str:
    if intensity.source is None:
        return ""
    kind = f"{intensity.kind}; " if intensity.kind else ""
    left_out = f", {count_of(intensity.left_out, 'row')} without a value left out" if intensity.left_out else ""
    return f" ({kind}mean of {count_of(intensity.values, 'value')} of {intensity.source}{left_out})"


def _hours_used(footprint: Footprint) -> Iterator[str]:
    intensity = footprint.site.intensity
    if intensity is None or intensity.source is None:
        return
    if footprint.run_intensity == "by_hour":
        yield "Carbon of the run: by the file's mean at each hour of the day (UTC) in which it draws energy."
        if footprint.month_intensity == "mean":
            yield "Carbon of the month: by the file's mean, since the trace is shorter than a day."
    elif intensity.hourly_g_per_kwh is None:
        yield "Carbon by the file's mean: it lacks values of some hours of the day."
    else:
        yield "Carbon by the file's mean: dates of the arrivals are not known."
