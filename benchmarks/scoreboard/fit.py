"""The constants of the step-cost model from rows of served models: the most probable, given priors.

    minimise  sum over rows  w rho(log predicted - log measured)  +  sum over constants  (log value / prior)^2 / sd^2

with Cauchy's rho, which limits the influence of a row that no constant explains, and w smaller for a model with many rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from infergy.cost.constants import BY_NAME, Fit
from scoreboard.rows import Rows
from scoreboard.steps import Column, Steps, steps_of

ROW_SD = 0.12
"""Standard deviation of a row's logarithm about a model with the right constants."""
USUAL_ROWS = 30.0
PROMPT_SD = {"lm-arena-chat": 0.25, "gpqa": 0.4, "sourcegraph-fim": 0.5}
ANY_PROMPT_SD = 0.7
"""Standard deviation of the logarithm of a task's prompt length about the guess; images and video are least known."""
EVALUATIONS = 40
ENOUGH = 1e-4
"""Relative change of the objective below which the fit ends."""
SHIFT = 1e-4
"""Change of a parameter for finite differences."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ServedFit:
    """The step-cost model of servers of the benchmark.

    Attributes:
        fit: The constants, of all GPUs and of those that rows were of.
        prompts: Length of a task's prompts over the guess; 1 for tasks not in it.
    """

    fit: Fit
    prompts: Mapping[str, float]

    def energy_j(self, rows: Rows) -> Column:
        """Energy per output token of each row, in J."""
        longer = np.array([self.prompts.get(str(task), 1.0) for task in rows.task])
        energy: Column = steps_of(rows).energy_j(self.fit.constants, longer)[0]
        return energy


@dataclass(frozen=True, slots=True, eq=False)
class _Training:
    """Rows and their energy, hashed by content."""

    rows: Rows
    energy_j: Column
    content: bytes

    def __hash__(self) -> int:
        return hash(self.content)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Training) and other.content == self.content


def fit_served(rows: Rows, energy_j: Column) -> ServedFit:
    """The most probable constants. Deterministic.

    A fit takes seconds and two estimators use the same one: the last ones are cached.
    """
    columns = [getattr(rows, name).tolist() for name in Rows.__dataclass_fields__ if name != "shapes"]
    text = repr((columns, rows.shapes, energy_j.tolist()))
    return _fit(_Training(rows, energy_j, hashlib.sha256(text.encode()).digest()))


class _Parameters:
    """The fit's parameters: logarithms of constants, of GPUs' differences from them, and of prompts over the guess."""

    def __init__(self, rows: Rows) -> None:
        self.steps: Steps = steps_of(rows)
        self.tasks, self.task = np.unique(rows.task.astype(str), return_inverse=True)
        gpus = sorted(set(map(str, rows.gpu)))
        differences = [(c, gpu) for gpu in gpus for c in BY_NAME.values() if c.gpu_sd]
        self.names = (*BY_NAME, *(f"{c.name}@{gpu}" for c, gpu in differences))
        self.index = {name: index for index, name in enumerate(self.names)}
        sd = [c.sd for c in BY_NAME.values()] + [c.gpu_sd for c, _ in differences]
        self.sd = np.array(sd + [PROMPT_SD.get(str(task), ANY_PROMPT_SD) for task in self.tasks])

    def logs(self, theta: Column) -> Column:
        """Logarithms of energy per output token, of shape (k, rows), for k vectors of parameters."""

        def constants(gpu: str) -> dict[str, Any]:
            values = {}
            for name, constant in BY_NAME.items():
                log = theta[:, self.index[name]]
                if constant.gpu_sd:
                    log = log + theta[:, self.index[f"{name}@{gpu}"]]
                values[name] = constant.value * np.exp(log)[:, None]
            return values

        longer = np.exp(theta[:, len(self.names) :])[:, self.task]
        logs: Column = np.log(self.steps.energy_j(constants, longer))
        return logs


@lru_cache(maxsize=32)
def _fit(training: _Training) -> ServedFit:
    from scipy.optimize import least_squares

    rows = training.rows
    parameters = _Parameters(rows)
    sd, count = parameters.sd, len(parameters.sd)
    _, model, rows_of = np.unique(rows.backbone.astype(str), return_inverse=True, return_counts=True)
    weight = np.sqrt(np.maximum(1.0, rows_of[model] / USUAL_ROWS) ** -0.25)
    measured = np.log(training.energy_j)

    def residuals(theta: Column) -> Column:
        """Of shape (k, rows + parameters)."""
        off = (parameters.logs(theta) - measured) / ROW_SD
        robust = np.sign(off) * np.sqrt(np.log1p(off**2 / 2) * 2)
        return np.hstack([0.5 * weight * robust, theta / sd])

    def slopes(theta: Column) -> Column:
        shifted = residuals(theta + np.vstack([np.zeros(count), SHIFT * np.eye(count)]))
        columns: Column = (shifted[1:] - shifted[0]).T / SHIFT
        return columns

    best = least_squares(
        lambda theta: residuals(theta[None, :])[0],
        np.zeros(count),
        jac=slopes,
        method="trf",
        ftol=ENOUGH,
        max_nfev=EVALUATIONS,
    )
    constants = len(parameters.names)
    covariance = np.linalg.inv(best.jac.T @ best.jac)[:constants, :constants]
    gpus, rows_of_gpu = np.unique(rows.gpu.astype(str), return_counts=True)
    return ServedFit(
        fit=Fit(
            engine="vllm",
            names=parameters.names,
            mean=best.x[:constants],
            covariance=covariance,
            energy_sd=ROW_SD,
            time_sd=ROW_SD,
            rows=dict(zip(gpus.tolist(), rows_of_gpu.tolist(), strict=True)),
        ),
        prompts=dict(zip(parameters.tasks.tolist(), np.exp(best.x[constants:]).tolist(), strict=True)),
    )
