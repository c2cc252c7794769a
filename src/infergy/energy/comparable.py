"""Which configurations price enough of a trace to stand beside others: fewer requests always take fewer joules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from infergy.energy.summary import Priced
from infergy.energy.table import SHIPPED_PREFIX

ENOUGH = 0.99
"""Share, of the requests that any configuration prices, that each must price."""


def priced_share(priced: Priced) -> float:
    """Share of all requests whose lengths the measured cells reach; 0 for a trace without requests.

    The physical model prices all of them from any cell, but a set-up of few cells is told only to those who ask for it.
    """
    requests = sum(one.requests for one in priced.bins)
    surface = priced.values.surface
    reached = sum(one.requests for one in priced.bins if surface.at(one.input_tokens, one.output_tokens) is not None)
    return reached / requests if requests else 0.0


def is_partial(priced: Priced, others: Iterable[Priced]) -> bool:
    """Whether it prices under 99 % of the requests that some other prices."""
    return priced_share(priced) < ENOUGH * max(map(priced_share, others), default=0.0)


def told_by_default(priced: Sequence[Priced]) -> tuple[list[Priced], list[Priced]]:
    """What an estimate tells where no engine is named, and what it leaves out: shipped set-ups of a few cells."""
    left_out = [one for one in priced if is_partial(one, priced) and _is_shipped(one)]
    return [one for one in priced if one not in left_out], left_out


def partial_notes(partial: Iterable[Priced], remedy: str) -> Iterator[str]:
    """One statement that names them with the share of the requests that they price; none if there are none."""
    shares = {one.setup.label: f"{one.setup.label} {priced_share(one):.1%}" for one in partial}
    if shares:
        told = ", ".join(shares.values())
        yield f"measured in too few cells, by the share of the requests that they price: {told}; {remedy}"


def _is_shipped(priced: Priced) -> bool:
    return all(cell.source.startswith(SHIPPED_PREFIX) for cell in priced.setup.cells)
