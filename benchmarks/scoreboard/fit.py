"""The constants of the step-cost model from rows of served models: the most probable, given our own rows.

    minimise  sum over rows  w rho(log predicted - log measured)  +  -log prior(constants, versions, prompts)

with Cauchy's rho, which limits the influence of a row that no constant explains, and w smaller for a model with many rows.
The prior of constants is the fit of our own rows, which were measured under another version of the engine: each constant
of the benchmark's rows differs from it by a factor, whose prior is wide where host and kernels changed most.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any

import numpy as np

from infergy.cost.constants import BY_NAME, Fit, prior_fit
from infergy.cost.fit import fit, fit_row
from infergy.cost.table import SHIPPED_TABLE, TableEntry, read_table
from scoreboard.rows import Rows, backbone_of, read_rows
from scoreboard.steps import INPUT_TOKENS, Column, Steps, steps_of

ROW_SD = 0.12
"""Standard deviation of a row's logarithm about a model with the right constants."""
USUAL_ROWS = 30.0
VERSION_SD = {"sort_s": 0.0, "parallel_share": 0.7, "expert_flops": 0.4, "expert_energy": 0.4}
HOST_VERSION_SD, ANY_VERSION_SD = 0.5, 0.1
"""Standard deviation of the logarithm by which a constant differs between versions of vLLM: of seconds, and of others."""
PROMPT_SD = {"lm-arena-chat": 0.25, "gpqa": 0.4, "sourcegraph-fim": 0.5}
ANY_PROMPT_SD = 0.7
"""Standard deviation of the logarithm of a task's prompt length about the guess; images and video are least known."""
EVALUATIONS = 40
ENOUGH = 1e-4
"""Relative change of the objective below which the fit ends."""
SHIFT = 1e-4
"""Change of a parameter for finite differences."""


def _version_sd(name: str) -> float:
    return VERSION_SD.get(name, HOST_VERSION_SD if name.endswith("_s") and name != "limiter_s" else ANY_VERSION_SD)


VERSIONS = {name: _version_sd(name) for name in BY_NAME if _version_sd(name)}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ServedFit:
    """The step-cost model of servers of the benchmark.

    Attributes:
        fit: The constants, of all GPUs and of those that rows were of.
        versions: Factors on them under the benchmark's version of vLLM.
        prompts: Length of a task's prompts over the guess; 1 for tasks not in it.
        published: What the rows say of the constants, ours left out: the prior of a fit of our rows. None: no rows.
    """

    fit: Fit
    versions: Mapping[str, float] = field(default_factory=dict)
    prompts: Mapping[str, float] = field(default_factory=dict)
    published: Fit | None = None

    def energy_j(self, rows: Rows) -> Column:
        """Energy per output token of each row, in J."""
        longer = np.array([self.prompts.get(str(task), 1.0) for task in rows.task])
        energy: Column = steps_of(rows).energy_j(self._constants, longer)[0]
        return energy

    def _constants(self, gpu: str) -> dict[str, float]:
        return {name: value * self.versions.get(name, 1.0) for name, value in self.fit.constants(gpu).items()}


@dataclass(frozen=True, slots=True, eq=False)
class _Training:
    """Rows, their energy, and the fit of ours that stands before them; hashed by content."""

    rows: Rows
    energy_j: Column
    own: Fit
    content: bytes

    def __hash__(self) -> int:
        return hash(self.content)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Training) and other.content == self.content


def fit_served(rows: Rows, energy_j: Column, own: Fit | None = None) -> ServedFit:
    """The most probable constants. Deterministic.

    A fit takes seconds and two estimators use the same one: the last ones are cached.

    Args:
        rows: Rows of the benchmark.
        energy_j: Their energy per output token.
        own: The fit of our rows; None takes those of networks and kinds of GPU that `rows` do not leave out.
    """
    own = own or _own_fit(frozenset(map(str, rows.backbone)), frozenset(map(str, rows.gpu)))
    columns = [getattr(rows, name).tolist() for name in Rows.__dataclass_fields__ if name != "shapes"]
    text = repr((columns, rows.shapes, energy_j.tolist(), own.mean.tolist()))
    return _fit(_Training(rows, energy_j, own, hashlib.sha256(text.encode()).digest()))


