"""How far a row's joules may be off, from the raw facts of its windows alone. Standard library only.

Four independent parts, as fractions of the energy per batch:

    spread   √(v / T): T seconds of batches, each second with the relative variance v, independent of the others
    edges    each tick was stamped up to `edge_uncertainty_s` too late: uniform, with the variance u² / 12. In a window
             with a settled tail the counter's joules are exact and only the idle time and its power are off, by
             √(2 / 12) u p (1 + idle time / tail); in one without, the joules at mean power
    tail     in a window without a settled tail the idle time drew something between loaded-idle and mean power:
             uniform over the bound of `infergy.records.result`, which also moves the middle of the interval down by
             half of it
    visits   what lasts longer than a window and differs from one visit of a cell to the next, where cells of the engine
             config were measured more than once (`infergy.records.visits`)

v is estimated from the energy of repeated windows, which include errors of the counter, or, in one window, from the
seconds of its batches (energy varies less than seconds, for power falls when work waits). Few windows say little, so v
is moderated by that of like cells (Smyth, "Linear models and empirical Bayes methods", Stat. Appl. Genet. Mol. Biol.
3, 2004):

    v = (ν₀ v₀ + ν v̂) / (ν₀ + ν),   ν₀ = at most `PRIOR_DEGREES`

The seconds of one window know nothing of the counter. Where like cells have repeated windows, the larger of both
counts.

The interval is Student's, its degrees of freedom by Welch and Satterthwaite (Biometrics Bulletin 2, 1946). Windows
repeat until it is narrow enough, which favours runs that happen to agree: with more than one window it is wider by
`STOPPING_FACTOR`, and there are `FEWEST_WINDOWS` at least without like cells. Both were found on the simulated
GPU, with counters and loads drawn at random (`benchmarks/proof.py`): the interval contains the truth in 94 to 97 % of
runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from infergy.records.agreement import spread_key
from infergy.records.environment import Rescaled
from infergy.records.measurement import Measurement
from infergy.records.result import Result, derive
from infergy.records.visits import (
    Alike,
    Peer,
    Spread,
    VisitScatter,
    group_visits,
    peer_of,
    scatter_of,
    share_of_one_visit,
    spread_of,
    sum_visits,
    variance_between,
)
from infergy.records.window import Window, energy_of

PRIOR_DEGREES = 4.0
"""How many degrees of freedom like cells count for at most: one cell's own five windows outweigh all others."""

STOPPING_FACTOR = 1.1
FEWEST_VISIT_DEGREES = 3
"""Visits less one, over like cells, from which the variance between visits is believed even where it comes out as 0."""

FEWEST_WINDOWS = 4
"""Windows of a cell without like cells."""

ENOUGH_DEGREES = 8.0
"""Degrees of freedom of like cells from which on one window may be enough."""

MANY_DEGREES = 810_000

