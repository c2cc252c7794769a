"""The work of one step of a server: bytes and FLOPs as sums over the tokens of the step.

A step decodes one token for each of `decodes` sequences, which attend to `context` positions together, and computes
`prefill_tokens` prompt tokens, which attend to `prefill_pairs` positions. Bytes and FLOPs are linear in these sums, but
for the experts that the tokens visit.
"""

from __future__ import annotations

from dataclasses import dataclass

from infergy.hardware.shape import ModelShape, cache_bytes, dtype_bytes

ACTIVATION_BYTES = 2.0
"""A value that GPUs exchange: bfloat16, also where weights are narrower."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionWork:
    """Attention over all layers and all GPUs of a server.

    Attributes:
        read_bytes: KV cache that one decoding sequence reads for each position, in layers without a window.
        window_read_bytes: The same in layers with a sliding window.
        window_tokens: Positions that such a layer sees at most; infinite without one.
        write_bytes: KV cache that one token adds.
        state_bytes: Bytes of recurrent state that one sequence reads and writes in a step.
        pair_flops: FLOPs of one decoded token at one position, in layers without a window; `window_pair_flops` with.
        prefill_ratio: FLOPs of a prompt's token over those of a decoded one: MLA decodes on latents.
    """

    read_bytes: float
    window_read_bytes: float
    window_tokens: float
    write_bytes: float
    state_bytes: float
    pair_flops: float
    window_pair_flops: float
    prefill_ratio: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertWork:
    """Routed experts over all layers.

    Attributes:
        routed_bytes: Bytes of all of them.
        share: Experts that a token visits, over all experts of a layer.
        experts: Experts of a layer; `layers` with experts.
        expert_bytes: Bytes of one expert on one GPU.
        row_flops: FLOPs of one row in every expert of all layers.
    """

    routed_bytes: float
    share: float
    experts: float
    layers: float
    expert_bytes: float
    row_flops: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerWork:
    """What steps of a server are made of.

    Attributes:
        dtype: Format of weights and matmuls; `scaled_in_blocks` where fp8 weights carry a scale for each block.
        gpus: GPUs that share the model by tensor parallelism.
        weight_bytes: Weights that every step reads: layers and output head, without routed experts.
        token_flops: FLOPs of one token in all matmuls but the output head; `head_flops` those of the head.
        exchange_bytes: Bytes that each GPU sends for one token in the all-reduces of a step.
        vocabulary: Entries of a sequence's logits.
        layers: Layers of all kinds; `state_layers` those with a recurrent state.
        experts: None for a dense model.
        dispatched: Whether experts are divided among GPUs whole (expert parallel), not each over all GPUs.
        replicated: Whether each GPU does attention for its own requests (data parallel), with weights of its own.
    """

    dtype: str
    scaled_in_blocks: bool
    gpus: int
    weight_bytes: float
    token_flops: float
    head_flops: float
    exchange_bytes: float
    vocabulary: int
    layers: float
    state_layers: float
    attention: AttentionWork
    experts: ExpertWork | None
    dispatched: bool = False
    replicated: bool = False


def server_work(
    shape: ModelShape,
    *,
    dtype: str = "bfloat16",
    gpus: int = 1,
    dispatched: bool = False,
    replicated: bool = False,
) -> ServerWork:
    """The work of a model served in `dtype` on `gpus` GPUs; `dispatched` and `replicated` as in `ServerWork`.

    Raises:
        UsageError: `dtype` is not known.
    """
    # A GPU sends 2 (G - 1) / G of each all-reduced value (nccl-tests, doc/PERFORMANCE.md), twice a layer.
    exchange = 2 * (gpus - 1) / gpus * shape.hidden * ACTIVATION_BYTES * 2 * shape.layers
    state_flops = 0 if shape.mamba is None else shape.mamba.layers * shape.mamba.token_flops
    return ServerWork(
        dtype=dtype,
        scaled_in_blocks=dtype == "fp8" and shape.checkpoint.scaled_in_blocks,
        gpus=gpus,
        weight_bytes=shape.step_weight_bytes(0, dtype) * (gpus if replicated else 1),
        token_flops=2.0 * shape.matmul_parameters + state_flops,
        head_flops=2.0 * shape.vocabulary * shape.hidden,
        exchange_bytes=exchange,
        vocabulary=shape.vocabulary,
        layers=shape.layers,
        state_layers=0 if shape.mamba is None else shape.mamba.layers,
        attention=_attention(shape, dtype, 1 if replicated else gpus),
        experts=_experts(shape, dtype, 1 if dispatched else gpus),
        dispatched=dispatched,
        replicated=replicated,
    )


def _attention(shape: ModelShape, dtype: str, gpus: int) -> AttentionWork:
    attention = shape.attention
    # Beyond one GPU a head of keys and values, heads are copied; MLA's latents lie on every GPU.
    copies = max(1.0, gpus / (1 if attention.latent is not None else attention.kv_heads))
    value = attention.cached_values * cache_bytes(dtype) * copies
    windowed = attention.window_layers if attention.window_tokens is not None else 0
    full = shape.attention_layers - windowed
    pair = attention.pair_flops(absorbed=True)
    return AttentionWork(
        read_bytes=full * value,
        window_read_bytes=windowed * value,
        window_tokens=float("inf") if attention.window_tokens is None else float(attention.window_tokens),
        write_bytes=shape.attention_layers * value,
        state_bytes=2.0 * shape.state_bytes,
        pair_flops=full * pair,
        window_pair_flops=windowed * pair,
        prefill_ratio=attention.pair_flops() / pair,
    )


def _experts(shape: ModelShape, dtype: str, parts: int) -> ExpertWork | None:
    experts = shape.experts
    if experts is None:
        return None
    matmul = experts.expert_matmul(shape.hidden)
    return ExpertWork(
        routed_bytes=shape.routed_bytes(dtype),
        share=experts.experts_per_token / experts.experts,
        experts=experts.experts,
        layers=experts.layers,
        expert_bytes=matmul * dtype_bytes(dtype) / parts,
        row_flops=2.0 * matmul * experts.layers * experts.experts,
    )
