"""The constants of the step-cost model, fitted to whole batches and runs: the likeliest, given priors.

    log E, log t of a row  =  model(constants) + offset of the GPU that measured it + error
    constants = prior x exp(common + difference of the kind of GPU + difference of the host)

A row's model is the sum over the steps that its engine's scheduler makes. Common parts, differences and offsets have
normal priors; errors are robust (Huber). Gauss-Newton finds the maximum, and the curvature there the covariance.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from infergy.catalog import get_gpu
from infergy.catalog.models import shipped_model
from infergy.cost.constants import (
    ENERGY_ERROR,
    TIME_ERROR,
    UNIT_ENERGY_SD,
    UNIT_TIME_SD,
    Column,
    Fit,
    constants_of,
    published_fit,
)
from infergy.cost.fit_rows import Entry, FitRow, entries_of, run_rows
from infergy.cost.rates import rates_of
from infergy.cost.step import StepSums
from infergy.cost.table import MeasuredServer, ServedBy, Table, TableEntry, box_of

CENTRE_SD = 0.002
"""Of the mean of the differences of GPUs of a kind."""
HUBER = 1.5
"""Standard deviations past which a row's pull no longer grows."""
LIKE_ROWS = 6.0
"""Rows of its own that the whole fit counts as, in the errors of one server."""
ROUNDS, STEP, ENOUGH, DAMPING = 40, 0.01, 0.02, 1e-2


OUTLIER = math.log(1.5)
"""What a fit leaves of the logarithm of a row's energy where the row is wrong, not the model: of shipped rows it leaves
a few percent."""