LOG_T = (0.672926, 1.21025, 0.70707, 0.16956, -0.31966, 0.10196)
"""Coefficients of log t by powers of 1 / degrees of freedom, where t is the 97.5 % quantile of Student's distribution:
a fit to `scipy.special.stdtrit`, within 0.002 % from 1 degree on. A node that measures has no scipy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Uncertainty:
    """The 95 % interval of a row's energy per batch, and what makes it wide.

    Attributes:
        low_j: Lower end, in joules per batch.
        high_j: Upper end, in joules per batch.
        half_width: Half of the interval over `Result.energy_j`, as a fraction.
        spread: Standard error from the scatter between batches, as a fraction; `edges`, `tail` and `visits` are
            fractions too.
        degrees_of_freedom: Of the interval; None if the spread is negligible, so that it is the normal one.
        rescaling: Half-width that the factor of a rescaled row adds, as a fraction; 0 for others.
    """

    low_j: float
    high_j: float
    half_width: float
    spread: float
    edges: float
    tail: float
    degrees_of_freedom: float | None
    rescaling: float = 0.0
    visits: float = 0.0

    @property
    def standard_error(self) -> float:
        """Of all parts, without the rescaling, as a fraction."""
        return math.hypot(self.spread, self.edges, self.tail, self.visits)


def find_uncertainty(
    windows: Sequence[Window],
    loaded_idle: Window,
    like: Spread | None = None,
    rescaled: Rescaled | None = None,
    scatters: Iterable[VisitScatter | None] = (),
) -> Uncertainty | None:
    """The interval of a row's energy per batch; None if the spread is unknown: one batch in one window, no like cell.

    Args:
        windows: The windows of the row, at least one.
        loaded_idle: Its window over the idle, loaded GPU.
        like: The spread of like cells; None if there is none.
        rescaled: The row's mark, if its energy is scaled: the factor's interval is independent of all else.
        scatters: How the visits of like cells scatter.
    """
    visits = sum_visits(windows, loaded_idle)
    own_of = (spread_of(visits, windows), scatter_of(visits))
    return _uncertainty_of(windows, derive(windows, loaded_idle), own_of, like, rescaled, scatters)


def _uncertainty_of(
    windows: Sequence[Window],
    result: Result,
    own_of: tuple[Spread | None, VisitScatter | None],
    like: Spread | None,
    rescaled: Rescaled | None,
    scatters: Iterable[VisitScatter | None],
) -> Uncertainty | None:
    """The interval where the row's own spread and scatter are known."""
    spread, own = _moderate(own_of[0], like), own_of[1]
    if spread is None:
        return None
    total_j, busy_s = result.energy_j * result.batches, result.duration_s * result.batches
    standard = math.sqrt(spread.variance_s / busy_s)
    edges, bound = _edges_j(windows) / total_j, result.idle_bound_j / total_j
    tail = bound / math.sqrt(12)
    between, visit_degrees = variance_between([own, *scatters], spread.variance_s)
    visits = math.sqrt(between * share_of_one_visit(windows))
    error = math.hypot(standard, edges, tail, visits)
    parts = ((standard, spread.degrees_of_freedom), (visits, visit_degrees))
    shared = sum((part / error) ** 4 / degrees for part, degrees in parts if part)
    # Beyond a million degrees Student's distribution is the normal one to six digits.
    degrees = 1 / shared if shared * MANY_DEGREES > 1 else None
    half = student_t(degrees) * error * (STOPPING_FACTOR if len(windows) > 1 else 1.0)
    if own is not None and visit_degrees < FEWEST_VISIT_DEGREES:
        # So few visits agree by chance too often for the variance between visits to be believed.
        half = max(half, student_t(own.degrees_of_freedom) * own.standard_error)
    factor, rescaling = (1.0, 0.0) if rescaled is None else (rescaled.factor, rescaled.half_width)
    half, energy_j = math.hypot(half, rescaling), result.energy_j * factor
    return Uncertainty(
        low_j=energy_j * (1 - bound / 2 - half),
        high_j=energy_j * (1 - bound / 2 + half),
        half_width=half,
        spread=standard,
        edges=edges,
        tail=tail,
        degrees_of_freedom=degrees,
        rescaling=rescaling,
        visits=visits,
    )


def find_uncertainties(rows: Sequence[Measurement]) -> list[Uncertainty | None]:
    """As `each_uncertainty`, all at once."""
    return list(each_uncertainty(rows))


