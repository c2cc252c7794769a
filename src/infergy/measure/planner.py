"""Cells, planned: how large a batch may be, when requests arrive, and what serving them takes by forecast.

Requests go through the scheduler of the engine in simulation, and steps cost what the cost model says with the
constants of the shipped table, as in every estimate. A plan carries the forecasts to where it is measured. Needs numpy;
measuring does not import it.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from infergy.catalog import Gpu, ModelShape
from infergy.catalog.memory import largest_batch
from infergy.catalog.models import Draft
from infergy.cost.constants import prior_fit
from infergy.cost.drafting import DraftedCost
from infergy.cost.model import StepCost
from infergy.cost.rates import Rates
from infergy.cost.step import StepSums, free_s
from infergy.cost.table import fit_of, shipped_table
from infergy.errors import DataError, UsageError
from infergy.records import GREEDY, LLM_CLASS, SERVER, Arrivals, Cell, Decoding, EngineSetup, Load, PlannedCell
from infergy.records.cell import FEWEST_ARRIVALS, REPLAY, TRACE, Links
from infergy.serving.blocks import shared_prefixes
from infergy.serving.setups import Lengths, cost_of_setup, memory_fault, serve_setup
from infergy.serving.simulate import requests_of_lengths
from infergy.units import count_of, without_secrets
from infergy.workload.load_generator import DIGEST_LENGTH, draw_times, hash_lengths, hash_links, hash_times, trace_times
from infergy.workload.requests import Requests
from infergy.workload.trace import open_trace

PARTS = (32, 16, 8, 4, 2, 1)
"""Sizes of static batches to advise where all requests together do not fit."""

BATCH_STEP = 8
"""A chosen batch is rounded down to a multiple of this: CUDA graphs are captured for such sizes."""


MICROSECOND_DIGITS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """One batch or run.

    Attributes:
        prefill_s: Seconds of the prompts alone, all at once.
        batch_s: Seconds from the first arrival to the last token.
        batch_j: Energy of all GPUs in that time.
    """

    prefill_s: float
    batch_s: float
    batch_j: float


class Planner:
    """Plans cells of an engine config that serves a model of some shape on a kind of GPU."""

    def __init__(self, setup: EngineSetup, shape: ModelShape, gpu: Gpu, draft: Draft | None = None) -> None:
        self._setup, self._shape, self._gpu, self._draft = setup, shape, gpu, draft

    def plan(self, run: Run, reason: str) -> PlannedCell:
        """A cell with its forecast; `reason` says how its batch was chosen.

        Raises:
            UsageError: Not even one request fits the memory, or online no static batch of transformers.
        """
        load, setup = run.load, self._setup
        if run.links is not None and run.links.after and (setup.engine, setup.usage_context) == ("vllm", LLM_CLASS):
            why = "it does not wait for answers; the server does, or serve all at once"
            raise UsageError.engine_lacks("vllm", "usage_context", LLM_CLASS, why)
        cell = Cell(setup=setup, load=load)
        # Each beam is a sequence of its own.
        served = run.lengths or (load.lengths,) * (load.batch * (1 if load.is_online else load.decoding.beams))
        # A batch that is too large for the memory is served in parts by vLLM; one request must fit.
        asked = served if load.is_online else (min(served, key=sum),)
        fault = memory_fault(self._setup, self._shape, self._gpu, asked, self._draft, together=False)
        if fault is not None:
            is_batch = load.is_online and self._setup.engine == "transformers"
            least = "a static batch" if is_batch else "one of its requests"
            advice = self._parts_that_fit(served) if is_batch else ""
            raise self._does_not_fit(f"{cell}: not {least} fits {self._gpu.title}: {fault}{advice}", reason=fault)
        forecast = self.forecast(served, run.arrival_s, run.links)
        return PlannedCell(
            cell=cell,
            batch_choice=reason,
            forecast_prefill_s=forecast.prefill_s,
            forecast_batch_s=forecast.batch_s,
            forecast_batch_j=forecast.batch_j,
            arrival_s=run.arrival_s,
            lengths=run.lengths,
            links=run.links,
        )

    def forecast(self, lengths: Lengths, arrival_s: Sequence[float] = (), links: Links | None = None) -> Forecast:
        """What requests of these input and output tokens take that arrive at `arrival_s`, or all at once."""
        batch_s, batch_j = self._serve(lengths, arrival_s, links)
        # A warm-up hands all prompts over at once.
        mean = round(sum(inputs for inputs, _ in lengths) / len(lengths))
        prefill_s, _ = self._serve(((mean, 1),) * len(lengths))
        return Forecast(prefill_s=prefill_s, batch_s=batch_s, batch_j=batch_j)

    def choose_batch(self, load: Load, max_batch: int | None, max_batch_s: float | None) -> tuple[int, str]:
        """The largest batch that the memory takes for the lengths and decoding of `load`, and how it was chosen.

        Args:
            load: Its own batch is ignored.
            max_batch: Never more requests than this.
            max_batch_s: Never more than this many seconds of forecast GPU work a batch.

        Raises:
            UsageError: Not even one request fits.
        """
        fits = self._largest_batch(load)
        batch, reason = fits, "largest that fits the memory"
        if max_batch is not None and batch > max_batch:
            batch, reason = max_batch, f"largest allowed, {max_batch} (memory would take {fits})"

        def gpu_s(size: int) -> float:
            return self.gpu_s(replace(load, batch=size))

        if max_batch_s is not None and gpu_s(batch) > max_batch_s:
            within = bisect_right(range(1, batch), max_batch_s, key=gpu_s)
            reason = f"one request alone is forecast to take more than {max_batch_s:g} s of GPU work"
            if within:
                reason = f"largest forecast to take at most {max_batch_s:g} s of GPU work (memory would take {fits})"
            batch = max(1, within)
        return batch if batch < BATCH_STEP else batch - batch % BATCH_STEP, reason

    def gpu_s(self, load: Load) -> float:
        """Seconds of GPU work in a batch, were launching kernels free and power not limited: batches are chosen by it.

        Constants are priors, so that the cells of a grid stay the same when the shipped table grows. All prompts count
        as one step, and decode steps as that at the mean context.
        """
        size = load.batch * load.decoding.beams
        tokens, pairs = size * load.input_tokens, size * load.input_tokens * (load.input_tokens + 1) / 2
        prefill = StepSums(0, 0.0, tokens, pairs, size, size, 0)
        context = size * (load.input_tokens + load.output_tokens / 2)
        decode = StepSums(size, context, 0, 0.0, 0, size, size)
        prefill_s = sum(float(free_s(rates, prefill, min)) for rates in self._launch_free)
        target_s, *draft_s = (float(free_s(rates, decode, min)) for rates in self._launch_free)
        look_ahead, tokens_per_round = (self._draft.look_ahead, self._draft.tokens_per_round) if self._draft else (0, 1)
        round_s = target_s + look_ahead * sum(draft_s)
        return prefill_s + (load.output_tokens - 1) * round_s / tokens_per_round

    @cached_property
    def _launch_free(self) -> list[Rates]:
        """Rates of the model, and of its draft model, without launch overhead."""
        fit = prior_fit(self._setup.engine)
        cost = cost_of_setup(self._setup, self._shape, self._gpu, fit=fit, draft=self._draft)
        models = [cost.target, cost.draft] if isinstance(cost, DraftedCost) else [cost]
        hosts = [replace(one.rates.host, eager=0.0, piecewise=0.0, mixed=0.0) for one in models]
        return [replace(one.rates, host=host) for one, host in zip(models, hosts, strict=True)]

    @cached_property
    def _cost(self) -> StepCost | DraftedCost:
        table, setup = shipped_table(), self._setup
        idle_w = table.idle_w(self._gpu.name)
        fit = fit_of(table, setup.engine)
        return cost_of_setup(setup, self._shape, self._gpu, fit=fit, idle_w=idle_w, draft=self._draft)

    def _serve(
        self, lengths: Lengths, arrival_s: Sequence[float] = (), links: Links | None = None
    ) -> tuple[float, float]:
        """Seconds and energy of a run, and of handing a batch over."""
        cost, requests = self._cost, requests_of_lengths(self._setup.label, lengths, arrival_s, links)
        run = serve_setup(self._setup, self._shape, self._gpu, cost, requests)
        call_s = 0.0 if self._setup.usage_context == SERVER or requests.is_timed else cost.call_s
        return run.duration_s + call_s, run.energy_j + call_s * cost.rates.power.base_w

    def _largest_batch(self, load: Load) -> int:
        limit = largest_batch(
            self._shape,
            self._gpu,
            load.input_tokens,
            load.output_tokens,
            engine=self._setup.engine,
            dtype=self._setup.dtype,
            tensor_parallel=self._setup.tensor_parallel,
            draft=self._draft,
        )
        fits = limit.batch // load.decoding.beams
        if fits < 1:
            raise self._does_not_fit(
                f"{self._setup.label}: not one request of {load.input_tokens} input and {load.output_tokens} output "
                f"tokens fits {self._gpu.title}: {limit.reason}",
                reason=limit.reason,
            )
        return fits

    def _parts_that_fit(self, lengths: Lengths) -> str:
        """What to type to serve requests in static batches that fit the memory; nothing if they do not fit alone."""
        for size in PARTS:
            setup = replace(self._setup, max_sequences=size)
            if memory_fault(setup, self._shape, self._gpu, lengths, self._draft, together=False) is None:
                return f". Batches of {size} fit: --max-num-seqs {size}, in a grid max_sequences = {size}"
        return ""

    def _does_not_fit(self, message: str, **fields: str) -> UsageError:
        setup = self._setup
        return UsageError(
            message, code="does-not-fit", model=setup.model, gpu=self._gpu.name, setup=setup.label, **fields
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A load, its trace identified by a digest of its content.

    Attributes:
        arrival_s: When each of its requests arrives; empty offline.
        lengths: Input and output tokens of each request of a replay; empty where all are alike.
        links: How they depend on each other; None if they do not.
    """

    load: Load
    arrival_s: tuple[float, ...] = ()
    lengths: tuple[tuple[int, int], ...] = ()
    links: Links | None = None


