"""Entries of steps, as a run logs them: their columns, and few that stand for many."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from infergy.cost.fit import Column
from infergy.cost.step import StepSums

MOST = 160
OCTAVES = 256
"""More than half doublings of any number of tokens."""


class StepColumns(Protocol):
    """Entries of steps as columns of one length: how many steps each stands for, seconds of one, and its `StepSums`."""

    @property
    def count(self) -> Column: ...  # noqa: D102
    @property
    def step_s(self) -> Column: ...  # noqa: D102
    @property
    def decodes(self) -> Column: ...  # noqa: D102
    @property
    def context(self) -> Column: ...  # noqa: D102
    @property
    def prefill_tokens(self) -> Column: ...  # noqa: D102
    @property
    def prefill_pairs(self) -> Column: ...  # noqa: D102
    @property
    def prefills(self) -> Column: ...  # noqa: D102
    @property
    def sampled(self) -> Column: ...  # noqa: D102
    @property
    def padded(self) -> Column: ...  # noqa: D102


def sums_of(steps: StepColumns) -> StepSums:
    """The sums of each entry."""
    return StepSums(*(getattr(steps, name) for name in StepSums._fields))


def compress(steps: StepColumns, most: int = MOST) -> Column:
    """Entries as rows, their columns those of `StepColumns`: at most some more than `most`.

    Many are sorted by kind (prompts or not, CUDA graph or not, sequences and tokens to the half doubling) and joined at
    their means, so that their sums are kept.
    """
    table: Column = np.vstack([steps.count, steps.step_s, *sums_of(steps)])
    if table.shape[1] <= most:
        return table.T
    decodes, context, tokens, pairs, prefills, _, padded = table[2:]
    kinds = (((prefills > 0) * 2 + (padded > 0)) * OCTAVES + _octave(decodes)) * OCTAVES + _octave(tokens)
    order = np.lexsort((pairs, context, kinds))
    table, kinds = table[:, order], kinds[order]
    groups = np.split(np.arange(len(kinds)), np.flatnonzero(np.diff(kinds)) + 1)
    parts = [part for group in groups for part in np.array_split(group, max(1, len(group) * most // len(kinds)))]
    table[1:] *= table[0]
    joined = np.add.reduceat(table, [part[0] for part in parts], axis=1)
    joined[1:] /= joined[0]
    return joined.T


def _octave(values: Column) -> Column:
    octaves: Column = np.floor(2 * np.log2(np.maximum(values, 0.5)))
    return octaves
