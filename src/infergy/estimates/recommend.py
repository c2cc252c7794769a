"""Which configuration serves a trace with the least energy within limits on latency, and what to type for it.

    trace × candidates ─▶ the runs that `estimate` reads ─▶ those within limits, by energy ─▶ savings with intervals

A configuration is recommended in place of the present one only if it saves energy significantly, or if the present one
breaks a limit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import Any

from infergy.catalog import get_gpu, get_model
from infergy.cost.model import CostedRun, log_ratio_sd
from infergy.cost.table import Table
from infergy.errors import UsageError
from infergy.estimates.estimate import (
    Z90,
    ServerEstimate,
    TraceFacts,
    estimate_server,
    facts_of,
    sample_of,
    serve_sample,
)
from infergy.estimates.servers import OpenServer, ServerSpec, loaded_setup, open_server, options_of, setup_of
from infergy.records import DEFAULT_DTYPE, FP8
from infergy.serving.config import EngineOptions
from infergy.serving.run import open_share, steps_of
from infergy.workload.requests import Sample

RECOMMEND_SCHEMA = "infergy.recommend/2"
"""History: 1 measured batches, their bins summed; 2 runs, served as requests arrive."""

SEQUENCES = (256, 64, 16)
FEWER_TOKENS = {"max_num_batched_tokens": 2048}
STATIC = 32
VLLM_OPTIONS = ("max_num_batched_tokens", "long_prefill_token_threshold", "gpu_memory_utilization", "num_gpu_blocks")
REJECTS, OVERLOADED = "rejected_requests", "overload"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits on latency in seconds, above 0; None: no limit."""

    ttft_p99_s: float | None = None
    tpot_p50_s: float | None = None
    tpot_p99_s: float | None = None
    e2e_p99_s: float | None = None

    def __post_init__(self) -> None:
        for name, limit_s in self.given():
            if not 0 < limit_s < math.inf:
                option = "--" + name.removesuffix("_s").replace("_", "-")
                raise UsageError.bad_value(option, limit_s, f"a time above 0, as {option} 50ms")

    def given(self) -> list[tuple[str, float]]:
        """Names and seconds of those that are set."""
        limits = ((field.name, getattr(self, field.name)) for field in fields(self))
        return [(name, limit_s) for name, limit_s in limits if limit_s is not None]

    def excess(self, estimate: ServerEstimate) -> dict[str, float]:
        """Estimated latency over its limit, by the limit's name; those within limits are left out."""
        over = {}
        for name, limit_s in self.given():
            latency, percentile = name.removesuffix("_s").split("_")
            percentiles = getattr(estimate.run.latency, f"{latency}_s")
            # Where no request has such a latency, none is over the limit.
            if percentiles is not None and getattr(percentiles, percentile) > limit_s:
                over[name] = getattr(percentiles, percentile) / limit_s
        return over


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """One way to serve the trace.

    Attributes:
        label: Engine and what is not at the engine's default.
        command: What to type for it; `engine` its label, as `infergy replay --engine` takes it.
        estimate: What it draws: the same as `infergy.estimate` reports.
        saving: 1 − its energy over that of the present configuration; `saving_low` and `saving_high` bound it by the
            90 % interval of what is not common to both.
        is_significant: Whether that interval leaves out 0.
        breaks: Limits that it breaks, and ``rejected_requests`` where it rejects more than another, or ``overload``
            where its queue grows without limit.
        changes_outputs: Why its answers differ from those of the present one; None if they do not.
    """

    label: str
    command: tuple[str, ...]
    engine: str
    estimate: ServerEstimate
    saving: float
    saving_low: float
    saving_high: float
    is_significant: bool
    breaks: tuple[str, ...]
    changes_outputs: str | None

    @property
    def energy_j(self) -> float:
        """Of the run."""
        return self.estimate.run.energy_j

    @property
    def low_j(self) -> float:
        """Lower end of the 90 % interval of `energy_j`."""
        return self.estimate.run.low_j

    @property
    def high_j(self) -> float:
        """Upper end of it."""
        return self.estimate.run.high_j


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommendation:
    """What to serve a trace with.

    Attributes:
        present: Label of the present configuration, which savings are over.
        recommended: Label of the one to choose; None where no configuration keeps the limits.
        reason: ``saves``, ``present_is_best``, ``present_breaks_limits`` or ``nothing_keeps_limits``.
        configurations: Those that keep the limits first, by energy; then the rest, the nearest to its limits first.
        left_out: Candidates that cannot serve, with the reason, by label.
    """

    trace: TraceFacts
    limits: Limits
    present: str
    recommended: str | None
    reason: str
    configurations: tuple[Configuration, ...]
    left_out: Mapping[str, str]
    notes: tuple[str, ...]
    schema: str = RECOMMEND_SCHEMA

    def of(self, label: str) -> Configuration:
        """The configuration of a label.

        Raises:
            UsageError: There is none.
        """
        known = {configuration.label: configuration for configuration in self.configurations}
        if label not in known:
            raise UsageError.unknown("configuration", label, [*known], code="unknown-name")
        return known[label]


