"""Which cells to measure next: those that narrow the interval of a trace's energy most for each second of GPU time.

The energy of a run is uncertain by the constants of the step-cost model, which have a covariance. A measured cell, a
batch of equal requests, observes its own energy and seconds: near the fit both are linear in the constants' logarithms,
so what a cell would leave of the covariance is known before it is measured (Kalman's update). Cells are taken one after
the other, each the one that takes most variance off the logarithm of the run's energy per second, given those before it
(greedy; A. Krause, A. Singh, C. Guestrin, JMLR 9, 2008, study how near that comes to the best set).

What no cell takes off stays in the interval, as `estimate` has it: the model's own error, and how single GPUs of a kind
differ. What it adds for a server or a kind of GPU without rows is gone with the first cell of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np

from infergy.cost.constants import Column
from infergy.cost.table import Table
from infergy.errors import UsageError
from infergy.estimates.build import LEAST_SD
from infergy.estimates.estimate import (
    Z90,
    ServerEstimate,
    TraceFacts,
    estimate_server,
    facts_of,
    sample_of,
    serve_sample,
)
from infergy.estimates.servers import OpenServer, ServerSpec, loaded_setup, open_server
from infergy.records import DEFAULT_DTYPE
from infergy.serving.run import Runs, open_share, steps_of
from infergy.serving.simulate import requests_of_lengths
from infergy.workload.requests import Sample

NEXT_SCHEMA = "infergy.next/2"
"""History: 1 bins of a trace; 2 batches of equal requests, chosen for the run that `estimate` reports."""

BATCHES = (1, 8, 32, 128, 256)
PERCENTILES = (25, 75, 99)
"""Of the trace's lengths, rounded up to powers of two: lengths of cells."""
LOAD_S = {"vllm": 100.0, "transformers": 20.0}
"""Seconds until an engine with an 8B model is loaded, as seen on an H200."""
WINDOW_S, BATCHES_OF_CELL = 15.0, 3
"""Seconds of measuring a cell, at least, and batches of one."""
LEAST_GAIN = 0.02
"""Share of the variance that a cell must take off."""
TARGET_REACHED, BUDGET_SPENT, NOTHING_HELPS = "target_reached", "budget_spent", "nothing_helps"


@dataclass(frozen=True, slots=True, kw_only=True)
class CellChoice:
    """A batch of equal requests that could be measured under a server's engine."""

    input_tokens: int
    output_tokens: int
    batch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NextCell:
    """A cell to measure.

    Attributes:
        server: Index of its server in `NextCells.servers`; `engine` the label of its engine.
        batch_s: Estimated seconds of a batch.
        cost_s: Seconds of measuring it, those of loading its engine in it if it is the engine's first.
        half_width: Half the width of the 90 % interval of its server's energy once it and all before it are measured,
            relative.
    """

    server: int
    engine: str
    input_tokens: int
    output_tokens: int
    batch: int
    batch_s: float
    cost_s: float
    half_width: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOutlook:
    """What is known of a server's energy for the trace.

    Attributes:
        estimate: What the run draws: the same as `infergy.estimate` reports.
        measured: Rows of this model, precision and GPUs that are measured already.
        half_width: Half the width of the 90 % interval now, relative; `half_width_after` with the chosen cells;
            `half_width_least` what no cell can narrow.
    """

    estimate: ServerEstimate
    measured: int
    half_width: float
    half_width_after: float
    half_width_least: float

    @property
    def energy_j(self) -> float:
        """Of the run."""
        return self.estimate.run.energy_j


@dataclass(frozen=True, slots=True, kw_only=True)
class NextCells:
    """What to measure next.

    Attributes:
        target: Half-width of an interval that is enough, relative.
        cells: The most useful first.
        cost_s: Seconds of measuring all of them.
        stopped: Why there are no more: ``target_reached``, ``budget_spent`` or ``nothing_helps``.
    """

    trace: TraceFacts
    budget_s: float
    target: float
    servers: tuple[ServerOutlook, ...]
    cells: tuple[NextCell, ...]
    cost_s: float
    stopped: str
    schema: str = NEXT_SCHEMA


class _Question:
    """The energy of a trace's run on one server, and what of its uncertainty no cell can narrow (`least`)."""

    def __init__(self, sample: Sample, server: OpenServer, runs: Runs) -> None:
        cost = server.cost
        self.server = server
        self.estimate = estimate_server(sample, server, offline=False, runs=runs, advise=False)
        self.slope = cost.log_slopes(steps_of(runs), self.estimate.run.energy.idle_j, open_share(runs))[:, 0]
        self.least = cost.errors[0] ** 2 + cost.fit.unit_energy_sd**2 + sample.relative_se**2
        self.unseen = cost.unseen_server_variance  # 0 once a cell of the server is measured
        self.is_loaded = False


