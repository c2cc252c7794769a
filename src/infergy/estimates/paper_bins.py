"""A trace's bins on one server, each a batch of equal requests as large as memory and the engine allow; and ideals.

`flops_ideal` is the study's (arXiv 2504.17674, section 2): all FLOPs at the peak rate and TDP. `roofline_ideal` adds
the bytes that decode must move, at the peak bandwidth and TDP.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from infergy.catalog import Gpu, ModelShape, get_model
from infergy.cost.model import CostedRun
from infergy.errors import UsageError
from infergy.estimates.servers import OpenServer
from infergy.records import DEFAULT_DTYPE
from infergy.serving.config import EngineConfig
from infergy.serving.run import Run, join_columns
from infergy.serving.simulate import requests_of_lengths
from infergy.units import count_of, format_si
from infergy.workload.bins import BIN_NAMES, POWERS_OF_TWO, Bin, BinCount, Bins, Histogram, fold_groups
from infergy.workload.requests import Requests, Sample, whole

DENSE, PAPER_IDEAL, ROOFLINE = "dense", "paper", "roofline"
IDEALS = (DENSE, PAPER_IDEAL, ROOFLINE)
"""`flops_ideal` at the dense peak, at the vendor's headline, or `roofline_ideal`."""
FRACTIONAL, WHOLE = "fractional", "whole"
RARE_RULES = (FRACTIONAL, WHOLE)


@dataclass(frozen=True, slots=True, kw_only=True)
class BinEnergy:
    """The requests of one bin on one server.

    Attributes:
        input_tokens: Upper corner of the bin; `output_tokens` the same.
        requests: Requests in the bin.
        batch: Requests served at once; 0 if not one fits the context or the memory, and the rest is None.
        energy_j: Of all requests of the bin, at its upper corner.
        low_j: The same at the bin's floor; `high_j` at the corner in whole batches.
        duration_s: Seconds of the server, one batch after the other.
    """

    input_tokens: int
    output_tokens: int
    requests: int
    batch: int
    energy_j: float | None
    low_j: float | None
    high_j: float | None
    duration_s: float | None


def histogram_of(source: Any, bins: str | Bins) -> Histogram:
    """The bins of a trace; a histogram brings its own.

    Raises:
        UsageError: There are no bins of that name.
        DataError: The trace is not what it should be.
    """
    if isinstance(bins, str) and bins not in BIN_NAMES:
        raise UsageError.unknown("bins", bins, BIN_NAMES, "Give one with --bins", code="unknown-name", option="--bins")
    from infergy.workload import Trace, open_requests

    if isinstance(source, (Requests, Sample)):
        return _count(whole(source) if isinstance(source, Requests) else source, bins)
    opened = source if isinstance(source, (Trace, Histogram)) else open_requests(source)
    if isinstance(opened, Histogram):
        return opened
    return opened.histogram(bins if isinstance(bins, Bins) else None if bins == POWERS_OF_TWO else Bins.paper())