class _Problem:
    """Rows of one engine, as residuals of a vector of parameters."""

    def __init__(self, engine: str, rows: Sequence[FitRow], prior: Fit | None) -> None:
        self.engine, self.rows, self.constants = engine, rows, constants_of(engine)
        kinds = sorted({row.gpu.name for row in rows} | _kinds_of(prior))
        hosts = sorted({row.unit for row in rows})
        self.is_of_one_host = len(hosts) == 1
        sds = {name: c.sd for name, c in self.constants.items()}
        sds |= {f"{name}@{kind}": c.gpu_sd for kind in kinds for name, c in self.constants.items() if c.gpu_sd}
        if not self.is_of_one_host:
            sds |= {f"{name}#{host}": c.host_sd for host in hosts for name, c in self.constants.items() if c.host_sd}
        self.names = tuple(sds)
        has_hosts = any("#" in name for name in sds)
        self.index_of = {name: index for index, name in enumerate(sds)}
        names, unit = np.unique([row.unit for row in rows], return_inverse=True)
        units, count = names.tolist(), len(names)
        offset_sds = [UNIT_ENERGY_SD] * count + [UNIT_TIME_SD] * count
        self.prior_mean = np.zeros(len(sds) + len(offset_sds))
        self.precision = np.diag(1.0 / np.array([*sds.values(), *offset_sds]) ** 2)
        self._centre(units, len(sds))
        if prior is not None:
            self._narrow(prior)
        groups: dict[tuple[Any, ...], list[int]] = {}
        for index, row in enumerate(rows):
            host = row.unit if has_hosts else ""
            groups.setdefault((row.work, row.work.compiled, row.gpu.name, row.server, host), []).append(index)
        self.groups = list(groups.values())
        self.entries = [entries_of([rows[index] for index in members]) for members in self.groups]
        self.concerned: dict[int, tuple[str, ...]] = {}
        energy_j, seconds, sd = np.array([(row.energy_j, row.seconds or np.nan, row.energy_sd) for row in rows]).T
        is_timed = np.isfinite(seconds)
        self.measured = np.log(np.concatenate([energy_j, np.where(is_timed, seconds, 1.0)]))
        time_sd = np.where(is_timed, np.hypot(sd, TIME_ERROR), np.inf)
        self.weight = 1.0 / np.concatenate([np.hypot(sd, ENERGY_ERROR), time_sd])
        self.offset_of, self.offset_count = np.concatenate([unit, count + unit]), 2 * count

    def _centre(self, units: Sequence[str], first: int) -> None:
        """Let the GPUs of a kind differ about its mean: what they have in common is the constants' to explain."""
        kinds = {row.unit: row.gpu.name for row in self.rows}
        for kind in set(kinds.values()):
            is_member = np.array([kinds[unit] == kind for unit in units], dtype=float)
            members = is_member / CENTRE_SD / is_member.sum()
            for start in (first, first + len(units)):
                own = slice(start, start + len(units))
                self.precision[own, own] += np.outer(members, members)

    def _narrow(self, prior: Fit) -> None:
        """Take what earlier rows say in place of the priors of the parameters that both have."""
        shared = [name for name in prior.names if name in self.index_of]
        own, theirs = [self.index_of[name] for name in shared], [prior.names.index(name) for name in shared]
        self.prior_mean[own] = prior.mean[theirs]
        self.precision[np.ix_(own, own)] = np.linalg.inv(prior.covariance[np.ix_(theirs, theirs)])

    def model(self, theta: Column, *, with_slopes: bool = False) -> tuple[Column, Column]:
        """Logarithms of energy of each row, then of seconds; and their derivatives, of shape (2 rows, names)."""
        logs, slopes = np.zeros(2 * len(self.rows)), np.zeros((2 * len(self.rows), len(self.names)))
        for number, members in enumerate(self.groups):
            rows = [self.rows[index] for index in members]
            levels, both = _levels(rows[0]), np.r_[members, len(self.rows) + np.array(members)]
            names = self._concerned(number) if with_slopes else ()
            shifts = np.vstack([np.zeros(len(names)), STEP * np.eye(len(names))])
            values: dict[str, Any] = self._values(theta, levels)
            for index, name in enumerate(names):
                values[name] = values[name] * np.exp(shifts[:, index])[:, None]
            at = self._logs(rows, values, self.entries[number])
            logs[both] = at[0]
            for name, slope in zip(names, (at[1:] - at[0]) / STEP, strict=True):
                for level in levels:
                    if name + level in self.index_of:
                        slopes[both, self.index_of[name + level]] = slope
        return logs, slopes

    def _concerned(self, number: int) -> tuple[str, ...]:
        """The constants on which rows of a group depend: fp8's do not concern bfloat16."""
        known = self.concerned.get(number)
        if known is None:
            rows, entries = [self.rows[index] for index in self.groups[number]], self.entries[number]
            values: dict[str, Any] = {name: constant.value for name, constant in self.constants.items()}
            at = self._logs(rows, values, entries)
            known = tuple(
                name
                for name, value in values.items()
                if not np.array_equal(self._logs(rows, {**values, name: value * 1.1}, entries), at)
            )
            self.concerned[number] = known
        return known

    @staticmethod
    def _logs(rows: Sequence[FitRow], values: Mapping[str, Any], entries: Sequence[Entry]) -> Column:
        """Logarithms of joules, then of seconds, of rows of one server; shape (variants, 2 rows)."""
        first = rows[0]
        idle_w = np.array([row.idle_w for row in rows])
        rates = rates_of(first.work, first.gpu, values, idle_w=idle_w, server=first.server)
        seconds, energy = run_rows(rows, rates, values["call_s"], entries)
        logs: Column = np.log(np.atleast_2d(np.concatenate([energy, seconds], axis=-1)))
        return logs

    def left(self, theta: Column) -> Column:
        """What the model leaves of the measured logarithms, offsets of GPUs taken out."""
        count = len(self.names)
        left: Column = self.measured - self.model(theta[:count])[0] - theta[count:][self.offset_of]
        return left

    def loss(self, theta: Column) -> float:
        """Half of the negative log posterior, but for a constant; Huber's for the rows."""
        size = np.abs(self.left(theta) * self.weight)
        rows = np.where(size < HUBER, size**2, HUBER * (2 * size - HUBER))
        away = theta - self.prior_mean
        return float(rows.sum() + away @ self.precision @ away)

    def linear(self, theta: Column) -> tuple[Column, Column]:
        """The gradient of the log posterior and its curvature, with the model made linear at `theta`."""
        count = len(self.names)
        logs, of_constants = self.model(theta[:count], with_slopes=True)
        slopes = of_constants * self.weight[:, None]
        off = (self.measured - logs - theta[count:][self.offset_of]) * self.weight
        robust = np.minimum(1.0, HUBER / np.maximum(np.abs(off), 1e-9))
        pulled = slopes * robust[:, None]
        gradient: Column = np.concatenate([pulled.T @ off, self._by_offset(robust * self.weight * off)])
        # Each row has one GPU's offset: its slopes are a single 1, which is not multiplied out.
        curvature = self.precision.copy()
        curvature[:count, :count] += pulled.T @ slopes
        for index, column in enumerate((pulled * self.weight[:, None]).T):
            crossed = self._by_offset(column)
            curvature[index, count:] += crossed
            curvature[count:, index] += crossed
        offsets = np.arange(count, len(theta))
        curvature[offsets, offsets] += self._by_offset(robust * self.weight**2)
        return gradient - self.precision @ (theta - self.prior_mean), curvature

    def _by_offset(self, values: Column) -> Column:
        """Sums of values of the rows' logarithms by the offset that each has."""
        return np.asarray(np.bincount(self.offset_of, values, self.offset_count), dtype=float)

    def _values(self, theta: Column, levels: Sequence[str]) -> dict[str, Any]:
        logs = {
            name: sum(theta[self.index_of[name + level]] for level in levels if name + level in self.index_of)
            for name in self.constants
        }
        return {name: constant.value * float(np.exp(logs[name])) for name, constant in self.constants.items()}