def resolve_arrivals(load: Load, seed: int) -> Run:
    """The run that a load asks for, read from its trace if it names one.

    Raises:
        DataError: A trace cannot be read, or has no times.
        UsageError: It has too few requests.
    """
    arrivals = load.arrivals
    if arrivals is None:
        return Run(load=load)
    if arrivals.law not in (TRACE, REPLAY):
        return Run(load=load, arrival_s=draw_times(arrivals, load.batch, seed))
    source = str(arrivals.trace)
    if arrivals.law == TRACE:
        times = trace_times(source, load.batch, arrivals)
        # A path is this machine's; two logs differ by their times and lengths.
        identified = replace(
            arrivals, trace=Path(without_secrets(source)).name, digest=hash_times(times)[:DIGEST_LENGTH]
        )
        return Run(load=replace(load, arrivals=identified), arrival_s=times)
    is_window = arrivals.for_s is not None
    requests = open_trace(source).requests(arrivals=arrivals.timed or is_window)
    if arrivals.timed or is_window:
        requests = requests.window(start_s=arrivals.from_s, duration_s=arrivals.for_s, speed=arrivals.speed)
    return replay_run(requests if is_window else requests.slice(arrivals.first, load.batch), arrivals, load.decoding)


def replay_run(requests: Requests, arrivals: Arrivals, decoding: Decoding = GREEDY) -> Run:
    """The run that serves requests of a trace, each with its own lengths.

    Args:
        requests: With arrivals in seconds of serving where they are timed.
        arrivals: Which part of the trace they are, and whether they arrive at their own times.
        decoding: How tokens are chosen.

    Raises:
        UsageError: There are fewer than two.
        DataError: They are timed, and have no arrivals.
    """
    source = requests.source
    if len(requests) < FEWEST_ARRIVALS:
        message = (
            f"{source}: {count_of(len(requests), 'request')} chosen; a replay is a run of at least {FEWEST_ARRIVALS}. "
            "Choose more: --requests N, --for TIME or a larger --max-tokens"
        )
        raise UsageError(message, code="too-few-requests", trace=source, found=len(requests), expected=FEWEST_ARRIVALS)
    lengths = tuple(zip(requests.input_tokens.tolist(), requests.output_tokens.tolist(), strict=True))
    times, content = (0.0,) * len(lengths), hash_lengths(lengths)
    if arrivals.timed:
        if not requests.is_timed:
            message = f"{source}: no arrival times: {requests.order_reason}. Serve all at once: --all-at-once"
            raise DataError(message, code="no-arrivals", trace=source)
        if requests.arrival_s is not None:
            # Those of one replica among several keep their distance from the first request of all.
            first_s = requests.arrival_s[0] if arrivals.replicas == 1 else 0.0
            times = tuple((requests.arrival_s - first_s).round(MICROSECOND_DIGITS).tolist())
        content = hashlib.sha256(f"{content} {hash_times(times)}".encode()).hexdigest()
    links = _links_of(requests, timed=arrivals.timed)
    if links is not None:
        content = hashlib.sha256(f"{content} {hash_links(links)}".encode()).hexdigest()
    load = Load(
        input_tokens=int(requests.input_tokens.max()),
        output_tokens=int(requests.output_tokens.max()),
        batch=len(lengths),
        decoding=decoding,
        arrivals=replace(arrivals, trace=Path(source).name, digest=content[:DIGEST_LENGTH]),
    )
    return Run(load=load, arrival_s=times, lengths=lengths, links=links)


