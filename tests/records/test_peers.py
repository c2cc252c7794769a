"""What like cells show together: the sums over ranges are those of each one's peers."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infergy.records.visits import LIKE_POWER, Alike, Peer, RangeSums, Spread, VisitScatter, variance_between

VALUES = st.lists(st.one_of(st.just(0.0), st.floats(1e-12, 1e12)), max_size=40)


@given(values=VALUES, data=st.data())
def test_a_sum_over_a_range_keeps_its_digits_whatever_stands_before_it(
    values: list[float], data: st.DataObject
) -> None:
    first = data.draw(st.integers(0, len(values)))
    end = data.draw(st.integers(first, len(values)))
    exact = math.fsum(values[first:end])
    assert RangeSums(values).over([(first, end)]) == pytest.approx(exact, rel=1e-9, abs=0.0 if exact == 0 else 1e-15)


SPREADS = st.builds(
    Spread,
    variance_s=st.floats(1e-9, 1.0),
    degrees_of_freedom=st.floats(1.0, 100.0),
    is_of_joules=st.booleans(),
)
SCATTERS = st.builds(
    VisitScatter,
    squares_s=st.floats(1e-9, 1.0),
    degrees_of_freedom=st.integers(1, 5),
    weight_s=st.floats(0.1, 100.0),
    seconds=st.floats(1.0, 100.0),
)
PEERS = st.lists(
    st.builds(Peer, power_w=st.floats(100.0, 700.0), spread=st.none() | SPREADS, scatter=st.none() | SCATTERS),
    min_size=1,
    max_size=20,
)


def spread_at(power_w: float, peers: list[Peer]) -> Spread | None:
    """The common spread of those of about a power, each weighted by its degrees of freedom."""
    spreads = [peer.spread for peer in peers if abs(peer.power_w / power_w - 1) <= LIKE_POWER]
    known = [spread for spread in spreads if spread is not None]
    known = [spread for spread in known if spread.is_of_joules] or known
    if not known:
        return None
    degrees = sum(spread.degrees_of_freedom for spread in known)
    squares = sum(spread.variance_s * spread.degrees_of_freedom for spread in known)
    return Spread(
        variance_s=squares / degrees, degrees_of_freedom=degrees, is_of_joules=any(one.is_of_joules for one in known)
    )


@given(peers=PEERS, left_out=st.integers(0, 3))
def test_peers_show_together_what_each_of_the_others_shows(peers: list[Peer], left_out: int) -> None:
    alike = Alike(peers)
    for peer in peers:
        without = [peer, *(other for other in peers[:left_out] if other is not peer)]
        others = [other for other in peers if all(other is not each for each in without)]
        ours, theirs = alike.spread(peer.power_w, without), spread_at(peer.power_w, others)
        assert (ours is None) == (theirs is None)
        if ours is not None and theirs is not None:
            assert ours.is_of_joules == theirs.is_of_joules
            assert ours.variance_s == pytest.approx(theirs.variance_s, rel=1e-9)
            assert ours.degrees_of_freedom == pytest.approx(theirs.degrees_of_freedom)
        between = [
            variance_between(scatters, 0.001)
            for scatters in (
                alike.scatters(peer.power_w, without),
                [one.scatter for one in others if abs(one.power_w / peer.power_w - 1) <= LIKE_POWER],
            )
        ]
        assert between[0] == pytest.approx(between[1], rel=1e-9)
