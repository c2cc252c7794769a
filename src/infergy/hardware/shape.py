"""The shape of a decoder-only transformer or hybrid, and what follows: parameters, FLOPs, bytes. Standard library only.

FLOPs count a multiplication and an addition as two, in matrix products only (what PyTorch's FLOP counter counts; norms,
rotary embeddings, softmax and biases are left out: below 1 % for all shipped models). Bytes are of memory that must
move or stay, at `dtype`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from infergy.errors import UsageError
from infergy.hardware.layers import AttentionShape, ExpertShape, attended_tokens, chunked_tokens
from infergy.hardware.mamba import MambaShape

DTYPE_BYTES: Mapping[str, float] = {
    "float32": 4.0,
    "bfloat16": 2.0,
    "float16": 2.0,
    "fp8": 1.0,
    "int8": 1.0,
    "mxfp4": 4.25 / 8,
}
"""Bytes a value. mxfp4: 4 bits, and 8 shared by 32 values as their scale (OCP Microscaling Formats 1.0, section 5)."""

EXPERTS_ONLY = frozenset({"mxfp4"})
"""Formats in which checkpoints keep the experts' matrices alone; all else stays bfloat16 (gpt-oss model card)."""


def dtype_bytes(dtype: str) -> float:
    """Bytes of one value.

    Raises:
        UsageError: `dtype` is not in `DTYPE_BYTES`.
    """
    if dtype not in DTYPE_BYTES:
        raise UsageError.unknown("dtype", dtype, DTYPE_BYTES, code="unknown-name")
    return DTYPE_BYTES[dtype]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """The shape of a decoder-only transformer, or of a hybrid whose layers are each attention, Mamba-2 or an MLP.

    Attributes:
        name: As the caller calls it.
        architecture: `model_type` of its configuration.
        layers: Layers; of a hybrid those of all kinds together.
        hidden: Width of the residual stream.
        intermediate: Width inside the dense MLP; 0 if every layer has experts.
        vocabulary: Rows of the embedding table, padding included.
        tied: Whether the output head is the embedding table.
        attention: Attention of a layer.
        experts: The mixture of experts; None for a dense model.
        gated: Whether the MLP has a gate (three matrices) or not (two).
        mlp_bias: Whether the dense MLP has biases.
        norms: Norms of the residual stream in a layer.
        norm_parameters: Parameters of one such norm; 0 where it has none (OLMo).
        head_bias: Whether the output head has a bias.
        vision_parameters: Of encoders of images and sound that are loaded, but idle for text.
        attention_layers: Layers with attention; None: all.
        mlp_layers: Layers with the dense MLP; None: all that have no experts.
        mamba: Its Mamba-2 layers; None without.
        checkpoint_dtype: Format of the published weights; None if the configuration does not tell.
        scaled_in_blocks: Whether fp8 weights are published with a scale for each block of a matrix (128 × 128, as
            DeepSeek-V3's: arXiv 2412.19437, section 3.3.2), not for a row or the whole.
    """

    name: str
    architecture: str
    layers: int
    hidden: int
    intermediate: int
    vocabulary: int
    tied: bool
    attention: AttentionShape
    experts: ExpertShape | None = None
    gated: bool = True
    mlp_bias: bool = False
    norms: int = 2
    norm_parameters: int = 0
    head_bias: bool = False
    vision_parameters: int = 0
    attention_layers: int | None = None
    mlp_layers: int | None = None
    mamba: MambaShape | None = None
    checkpoint_dtype: str | None = None
    scaled_in_blocks: bool = False

    @classmethod
    def from_config(cls, config: Mapping[str, Any], *, name: str) -> ModelShape:
        """The shape that a Hugging Face `config.json` describes; `name` stands in error messages.

        Raises:
            UsageError: Its architecture is not known.
            DataError: A key is missing or has no usable value.
        """
        # The readers need this module's nouns, so they cannot be imported above.
        from infergy.hardware.configs import read_shape

        return read_shape(config, name=name)

    @property
    def attending_layers(self) -> int:
        """Layers with attention."""
        return self.layers if self.attention_layers is None else self.attention_layers

    @property
    def dense_layers(self) -> int:
        """Layers with the dense MLP."""
        if self.mlp_layers is not None:
            return self.mlp_layers
        return self.layers - (0 if self.experts is None else self.experts.layers)

    @property
    def state_bytes(self) -> float:
        """Bytes that a request keeps beside its KV cache, however long it is: the state of its Mamba-2 layers."""
        return 0.0 if self.mamba is None else self.mamba.state_bytes

    @property
    def parameters(self) -> int:
        """All parameters, as the published checkpoint counts them."""
        embeddings = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return embeddings + self._layer_parameters + self._routed_parameters + self.vision_parameters

    @property
    def active_parameters(self) -> int:
        """Parameters less the experts that one token does not visit (embeddings counted, encoders not)."""
        unvisited = 0
        if self.experts is not None:
            idle = self.experts.experts - self.experts.experts_per_token
            unvisited = self.experts.layers * idle * self.experts.expert_parameters(self.hidden)
        return self.parameters - self.vision_parameters - unvisited

    @property
    def matmul_parameters(self) -> int:
        """Entries of the matrices that one token is multiplied with, over all layers; the output head not counted."""
        experts = self.experts
        routed = 0
        if experts is not None:
            routed = experts.layers * experts.experts_per_token * experts.expert_matmul(self.hidden)
        return self._fixed_matmul + routed

    def weight_bytes(self, dtype: str = "bfloat16") -> float:
        """Bytes of all parameters at `dtype`."""
        tables = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return self._bytes(self.parameters - self._routed_parameters - tables, self._routed_parameters, tables, dtype)

    def step_weight_bytes(self, batch: int, dtype: str = "bfloat16") -> float:
        """Bytes of weights that one decode step of `batch` requests reads (or one forward of `batch` tokens).

        All layers and the output head once, of the routed experts the expected share that is visited, and of the
        embedding table a row for each token.
        """
        head = self.vocabulary * self.hidden
        covered = 0.0 if self.experts is None else self.experts.expected_coverage(batch) * self._routed_parameters
        return self._bytes(self._layer_parameters, covered, head + batch * self.hidden, dtype)

    def routed_bytes(self, dtype: str = "bfloat16") -> float:
        """Bytes of all routed experts; 0 for a dense model."""
        return self._routed_parameters * dtype_bytes(dtype)

    def kv_bytes_per_token(self, dtype: str = "bfloat16") -> float:
        """Bytes that a token adds to the KV cache while no window is full; under MLA the latents are kept."""
        return self.attending_layers * self.attention.cached_values * cache_bytes(dtype)

    def kv_bytes(self, context_tokens: int, dtype: str = "bfloat16") -> float:
        """Bytes of KV cache of one request with `context_tokens`; a sliding window keeps no more than itself.

        Of a chunk that has just begun less is read than this: what the longest chunk so far took stays counted.
        """
        windowed, window = self.attention.window_layers, self.attention.window_tokens
        kept = (self.attending_layers - windowed) * context_tokens
        kept += windowed * (context_tokens if window is None else min(context_tokens, window))
        return kept * self.attention.cached_values * cache_bytes(dtype)

    def prefill_flops(self, input_tokens: int, *, causal: bool = True) -> int:
        """FLOPs of one prompt: 2 × matrices × tokens, attention, and the output head on the last position.

        `causal` counts each token's look at itself and those before it (inside its window): the work that is needed,
        and that flash kernels do but for the diagonal blocks. Not causal counts the full square in every layer, as
        kernels with a mask do and as PyTorch's FLOP counter and profilers assume.
        """
        pairs = self._seen(1, input_tokens) if causal else self.attending_layers * input_tokens**2
        matmul = self.matmul_parameters * input_tokens + self.vocabulary * self.hidden
        return 2 * matmul + self.attention.pair_flops() * pairs + self._mamba_flops * input_tokens

    def decode_flops(self, context_tokens: int, *, absorbed: bool = True) -> int:
        """FLOPs of one output token that sees `context_tokens`, itself included.

        `absorbed`: MLA attends to the cached latents themselves, as serving engines do; transformers expands all of
        them into keys and values again at each step. Without MLA there is no difference.
        """
        return self._decode_flops(context_tokens, context_tokens, absorbed=absorbed)

    def attention_flops(self, first: int, last: int, *, absorbed: bool = True) -> int:
        """FLOPs of scores and weighted sums alone, of the tokens `first` to `last` (from 1) of a sequence."""
        return self.attention.pair_flops(absorbed=absorbed) * self._seen(first, last)

    def output_flops(self, input_tokens: int, output_tokens: int, *, absorbed: bool = True) -> int:
        """FLOPs of all decode steps of a request: `output_tokens` − 1, since prefill yields the first."""
        return self._decode_flops(input_tokens + 1, input_tokens + output_tokens - 1, absorbed=absorbed)

    def request_flops(self, input_tokens: int, output_tokens: int, *, causal: bool = True) -> int:
        """FLOPs of a request: its prefill and all its decode steps."""
        return self.prefill_flops(input_tokens, causal=causal) + self.output_flops(input_tokens, output_tokens)

    def step_bytes(self, batch: int, context_tokens: int, dtype: str = "bfloat16") -> float:
        """Bytes that a decode step moves: weights and KV cache read, one token a request written; states both."""
        return self.step_weight_bytes(batch, dtype) + batch * self._step_cache_bytes(context_tokens, 1, dtype)

    def output_bytes(self, input_tokens: int, output_tokens: int, batch: int, dtype: str = "bfloat16") -> float:
        """Bytes that all decode steps of `batch` equal requests move: the sum of `step_bytes`."""
        steps = output_tokens - 1
        return steps * self.step_weight_bytes(batch, dtype) + batch * self._step_cache_bytes(
            input_tokens + 1, steps, dtype
        )

    @property
    def _fixed_matmul(self) -> int:
        """Entries of the matrices that every token is multiplied with, over all layers."""
        dense = (3 if self.gated else 2) * self.hidden * self.intermediate * self.dense_layers
        routed = 0 if self.experts is None else self.experts.layers * self.experts.fixed_matmul(self.hidden)
        mamba = 0 if self.mamba is None else self.mamba.layers * self.mamba.matmul_parameters(self.hidden)
        return self.attending_layers * self.attention.matmul_parameters(self.hidden) + dense + routed + mamba

    @property
    def _layer_parameters(self) -> int:
        """All but embeddings, head matrix, encoders and routed experts."""
        norms = (self.layers * self.norms + 1) * self.norm_parameters
        others = self.attending_layers * self.attention.other_parameters(self.hidden)
        others += self.vocabulary * self.head_bias
        if self.mamba is not None:
            others += self.mamba.layers * self.mamba.other_parameters(self.hidden)
        if self.experts is not None:
            others += self.experts.layers * self.experts.router_parameters
        if self.mlp_bias:
            others += self.dense_layers * ((2 if self.gated else 1) * self.intermediate + self.hidden)
        return self._fixed_matmul + norms + others

    @property
    def _routed_parameters(self) -> int:
        if self.experts is None:
            return 0
        return self.experts.layers * self.experts.experts * self.experts.expert_parameters(self.hidden)

    def _seen(self, first: int, last: int) -> int:
        """Positions that the tokens `first` to `last` look at, over all layers."""
        windowed, window = self.attention.window_layers, self.attention.window_tokens
        full = attended_tokens(first, last, None) * (self.attending_layers - windowed)
        if self.attention.chunked and window is not None:
            return full + chunked_tokens(first, last, window) * windowed
        return full + attended_tokens(first, last, window) * windowed

    @property
    def _mamba_flops(self) -> int:
        """FLOPs of one token in all Mamba-2 layers, beside their matrices."""
        return 0 if self.mamba is None else self.mamba.layers * self.mamba.token_flops

    def _step_cache_bytes(self, first: int, steps: int, dtype: str) -> float:
        """Bytes of a request's cache and state that `steps` decode steps move, the first at context `first`."""
        read = self._seen(first, first + steps - 1) * self.attention.cached_values * cache_bytes(dtype)
        return read + steps * (self.kv_bytes_per_token(dtype) + 2 * self.state_bytes)

    def _decode_flops(self, first: int, last: int, *, absorbed: bool) -> int:
        steps = max(0, last - first + 1)
        flops = 2 * (self.matmul_parameters + self.vocabulary * self.hidden) * steps
        flops += self.attention.pair_flops(absorbed=absorbed) * self._seen(first, last) + self._mamba_flops * steps
        if not absorbed:
            earlier = attended_tokens(first, last, None) - steps
            flops += 2 * self.attending_layers * self.attention.expansion_parameters * earlier
        return flops

    def _bytes(self, shared: float, routed: float, tables: float, dtype: str) -> float:
        # Embeddings and the output head stay wide where matrices are narrow: vLLM, and the FP8 checkpoints of the hub.
        return shared * _shared_bytes(dtype) + routed * dtype_bytes(dtype) + tables * cache_bytes(dtype)


def cache_bytes(dtype: str) -> float:
    """Bytes of a value in the KV cache, and in the tables of the vocabulary: bfloat16 unless the model is wider."""
    return max(dtype_bytes("bfloat16"), _shared_bytes(dtype))


def _shared_bytes(dtype: str) -> float:
    """Bytes of a value outside the experts."""
    return dtype_bytes("bfloat16" if dtype in EXPERTS_ONLY else dtype)