@cache
def own_entries(engine: str) -> tuple[TableEntry, ...]:
    """Entries of the shipped table."""
    return tuple(entry for entry in read_table(SHIPPED_TABLE, entries=True).entries if entry.served_by.engine == engine)


@cache
def _benchmark() -> tuple[frozenset[str], frozenset[str]]:
    """Networks and kinds of GPU of all its rows."""
    rows, _ = read_rows()
    return frozenset(map(str, rows.backbone)), frozenset(map(str, rows.gpu))


def _own_fit(backbones: frozenset[str], gpus: frozenset[str]) -> Fit:
    """The fit of our rows, without those of networks and GPUs that the benchmark has but `backbones` and `gpus` lack."""
    unseen, unseen_gpus = (known - given for known, given in zip(_benchmark(), (backbones, gpus), strict=True))
    return _fit_of(
        tuple(
            entry
            for entry in own_entries("vllm")
            if backbone_of(entry.served_by.model) not in unseen and entry.served_by.gpu not in unseen_gpus
        )
    )


@cache
def _fit_of(entries: tuple[TableEntry, ...]) -> Fit:
    return own_fit(entries)


def own_fit(entries: Iterable[TableEntry]) -> Fit:
    """The fit of some of our rows, from the datasheet's priors."""
    rows = [fit_row(entry) for entry in entries]
    return fit("vllm", rows, prior_fit("vllm"))[0] if rows else prior_fit("vllm")


class _Parameters:
    """The fit's parameters: logarithms of constants, of GPUs' and the version's differences, and of prompts."""

    def __init__(self, rows: Rows, own: Fit) -> None:
        self.steps: Steps = steps_of(rows)
        self.tasks = tuple(INPUT_TOKENS)
        self.task = np.array([self.tasks.index(str(task)) if str(task) in self.tasks else 0 for task in rows.task])
        gpus = sorted({*map(str, rows.gpu), *own.rows})
        differences = [(constant, gpu) for gpu in gpus for constant in BY_NAME.values() if constant.gpu_sd]
        self.names = (*BY_NAME, *(f"{constant.name}@{gpu}" for constant, gpu in differences))
        self.index = {name: index for index, name in enumerate(self.names)}
        self.version = {name: len(self.names) + index for index, name in enumerate(VERSIONS)}
        sd = np.array([constant.sd for constant in BY_NAME.values()] + [constant.gpu_sd for constant, _ in differences])
        self.datasheet = np.diag(sd**-2.0)
        covariance, mean = np.diag(sd**2), np.zeros(len(sd))
        shared = [name for name in own.names if name in self.index]
        mine, theirs = [self.index[name] for name in shared], [own.names.index(name) for name in shared]
        covariance[np.ix_(mine, mine)] = own.covariance[np.ix_(theirs, theirs)]
        mean[mine] = own.mean[theirs]
        self.own = np.linalg.inv(covariance)
        rest = [*VERSIONS.values(), *(PROMPT_SD.get(task, ANY_PROMPT_SD) for task in self.tasks)]
        self.mean = np.concatenate([mean, np.zeros(len(rest))])
        self.precision = np.zeros((len(self.mean), len(self.mean)))
        count = len(self.names)
        self.precision[:count, :count] = self.own
        self.precision[count:, count:] = np.diag(np.array(rest) ** -2.0)

    def logs(self, theta: Column) -> Column:
        """Logarithms of energy per output token, of shape (k, rows), for k vectors of parameters."""

        def constants(gpu: str) -> dict[str, Any]:
            values = {}
            for name, constant in BY_NAME.items():
                places = [self.index[name], self.index.get(f"{name}@{gpu}"), self.version.get(name)]
                log = sum(theta[:, place] for place in places if place is not None)
                values[name] = constant.value * np.exp(log)[:, None]
            return values

        longer = np.exp(theta[:, len(self.names) + len(VERSIONS) :])[:, self.task]
        logs: Column = np.log(self.steps.energy_j(constants, longer))
        return logs


