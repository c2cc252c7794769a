"""The configurations that a search looks at.

    present ─▶ layouts: kind of GPU × GPUs a replica × replicas × router × precision × CUDA graphs, and static batches
    layout, its largest batch and step ─▶ variations: the max_num_seqs × max_num_batched_tokens that bind

Which of them can serve is not known here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import Any

from infergy.catalog import get_gpu
from infergy.errors import UsageError
from infergy.estimates.servers import UNQUANTISED, ServerSpec, options_of, setup_of
from infergy.records import DEFAULT_DTYPE, FP8
from infergy.serving.config import EngineOptions
from infergy.serving.simulate import ROUTERS

TENSOR_PARALLEL = (1, 2, 4, 8)
SEQUENCES = (512, 256, 128, 64, 32, 16)
STEP_TOKENS = (8192, 4096, 2048, 1024, 512)
MOST_GPUS = 64
"""Of a search."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """What may be changed.

    Attributes:
        gpus: How many GPUs may serve, all replicas together; each 1 to `MOST_GPUS`, ascending.
        kinds: Kinds of GPU.
        keep_outputs: Whether the precision, which changes answers, stays as it is.
    """

    gpus: tuple[int, ...]
    kinds: tuple[str, ...]
    keep_outputs: bool = False

    def __post_init__(self) -> None:
        if not self.gpus or not all(1 <= count <= MOST_GPUS for count in self.gpus):
            raise UsageError.bad_value("--gpus", str(self.gpus), f"numbers of GPUs from 1 to {MOST_GPUS}, as 1..4")

    @classmethod
    def around(cls, present: ServerSpec, **changes: Any) -> Space:
        """Up to twice the GPUs of the present configuration, of its kind; `changes` replaces fields."""
        count = setup_of(present).tensor_parallel * present.replicas
        return cls(**{"gpus": tuple(range(1, min(2 * count, MOST_GPUS) + 1)), "kinds": (present.gpu,), **changes})


def plain_spec(spec: ServerSpec) -> ServerSpec:
    """The same server with the parts of its engine's name as options, so that two specs can be compared."""
    setup = setup_of(spec)
    return replace(
        spec,
        engine="transformers-compiled" if setup.compiled else setup.engine,
        precision=setup.dtype,
        options=replace(options_of(spec), tensor_parallel_size=setup.tensor_parallel),
    )


def layouts(present: ServerSpec, space: Space, *, shares_prefixes: bool) -> Iterator[ServerSpec]:
    """VLLM on each number and kind of GPUs, in each precision, with and without CUDA graphs.

    Args:
        present: What serves now, whose other options are kept.
        space: What may be changed.
        shares_prefixes: Whether prompts of the trace share blocks, so that prefix caching matters.
    """
    now = plain_spec(present)
    options = replace(
        # A given number of blocks is that of the present configuration alone.
        now.options,
        num_gpu_blocks=None,
        max_num_seqs=None,
        max_num_batched_tokens=None,
        enable_prefix_caching=now.options.enable_prefix_caching or shares_prefixes,
    )
    for kind, size in product(space.kinds, TENSOR_PARALLEL):
        for replicas in range(1, max(space.gpus) // size + 1):
            if size * replicas not in space.gpus:
                continue
            routers = ROUTERS if replicas > 1 else ("round_robin",)
            for dtype, is_eager, router in product(_formats(now, kind, space), (False, True), routers):
                yield replace(
                    now,
                    engine="vllm",
                    gpu=kind,
                    precision=dtype,
                    replicas=replicas,
                    router=router,
                    options=replace(options, tensor_parallel_size=size, enforce_eager=is_eager),
                )


def variations(layout: ServerSpec, peak_running: int, peak_tokens: int) -> Iterator[ServerSpec]:
    """A layout with each smaller batch and step than its largest; a larger limit would change nothing."""
    sequences = (None, *(most for most in SEQUENCES if most < peak_running))
    tokens = (None, *(most for most in STEP_TOKENS if most < peak_tokens))
    for seqs, step in product(sequences, tokens):
        if (seqs, step) != (None, None):
            options = replace(layout.options, max_num_seqs=seqs, max_num_batched_tokens=step)
            yield replace(layout, options=options)


def static_batches(present: ServerSpec) -> ServerSpec:
    """Unoptimised PyTorch: padded batches of transformers in 16 bits, on one GPU (the baseline of the study)."""
    now = plain_spec(present)
    dtype = now.precision if now.precision in (DEFAULT_DTYPE, "float16") else DEFAULT_DTYPE
    options = EngineOptions(max_model_len=now.options.max_model_len)
    return ServerSpec(engine="transformers", model=now.model, gpu=now.gpu, precision=dtype, options=options)


def steps_between(now: ServerSpec, wanted: ServerSpec) -> dict[str, ServerSpec]:
    """What differs between two configurations, and the first one with that alone changed."""
    if now.engine != wanted.engine:
        return {"engine": wanted}
    steps = {}
    for name in ("gpu", "precision", "usage_context", "version"):
        if getattr(now, name) != getattr(wanted, name):
            steps[name] = replace(now, **{name: getattr(wanted, name)})
    size = wanted.options.tensor_parallel_size
    changed = replace(now, replicas=wanted.replicas, router=wanted.router)
    changed = replace(changed, options=replace(now.options, tensor_parallel_size=size))
    if changed != now:
        steps["GPUs and replicas"] = changed
    for field in fields(EngineOptions):
        value = getattr(wanted.options, field.name)
        if field.name != "tensor_parallel_size" and value != getattr(now.options, field.name):
            steps[field.name] = replace(now, options=replace(now.options, **{field.name: value}))
    return steps


def layout_of(spec: ServerSpec) -> Sequence[object]:
    """What of a configuration is no limit of its scheduler."""
    options = replace(spec.options, max_num_seqs=None, max_num_batched_tokens=None)
    return spec.engine, spec.gpu, spec.precision, spec.replicas, spec.router, options


def _formats(now: ServerSpec, kind: str, space: Space) -> list[str]:
    """Precisions to try: fp8 where the GPU computes in it."""
    formats = [now.precision or DEFAULT_DTYPE]
    narrower = formats[0] in UNQUANTISED and FP8 in get_gpu(kind).peak_flops
    return formats + [FP8] * (narrower and not space.keep_outputs)