def each_uncertainty(rows: Sequence[Measurement]) -> Iterator[Uncertainty | None]:
    """The intervals of measured rows, each with its like among the others.

    Cells are alike that agree in all that must (`infergy.records.agreement.spread_key`) and whose mean power differs by
    no more than `LIKE_POWER`: what waits for its host varies more than what the GPU alone holds up. Several rows of one
    cell are visits, each with an interval of its own, which show how far visits differ. A failed row has None.

    Raises:
        MeterError: A counter stood still.
    """
    # Keys have many parts: what is looked up by them thousands of times is looked up by a number of each.
    numbers: dict[tuple[object, ...], int] = {}
    keys = [numbers.setdefault(spread_key(row), len(numbers)) for row in rows]
    peers = [peer_of(row) for row in rows]
    like = _alike(zip(keys, peers, strict=True))
    known = {id(row): (key, peer) for row, key, peer in zip(rows, keys, peers, strict=True)}
    others_of: list[tuple[int, Peer | None]] = []
    of_cell: dict[tuple[int, str], list[Peer]] = {}
    for visits in group_visits(rows):
        key, peer = known[id(visits[0])]
        # A cell of one visit is its own row.
        peer = peer if len(visits) == 1 else peer_of(*visits)
        others_of.append((key, peer))
        if peer is not None:
            of_cell.setdefault((key, visits[0].cell_id), []).append(peer)
    others = _alike(others_of)
    for row, key, peer in zip(rows, keys, peers, strict=True):
        if peer is None or row.loaded_idle is None:
            yield None
            continue
        # A row of several visits has the scatter of its own windows.
        own = of_cell.get((key, row.cell_id), []) if peer.scatter is not None else []
        scatters = others[key].scatters(peer.power_w, own) if key in others else []
        result, own_of = derive(row.windows, row.loaded_idle, row.lengths), (peer.spread, peer.scatter)
        spread = like[key].spread(peer.power_w, [peer])
        yield _uncertainty_of(row.windows, result, own_of, spread, row.rescaled, scatters)


def _alike(peers: Iterable[tuple[int, Peer | None]]) -> dict[int, Alike]:
    """Peers by their key."""
    groups: dict[int, list[Peer]] = {}
    for key, peer in peers:
        if peer is not None:
            groups.setdefault(key, []).append(peer)
    return {key: Alike(group) for key, group in groups.items()}


def is_certain(
    windows: Sequence[Window],
    loaded_idle: Window,
    like: Spread | None,
    target: float,
    scatters: Iterable[VisitScatter | None] = (),
    fewest: int = FEWEST_WINDOWS,
) -> bool:
    """Whether a cell needs no further window: its interval is within ± `target`, a fraction, and stands on enough.

    `fewest` is how many windows there must be at least without like cells.

    Raises:
        MeterError: A counter stood still.
    """
    is_known = like is not None and like.is_of_joules and like.degrees_of_freedom >= ENOUGH_DEGREES
    stands = len(windows) >= fewest or is_known
    found = find_uncertainty(windows, loaded_idle, like, None, scatters)
    return stands and found is not None and found.half_width <= target


def _moderate(own: Spread | None, like: Spread | None) -> Spread | None:
    if own is None and like is not None:
        # Nothing of its own says that this cell is as steady as the others.
        return replace(like, degrees_of_freedom=min(like.degrees_of_freedom, PRIOR_DEGREES))
    if own is None or like is None:
        return own or like
    if like.is_of_joules and not own.is_of_joules:
        return max(own, like, key=lambda spread: spread.variance_s)
    prior = min(like.degrees_of_freedom, PRIOR_DEGREES)
    degrees = own.degrees_of_freedom + prior
    variance_s = (own.variance_s * own.degrees_of_freedom + like.variance_s * prior) / degrees
    return Spread(variance_s=variance_s, degrees_of_freedom=degrees, is_of_joules=own.is_of_joules)


def _edges_j(windows: Sequence[Window]) -> float:
    """Standard error of the joules that late stamps misplace, over all windows and GPUs, each on its own."""
    variance = 0.0
    for window in windows:
        for gpu in energy_of(window).gpus:
            watts = gpu.energy_j / gpu.duration_s
            if gpu.tail_w is not None:
                tail_s = window.close[gpu.uuid].time_s - window.settled[gpu.uuid].time_s
                watts = gpu.tail_w * (1 + gpu.idle_s / tail_s)
            variance += 2 * (watts * window.edge_uncertainty_s) ** 2 / 12
    return math.sqrt(variance)


def student_t(degrees: float | None) -> float:
    """The 97.5 % quantile of Student's t for `degrees` from 1 on; None: of the normal distribution."""
    inverse, logarithm = 0.0 if degrees is None else 1 / max(1.0, degrees), 0.0
    for coefficient in reversed(LOG_T):
        logarithm = logarithm * inverse + coefficient
    return math.exp(logarithm)
