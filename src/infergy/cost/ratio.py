"""How uncertain the ratio of two runs' energies is: what is not common to both."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from infergy.cost.fit import Column
from infergy.cost.model import StepCost
from infergy.cost.step import Steps


class CostedRun(NamedTuple):
    """A run as its uncertainty needs it.

    Attributes:
        cost: The server's step costs.
        steps: The entries of the run.
        idle_j: Joules of the run while nothing was served.
        slopes: Derivatives of the logarithm of its energy by those of the constants.
    """

    cost: StepCost
    steps: Steps
    idle_j: float
    slopes: Column

    @classmethod
    def of(cls, cost: StepCost, steps: Steps, idle_j: float, open_share: float) -> CostedRun:
        """A run and its derivatives (`StepCost.log_slopes`)."""
        return cls(cost, steps, idle_j, cost.log_slopes(steps, idle_j, open_share)[:, 0])


def log_ratio_sd(first: CostedRun, second: CostedRun) -> float:
    """Standard deviation of the logarithm of the ratio of two runs' energies on one kind of GPU.

    Which GPU of the kind serves is common to both. So are the constants, of one engine's fit: only the difference of
    the derivatives counts. The model's own error is common in steps of the same kinds, and independent in the share of
    the energy that is left. Fits of two engines are independent, but for a kind of GPU that neither was measured on.
    """
    one, other = first.cost, second.cost
    is_same_fit = one.fit is other.fit
    differences = (
        [(one, first.slopes - second.slopes)] if is_same_fit else [(one, first.slopes), (other, second.slopes)]
    )
    variance = sum(float(slope @ cost.fit.logs(cost.server.gpu.name)[2] @ slope) for cost, slope in differences)
    is_same_server = is_same_fit and one.server.model == other.server.model and one.server.work == other.server.work
    common = _common_share(first, second) if is_same_server else 0.0
    variance += (1.0 - common) ** 2 * (one.errors[0] ** 2 + other.errors[0] ** 2)
    variance += abs(one.unseen_gpu_variance - other.unseen_gpu_variance)
    if is_same_server:
        return math.sqrt(variance + abs(one.unseen_server_variance - other.unseen_server_variance))
    return math.sqrt(variance + one.unseen_server_variance + other.unseen_server_variance)


def _common_share(first: CostedRun, second: CostedRun) -> float:
    """Share of the energy that both spend in steps of the same kinds: with prompts or not, of like sizes."""
    kinds = np.vstack([_kinds(first.steps), _kinds(second.steps)])
    _, kind = np.unique(kinds, axis=0, return_inverse=True)
    kind = kind.reshape(-1)
    size = len(first.steps.count)
    shares = [
        np.bincount(kind[part], weights=run.cost.step_energy_j(run.steps) * run.steps.count, minlength=kind.max() + 1)
        for run, part in ((first, slice(0, size)), (second, slice(size, None)))
    ]
    # What is idle is known in both.
    idle = min(run.idle_j / (run.idle_j + share.sum()) for run, share in zip((first, second), shares, strict=True))
    of_all = [share / (run.idle_j + share.sum()) for run, share in zip((first, second), shares, strict=True)]
    return min(1.0, float(np.minimum(*of_all).sum() + idle))


def _kinds(steps: Steps) -> Column:
    """With prompts or not, with a CUDA graph or not, sequences and prompt tokens to the half doubling."""
    sizes = [np.floor(2 * np.log2(np.maximum(column, 0.5))) for column in (steps.decodes, steps.prefill_tokens)]
    return np.column_stack([steps.prefills > 0, steps.padded > 0, *sizes])