def _links_of(requests: Requests, *, timed: bool) -> Links | None:
    """How requests depend on each other, without the names that a log has for blocks; None if they do not."""
    links, blocks, after, gap_s = Links(), requests.prefix_blocks, requests.after, requests.gap_s
    if blocks is not None and any(prefixes := shared_prefixes(blocks)):
        links = Links(block_tokens=blocks.block_tokens, prefixes=prefixes)
    if timed and after is not None and gap_s is not None and (after >= 0).any():
        links = replace(links, after=tuple(after.tolist()), gap_s=tuple(gap_s.round(MICROSECOND_DIGITS).tolist()))
    return None if links == Links() else links


def online_sizes(arrivals: Arrivals, batch: list[int] | str, *, paired: bool) -> list[int]:
    """How many requests each run of a block of cells has.

    Raises:
        UsageError: Its batch is chosen by memory, or it asks for pairs.
    """
    if arrivals.for_s is not None:
        # A placeholder: the window decides.
        return [FEWEST_ARRIVALS]
    if isinstance(batch, str):
        raise UsageError.conflict(
            {"arrivals": arrivals.label, "batch": batch},
            "online the batch is the number of requests of a run; give numbers",
        )
    if paired:
        raise UsageError.conflict(
            {"arrivals": arrivals.label, "paired": True}, "online, prefill and decode of many requests overlap"
        )
    return batch