@dataclass(frozen=True, slots=True)
class _Option:
    """A cell that could be measured: `slopes` of its energy and seconds, of shape (constants, 2)."""

    question: int
    choice: CellChoice
    batch_s: float
    slopes: Column


class _Knowledge:
    """Constants of one engine on one kind of GPU, and the offsets of the GPU that will measure, as cells are added."""

    def __init__(self, server: OpenServer, questions: Sequence[_Question]) -> None:
        fit = server.cost.fit
        _, _, constants = fit.logs(server.gpu.name)
        size = len(constants)
        self.questions = [question for question in questions if question.server.setup.engine == server.setup.engine]
        self.covariance = np.diag([0.0] * size + [fit.unit_energy_sd**2, fit.unit_time_sd**2])
        self.covariance[:size, :size] = constants
        self.noise = np.diag([error**2 + LEAST_SD**2 for error in server.cost.errors])
        self.unseen_gpu = server.cost.unseen_gpu_variance

    def variance(self, question: _Question) -> float:
        """Of the logarithm of a question's energy."""
        size = len(question.slope)
        constants = float(question.slope @ self.covariance[:size, :size] @ question.slope)
        return constants + question.least + self.unseen_gpu + question.unseen

    def gain(self, slopes: Column) -> float:
        """By how much measuring a cell would lower the sum of the questions' variances, by what constants share."""
        reach, inverse = self._reach(slopes)
        seen = [question.slope @ reach[:-2] for question in self.questions]
        return sum(float(column @ inverse @ column) for column in seen) + self.unseen_gpu * len(seen)

    def measure(self, slopes: Column) -> None:
        """Take a cell for measured."""
        reach, inverse = self._reach(slopes)
        self.covariance = self.covariance - reach @ inverse @ reach.T
        self.unseen_gpu = 0.0

    def _reach(self, slopes: Column) -> tuple[Column, Column]:
        """Covariance of all with a cell's energy and seconds, and the inverse of those two's own."""
        observed = np.vstack([slopes, np.eye(2)])
        reach = self.covariance @ observed
        return reach, np.asarray(np.linalg.inv(observed.T @ reach + self.noise))


class _State:
    """All questions, and what is known of their engines."""

    def __init__(self, questions: Sequence[_Question]) -> None:
        self.questions = questions
        engines = {question.server.setup.engine: question.server for question in reversed(questions)}
        known = {engine: _Knowledge(server, questions) for engine, server in engines.items()}
        self.known = [known[question.server.setup.engine] for question in questions]
        self.before = [self.half_width(index) for index in range(len(questions))]

    def half_width(self, index: int) -> float:
        """Half the width of the 90 % interval of a question, relative."""
        return _half_width(self.known[index].variance(self.questions[index]))

    def cost_s(self, option: _Option) -> float:
        """Seconds of measuring a cell next."""
        question = self.questions[option.question]
        load_s = 0.0 if question.is_loaded else LOAD_S.get(question.server.setup.engine, max(LOAD_S.values()))
        return load_s + max(WINDOW_S, BATCHES_OF_CELL * option.batch_s)

    def gain(self, option: _Option) -> float:
        """Variance that a cell takes off."""
        return self.known[option.question].gain(option.slopes) + self.questions[option.question].unseen

    def is_useful(self, option: _Option) -> bool:
        """Whether a cell takes off a share worth measuring of the variance that there is of its engine."""
        known = self.known[option.question]
        return self.gain(option) >= LEAST_GAIN * sum(known.variance(question) for question in known.questions)

    def outlook(self, index: int) -> ServerOutlook:
        """What was known of a question at first, and is now."""
        question = self.questions[index]
        return ServerOutlook(
            estimate=question.estimate,
            measured=0 if question.server.measured is None else question.server.measured.rows,
            half_width=self.before[index],
            half_width_after=self.half_width(index),
            half_width_least=_half_width(question.least),
        )

    def measure(self, option: _Option) -> NextCell:
        """Take a cell for measured."""
        question, choice, cost_s = self.questions[option.question], option.choice, self.cost_s(option)
        self.known[option.question].measure(option.slopes)
        question.unseen, question.is_loaded = 0.0, True
        return NextCell(
            server=option.question,
            engine=question.estimate.engine,
            input_tokens=choice.input_tokens,
            output_tokens=choice.output_tokens,
            batch=choice.batch,
            batch_s=option.batch_s,
            cost_s=cost_s,
            half_width=self.half_width(option.question),
        )


