"""Published estimators of energy, from their published forms, fitted in the same folds as ours.

Where a form needs the length of prompts, which the rows lack, `scoreboard.steps.INPUT_TOKENS` is assumed. Free constants
that are not published for these GPUs are fitted; published constants are used as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from infergy.catalog.gpus import get_gpu
from infergy.catalog.shape import DTYPE_BYTES
from infergy.cost.constants import BY_NAME
from infergy.cost.step import attention_cost, expert_cost, matmul_cost
from infergy.errors import MissingError
from scoreboard.protocol import Estimator, Fitted, Prediction
from scoreboard.rows import Rows
from scoreboard.steps import ANY_INPUT_TOKENS, INPUT_TOKENS, steps_of

Column = np.ndarray[Any, np.dtype[np.float64]]

J_PER_WH = 3600.0
BILLION = 1e9

ECOLOGITS_ALPHA, ECOLOGITS_BETA, ECOLOGITS_GAMMA = 1.1665273170451914e-06, -0.011205921025579175, 4.052928146734005e-05
"""EcoLogits, ecologits/impacts/llm.py (MPL-2.0): kWh of one GPU a token for P billion active parameters is
1e-3 (α exp(β B) P + γ)."""

VIDUR_EXPONENT, VIDUR_SATURATION = 0.7, 0.45
VIDUR_IDLE_W = {"h100-sxm": 60.0, "b200": 140.0}
"""Vidur-Energy: P = idle + (max − idle) min(1, (MFU / 0.45)^0.7), 60 W idle for an H100; a B200's is assumed."""

ANY_IDLE_SHARE = 0.1

IDEAL = {name: 1.0 if name.endswith(("_efficiency", "_bytes", "_flops")) else 0.0 for name in BY_NAME}
"""Constants of steps at the full memory bandwidth and the dense peak."""


@dataclass(frozen=True, slots=True)
class _Formula:
    """An estimator that reads the row alone."""

    of: Callable[[Rows], Column]

    def predict(self, rows: Rows) -> Prediction:
        return Prediction(energy_j=self.of(rows))


@dataclass(frozen=True, slots=True)
class Published:
    """An estimator without free constants."""

    name: str
    title: str
    source: str
    of: Callable[[Rows], Column]

    def fit(self, rows: Rows, energy_j: Column) -> Fitted:
        """Nothing."""
        return _Formula(self.of)


def flops_at_tdp(rows: Rows) -> Column:
    """2 × active parameters FLOPs a token, at the dense peak of bfloat16 and at TDP (the study's ideal)."""
    joules = np.array([gpu.tdp_w / gpu.dense_flops("bfloat16") for gpu in map(get_gpu, rows.gpu)])
    return np.asarray(2 * rows.active_parameters * joules)


def _roofline_s(rows: Rows) -> Column:
    """Seconds of a step: bytes over bandwidth or FLOPs over peak, whichever take longer."""
    steps = steps_of(rows)
    rates, sums = steps.rates(lambda _: IDEAL), steps.average()
    memory, flops = (
        sum(parts)
        for parts in zip(
            matmul_cost(rates.matmul_s, sums),
            expert_cost(rates.experts_s, sums),
            attention_cost(rates.attention_s, sums),
            strict=True,
        )
    )
    seconds: Column = np.maximum(memory, flops)[0]
    return seconds


def roofline_at_tdp(rows: Rows) -> Column:
    """Seconds of the roofline, at TDP."""
    tdp_w = np.array([get_gpu(name).tdp_w for name in rows.gpu])
    return np.asarray(_roofline_s(rows) * tdp_w * rows.gpus / rows.batch)


def ecologits(rows: Rows) -> Column:
    """Energy of the row's GPUs per token, at its own batch and number of GPUs, which EcoLogits itself would assume."""
    active = rows.active_parameters / BILLION
    one_gpu_wh = ECOLOGITS_ALPHA * np.exp(ECOLOGITS_BETA * rows.batch) * active + ECOLOGITS_GAMMA
    return np.asarray(rows.gpus * one_gpu_wh * J_PER_WH)


def vidur_power_w(mfu: Column, idle_w: Any, full_w: Any) -> Column:
    """Power of a GPU at a share of its peak FLOP/s (Vidur-Energy)."""
    return np.asarray(idle_w + (full_w - idle_w) * np.minimum(1.0, (mfu / VIDUR_SATURATION) ** VIDUR_EXPONENT))


