"""The KV cache blocks of one engine: vLLM's block pool, kept as extents instead of single blocks.

What a block holds is named by a *run* and its index in the sequence: a run is a stretch of a prompt that the same
requests share, or the own tokens of one request. The free queue is in eviction order: blocks that hold nothing
reusable first, then cached ones, least recently freed first, of one request from its last block to its first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from infergy.workload.requests import PrefixBlocks

Ints = NDArray[np.int64]
Path = tuple[tuple[int, int], ...]
"""What a request shares with others: runs in order, each with its end in blocks."""


class Extent:
    """Blocks that hold the same stretch of a run, [first, end) by index in the sequence.

    Attributes:
        run: What they hold; None if nothing that can be found again.
        users: Requests that use them; 0 stands in the free queue.
        rest: The part that was split off behind these blocks.
    """

    __slots__ = ("after", "before", "end", "first", "rest", "run", "users")

    def __init__(self, run: int | None, first: int, end: int, users: int) -> None:
        self.run = run
        self.first = first
        self.end = end
        self.users = users
        self.rest: Extent | None = None
        self.before: Extent = self
        self.after: Extent = self


class Hit(NamedTuple):
    """Cached blocks [first, end) of a request, inside one extent."""

    extent: Extent
    first: int
    end: int


class BlockPool:
    """Blocks that requests take, free and find again.

    Attributes:
        free: Blocks that can be taken.
        blank: Of these, the first in the queue, which hold nothing that can be found again.
    """

    __slots__ = ("_cached", "_queue", "blank", "free")

    def __init__(self, blocks: int) -> None:
        self.free = self.blank = blocks
        self._cached: dict[int, list[Extent]] = {}
        self._queue = Extent(None, 0, 0, 0)  # the ring's sentinel: `after` is evicted first

    def take(self, count: int) -> None:
        """Take `count` of the free blocks, evicting what the first in the queue hold."""
        self.free -= count
        if count <= self.blank:
            self.blank -= count
            return
        count -= self.blank
        self.blank = 0
        while count > 0:
            extent = self._queue.after
            size = extent.end - extent.first
            if size > count:
                extent.end -= count
                return
            count -= size
            self._unlink(extent)
            self._forget(extent)

    def find(self, path: Iterable[tuple[int, int]], limit: int) -> list[Hit]:
        """The longest cached beginning of a sequence, in blocks up to `limit`; `path` is (run, its end) in order."""
        hits: list[Hit] = []
        position = 0
        for run, run_end in path:
            extents = self._cached.get(run)
            if extents is None:
                break
            run_end = min(run_end, limit)
            while position < run_end:
                hit = _first_copy(extents, position, run_end)
                if hit is None:
                    return hits
                hits.append(hit)
                position = hit.end
            if position >= limit:
                break
        return hits

    def use(self, hits: Sequence[Hit]) -> list[Hit]:
        """Give cached blocks to one more request, out of the free queue; returns them as extents of their own."""
        used = []
        for extent, first, end in hits:
            while extent.end <= first:  # split by an earlier hit
                assert extent.rest is not None
                extent = extent.rest
            if extent.first < first:
                extent = self._split(extent, first)
            if extent.end > end:
                self._split(extent, end)
            if extent.users == 0:
                self._unlink(extent)
                self.free -= end - first
            extent.users += 1
            used.append(Hit(extent, first, end))
        return used

    def commit(self, held: list[Hit], run: int, first: int, end: int) -> None:
        """Make the taken blocks [first, end) of a request known under a run; `held` is the request's and grows."""
        extents = self._cached.setdefault(run, [])
        if held and len(extents) == 1:
            # Only a single copy may grow: of several, the one that was known first is found first, block by block.
            last = held[-1].extent
            if last is extents[0] and last.end == first and last.users == 1:
                last.end = end
                held[-1] = Hit(last, held[-1].first, end)
                return
        extent = Extent(run, first, end, 1)
        extents.append(extent)
        held.append(Hit(extent, first, end))

    def release(self, held: Sequence[Hit]) -> None:
        """End a request's use of known blocks; the last in the sequence are evicted first."""
        for extent, _, end in reversed(held):
            parts = [extent]
            while parts[-1].end < end:
                rest = parts[-1].rest
                assert rest is not None
                parts.append(rest)
            for part in reversed(parts):
                part.users -= 1
                if part.users == 0:
                    self.free += part.end - part.first
                    self._link_last(part)

    def discard(self, cached: int, blank: int) -> None:
        """Free blocks whose content is not reused: `cached` go to the end of the queue, `blank` to its head."""
        self.free += cached + blank
        self.blank += blank
        last = self._queue.before
        if last is self._queue:
            self.blank += cached
        elif last.run is None:
            last.end += cached
        elif cached:
            self._link_last(Extent(None, 0, cached, 0))

    def forget_run(self, run: int) -> None:
        """Forget a run that no request will look for again."""
        for extent in self._cached.pop(run, ()):
            extent.run = None

    def _split(self, extent: Extent, at: int) -> Extent:
        rest = Extent(extent.run, at, extent.end, extent.users)
        extent.end = at
        rest.rest, extent.rest = extent.rest, rest
        if extent.run is not None:
            extents = self._cached[extent.run]
            extents.insert(extents.index(extent) + 1, rest)
        if extent.users == 0:  # in the queue: what lies behind is evicted first
            rest.before, rest.after = extent.before, extent
            extent.before.after = rest
            extent.before = rest
        return rest

    def _link_last(self, extent: Extent) -> None:
        anchor = self._queue
        extent.before, extent.after = anchor.before, anchor
        anchor.before.after = extent
        anchor.before = extent

    @staticmethod
    def _unlink(extent: Extent) -> None:
        extent.before.after = extent.after
        extent.after.before = extent.before

    def _forget(self, extent: Extent) -> None:
        if extent.run is None:
            return
        extents = self._cached[extent.run]
        if len(extents) == 1:
            del self._cached[extent.run]
        else:
            extents.remove(extent)