@dataclass(frozen=True, slots=True)
class _Served:
    server: OpenServer
    label: str
    estimate: ServerEstimate
    run: CostedRun
    excess: Mapping[str, float]


def recommend(
    source: Any,
    candidates: Sequence[ServerSpec] | None = None,
    table: Table | None = None,
    *,
    present: ServerSpec | None = None,
    limits: Limits | None = None,
    keep_outputs: bool = False,
) -> Recommendation:
    """Rank configurations by the energy of serving a trace.

    Args:
        source: What `infergy.estimates.estimate.sample_of` takes.
        candidates: Beside the present one; None: `default_candidates` of it.
        table: What was measured; None: the shipped table.
        present: What serves now; None: vLLM with its defaults.
        limits: On latencies; None: no limits.
        keep_outputs: Leave out candidates with another precision, which changes answers.

    Raises:
        UsageError: A name is unknown, the present configuration cannot serve, or candidates are of several models or
            kinds of GPU.
    """
    sample, limits, present = sample_of(source), limits or Limits(), present or ServerSpec()
    specs = default_candidates(present) if candidates is None else tuple(candidates)
    if len({(spec.model, spec.gpu) for spec in (present, *specs)}) > 1:
        message = "configurations are compared on one model and one kind of GPU: give one --model and one --gpu"
        raise UsageError(message, code="several-gpus")
    servers, left_out = _open(present, specs, table, keep_outputs=keep_outputs)
    now = next(iter(servers))
    served = _serve_all(sample, servers, limits, left_out)
    if now in left_out or (left_out and candidates is not None):
        raise left_out.get(now) or next(iter(left_out.values()))
    ranked = _rank(served, served[0])
    chosen, reason = _choose(ranked, now)
    return Recommendation(
        trace=facts_of(sample),
        limits=limits,
        present=now,
        recommended=None if chosen is None else chosen.label,
        reason=reason,
        configurations=ranked,
        left_out={label: str(error) for label, error in left_out.items()},
        notes=tuple(_notes(ranked, limits, sample)),
    )


def _serve_all(
    sample: Sample, servers: Mapping[str, OpenServer], limits: Limits, left_out: dict[str, UsageError]
) -> list[_Served]:
    """Those that can serve; the others go into `left_out`: a static batch of its own size may not fit the memory."""
    served = []
    for label, server in servers.items():
        try:
            served.append(_serve(sample, server, label, limits))
        except UsageError as error:
            left_out[label] = error
    return served