def _levels(row: FitRow) -> tuple[str, str, str]:
    """What the names of a row's parameters end in: common ones, those of its kind of GPU, and of its host."""
    return "", f"@{row.gpu.name}", f"#{row.unit}"


def _kinds_of(prior: Fit | None) -> set[str]:
    return set() if prior is None else {name.partition("@")[2] for name in prior.names if "@" in name}


def fit(engine: str, rows: Sequence[FitRow], prior: Fit | None = None) -> tuple[Fit, Column]:
    """The constants that explain the rows best, none far from its prior without reason; deterministic.

    Args:
        engine: Name of the engine that served all rows.
        rows: At least one.
        prior: What earlier rows said, or others', in place of the priors of the datasheet.

    Returns:
        The fit, and what it leaves of the logarithms of each row's joules and seconds, its GPU's offset taken out; NaN
        where arrivals set the time; shape (rows, 2).
    """
    problem = _Problem(engine, rows, prior)
    theta, damping = problem.prior_mean.copy(), DAMPING
    loss = problem.loss(theta)
    for _ in range(ROUNDS):
        gradient, curvature = problem.linear(theta)
        while damping < 1e9:
            step = np.linalg.solve(curvature + damping * np.diag(np.diag(curvature)), gradient)
            tried = problem.loss(theta + step)
            if tried < loss:
                break
            damping *= 8
        else:
            break
        gain, theta, loss, damping = loss - tried, theta + step, tried, damping / 8
        if gain < ENOUGH:
            break
    _, curvature = problem.linear(theta)
    left = np.where(problem.weight > 0, problem.left(theta), np.nan).reshape(2, len(rows)).T
    lasting = [index for index, name in enumerate(problem.names) if "#" not in name]  # hosts are not asked for again
    fitted = Fit(
        engine=engine,
        names=tuple(problem.names[index] for index in lasting),
        mean=theta[lasting],
        covariance=np.asarray(np.linalg.inv(curvature)[np.ix_(lasting, lasting)], dtype=float),
        energy_sd=sd_of(left[:, 0], ENERGY_ERROR),
        time_sd=sd_of(left[:, 1], TIME_ERROR),
        rows=dict(Counter(row.gpu.name for row in rows) + Counter({} if prior is None else prior.rows)),
        is_of_one_host=problem.is_of_one_host,
    )
    return fitted, left


def sd_of(left: Column, least: float) -> float:
    """Standard deviation of errors, at least `least`, from the size that 90 % do not exceed; NaN is left out."""
    known = np.abs(left[np.isfinite(left)])
    return max(least, float(np.quantile(known, 0.9)) / 1.645) if len(known) else least


def fit_row(entry: TableEntry) -> FitRow:
    """An entry of a table as a row of a fit."""
    by = entry.served_by
    return FitRow(
        work=by.work(shipped_model(by.model)),
        gpu=get_gpu(by.gpu),
        server=by.is_api,
        steps=entry.steps,
        calls=entry.calls,
        idle_s=entry.idle_s,
        idle_w=entry.idle_w,
        energy_j=entry.energy_j,
        energy_sd=entry.energy_sd,
        seconds=entry.duration_s,
        unit=entry.origin.unit,
    )