def choose_next(
    source: Any,
    servers: ServerSpec | Sequence[ServerSpec] = ServerSpec(),  # noqa: B008 - frozen
    table: Table | None = None,
    *,
    budget_s: float = 300.0,
    target: float = 0.05,
    choices: Sequence[Sequence[CellChoice]] | None = None,
) -> NextCells:
    """The cells to measure next.

    Args:
        source: What `infergy.estimates.estimate.sample_of` takes.
        servers: What serves; of several the sum of the variances is cut.
        table: What was measured; None: the shipped table.
        budget_s: Seconds of GPU time, loading included; above 0.
        target: No further cell of a server once half the width of its interval is within this share; above 0.
        choices: Cells that can be measured, of each server; None: `cell_choices`.

    Raises:
        UsageError: A value out of range, a name is unknown, servers of several kinds of GPU or models, or one cannot
            serve the trace.
    """
    if not budget_s > 0:
        raise UsageError.bad_value("--budget", budget_s, "a time above 0, as 5m")
    if not 0 < target < 1:
        raise UsageError.bad_value("--target", target, "a share above 0 and below 1, as 5%")
    sample, specs = sample_of(source), [servers] if isinstance(servers, ServerSpec) else servers
    opened = [open_server(spec, table) for spec in specs]
    if len({server.gpu.name for server in opened}) != 1:
        raise UsageError("cells are chosen for one kind of GPU: give one --gpu", code="several-gpus", option="--gpu")
    state = _State([_Question(sample, server, serve_sample(sample, server)) for server in opened])
    options: list[_Option] = []
    for index, server in enumerate(opened):
        own = cell_choices(sample, server) if choices is None else choices[index]
        options += _options(index, open_server(measuring_spec(server), table), own)
    cells, stopped = _greedy(state, options, budget_s, target)
    return NextCells(
        trace=facts_of(sample),
        budget_s=budget_s,
        target=target,
        servers=tuple(map(state.outlook, range(len(opened)))),
        cells=tuple(cells),
        cost_s=sum(cell.cost_s for cell in cells),
        stopped=stopped,
    )


def cell_choices(sample: Sample, server: OpenServer) -> list[CellChoice]:
    """Batches of equal requests with lengths like those that the server serves, as many as it runs at once.

    Raises:
        UsageError: It rejects every request.
    """
    most = server.config.options()["max_num_seqs"]
    lengths = np.hstack([(window.requests.input_tokens, window.requests.output_tokens) for window in sample.windows])
    served = lengths[:, lengths.sum(axis=0) <= (server.config.max_model_len or math.inf)]
    if not served.size:
        raise UsageError(
            f"{sample.source}: every request is longer than the {server.config.max_model_len:,} tokens of a "
            "request (--max-model-len)",
            code="too-long",
            trace=sample.source,
            limit=server.config.max_model_len,
        )
    inputs, outputs = (
        sorted({2 ** math.ceil(math.log2(max(1, value))) for value in np.percentile(column, PERCENTILES)})
        for column in served
    )
    return [
        CellChoice(input_tokens=input_tokens, output_tokens=output_tokens, batch=batch)
        for input_tokens, output_tokens, batch in product(inputs, outputs, [size for size in BATCHES if size <= most])
    ]


def measuring_spec(server: OpenServer) -> ServerSpec:
    """The server that measures cells: the batch interface of the same engine, not bounded by what it serves with."""
    spec, setup = server.spec, loaded_setup(server.setup)
    is_static = setup.engine == "transformers"
    return replace(
        spec,
        engine=replace(setup, dtype=DEFAULT_DTYPE, tensor_parallel=1).label,
        precision=setup.dtype,
        replicas=1,
        usage_context="llm",
        options=replace(
            spec.options,
            max_num_seqs=max(BATCHES) if is_static else None,
            max_num_batched_tokens=None,
            num_gpu_blocks=None,
            tensor_parallel_size=setup.tensor_parallel,
        ),
    )


def _options(index: int, server: OpenServer, choices: Sequence[CellChoice]) -> Iterator[_Option]:
    """The cells that a server can serve as one batch, with their derivatives."""
    for choice in choices:
        requests = requests_of_lengths("cell", [(choice.input_tokens, choice.output_tokens)] * choice.batch)
        try:
            run = server.serve(requests)
        except UsageError:  # a static batch that does not fit the memory
            continue
        if run.counts.rejected_requests or run.counts.preemptions or run.counts.peak_running < choice.batch:
            continue
        yield _Option(index, choice, run.duration_s, server.cost.log_slopes(run.steps, 0.0))


def _greedy(state: _State, options: list[_Option], budget_s: float, target: float) -> tuple[list[NextCell], str]:
    cells: list[NextCell] = []
    left_s = budget_s
    while True:
        unknown = {index for index in range(len(state.questions)) if state.half_width(index) > target}
        if not unknown:
            return cells, TARGET_REACHED
        useful = [option for option in options if option.question in unknown and state.is_useful(option)]
        if not useful:
            return cells, NOTHING_HELPS
        affordable = [option for option in useful if state.cost_s(option) <= left_s]
        if not affordable:
            return cells, BUDGET_SPENT
        best = max(affordable, key=lambda option: state.gain(option) / state.cost_s(option))
        cells.append(state.measure(best))
        left_s -= cells[-1].cost_s
        options.remove(best)


def _half_width(variance: float) -> float:
    return math.expm1(Z90 * math.sqrt(max(0.0, variance)))
