"""The shape of a decoder-only transformer or hybrid, and what follows: parameters, FLOPs, bytes. Standard library only.

FLOPs count a multiplication and an addition as two, in matmuls only (as PyTorch's FLOP counter does; norms, rotary
embeddings, softmax and biases are left out: below 1 % for all shipped models). Bytes are of memory that must move or
stay, at `dtype`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from infergy.catalog.layers import (
    AttentionShape,
    ExpertShape,
    Indexer,
    MambaShape,
    MlpShape,
    Window,
    attended_tokens,
)
from infergy.errors import UsageError
from infergy.records.engine_setup import DEFAULT_DTYPE, FP8, WEIGHT_ONLY

DTYPE_BYTES: Mapping[str, float] = {
    "float32": 4.0,
    "bfloat16": 2.0,
    "float16": 2.0,
    "fp8": 1.0,
    "int8": 1.0,
    "int4": (4 + 20 / 128) / 8,
    "nvfp4": (4 + 8 / 16) / 8,
    "mxfp4": (4 + 8 / 32) / 8,
}
"""Bytes per value, scales included: a group of int4 is 128 values, with a scale of 16 bits and a zero of 4 (the default
of AWQ and GPTQ), one of nvfp4 16 values (NVIDIA's format, scaled in fp8), one of mxfp4 32 (OCP Microscaling Formats
1.0, section 5)."""

EXPERTS_ONLY = frozenset({"mxfp4"})
"""Formats in which checkpoints keep only the experts' matrices; the rest stays bfloat16 (gpt-oss model card)."""


def dtype_bytes(dtype: str) -> float:
    """Bytes of one value.

    Raises:
        UsageError: `dtype` is not in `DTYPE_BYTES`.
    """
    if dtype not in DTYPE_BYTES:
        raise UsageError.unknown("dtype", dtype, DTYPE_BYTES, code="unknown-name")
    return DTYPE_BYTES[dtype]


def cache_bytes(dtype: str) -> float:
    """Bytes of a value in the KV cache and in the vocabulary's tables: bfloat16 unless the model is wider."""
    return max(dtype_bytes("bfloat16"), _shared_bytes(dtype))