def make_table(
    entries: Sequence[TableEntry], environments: Mapping[str, Mapping[str, Any]], prior: Table | None = None
) -> Table:
    """Fit the constants of each engine, and note what was measured; an entry that is given twice counts once.

    Args:
        entries: Some may be among those of `prior`.
        environments: Of the entries, by id.
        prior: A table whose fits stand in place of the datasheet's priors, and whose servers count as measured too.
    """
    prior = prior or Table(fits={}, measured=(), environments={}, sources=())
    own = {entry.origin.identity: entry for entry in entries if entry.origin.identity not in prior.identities}
    fits, left = _fit_engines(own, prior)
    missed = {identity: math.exp(errors[0]) for identity, errors in left.items() if abs(errors[0]) > OUTLIER}
    return Table(
        fits=fits,
        measured=_measured_servers(own, left, fits, prior),
        environments={**prior.environments, **environments},
        sources=tuple(dict.fromkeys(entry.origin.source for entry in own.values())),
        identities=prior.identities.union(own),
        entries=tuple(own.values()),
        repeated=len(entries) - len(own),
        outliers=tuple((own[identity].origin, missed[identity]) for identity in own if identity in missed),
    )


def _fit_engines(entries: Mapping[str, TableEntry], prior: Table) -> tuple[dict[str, Fit], dict[str, Column]]:
    """The fits of all engines, and what they leave of each entry, by its identity."""
    fits, left = dict(prior.fits), dict[str, Column]()
    for engine in sorted({entry.served_by.engine for entry in entries.values()}):
        own = {identity: entry for identity, entry in entries.items() if entry.served_by.engine == engine}
        known = prior.fits.get(engine) or published_fit(engine)
        fits[engine], errors = fit(engine, [fit_row(entry) for entry in own.values()], known)
        left.update(zip(own, errors, strict=True))
    return fits, left


def _measured_servers(
    entries: Mapping[str, TableEntry], left: Mapping[str, Column], fits: Mapping[str, Fit], prior: Table
) -> tuple[MeasuredServer, ...]:
    # A batch interface and an API server run the same steps.
    measured = {replace(known.served_by, is_api=False): known for known in prior.measured}
    groups: dict[ServedBy, list[str]] = {}
    for identity, entry in entries.items():
        groups.setdefault(replace(entry.served_by, is_api=False), []).append(identity)
    for by, members in groups.items():
        own = _measured(by, [entries[k] for k in members], np.array([left[k] for k in members]), fits[by.engine])
        measured[by] = _joined(measured[by], own) if by in measured else own
    return tuple(measured.values())


def _joined(a: MeasuredServer, b: MeasuredServer) -> MeasuredServer:
    """One server measured by the rows of both: the range of all, and means by rows."""
    rows, share = a.rows + b.rows, a.rows / (a.rows + b.rows)
    return MeasuredServer(
        served_by=a.served_by,
        rows=rows,
        low=tuple(map(min, a.low, b.low)),
        high=tuple(map(max, a.high, b.high)),
        idle_w=share * a.idle_w + (1 - share) * b.idle_w,
        energy_sd=math.sqrt(share * a.energy_sd**2 + (1 - share) * b.energy_sd**2),
        time_sd=math.sqrt(share * a.time_sd**2 + (1 - share) * b.time_sd**2),
    )


def _measured(by: ServedBy, entries: Sequence[TableEntry], left: Column, fitted: Fit) -> MeasuredServer:
    steps = np.vstack([entry.steps for entry in entries])
    boxes = box_of(StepSums(*steps[:, 2:].T))

    def sd(column: int, least: float, of_all: float) -> float:
        """Few rows say little of their own: those of the whole fit count for `LIKE_ROWS` of them."""
        count = int(np.isfinite(left[:, column]).sum())
        own = sd_of(left[:, column], least)
        return float(np.sqrt((count * own**2 + LIKE_ROWS * of_all**2) / (count + LIKE_ROWS)))

    return MeasuredServer(
        served_by=by,
        rows=len(entries),
        low=tuple(boxes.min(axis=0).tolist()),
        high=tuple(boxes.max(axis=0).tolist()),
        idle_w=float(np.median([entry.idle_w / by.gpus for entry in entries])),
        energy_sd=sd(0, ENERGY_ERROR, fitted.energy_sd),
        time_sd=sd(1, TIME_ERROR, fitted.time_sd),
    )
