"""The study's published claims beside what infergy measured: the same quantity, other hardware.

The figures of arXiv 2504.17674 stand in ``data/claims.toml``. Ours come from the tables, by the rules of
`infergy.estimate` with the study's bins; where nothing was measured the reason stands in their place. Intervals are
95 % ones of what the rows and the drawing between them leave uncertain (`infergy.energy.recommend`); bins are common to
both sides.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from statistics import median
from typing import Any

from infergy.energy.estimate import PriceOptions, Question, open_question, price_setup
from infergy.energy.options import BASELINE, CEILING, DENSE
from infergy.energy.price import NO_VALUE
from infergy.energy.recommend import own_error
from infergy.energy.reference import Reference
from infergy.energy.summary import Priced
from infergy.energy.table import EnergyTable, SetupTable

PAPER_BINS = "paper"
NOT_MEASURED = "not measured yet"
TRACES = {"azure_code": "azure-code-2023", "azure_conv": "azure-conv-2023"}
GRAPHS = "vllm"

A6000, UNSTATED = "RTX A6000", "not stated"
GPUS = {"a100_80gb_pcie": "A100 80GB PCIe", "rtx_6000_ada": "RTX 6000 Ada", "rtx_a6000": A6000}


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One published figure and ours.

    Attributes:
        id: Its keys in ``claims.toml``, with dots between.
        name: In words.
        theirs: The published figure, as a fraction.
        hardware: Theirs.
        ours: Ours, as a fraction; None with `reason`.
        low: Lower end of our 95 % interval, and `high` the upper; None where unknown.
        our_hardware: The GPU of our rows; None without.
        basis: What ours is of, in words.
    """

    id: str
    name: str
    theirs: float
    hardware: str
    ours: float | None = None
    low: float | None = None
    high: float | None = None
    our_hardware: str | None = None
    basis: str = ""
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class _Ours:
    value: float
    error: float
    basis: str