@dataclass(frozen=True, slots=True)
class MfuPower:
    """The power curve of Vidur-Energy on the time of a roofline, multiplied by one fitted factor."""

    name: str = "mfu-power"
    title: str = "power by FLOP utilisation (Vidur-Energy)"
    source: str = "Vidur-Energy: idle and full power, MFU^0.7, saturation at 0.45"

    def fit(self, rows: Rows, energy_j: Column) -> Fitted:
        """The ratio of step time to the roofline, by the median row."""
        factors = np.exp(np.linspace(0, np.log(20), 200))
        errors = [float(np.median(np.abs(np.log(self._energy_j(rows, factor) / energy_j)))) for factor in factors]
        best = float(factors[int(np.argmin(errors))])
        return _Formula(lambda others: self._energy_j(others, best))

    def _energy_j(self, rows: Rows, stretch: float) -> Column:
        gpus = [get_gpu(name) for name in rows.gpu]
        full_w = np.array([gpu.tdp_w for gpu in gpus])
        idle_w = np.array([VIDUR_IDLE_W.get(gpu.name, ANY_IDLE_SHARE * gpu.tdp_w) for gpu in gpus])
        peak = np.array([gpu.dense_flops("bfloat16") for gpu in gpus])
        seconds = _roofline_s(rows) * stretch
        mfu = 2 * rows.active_parameters * rows.batch / (seconds * peak * rows.gpus)
        return np.asarray(vidur_power_w(mfu, idle_w, full_w) * seconds * rows.gpus / rows.batch)


@dataclass(frozen=True, slots=True)
class Linear:
    """A form that is linear in its constants, fitted by least squares of log energy, none below 0; per GPU.

    Published for one model at one batch, its constants are here J per billion active parameters, each the sum of a part
    divided by the batch and one that is not: the least that lets it predict other models and batches.

    Attributes:
        terms: Rows to columns, one per constant.
    """

    name: str
    title: str
    source: str
    terms: Callable[[Rows], Column]

    def fit(self, rows: Rows, energy_j: Column) -> Fitted:
        """Its constants, for each kind of GPU, and for all of them together for a GPU without rows."""
        from scipy.optimize import least_squares

        def columns(others: Rows) -> Column:
            terms = self.terms(others) * (others.active_parameters / BILLION)[:, None]
            return np.concatenate([terms / others.batch[:, None], terms], axis=1)

        found = {}
        for gpu in [None, *sorted(set(rows.gpu))]:
            at = np.arange(len(rows)) if gpu is None else np.flatnonzero(rows.gpu == gpu)
            x, wanted = columns(rows.take(at)), np.log(energy_j[at])
            start = np.log(np.median(energy_j[at][:, None] / np.maximum(x, 1e-12), axis=0) / x.shape[1])
            found[gpu] = np.exp(least_squares(lambda c, x=x, w=wanted: np.log(x @ np.exp(c)) - w, start).x)

        def predict(others: Rows) -> Column:
            constants = np.stack([found.get(gpu, found[None]) for gpu in others.gpu])
            return np.asarray((columns(others) * constants).sum(axis=1))

        return _Formula(predict)


def _inputs(rows: Rows) -> Column:
    return np.array([INPUT_TOKENS.get(str(task), ANY_INPUT_TOKENS) for task in rows.task])


def wilkins_terms(rows: Rows) -> Column:
    """(a₀ n_in + a₁ n_out + a₂ n_in n_out) / n_out; where its authors find a₀ below 0, the fit here finds 0."""
    inputs, outputs = _inputs(rows), rows.output_tokens
    return np.stack([inputs / outputs, np.ones_like(outputs), inputs], axis=1)


def request_terms(rows: Rows) -> Column:
    """(a n_in² + b n_in + k) / n_out + c + d n_in + e n_out / 2."""
    inputs, outputs = _inputs(rows), rows.output_tokens
    columns = [inputs**2 / outputs, inputs / outputs, 1 / outputs, np.ones_like(outputs), inputs, outputs / 2]
    return np.stack(columns, axis=1)