def default_candidates(present: ServerSpec) -> tuple[ServerSpec, ...]:
    """VLLM's batching options, eager mode, fp8 where the GPU has it, twice the GPUs; and transformers."""
    setup, options = setup_of(present), options_of(present)
    gpus = setup.tensor_parallel
    formats = [setup.dtype]
    if setup.dtype in (DEFAULT_DTYPE, "float16") and FP8 in get_gpu(present.gpu).peak_flops:
        formats.append(FP8)

    def spec(engine: str, dtype: str = setup.dtype, size: int = gpus, **changes: Any) -> ServerSpec:
        # A given number of blocks is that of the present configuration alone.
        plain = replace(options, num_gpu_blocks=None, enforce_eager=False, max_num_batched_tokens=None)
        return replace(
            present,
            engine=engine,
            precision=dtype,
            options=replace(plain, **{"max_num_seqs": None, "tensor_parallel_size": size, **changes}),
        )

    batching = [
        spec("vllm", dtype, **changes)
        for dtype, changes in product(formats, ({}, *({"max_num_seqs": size} for size in SEQUENCES), FEWER_TOKENS))
    ]
    others = [spec("vllm", enforce_eager=True), spec("vllm", size=2 * gpus)]
    if gpus == 1 and setup.dtype in (DEFAULT_DTYPE, "float16"):
        static = EngineOptions(max_num_seqs=STATIC, max_model_len=options.max_model_len)
        others.append(replace(spec("transformers"), options=static))
    return (*batching, *others)


def label_of(server: OpenServer) -> str:
    """The engine, and the options that are not at its default: ``vllm-fp8 max-num-seqs=16``."""
    options, plain = server.spec.options, EngineOptions()
    label = loaded_setup(server.setup).label
    given = {"max_num_seqs": options.max_num_seqs}
    if server.setup.engine == "vllm":
        given |= {name: getattr(options, name) for name in VLLM_OPTIONS}
    given |= {"max_model_len": options.max_model_len}
    words = [f"{name.replace('_', '-')}={value}" for name, value in given.items() if value != getattr(plain, name)]
    if not options.enable_prefix_caching and server.setup.engine == "vllm":
        words.append("no-prefix-caching")
    if server.spec.replicas > 1:
        words.append(f"replicas={server.spec.replicas}")
    standard = ServerSpec()
    words += [
        f"{name.replace('_', '-')}={getattr(server.spec, name)}"
        for name in ("router", "usage_context", "version")
        if getattr(server.spec, name) != getattr(standard, name)
    ]
    return " ".join([label, *words])


def command_of(server: OpenServer) -> tuple[str, ...]:
    """What to type to serve so: vLLM's own options; of transformers, what to write."""
    setup, options, plain = server.setup, server.spec.options, EngineOptions()
    if setup.engine != "vllm":
        static = ', cache_implementation="static"' if setup.compiled else ""
        size = server.config.options()["max_num_seqs"]
        return (f"model.generate(batches of up to {size}{static})", f"dtype=torch.{setup.dtype}")
    published = get_model(server.spec.model).checkpoint.dtype
    given: dict[str, Any] = {
        "quantization": "fp8_per_tensor" if setup.dtype == FP8 != published else None,
        "dtype": {"float16": "float16"}.get(setup.dtype),
        "max_num_seqs": options.max_num_seqs,
        "tensor_parallel_size": setup.tensor_parallel,
        "enforce_eager": setup.cuda_graphs is False,
        "max_num_batched_tokens": options.max_num_batched_tokens,
        "max_model_len": options.max_model_len,
        "gpu_memory_utilization": options.gpu_memory_utilization,
        "long_prefill_token_threshold": options.long_prefill_token_threshold,
        "no_enable_prefix_caching": not options.enable_prefix_caching or None,
    }
    words = ["vllm serve MODEL"]
    for name, value in given.items():
        if value != getattr(plain, name, None):
            words.append(f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}"))
    count, router = server.spec.replicas, server.spec.router
    # vLLM's docs, serving/data_parallel_deployment: ranks of a dense model are independent and the front end gives each
    # request to the one with the least load; those of a mixture of experts compute in step, which is not simulated.
    if count > 1:
        is_flag = router == "least_loaded" and server.cost.server.work.experts is None
        words.append(
            f"--data-parallel-size {count}" if is_flag else f"# {count} such servers behind a router, {router}"
        )
    return tuple(words)