@cache
def published() -> Mapping[str, Any]:
    """The figures of the study, as ``data/claims.toml`` has them."""
    text = resources.files("infergy").joinpath("data", "claims.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def find_claims(table: EnergyTable, options: PriceOptions | None = None) -> tuple[Claim, ...]:
    """Every claim of the study's results, in its order, with our figure where the table holds one."""
    options = options or PriceOptions()
    questions = {
        key: open_question(name, PriceOptions(tables=table, bins=PAPER_BINS, method=CEILING, gpu=options.gpu))
        for key, name in TRACES.items()
    }
    first = next(iter(questions.values()))
    return tuple(
        _with_ours(claim, ours, first)
        for claim, ours in (*_trace_claims(questions), *_pair_claims(first), *_open_claims())
    )


def _with_ours(claim: Claim, ours: _Ours | None, question: Question) -> Claim:
    if ours is None:
        return replace(claim, reason=claim.reason or NOT_MEASURED)
    return replace(
        claim,
        ours=ours.value,
        low=ours.value - ours.error,
        high=ours.value + ours.error,
        our_hardware=question.gpu,
        basis=ours.basis,
    )


def _trace_claims(questions: Mapping[str, Question]) -> Iterator[tuple[Claim, _Ours | None]]:
    figures = published()
    for key, theirs in figures["gap_to_ideal"].items():
        for engine, label in (("pytorch", BASELINE), ("vllm", GRAPHS)):
            claim = Claim(
                id=f"gap_to_ideal.{key}.{engine}",
                name=f"gap to the ideal, {_trace(key)}, {label}",
                theirs=theirs[engine],
                hardware=A6000,
                reason=None if key in questions else f"{NOT_MEASURED}: the trace does not ship",
            )
            yield claim, _gap(questions[key], label) if key in questions else None
    for key, theirs in figures["saving_vllm_graphs_over_pytorch"].items():
        claim = Claim(
            id=f"saving_vllm_graphs_over_pytorch.{key}",
            name=f"energy saved by vLLM with graphs against eager PyTorch, {_trace(key)}",
            theirs=theirs,
            hardware=A6000,
            reason=None if key in questions else f"{NOT_MEASURED}: the trace does not ship",
        )
        yield claim, _saving(questions[key]) if key in questions else None


def _trace(key: str) -> str:
    return {"burstgpt": "BurstGPT", "azure_code": "Azure code", "azure_conv": "Azure conversation"}[key]


def _priced(question: Question, label: str) -> tuple[Priced, float] | None:
    if label not in question.table.labels(question.gpu, question.model):
        return None
    priced = price_setup(
        question.table.find(question.gpu, question.model, label), question, PriceOptions(tables=question.table)
    )
    if any(one.how == NO_VALUE for one in priced.bins):
        return None
    return priced, sum(one.energy_j or 0.0 for one in priced.bins)


def _gap(question: Question, label: str) -> _Ours | None:
    found = _priced(question, label)
    if found is None:
        return None
    priced, energy_j = found
    reference = Reference(kind=DENSE, method=CEILING, model=question.model, gpu=question.gpu, surfaces=[priced.surface])
    ideal = reference.of(question.histogram).ideal
    if ideal is None:
        return None
    ratio = energy_j / ideal.energy_j
    basis = "the 2023 hour of the trace; ideal at the dense peak (the study's counts sparsity)"
    return _Ours(ratio - 1, ratio * own_error(priced, energy_j), basis)


def _saving(question: Question) -> _Ours | None:
    both = [_priced(question, label) for label in (BASELINE, GRAPHS)]
    if both[0] is None or both[1] is None:
        return None
    (base, base_j), (ours, ours_j) = both[0], both[1]
    share = ours_j / base_j
    error = share * math.hypot(own_error(base, base_j), own_error(ours, ours_j))
    return _Ours(1 - share, error, "the 2023 hour of the trace")


def _pair_claims(question: Question) -> Iterator[tuple[Claim, _Ours | None]]:
    figures = published()
    for size in ("tp2", "tp4"):
        for what in ("latency", "energy"):
            claim = Claim(
                id=f"tensor_parallel.{what}.{size}",
                name=f"{what} of tensor parallel {size[2:]} against one GPU, batch 1",
                theirs=figures["tensor_parallel"][what][size],
                hardware=UNSTATED,
            )
            yield claim, _change(question, f"{GRAPHS}-{size}", GRAPHS, seconds=what == "latency", batch=1)
    for key, theirs in figures["torch_compile"].items():
        claim = Claim(
            id=f"torch_compile.{key}", name="energy of torch.compile against eager", theirs=theirs, hardware=GPUS[key]
        )
        yield claim, _change(question, f"{BASELINE}-compiled", BASELINE)
    for key, theirs in figures["vllm_cuda_graphs"].items():
        claim = Claim(
            id=f"vllm_cuda_graphs.{key}",
            name="energy of vLLM's CUDA graphs against eager",
            theirs=theirs,
            hardware=GPUS[key],
        )
        yield claim, _change(question, GRAPHS, f"{GRAPHS}-eager")


def _change(
    question: Question, label: str, against: str, *, seconds: bool = False, batch: int | None = None
) -> _Ours | None:
    """Median change over the cells, of one length and batch, that both set-ups hold."""
    labels = question.table.labels(question.gpu, question.model)
    if label not in labels or against not in labels:
        return None
    found = []
    mine, theirs = (_cells(question.table.find(question.gpu, question.model, one)) for one in (label, against))
    for key in mine.keys() & theirs.keys():
        if batch is not None and key[2] != batch:
            continue
        ours, other = mine[key], theirs[key]
        ratio = ours.duration_s / other.duration_s if seconds else ours.energy_j / other.energy_j
        found.append((ratio, ratio * math.hypot(ours.doubt, other.doubt)))
    if not found:
        return None
    return _Ours(
        median(ratio for ratio, _ in found) - 1,
        median(error for _, error in found),
        f"median of {len(found)} cells of equal lengths and batch",
    )


def _cells(setup: SetupTable) -> dict[tuple[int, int, int], Any]:
    return {(cell.input_tokens, cell.output_tokens, cell.batch): cell for cell in setup.cells}


def _open_claims() -> Iterator[tuple[Claim, _Ours | None]]:
    """Those whose axes cannot be run yet."""
    figures = published()
    speculative, experts, online = (
        figures[name] for name in ("speculative_decoding", "moe_over_dense", "online_over_offline")
    )
    told = [
        ("speculative_decoding.batch_at_most_16_best", "energy of speculating, batch ≤ 16, at best", speculative),
        ("speculative_decoding.batch_128", "energy of speculating, batch 128", speculative),
        ("moe_over_dense.energy_worst", "energy of OLMoE-1B-7B against OLMo-1B, at worst", experts),
        ("moe_over_dense.expert_kernel_slower_batch_1", "seconds of the fused expert kernel, batch 1", experts),
        ("moe_over_dense.expert_kernel_slower_batch_8", "seconds of the fused expert kernel, batch 8", experts),
        ("online_over_offline.large_batch_best", "energy online against offline, large batch, at best", online),
    ]
    for name, words, group in told:
        yield Claim(id=name, name=words, theirs=group[name.partition(".")[2]], hardware=UNSTATED), None


def claims_markdown(claims: tuple[Claim, ...]) -> str:
    """The claims as a table."""
    lines = ["| claim | the study | on | ours | 95 % interval | on | of |", "|---|---|---|---|---|---|---|"]
    for one in claims:
        if one.ours is None:
            lines.append(f"| {one.name} | {one.theirs:+.1%} | {one.hardware} | {one.reason} | | | |")
            continue
        interval = "unknown" if one.low is None or one.high is None else f"{one.low:+.1%} .. {one.high:+.1%}"
        lines.append(
            f"| {one.name} | {one.theirs:+.1%} | {one.hardware} | **{one.ours:+.1%}** | {interval} | "
            f"{one.our_hardware} | {one.basis} |"
        )
    return "\n".join(lines) + "\n"
