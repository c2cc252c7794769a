"""Engine configs, as plans and rows name them, served in simulation: what forecasts and the simulated engine play."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import cast

import numpy as np

from infergy.catalog.gpus import IDLE_SHARE, Gpu
from infergy.catalog.memory import largest_batch
from infergy.catalog.models import Draft
from infergy.catalog.shape import ModelShape
from infergy.cost.constants import Fit, prior_fit
from infergy.cost.drafting import DraftedCost
from infergy.cost.model import Server, StepCost
from infergy.cost.table import ServedBy
from infergy.errors import UsageError
from infergy.records import SERVER, EngineSetup
from infergy.records.engine_setup import FP8, WEIGHT_ONLY
from infergy.serving.config import EngineConfig, EngineOptions, StaticConfig, UsageContext, resolve
from infergy.serving.run import Run, ServedRequests
from infergy.serving.simulate import simulate
from infergy.workload.requests import Requests

MEASURED = {
    "speculation": "speculative decoding (spec…)",
    "power_limit_w": "a power limit that is set (pl…)",
    "sm_clock_mhz": "a clock that is set (clk…)",
}
"""Fields of an engine config that are measured, but served in no simulation of a trace."""

Lengths = Sequence[tuple[int, int]]


def cost_of_setup(
    setup: EngineSetup,
    shape: ModelShape,
    gpu: Gpu,
    *,
    fit: Fit | None = None,
    idle_w: float | None = None,
    draft: Draft | None = None,
) -> StepCost | DraftedCost:
    """What steps of an engine config cost.

    Args:
        setup: What serves.
        shape: Its model.
        gpu: Kind of its GPUs.
        fit: Constants; None: priors alone.
        idle_w: Watts of one GPU, idle, with the model loaded; None: a share of the TDP.
        draft: Its draft model; None without.

    On GPUs without FP8 arithmetic vLLM keeps fp8 weights and computes in 16 bits.

    Raises:
        UsageError: The GPU has no such dtype.
    """
    each_w = IDLE_SHARE * gpu.tdp_w if idle_w is None else idle_w
    gpu.dense_flops("bfloat16" if setup.dtype in (FP8, *WEIGHT_ONLY) else setup.dtype)

    by = ServedBy.of(setup, gpu.name, is_api=setup.usage_context == SERVER)

    def cost(of: ModelShape) -> StepCost:
        server = Server.of(replace(by, model=of.name), of, gpu, each_w * by.gpus)
        return StepCost(server, fit or prior_fit(setup.engine))

    if draft is None:
        return cost(shape)
    return DraftedCost(cost(shape), cost(draft.shape), draft.look_ahead, draft.tokens_per_round)


def serve_setup(
    setup: EngineSetup,
    shape: ModelShape,
    gpu: Gpu,
    cost: StepCost | DraftedCost,
    requests: Requests,
) -> Run:
    """Serve requests.

    Memory that the weights leave no room for is not looked at: `memory_fault` does.

    Raises:
        UsageError: An option that the engine rejects.
    """
    return simulate(requests, config_of_setup(setup, shape, gpu, requests), cost)


def memory_fault(
    setup: EngineSetup, shape: ModelShape, gpu: Gpu, lengths: Lengths, draft: Draft | None = None, *, together: bool
) -> str | None:
    """Why the memory does not take these requests; None if it does.

    Args:
        setup: What serves.
        shape: Its model.
        gpu: Kind of its GPUs.
        lengths: Input and output tokens of each request.
        draft: Its draft model; None without.
        together: Whether all of them run at once; else static batches of its bound under transformers, and under
            vLLM as many as there is room for, at least one.
    """
    is_static = setup.engine == "transformers"
    size = len(lengths)
    if not together:
        size = (setup.max_sequences or size) if is_static else 1
    for k in range(0, len(lengths), size if is_static else len(lengths)):
        batch = lengths[k : k + size] if is_static else lengths
        limit = largest_batch(
            shape,
            gpu,
            max(inputs for inputs, _ in batch),
            max(outputs for _, outputs in batch),
            engine=setup.engine,
            dtype=setup.dtype,
            tensor_parallel=setup.tensor_parallel,
            draft=draft,
        )
        if limit.batch < min(size, len(batch)):
            return limit.reason
    return None


def reject_measured(label: str, given: Iterable[str]) -> None:
    """Reject what is measured only, of the fields that an engine config has.

    Raises:
        UsageError: There is any.
    """
    for name in given:
        if name in MEASURED:
            message = f"{label}: {MEASURED[name]} is measured, not simulated; leave it out"
            raise UsageError(message, code="not-supported", engine=label, reason=name)


def options_of_setup(setup: EngineSetup) -> EngineOptions:
    """The options that an engine config gives, with its engine's defaults for what it leaves open."""
    return EngineOptions(
        max_num_seqs=setup.max_sequences,
        max_num_batched_tokens=setup.max_batched_tokens,
        max_model_len=setup.max_model_len,
        gpu_memory_utilization=setup.gpu_memory_utilization or EngineOptions().gpu_memory_utilization,
        # Repeated prompts must be paid for: measuring turns the cache off unless asked.
        enable_prefix_caching=bool(setup.prefix_caching) or setup.engine == "transformers",
        tensor_parallel_size=setup.tensor_parallel,
        enforce_eager=setup.engine == "vllm" and setup.cuda_graphs is False,
    )


def config_of_setup(
    setup: EngineSetup, shape: ModelShape, gpu: Gpu, requests: Requests | ServedRequests
) -> EngineConfig | StaticConfig:
    """The options that an engine config's engine runs with."""
    if setup.engine == "transformers":
        return StaticConfig(
            max_num_seqs=setup.max_sequences or requests.input_tokens.size,
            tensor_parallel_size=setup.tensor_parallel,
            has_graphs=setup.compiled,
        )
    options = options_of_setup(setup)
    context = cast(UsageContext, setup.usage_context)
    try:
        return resolve(shape, gpu, options, dtype=setup.dtype, usage_context=context)
    except UsageError:
        # Weights that do not fit are found out where memory is looked at; an option that is rejected is so again.
        blocks = 1 + int(np.ceil((requests.input_tokens + requests.output_tokens) / options.block_size).sum())
        return resolve(shape, gpu, replace(options, num_gpu_blocks=blocks), dtype=setup.dtype, usage_context=context)
