"""What the prompts of a trace have in common, as runs of KV cache blocks."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Path = tuple[tuple[int, int], ...]


class PrefixBlocks(Protocol):
    """Hashed blocks of the prompts of a trace: those of request i are ids[offsets[i] : offsets[i + 1]].

    Two blocks with the same id hold the same text after the same text; each stands for `block_tokens` tokens.
    """

    @property
    def ids(self) -> Ints: ...  # noqa: D102
    @property
    def offsets(self) -> Ints: ...  # noqa: D102
    @property
    def block_tokens(self) -> int: ...  # noqa: D102


def shared_paths(prefixes: PrefixBlocks, input_tokens: Ints, block_size: int) -> dict[int, Path]:
    """The shared beginning of each request that has one: runs in order, each with its end in blocks of the engine.

    A run is a stretch of hashed blocks that occur in the same requests, so that requests part only between runs.
    """
    ids = np.asarray(prefixes.ids, dtype=np.int64)
    offsets = np.asarray(prefixes.offsets, dtype=np.int64)
    lengths = np.diff(offsets)
    if not ids.size:
        return {}
    index = np.arange(ids.size, dtype=np.int64) - np.repeat(offsets[:-1], lengths)
    nodes = _nodes(ids, index)
    counts = np.bincount(nodes)[nodes]
    shared = counts > 1
    last = np.ones(ids.size, dtype=bool)
    last[:-1] = (index[1:] == 0) | (counts[1:] != counts[:-1])
    owners = np.repeat(np.arange(lengths.size, dtype=np.int64), lengths)
    full = np.asarray(input_tokens, dtype=np.int64) // block_size
    ends = np.minimum((index + 1) * prefixes.block_tokens // block_size, full[owners])
    # A run bears the name of its first node; at a run's last block that is the node where the run began.
    starts = np.zeros(ids.size, dtype=np.int64)
    begins = np.flatnonzero(np.r_[True, last[:-1]])
    starts[begins] = begins
    first_node = nodes[np.maximum.accumulate(starts)]
    chosen = np.flatnonzero(shared & last)
    paths: dict[int, list[tuple[int, int]]] = {}
    rows = zip(owners[chosen].tolist(), first_node[chosen].tolist(), ends[chosen].tolist(), strict=True)
    for owner, run, end in rows:
        paths.setdefault(owner, []).append((run, end))
    return {owner: tuple(path) for owner, path in paths.items()}


def _nodes(ids: Ints, index: Ints) -> Ints:
    """Number the blocks so that equal numbers mean equal text after equal text."""
    unique, nodes = np.unique(ids, return_inverse=True)
    nodes = nodes.astype(np.int64)
    before = np.where(index == 0, -1, np.r_[np.int64(-1), nodes[:-1]])
    known = np.full(unique.size, -2, dtype=np.int64)
    known[nodes] = before
    if np.array_equal(known[nodes], before):
        return nodes
    # The ids name text alone, not what stands before it: number them by what precedes, one by one.
    numbers: dict[tuple[int, int], int] = {}
    parent = -1
    for k, (place, node) in enumerate(zip(index.tolist(), nodes.tolist(), strict=True)):
        parent = numbers.setdefault((parent if place else -1, node), len(numbers))
        nodes[k] = parent
    return nodes
