"""Constants of the physical model from rows: the likeliest, given priors (`infergy.energy.physics.CONSTANTS`).

    minimise  Σ rows  w ρ(log predicted − log measured)  +  Σ constants  (log value / prior)² / spread²

with ρ Cauchy's, so that a row that no constant explains pulls none far, and w less for a network with many rows.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from infergy.energy.physics import CONSTANTS, Physics
from infergy.score.rows import Rows
from infergy.score.steps import Steps, steps_of

if TYPE_CHECKING:
    import numpy as np

    Column = np.ndarray[Any, np.dtype[np.float64]]

ROW_SPREAD = 0.12
"""Standard deviation of a row's logarithm about a model with the right constants."""

USUAL_ROWS = 30.0
PROMPT_SPREAD = {"lm-arena-chat": 0.25, "gpqa": 0.4, "sourcegraph-fim": 0.5}
ANY_PROMPT_SPREAD = 0.7
"""Standard deviation of the logarithm of a task's prompt length about the guess; images and video are least known."""

EVALUATIONS = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedPhysics:
    """The physical model of a server: constants, and how many times longer a task's prompts are than guessed.

    Attributes:
        physics: Constants for all GPUs, and for those that rows were of.
        prompts: By task; 1 for others.
    """

    physics: Physics
    prompts: dict[str, float]

    def energy_j(self, rows: Rows, steps: Steps | None = None) -> Column:
        """Joules an output token of each row."""
        import numpy as np

        steps = steps or steps_of(rows)
        factor = np.array([self.prompts.get(str(task), 1.0) for task in rows.task])
        return self.physics.passes(steps.with_prompts(factor), steps.chips).energy_j / steps.batch


@dataclass(frozen=True, slots=True, eq=False)
class _Learnt:
    """Rows and their joules, the same as others of equal content."""

    rows: Rows
    energy_j: Column
    content: bytes

    def __hash__(self) -> int:
        return hash(self.content)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Learnt) and other.content == self.content


def fit_physics(rows: Rows, energy_j: Column) -> ServedPhysics:
    """The constants that explain the rows best, none far from its prior without reason. Deterministic.

    A fit takes seconds, and two estimators of the scoreboard rest on the same one: the last ones are remembered.
    """
    columns = [getattr(rows, name).tolist() for name in Rows.__dataclass_fields__ if name != "shapes"]
    text = repr((columns, rows.shapes, energy_j.tolist()))
    return _fit(_Learnt(rows, energy_j, hashlib.sha256(text.encode()).digest()))


@lru_cache(maxsize=32)
def _fit(learnt: _Learnt) -> ServedPhysics:
    import numpy as np
    from scipy.optimize import least_squares

    rows, energy_j = learnt.rows, learnt.energy_j
    steps = steps_of(rows)
    tasks = sorted(set(map(str, rows.task)))
    gpus = sorted(set(map(str, rows.gpu)))
    own = [(gpu, one) for gpu in gpus for one in CONSTANTS if one.differs]
    spreads = [one.spread for one in CONSTANTS] + [one.differs for _, one in own]
    spread = np.array(spreads + [PROMPT_SPREAD.get(task, ANY_PROMPT_SPREAD) for task in tasks])

    def model(theta: Column) -> ServedPhysics:
        factors = np.exp(theta)
        common, differ = factors[: len(CONSTANTS)], factors[len(CONSTANTS) : len(CONSTANTS) + len(own)]
        by_gpu: dict[str, dict[str, float]] = {gpu: {} for gpu in gpus}
        for (gpu, one), factor in zip(own, differ, strict=True):
            by_gpu[gpu][one.name] = float(factor)
        values = {one.name: one.value * float(factor) for one, factor in zip(CONSTANTS, common, strict=True)}
        prompts = dict(zip(tasks, map(float, factors[-len(tasks) :]), strict=True))
        return ServedPhysics(physics=Physics(values=values, factors=by_gpu), prompts=prompts)

    _, network, count = np.unique(rows.backbone.astype(str), return_inverse=True, return_counts=True)
    weight = np.sqrt(np.maximum(1.0, count[network] / USUAL_ROWS) ** -0.25)
    wanted = np.log(energy_j)

    def residuals(theta: Column) -> Column:
        off = (np.log(model(theta).energy_j(rows, steps)) - wanted) / ROW_SPREAD
        robust = np.sign(off) * np.sqrt(np.log1p(off**2 / 2) * 2)
        return np.concatenate([0.5 * weight * robust, theta / spread])

    found = least_squares(residuals, np.zeros(len(spread)), method="trf", max_nfev=EVALUATIONS)
    return model(found.x)