def _open(
    present: ServerSpec, specs: Sequence[ServerSpec], table: Table | None, *, keep_outputs: bool
) -> tuple[dict[str, OpenServer], dict[str, UsageError]]:
    """Servers by label, the present one first and none twice, and why others cannot be opened."""
    now = open_server(present, table)
    servers, left_out = {label_of(now): now}, dict[str, UsageError]()
    for spec in specs:
        try:
            server = open_server(spec, table)
        except UsageError as error:
            most = "" if spec.options.max_num_seqs is None else f" max-num-seqs={spec.options.max_num_seqs}"
            left_out[f"{setup_of(spec).label}{most}"] = error
            continue
        is_known = any(_identity(server) == _identity(other) for other in servers.values())
        if not is_known and not (keep_outputs and server.setup.dtype != now.setup.dtype):
            servers[label_of(server)] = server
    return servers, left_out


def _identity(server: OpenServer) -> tuple[Any, ...]:
    """What makes two servers one: all that they run with."""
    spec, setup = server.spec, loaded_setup(server.setup)
    return setup, tuple(server.config.options().items()), spec.replicas, spec.router


def _serve(sample: Any, server: OpenServer, label: str, limits: Limits) -> _Served:
    runs = serve_sample(sample, server)
    estimate = estimate_server(sample, server, offline=False, runs=runs, advise=False)
    run = CostedRun.of(server.cost, steps_of(runs), estimate.run.energy.idle_j, open_share(runs))
    return _Served(server, label, estimate, run, limits.excess(estimate))


def _rank(served: Sequence[_Served], now: _Served) -> tuple[Configuration, ...]:
    """Those that keep the limits by energy, then the others by how far they are over."""
    fewest = min(own.estimate.run.rejected_requests for own in served)
    ranked = []
    for own in served:
        run = own.estimate.run
        breaks = [*own.excess]
        breaks += [REJECTS] if run.rejected_requests > fewest else []
        breaks += [OVERLOADED] if run.overload is not None else []
        over = max(own.excess.values(), default=1.0) if breaks else 0.0
        ranked.append(((over, run.energy_j), _configuration(own, now, breaks)))
    return tuple(configuration for _, configuration in sorted(ranked, key=lambda pair: pair[0]))


def _configuration(own: _Served, now: _Served, breaks: Sequence[str]) -> Configuration:
    ratio = own.estimate.run.energy_j / now.estimate.run.energy_j
    half = 0.0 if own is now else Z90 * log_ratio_sd(own.run, now.run)
    dtype, present = own.server.setup.dtype, now.server.setup.dtype
    return Configuration(
        label=own.label,
        command=command_of(own.server),
        engine=own.server.label,
        estimate=own.estimate,
        saving=1.0 - ratio,
        saving_low=1.0 - ratio * math.exp(half),
        saving_high=1.0 - ratio * math.exp(-half),
        is_significant=abs(math.log(ratio)) > half,
        breaks=tuple(breaks),
        changes_outputs=None if dtype == present else f"{dtype} instead of {present}",
    )


def _choose(ranked: Sequence[Configuration], now: str) -> tuple[Configuration | None, str]:
    """The one to choose, and why."""
    present = next(choice for choice in ranked if choice.label == now)
    within = [choice for choice in ranked if not choice.breaks]
    if not within:
        return None, "nothing_keeps_limits"
    if present.breaks:
        return within[0], "present_breaks_limits"
    saving = [choice for choice in within if choice.is_significant and choice.saving > 0]
    return (saving[0], "saves") if saving else (present, "present_is_best")


def _notes(ranked: Sequence[Configuration], limits: Limits, sample: Sample) -> Iterator[str]:
    lengths_from = sample.windows[0].requests.lengths_from
    if lengths_from is not None:
        yield lengths_from
    if ranked[0].estimate.served is None:
        yield f"all at once: {ranked[0].estimate.served_reason}; TTFT and E2E are waiting in the queue"
    elif not limits.given():
        yield "no limit on latency was given: the least energy may keep requests waiting. Type --tpot-p99 50ms"
    unknown = ranked[0].estimate.run.latency.reason
    if limits.given() and unknown is not None:
        yield f"limits on latency are not checked: {unknown}"
    yield from dict.fromkeys(note for choice in ranked for note in choice.estimate.notes)