@dataclass(frozen=True, slots=True)
class PowerLaw:
    """log energy linear in the logarithms of active parameters, bytes of weights, batch and GPUs."""

    name: str = "power-law"
    title: str = "power law of parameters, batch and GPUs"
    source: str = "five constants by least squares"

    def fit(self, rows: Rows, energy_j: Column) -> Fitted:
        """Its five constants."""
        constants = np.linalg.lstsq(self._terms(rows), np.log(energy_j), rcond=None)[0]
        return _Formula(lambda others: np.asarray(np.exp(self._terms(others) @ constants)))

    def _terms(self, rows: Rows) -> Column:
        wide = np.array([DTYPE_BYTES.get(str(precision), 2.0) for precision in rows.precision])
        columns = (rows.active_parameters, rows.total_parameters * wide, rows.batch, rows.gpus)
        return np.stack([np.ones(len(rows)), *(np.log(column) for column in columns)], axis=1)


@dataclass(frozen=True, slots=True)
class Interpolation:
    """A straight line in log energy over log batch between the nearest measured batches of a series; nothing elsewhere."""

    name: str = "interpolation"
    title: str = "log-log interpolation over batch"
    source: str = "as infergy estimates between measured batches"

    def fit(self, rows: Rows, energy_j: Column) -> Fitted:
        """The points."""
        points: dict[str, list[tuple[float, float]]] = {}
        for key, batch, joules in zip(rows.series(), rows.batch, energy_j, strict=True):
            points.setdefault(key, []).append((float(np.log(batch)), float(np.log(joules))))

        def predict(others: Rows) -> Column:
            found = []
            for key, batch in zip(others.series(), others.batch, strict=True):
                known = sorted(points.get(key, []))
                x = [at for at, _ in known]
                inside = bool(x) and x[0] <= np.log(batch) <= x[-1]
                found.append(float(np.exp(np.interp(np.log(batch), x, [y for _, y in known]))) if inside else np.nan)
            return np.array(found)

        return _Formula(predict)


@dataclass(frozen=True, slots=True)
class Boosting:
    """Gradient-boosted trees on every column: no physics."""

    name: str = "boosting"
    title: str = "gradient-boosted trees, black box"
    source: str = "scikit-learn's HistGradientBoostingRegressor, 300 trees, on log J"

    def fit(self, rows: Rows, energy_j: Column) -> Fitted:
        """Its trees."""
        try:
            from sklearn.ensemble import HistGradientBoostingRegressor
            from threadpoolctl import threadpool_limits
        except ImportError as error:
            raise MissingError("gradient boosting needs scikit-learn: pip install scikit-learn") from error

        names = sorted({*rows.task, *rows.gpu, *rows.precision, *rows.architecture})

        def columns(others: Rows) -> Column:
            words = (others.task, others.gpu, others.precision, others.architecture)
            known = [[float(value == name) for value in column] for column in words for name in names]
            numbers = (
                np.log(others.batch),
                np.log(others.output_tokens),
                np.log(others.total_parameters),
                np.log(others.active_parameters),
                *(getattr(others, name) for name in ("gpus", "tensor_parallel", "expert_parallel", "data_parallel")),
                np.log(others.max_num_seqs),
            )
            return np.stack([*numbers, *np.array(known)], axis=1)

        trees = HistGradientBoostingRegressor(max_iter=300, learning_rate=0.05, random_state=0)
        # So few rows gain nothing from threads, which stall each other where the machine is busy.
        with threadpool_limits(limits=1):
            trees.fit(columns(rows), np.log(energy_j))

        def predict(others: Rows) -> Column:
            with threadpool_limits(limits=1):
                return np.asarray(np.exp(trees.predict(columns(others))))

        return _Formula(predict)


RIVALS: tuple[Estimator, ...] = (
    Published("flops-tdp", "FLOPs at the peak and TDP", "arXiv 2504.17674, section 2", flops_at_tdp),
    Published(
        "roofline-tdp", "roofline at TDP", "bytes or FLOPs, whichever take longer, at full power", roofline_at_tdp
    ),
    Published("ecologits", "EcoLogits, frozen", "ecologits/impacts/llm.py", ecologits),
    MfuPower(),
    Linear("wilkins", "bilinear in lengths", "Wilkins et al., arXiv 2407.04014", wilkins_terms),
    Linear(
        "request", "request-level form", "linear in a request's FLOPs (as SweetSpot, arXiv 2602.05695)", request_terms
    ),
    PowerLaw(),
    Boosting(),
    Interpolation(),
)