def _first_copy(extents: list[Extent], position: int, end: int) -> Hit | None:
    """The copy of the block at `position` that was known first, as far as it stays the first."""
    for extent in extents:
        if extent.first <= position < extent.end:
            return Hit(extent, position, min(end, extent.end))
        if position < extent.first < end:
            end = extent.first
    return None


def shared_paths(prefixes: PrefixBlocks, input_tokens: Ints, block_size: int) -> dict[int, Path]:
    """The shared beginning of each request that has one: runs in order, each with its end in blocks of the engine."""
    owners, runs, ends = _shared_runs(prefixes)
    full = np.asarray(input_tokens, dtype=np.int64) // block_size
    ends = np.minimum(ends * prefixes.block_tokens // block_size, full[owners])
    paths: dict[int, list[tuple[int, int]]] = {}
    for owner, run, end in zip(owners.tolist(), runs.tolist(), ends.tolist(), strict=True):
        paths.setdefault(owner, []).append((run, end))
    return {owner: tuple(path) for owner, path in paths.items()}


def shared_prefixes(prefixes: PrefixBlocks) -> tuple[Path, ...]:
    """The shared beginning of each request: runs in order, numbered from 0 on, each with its hashed blocks."""
    owners, runs, ends = _shared_runs(prefixes)
    begins = np.r_[0, ends[:-1]] if ends.size else ends
    begins[np.flatnonzero(np.diff(owners)) + 1] = 0
    numbers: dict[int, int] = {}
    paths: list[list[tuple[int, int]]] = [[] for _ in range(len(prefixes))]
    for owner, run, blocks in zip(owners.tolist(), runs.tolist(), (ends - begins).tolist(), strict=True):
        paths[owner].append((numbers.setdefault(run, len(numbers)), blocks))
    return tuple(map(tuple, paths))


def blocks_of_prefixes(prefixes: Sequence[Path], block_tokens: int) -> PrefixBlocks:
    """Blocks of which `shared_prefixes` gives `prefixes`."""
    pairs = [pair for path in prefixes for pair in path]
    runs, blocks = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    offsets = np.cumsum([0, *(sum(count for _, count in path) for path in prefixes)])
    widest = int(blocks.max(initial=0))
    within = np.arange(offsets[-1]) - np.repeat(np.cumsum(blocks) - blocks, blocks)
    return PrefixBlocks(ids=np.repeat(runs * widest, blocks) + within, offsets=offsets, block_tokens=block_tokens)


def blocks_of_prompts(prompts: Iterable[tuple[int, ...]], block_tokens: int = 16) -> PrefixBlocks:
    """The full blocks of prompts as a prefix cache knows them, by their token ids and all before them."""
    numbers: dict[tuple[int, tuple[int, ...]], int] = {}
    ids: list[int] = []
    offsets = [0]
    for prompt in prompts:
        block = -1
        for begin in range(0, len(prompt) - block_tokens + 1, block_tokens):
            block = numbers.setdefault((block, prompt[begin : begin + block_tokens]), len(numbers))
            ids.append(block)
        offsets.append(len(ids))
    return PrefixBlocks(ids=np.array(ids, dtype=np.int64), offsets=np.array(offsets), block_tokens=block_tokens)


def _shared_runs(prefixes: PrefixBlocks) -> tuple[Ints, Ints, Ints]:
    """Owner, name and end, in hashed blocks, of each shared run, request by request and in order.

    A run is a stretch of hashed blocks that occur in the same requests, so that requests part only between runs.
    """
    ids = np.asarray(prefixes.ids, dtype=np.int64)
    offsets = np.asarray(prefixes.offsets, dtype=np.int64)
    lengths = np.diff(offsets)
    if not ids.size:
        return ids, ids, ids
    index = np.arange(ids.size, dtype=np.int64) - np.repeat(offsets[:-1], lengths)
    nodes = _nodes(ids, index)
    counts = np.bincount(nodes)[nodes]
    shared = counts > 1
    last = np.ones(ids.size, dtype=bool)
    last[:-1] = (index[1:] == 0) | (counts[1:] != counts[:-1])
    owners = np.repeat(np.arange(lengths.size, dtype=np.int64), lengths)
    # A run bears the name of its first node; at a run's last block that is the node where the run began.
    starts = np.zeros(ids.size, dtype=np.int64)
    begins = np.flatnonzero(np.r_[True, last[:-1]])
    starts[begins] = begins
    first_node = nodes[np.maximum.accumulate(starts)]
    chosen = np.flatnonzero(shared & last)
    return owners[chosen], first_node[chosen], index[chosen] + 1


def _nodes(ids: Ints, index: Ints) -> Ints:
    """Number the blocks so that equal numbers mean equal text after equal text."""
    unique, nodes = np.unique(ids, return_inverse=True)
    nodes = nodes.astype(np.int64)
    before = np.where(index == 0, -1, np.r_[np.int64(-1), nodes[:-1]])
    known = np.full(unique.size, -2, dtype=np.int64)
    known[nodes] = before
    if np.array_equal(known[nodes], before):
        return nodes
    # The ids name text alone, not what precedes it: number them by what precedes, one by one.
    numbers: dict[tuple[int, int], int] = {}
    parent = -1
    for k, (position, node) in enumerate(zip(index.tolist(), nodes.tolist(), strict=True)):
        parent = numbers.setdefault((parent if position else -1, node), len(numbers))
        nodes[k] = parent
    return nodes
