"""Entries of steps, as a run logs them: their columns, and few that stand for many."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from infergy.cost.fit import Column
from infergy.cost.step import StepSums

MOST = 160


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
    columns = [steps.count, steps.step_s, *sums_of(steps)]
    table: Column = np.column_stack(columns)
    if len(table) <= most:
        return table
    decodes, context, tokens, pairs, prefills, _, padded = table.T[2:]
    kinds = np.column_stack([prefills > 0, padded > 0, _octave(decodes), _octave(tokens)])
    order = np.lexsort((pairs, context, *kinds.T[::-1]))
    table, kinds = table[order], kinds[order]
    begins = np.flatnonzero((np.diff(kinds, axis=0) != 0).any(axis=1)) + 1
    groups = np.split(table, begins)
    parts = [part for group in groups for part in np.array_split(group, max(1, len(group) * most // len(table)))]
    joined: Column = np.vstack(
        [np.r_[part[:, 0].sum(), np.average(part[:, 1:], axis=0, weights=part[:, 0])] for part in parts]
    )
    return joined


def _octave(values: Column) -> Column:
    octaves: Column = np.floor(2 * np.log2(np.maximum(values, 0.5)))
    return octaves