def _shared_bytes(dtype: str) -> float:
    """Bytes of a value outside the experts."""
    return dtype_bytes("bfloat16" if dtype in EXPERTS_ONLY else dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """What the published checkpoint has besides the text model's layers.

    Attributes:
        architecture: `model_type` of its configuration.
        dtype: Format of the weights (``fp8``, ``int4``, …); None if the configuration does not say.
        wider_bytes: Bytes of parts that are kept wider than `dtype`, beyond what they would take in it.
        scaled_in_blocks: Whether fp8 weights have a scale for each block of a matrix (128 × 128, as DeepSeek-V3's:
            arXiv 2412.19437, section 3.3.2), not per row or matrix.
        encoder_parameters: Of encoders of images and sound that are loaded, but idle for text.
    """

    architecture: str
    dtype: str | None = None
    wider_bytes: float = 0.0
    scaled_in_blocks: bool = False
    encoder_parameters: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """The shape of a decoder-only transformer, or of a hybrid whose layers are each attention, Mamba-2 or an MLP.

    Attributes:
        name: As the caller calls it.
        layers: Layers; of a hybrid those of all kinds together.
        hidden: Width of the residual stream.
        vocabulary: Rows of the embedding table, padding included.
        tied: Whether the output head is the embedding table.
        attention: Attention of a layer; its window says how the layers that have one differ.
        attention_layers: Layers with attention.
        mlp: The dense MLP and how many layers have it.
        experts: The mixture of experts; None for a dense model.
        mamba: Its Mamba-2 or Gated DeltaNet layers; None without.
        other_parameters: Of all norms of the residual stream, and biases of the output head.
        checkpoint: What was published.
    """

    name: str
    layers: int
    hidden: int
    vocabulary: int
    tied: bool
    attention: AttentionShape
    attention_layers: int
    mlp: MlpShape
    checkpoint: Checkpoint
    experts: ExpertShape | None = None
    mamba: MambaShape | None = None
    other_parameters: int = 0

    @property
    def precision(self) -> str:
        """Format in which vLLM serves the checkpoint, of those that steps are costed in: else bfloat16."""
        published = self.checkpoint.dtype
        known = (FP8, *WEIGHT_ONLY) if self.experts is not None else {FP8, *WEIGHT_ONLY} - EXPERTS_ONLY
        return DEFAULT_DTYPE if published is None or published not in known else published

    @property
    def state_bytes(self) -> float:
        """Bytes of the state of a request's Mamba-2 layers, whatever its length."""
        return 0.0 if self.mamba is None else self.mamba.state_bytes

    @property
    def parameters(self) -> int:
        """All parameters, as the published checkpoint counts them."""
        return self._tables + self._layer_parameters + self.routed_parameters + self.checkpoint.encoder_parameters

    @property
    def active_parameters(self) -> int:
        """Parameters less the experts that one token does not visit (embeddings counted, encoders not)."""
        active = self._tables + self._layer_parameters
        if self.experts is not None:
            visited = self.experts.layers * self.experts.experts_per_token
            active += visited * self.experts.expert_parameters(self.hidden)
        return active

    @property
    def matmul_parameters(self) -> int:
        """Entries of the matrices that one token is multiplied with, over all layers; the output head not counted."""
        if self.experts is None:
            return self._fixed_matmul
        visited = self.experts.layers * self.experts.experts_per_token
        return self._fixed_matmul + visited * self.experts.expert_matmul(self.hidden)

    def weight_bytes(self, dtype: str = "bfloat16") -> float:
        """Bytes of all parameters at `dtype`."""
        wide = self._tables + self.checkpoint.encoder_parameters
        return _bytes(self._layer_parameters, self.routed_parameters, wide, dtype) + self._wider_bytes(dtype)

    def step_weight_bytes(self, batch: int, dtype: str = "bfloat16") -> float:
        """Bytes of weights that one decode step of `batch` requests reads (or one forward of `batch` tokens).

        All layers and the output head once, of the routed experts the expected share that is visited, and of the
        embedding table a row for each token.
        """
        tables = (self.vocabulary + batch) * self.hidden
        visited = 0.0 if self.experts is None else self.experts.expected_coverage(batch) * self.routed_parameters
        return _bytes(self._layer_parameters, visited, tables, dtype) + self._wider_bytes(dtype)

    def _wider_bytes(self, dtype: str) -> float:
        return self.checkpoint.wider_bytes if dtype == self.checkpoint.dtype else 0.0

    def routed_bytes(self, dtype: str = "bfloat16") -> float:
        """Bytes of all routed experts; 0 for a dense model."""
        return self.routed_parameters * dtype_bytes(dtype)

    def kv_bytes_per_token(self, dtype: str = "bfloat16") -> float:
        """Bytes that a token adds to the KV cache while no window is full; under MLA those of the latents."""
        return self._cached_values(1) * cache_bytes(dtype)

    def kv_bytes(self, context_tokens: int, dtype: str = "bfloat16") -> float:
        """Bytes of KV cache of one request with `context_tokens`; a sliding window keeps no more than its length.

        A chunk that has just begun reads less than this: what the longest chunk so far took stays counted.
        """
        return self._cached_values(context_tokens) * cache_bytes(dtype)

    def prefill_flops(self, input_tokens: int, *, causal: bool = True) -> int:
        """FLOPs of one prompt: 2 × matrices × tokens, attention, and the output head on the last position.

        `causal` counts each token's attention to itself and those before it (inside its window): the work that is
        needed, and that flash kernels do except for the diagonal blocks. Not causal counts the full square in every
        layer, as kernels with a mask do and as PyTorch's FLOP counter and profilers assume.
        """
        matmul = self.matmul_parameters * input_tokens + self.vocabulary * self.hidden
        if causal:
            attention = self._attention_flops(1, input_tokens, absorbed=False)
        else:
            attention = sum(layers * one.pair_flops() for layers, one, _ in self.attentions) * input_tokens**2
        return 2 * matmul + attention + self._mamba_flops * input_tokens

    def decode_flops(self, context_tokens: int, *, absorbed: bool = True) -> int:
        """FLOPs of one output token that attends to `context_tokens`, itself included.

        `absorbed`: MLA attends to the cached latents themselves, as serving engines do; transformers expands all of
        them into keys and values again at each step. Without MLA there is no difference.
        """
        return self._decode_flops(context_tokens, context_tokens, absorbed=absorbed)

    def output_flops(self, input_tokens: int, output_tokens: int, *, absorbed: bool = True) -> int:
        """FLOPs of all decode steps of a request: `output_tokens` − 1, since prefill yields the first."""
        return self._decode_flops(input_tokens + 1, input_tokens + output_tokens - 1, absorbed=absorbed)

    def request_flops(self, input_tokens: int, output_tokens: int, *, causal: bool = True) -> int:
        """FLOPs of a request: its prefill and all its decode steps."""
        return self.prefill_flops(input_tokens, causal=causal) + self.output_flops(input_tokens, output_tokens)

    def output_bytes(self, input_tokens: int, output_tokens: int, batch: int, dtype: str = "bfloat16") -> float:
        """Bytes that all decode steps of `batch` equal requests move.

        Weights and KV cache are read, one token per request and step is written, states are both.
        """
        steps = output_tokens - 1
        cache = self._step_cache_bytes(input_tokens + 1, steps, dtype)
        return steps * self.step_weight_bytes(batch, dtype) + batch * cache

    @property
    def activation_values(self) -> int:
        """Values alive at once for one token inside a layer: an upper bound, because allocators leave gaps.

        3 × hidden (residual, its normed copy, the layer's output) + queries, keys, values and attention's output
        + 3 × width of the MLP (gate, up, their product), or of all experts that a token visits.
        """
        attention, inner = self.attention, self.mlp.intermediate
        heads = attention.heads * (attention.head_dim + attention.value_dim) + attention.key_values
        if self.experts is not None:
            visited = self.experts.experts_per_token * self.experts.intermediate + self.experts.shared_intermediate
            inner = max(inner, visited)
        if self.mamba is not None:
            inner = max(inner, self.mamba.inner)
        return 3 * self.hidden + heads + 3 * inner

    @property
    def _tables(self) -> int:
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def attentions(self) -> tuple[tuple[int, AttentionShape, Window | None], ...]:
        """Layers of each kind of attention, its shape, and its window."""
        window = self.attention.window
        if window is None:
            return ((self.attention_layers, self.attention, None),)
        rest = self.attention_layers - window.layers
        return ((rest, self.attention, None), (window.layers, window.attention or self.attention, window))

    @property
    def _kinds(self) -> list[tuple[int, AttentionShape | MlpShape | ExpertShape | MambaShape | Indexer]]:
        """The number of layers of each kind."""
        others = (kind for kind in (self.mlp, self.experts, self.mamba, self.attention.indexer) if kind is not None)
        own = [(layers, attention) for layers, attention, _ in self.attentions]
        return [*own, *((kind.layers, kind) for kind in others)]

    @property
    def _fixed_matmul(self) -> int:
        """Entries of the matrices that every token is multiplied with, over all layers."""
        return sum(layers * kind.matmul_parameters(self.hidden) for layers, kind in self._kinds)

    @property
    def _layer_parameters(self) -> int:
        """All but embeddings, head matrix, encoders and routed experts."""
        others = sum(layers * kind.other_parameters(self.hidden) for layers, kind in self._kinds)
        return self._fixed_matmul + others + self.other_parameters

    @property
    def routed_parameters(self) -> int:
        """Of all routed experts; 0 for a dense model."""
        if self.experts is None:
            return 0
        return self.experts.layers * self.experts.experts * self.experts.expert_parameters(self.hidden)

    def _cached_values(self, context_tokens: int) -> int:
        """Values in the KV cache of a request, over all layers."""
        values = 0
        for layers, attention, window in self.attentions:
            kept = context_tokens if window is None else min(context_tokens, window.tokens)
            values += layers * kept * attention.cached_values
        indexer = self.attention.indexer
        return values + (0 if indexer is None else indexer.layers * context_tokens * indexer.head_dim)

    def _attention_flops(self, first: int, last: int, *, absorbed: bool) -> int:
        """FLOPs of scores and sums of values of the tokens `first` to `last`, over all layers."""
        flops = sum(
            layers * (window or attention).attended(first, last) * attention.pair_flops(absorbed=absorbed)
            for layers, attention, window in self.attentions
        )
        indexer = self.attention.indexer
        if indexer is not None:
            flops += indexer.layers * attended_tokens(first, last, None) * indexer.pair_flops
        return flops

    @property
    def _mamba_flops(self) -> int:
        """FLOPs of one token in all Mamba-2 layers, besides their matrices."""
        return 0 if self.mamba is None else self.mamba.layers * self.mamba.token_flops

    def _step_cache_bytes(self, first: int, steps: int, dtype: str) -> float:
        """Bytes of a request's cache and state that `steps` decode steps move, the first at context `first`."""
        last, indexer = first + steps - 1, self.attention.indexer
        values = sum(
            layers * (window or attention).attended(first, last) * attention.cached_values
            for layers, attention, window in self.attentions
        )
        if indexer is not None:
            values += indexer.layers * attended_tokens(first, last, None) * indexer.head_dim
        return values * cache_bytes(dtype) + steps * (self.kv_bytes_per_token(dtype) + 2 * self.state_bytes)

    def _decode_flops(self, first: int, last: int, *, absorbed: bool) -> int:
        steps = max(0, last - first + 1)
        flops = 2 * (self.matmul_parameters + self.vocabulary * self.hidden) * steps
        flops += self._attention_flops(first, last, absorbed=absorbed) + self._mamba_flops * steps
        if not absorbed:
            earlier = attended_tokens(first, last, None) - steps
            flops += 2 * self.attention_layers * self.attention.expansion_parameters * earlier
        return flops


def _bytes(shared: float, routed: float, wide: float, dtype: str) -> float:
    # Embeddings, output head and encoders stay wide where matrices are narrow: vLLM, and the checkpoints of the hub.
    return shared * _shared_bytes(dtype) + routed * dtype_bytes(dtype) + wide * cache_bytes(dtype)


def with_checkpoint(shape: ModelShape, **changes: Any) -> ModelShape:
    """`shape` with other fields of its checkpoint."""
    return replace(shape, checkpoint=replace(shape.checkpoint, **changes))