@lru_cache(maxsize=32)
def _fit(training: _Training) -> ServedFit:
    from scipy.optimize import least_squares

    rows = training.rows
    parameters = _Parameters(rows, training.own)
    count, size = len(parameters.names), len(parameters.mean)
    _, model, rows_of = np.unique(rows.backbone.astype(str), return_inverse=True, return_counts=True)
    weight = np.sqrt(np.maximum(1.0, rows_of[model] / USUAL_ROWS) ** -0.25)
    measured, root = np.log(training.energy_j), np.linalg.cholesky(parameters.precision)

    def residuals(theta: Column) -> Column:
        """Of shape (k, rows + parameters)."""
        off = (parameters.logs(theta) - measured) / ROW_SD
        robust = np.sign(off) * np.sqrt(np.log1p(off**2 / 2) * 2)
        return np.hstack([0.5 * weight * robust, (theta - parameters.mean) @ root])

    def slopes(theta: Column) -> Column:
        shifted = residuals(theta + np.vstack([np.zeros(size), SHIFT * np.eye(size)]))
        columns: Column = (shifted[1:] - shifted[0]).T / SHIFT
        return columns

    best = least_squares(
        lambda theta: residuals(theta[None, :])[0],
        parameters.mean.copy(),
        jac=slopes,
        method="trf",
        ftol=ENOUGH,
        max_nfev=EVALUATIONS,
    )
    mode, of_rows = best.x[:count], best.jac[: len(rows)]
    gpus, rows_of_gpu = np.unique(rows.gpu.astype(str), return_counts=True)
    known = Fit(
        engine="vllm",
        names=parameters.names,
        mean=mode,
        covariance=np.linalg.inv(best.jac.T @ best.jac)[:count, :count],
        energy_sd=ROW_SD,
        time_sd=ROW_SD,
        rows=dict(zip(gpus.tolist(), rows_of_gpu.tolist(), strict=True)),
    )
    return ServedFit(
        fit=known,
        versions=dict(zip(VERSIONS, np.exp(best.x[count : count + len(VERSIONS)]).tolist(), strict=True)),
        prompts=dict(zip(parameters.tasks, np.exp(best.x[count + len(VERSIONS) :]).tolist(), strict=True)),
        published=_published(known, parameters, of_rows.T @ of_rows),
    )


def _published(known: Fit, parameters: _Parameters, curvature: Column) -> Fit:
    """What rows alone say of the constants: the normal distribution that, with ours, has the same mode."""
    count = len(parameters.names)
    rest = curvature[count:, count:] + parameters.precision[count:, count:]
    crossed = curvature[:count, count:]
    said = curvature[:count, :count] - crossed @ np.linalg.solve(rest, crossed.T)
    covariance = np.linalg.inv(parameters.datasheet + said)
    pull = parameters.datasheet @ known.mean - parameters.own @ (known.mean - parameters.mean[:count])
    names = known.names
    return Fit(
        **{name: getattr(known, name) for name in ("engine", "energy_sd", "time_sd")},
        names=names,
        mean=known.mean - covariance @ pull,
        covariance=covariance,
    )


def published_json() -> dict[str, Any]:
    """What all rows of the benchmark say of the constants, as `infergy.data` ships it."""
    rows, energy_j = read_rows()
    known = fit_served(rows, energy_j).published
    assert known is not None
    return {
        "source": "rows of the ML.ENERGY benchmark v3 (Apache-2.0); made by: python benchmarks/scoreboard --publish",
        "engine": known.engine,
        "names": list(known.names),
        "mean": [float(f"{value:.6g}") for value in known.mean],
        "covariance": [[float(f"{value:.6g}") for value in row] for row in known.covariance],
        "energy_sd": known.energy_sd,
        "time_sd": known.time_sd,
    }