def batch_limit(server: OpenServer, input_tokens: int, output_tokens: int) -> int:
    """The largest batch of equal requests that a server serves at once; 0 if not one fits its context or memory.

    vLLM's is bounded by its blocks and `max_num_seqs`. transformers has no bound of its own but memory, unless
    `max_num_seqs` is asked for.
    """
    config, total = server.config, input_tokens + output_tokens
    if config.max_model_len is not None and total > config.max_model_len:
        return 0
    if isinstance(config, EngineConfig):
        # The last token is sampled, not kept; one block is the null block.
        blocks = -(-(total - 1) // config.limits.block_size)
        return min(config.limits.max_num_seqs, (config.limits.num_gpu_blocks - 1) // max(1, blocks))
    from infergy.catalog.memory import largest_batch

    fits = largest_batch(
        get_model(server.spec.model),
        server.gpu,
        input_tokens,
        output_tokens,
        engine=server.setup.engine,
        dtype=server.setup.dtype,
        tensor_parallel=server.setup.tensor_parallel,
    ).batch
    asked = server.spec.options.max_num_seqs
    return fits if asked is None else min(fits, asked)


class _Batch(NamedTuple):
    """A batch of equal requests, served all at once."""

    size: int
    run: Run


class ServedBins:
    """The bins of a histogram on one server; each batch is simulated once.

    Without `brackets` their lower and upper ends are None.
    """

    def __init__(self, server: OpenServer, histogram: Histogram, rare: str, *, brackets: bool = True) -> None:
        self.server = server
        self._batches: dict[tuple[int, int], _Batch | None] = {}
        self.bins = tuple(self._bin(count, rare, brackets=brackets) for count in histogram.counts)
        known = [entry for entry in self.bins if entry.batch]
        self.unserved_requests = sum(entry.requests for entry in self.bins) - sum(entry.requests for entry in known)
        self.energy_j, self.low_j, self.high_j, self.duration_s = (
            sum(getattr(entry, name) for entry in known)
            if known and (brackets or name in ("energy_j", "duration_s"))
            else None
            for name in ("energy_j", "low_j", "high_j", "duration_s")
        )

    def batch(self, input_tokens: int, output_tokens: int) -> _Batch | None:
        """The largest batch of such requests; None if not one fits."""
        lengths = input_tokens, output_tokens
        if lengths not in self._batches:
            self._batches[lengths] = self._serve(*lengths)
        return self._batches[lengths]

    def served(self, histogram: Histogram) -> Histogram:
        """The bins that can be served."""
        counts = zip(histogram.counts, self.bins, strict=True)
        return replace(histogram, counts=tuple(count for count, entry in counts if entry.batch))

    def costed(self) -> CostedRun:
        """All bins as one run, for the uncertainty of their sum."""
        parts, idle_j = [], 0.0
        for entry in self.bins:
            batch = self.batch(entry.input_tokens, entry.output_tokens)
            if batch is not None:
                times = entry.requests / batch.size
                parts.append(replace(batch.run.steps, count=batch.run.steps.count * times))
                idle_j += batch.run.energy.idle_j * times
        return CostedRun.of(self.server.cost, join_columns(parts), idle_j, 0.0)

    def _serve(self, input_tokens: int, output_tokens: int) -> _Batch | None:
        size = batch_limit(self.server, input_tokens, output_tokens)
        if size < 1:
            return None
        requests = requests_of_lengths("batch", [(input_tokens, output_tokens)] * size)
        server, config = self.server, self.server.config
        if not isinstance(config, EngineConfig):
            config = replace(config, max_num_seqs=size)
        alone = replace(server, config=config, spec=replace(server.spec, replicas=1))
        return _Batch(size=size, run=alone.serve(requests))

    def _bin(self, count: BinCount, rare: str, *, brackets: bool) -> BinEnergy:
        corner, requests = count.bin, count.requests
        lengths = {"input_tokens": corner.input_tokens, "output_tokens": corner.output_tokens}
        batch = self.batch(**lengths)
        if batch is None:
            return BinEnergy(
                **lengths, requests=requests, batch=0, energy_j=None, low_j=None, high_j=None, duration_s=None
            )
        whole_batches = math.ceil(requests / batch.size)
        batches = whole_batches if rare == WHOLE else requests / batch.size
        energy_j, low_j = batches * batch.run.energy_j, None
        if brackets:
            floor = self.batch(max(1, corner.input_floor), max(1, corner.output_floor))
            assert floor is not None  # shorter than the corner
            low_j = min(energy_j, requests / floor.size * floor.run.energy_j)
        return BinEnergy(
            **lengths,
            requests=requests,
            batch=batch.size,
            energy_j=energy_j,
            low_j=low_j,
            high_j=whole_batches * batch.run.energy_j if brackets else None,
            duration_s=batches * batch.run.duration_s,
        )


def _count(sample: Sample, bins: str | Bins) -> Histogram:
    """Count the requests of a sample by output and by the input that costs prefill; windows by their weight."""
    windows = [(window.requests, window.weight) for window in sample.windows]
    inputs = np.concatenate(
        [one.input_tokens - (0 if one.cached_tokens is None else one.cached_tokens) for one, _ in windows]
    )
    outputs = np.concatenate([requests.output_tokens for requests, _ in windows])
    weights = np.repeat([weight for _, weight in windows], [len(requests) for requests, _ in windows])
    if isinstance(bins, str):
        is_doubling = bins == POWERS_OF_TWO
        bins = Bins.powers_of_two(int(inputs.max()), int(outputs.max())) if is_doubling else Bins.paper()
    corner = np.searchsorted(bins.input_edges, inputs) * (len(bins.output_edges) + 1)
    _, group = np.unique(corner + np.searchsorted(bins.output_edges, outputs), return_inverse=True)
    longest = np.zeros((2, group.max() + 1), dtype=int)
    np.maximum.at(longest[0], group, inputs)
    np.maximum.at(longest[1], group, outputs)
    sums = (np.bincount(group, weights * column).round() for column in (np.ones(len(inputs)), inputs, outputs))
    names = ("longest_input", "longest_output", "requests", "input", "output")
    groups = {row[:2]: dict(zip(names, row, strict=True)) for row in zip(*longest, *sums, strict=True)}
    histogram = fold_groups(groups, bins, sample.source, sample.set_aside.failed)
    cached = sum(
        weight * float(requests.cached_tokens.sum())
        for requests, weight in windows
        if requests.cached_tokens is not None
    )
    return replace(
        histogram,
        unreadable_rows=sample.set_aside.unreadable,
        cached_input_tokens=round(cached),
        lengths_from=windows[0][0].lengths_from,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Ideal:
    """A stated reference for the same work, not a physical floor.

    A GPU whose clocks or units rest while memory is the bottleneck draws less than TDP, so measured energy can lie
    below a roofline's; with a lower power limit, or a narrower dtype, below all.

    Attributes:
        energy_j: Energy of the whole workload.
        duration_s: GPU-seconds that the reference takes for it.
        basis: How it was computed, in words.
    """

    energy_j: float
    duration_s: float
    basis: str


def flops_ideal(histogram: Histogram, shape: ModelShape, gpu: Gpu, *, headline: bool = False) -> Ideal:
    """E = TDP / peak × sum over bins of N(I*, O*) × FLOPs(I*, O*), each request at its bin's upper corner.

    FLOPs are `ModelShape.request_flops` with causal attention; the peak is the GPU's dense one in bfloat16. With
    `headline` both are as in the study: the vendor's headline, which counts sparsity (309.7 TFLOP/s for the RTX A6000)
    and may be of another dtype, and attention over the full square, as its profiler counts.
    What the histogram leaves out is left out here.

    Raises:
        UsageError: The GPU has no headline that counts sparsity.
    """
    if not headline:
        peak, kind = gpu.dense_flops(DEFAULT_DTYPE), f"dense {DEFAULT_DTYPE}"
    elif gpu.headline_flops is None:
        message = (
            f"{gpu.title} has no headline peak to set beside the study's: {gpu.headline_basis}. "
            "Take the dense peak: --ideal dense"
        )
        raise UsageError(message, code="not-supported", gpu=gpu.name, option="--ideal")
    else:
        peak, kind = gpu.headline_flops, f"the vendor's headline, {gpu.headline_basis}"
    flops = sum(
        count.requests * shape.request_flops(count.bin.input_tokens, count.bin.output_tokens, causal=not headline)
        for count in histogram.counts
    )
    basis = (
        f"a reference, not a floor: FLOPs at {format_si(peak, 'FLOP/s', 4)} ({kind}) and TDP ({gpu.tdp_w:g} W) of "
        f"{gpu.title}"
    )
    return Ideal(energy_j=flops / peak * gpu.tdp_w, duration_s=flops / peak, basis=basis)


def roofline_ideal(histogram: Histogram, shape: ModelShape, gpu: Gpu, batch_of: Callable[[Bin], int]) -> Ideal:
    """TDP × the time that FLOPs or bytes take at the peak rates, whichever is longer, in prefill and in decode.

    Each phase of a batch counts as one block in which computing and moving overlap wholly (Williams et al., "Roofline",
    CACM 2009). Prefill reads the weights once a batch and writes the prompts' KV cache, decode moves
    `ModelShape.output_bytes`. A bin of N requests takes N / `batch_of`(bin) batches, a fraction of one included.

    Raises:
        UsageError: A batch is below 1.
    """
    peak = gpu.dense_flops(DEFAULT_DTYPE)
    duration_s = 0.0
    for count in histogram.counts:
        batch = batch_of(count.bin)
        if batch < 1:
            raise UsageError(
                f"a batch of {count_of(batch, 'request')} for {count.bin.input_tokens}→{count.bin.output_tokens}: "
                "not one fits; take a GPU with more memory, or more GPUs",
                code="does-not-fit",
                batch=batch,
                lengths=[count.bin.input_tokens, count.bin.output_tokens],
            )
        duration_s += count.requests / batch * _batch_s(shape, gpu, count.bin, batch, peak)
    basis = (
        f"a reference, not a floor: FLOPs at {format_si(peak, 'FLOP/s', 4)} (dense {DEFAULT_DTYPE}) or bytes at "
        f"{format_si(gpu.memory_bandwidth, 'B/s', 4)}, whichever take longer, and TDP ({gpu.tdp_w:g} W) of {gpu.title}"
    )
    return Ideal(energy_j=duration_s * gpu.tdp_w, duration_s=duration_s, basis=basis)


def _batch_s(shape: ModelShape, gpu: Gpu, corner: Bin, batch: int, peak: float) -> float:
    inputs, outputs = corner.input_tokens, corner.output_tokens
    cached = batch * inputs * shape.kv_bytes_per_token(DEFAULT_DTYPE)
    moved_once = shape.step_weight_bytes(batch * inputs, DEFAULT_DTYPE) + cached
    prefill = (batch * shape.prefill_flops(inputs), moved_once)
    decode = (batch * shape.output_flops(inputs, outputs), shape.output_bytes(inputs, outputs, batch, DEFAULT_DTYPE))
    return sum(max(flops / peak, moved / gpu.memory_bandwidth) for flops, moved in (prefill, decode))


@dataclass(frozen=True, slots=True, kw_only=True)
class PaperReference:
    """The study's reference for one server, beside the estimate of a trace.

    Attributes:
        bins: Name of the grid; `requests` in it.
        left_out_requests: Past the last bin, or in bins that the server cannot serve.
        ideal_energy_j: FLOPs of the bins' upper corners at the dense peak and TDP; None where no bin is served.
        energy_j: By the study's method; None for the same reason.
    """

    bins: str
    requests: int
    left_out_requests: int
    ideal_energy_j: float | None
    ideal_basis: str | None
    energy_j: float | None
    gap_to_ideal: float | None


def paper_reference(source: Any, server: OpenServer) -> PaperReference:
    """The ideal and the energy by the study's method of a trace, in powers of two, on one server.

    Args:
        source: As for `estimate_paper`.
        server: What serves its bins.

    Raises:
        DataError: The trace is not what it should be.
    """
    histogram = histogram_of(source, POWERS_OF_TWO)
    own = ServedBins(server, histogram, FRACTIONAL, brackets=False)
    reference = ideal_of(own, [own], histogram, DENSE)
    out = histogram.left_out.requests if histogram.left_out else 0
    return PaperReference(
        bins=histogram.bins.name,
        requests=histogram.requests + out,
        left_out_requests=out + own.unserved_requests,
        energy_j=own.energy_j,
        **compare_to_ideal(own, reference),
    )


def hardware_of(own: ServedBins) -> tuple[str, str, int]:
    """Model, kind of GPU and GPUs of a replica."""
    return own.server.setup.model, own.server.gpu.name, own.server.setup.tensor_parallel


def ideal_of(own: ServedBins, served: Iterable[ServedBins], histogram: Histogram, kind: str) -> Ideal | None:
    """The ideal of the bins that the server can serve; batches of a roofline are the largest of any engine."""
    work = own.served(histogram)
    if not work.counts:
        return None
    shape, gpu = get_model(own.server.spec.model), own.server.gpu
    if kind == ROOFLINE:
        like = [other for other in served if hardware_of(other)[:2] == hardware_of(own)[:2]]

        def batch_of(corner: Bin) -> int:
            batches = [other.batch(corner.input_tokens, corner.output_tokens) for other in like]
            return max((batch.size for batch in batches if batch is not None), default=1)

        reference = roofline_ideal(work, shape, gpu, batch_of)
    else:
        reference = flops_ideal(work, shape, gpu, headline=kind == PAPER_IDEAL)
    return replace(reference, basis=f"{reference.basis}, at the upper corners of the bins")


def compare_to_ideal(own: ServedBins, ideal: Ideal | None) -> dict[str, Any]:
    """The fields of a comparison with an ideal."""
    if ideal is None or own.energy_j is None:
        return {"ideal_energy_j": None, "ideal_basis": None, "gap_to_ideal": None}
    gap = own.energy_j / ideal.energy_j - 1
    return {"ideal_energy_j": ideal.energy_j, "ideal_basis": ideal.basis, "gap_to_ideal": gap}
