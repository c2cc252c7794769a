"""The shape of a decoder-only transformer, and what follows from it: parameters, FLOPs, bytes. Standard library only.

FLOPs count a multiplication and an addition as two, in matrix products only (what PyTorch's FLOP counter counts; norms,
rotary embeddings, softmax and biases are left out: below 1 % for all shipped models). Bytes are of memory that must
move or stay, at `dtype`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from infergy.errors import UsageError

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
        raise UsageError.unknown("dtype", dtype, DTYPE_BYTES)
    return DTYPE_BYTES[dtype]


def attended_tokens(first: int, last: int, window: int | None) -> int:
    """Positions looked at by the tokens `first` to `last` (from 1) of a sequence: the sum of min(t, `window`)."""
    if last < first:
        return 0
    if window is None or last <= window:
        return (first + last) * (last - first + 1) // 2
    if first > window:
        return window * (last - first + 1)
    return attended_tokens(first, window, None) + window * (last - window)


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentAttention:
    """Ranks of multi-head latent attention (MLA; DeepSeek-V2, arXiv 2405.04434, section 2.1).

    Attributes:
        query_rank: Width of the compressed query; None if queries are projected at once.
        kv_rank: Width of the latent that is cached for keys and values together.
        rope_dim: Width of the one rotary key shared by all heads, cached beside it.
    """

    query_rank: int | None
    kv_rank: int
    rope_dim: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionShape:
    """Attention of one layer; the same in every layer but for the window.

    Attributes:
        heads: Query heads.
        kv_heads: Heads of keys and values (grouped-query attention); equal to `heads` under MLA.
        head_dim: Width of a query and of a key.
        value_dim: Width of a value; `head_dim` but under MLA.
        qkv_bias: Whether the projections of queries, keys and values have biases.
        output_bias: Whether the output projection has one.
        norm_parameters: Parameters of norms inside attention, a layer (on queries and keys, on MLA's latents).
        sinks: Whether each head has a learned sink (gpt-oss).
        window_tokens: Tokens that a sliding-window layer sees, itself included; None without such layers.
        window_layers: How many layers have that window.
        latent: Ranks of MLA; None for ordinary attention.
    """

    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    qkv_bias: bool = False
    output_bias: bool = False
    norm_parameters: int = 0
    sinks: bool = False
    window_tokens: int | None = None
    window_layers: int = 0
    latent: LatentAttention | None = None

    def matmul_parameters(self, hidden: int) -> int:
        """Entries of a layer's projection matrices."""
        queries, values = self.heads * self.head_dim, self.heads * self.value_dim
        if self.latent is None:
            return hidden * (queries + self.key_values) + values * hidden
        rank = self.latent.query_rank
        query = hidden * queries if rank is None else hidden * rank + rank * queries
        down = hidden * (self.latent.kv_rank + self.latent.rope_dim)
        return query + down + self.expansion_parameters + values * hidden

    @property
    def expansion_parameters(self) -> int:
        """Entries of the matrix that expands MLA's latent into keys and values; 0 for ordinary attention."""
        if self.latent is None:
            return 0
        return self.latent.kv_rank * self.heads * (self.head_dim - self.latent.rope_dim + self.value_dim)

    def other_parameters(self, hidden: int) -> int:
        """Biases, norms and sinks of a layer's attention."""
        bias = self.heads * self.head_dim + self.key_values if self.qkv_bias else 0
        return bias + hidden * self.output_bias + self.norm_parameters + self.heads * self.sinks

    @property
    def key_values(self) -> int:
        """Values in one token's keys and values, in one layer."""
        return self.kv_heads * (self.head_dim + self.value_dim)

    @property
    def cached_values(self) -> int:
        """Values that one token leaves in a layer's KV cache: its keys and values, under MLA the latent."""
        return self.key_values if self.latent is None else self.latent.kv_rank + self.latent.rope_dim

    def pair_flops(self, *, absorbed: bool = False) -> int:
        """FLOPs of one token looking at one position in one layer: scores, and the weighted sum of values.

        `absorbed`: MLA on the cached latents themselves, as serving engines decode (arXiv 2405.04434, section 2.1.2).
        """
        if self.latent is not None and absorbed:
            return 2 * self.heads * (2 * self.latent.kv_rank + self.latent.rope_dim)
        return 2 * self.heads * (self.head_dim + self.value_dim)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertShape:
    """A mixture of experts that stands in place of the MLP.

    Attributes:
        experts: Routed experts of a layer.
        experts_per_token: How many of them a token visits.
        intermediate: Width inside one expert.
        shared_intermediate: Width of the experts that every token visits, together; 0 without.
        layers: Layers that have experts; the others have the dense MLP.
        bias: Whether experts and router have biases (gpt-oss).
        router_parameters: Of a layer's router beside its matrix: biases and corrections.
    """

    experts: int
    experts_per_token: int
    intermediate: int
    shared_intermediate: int
    layers: int
    bias: bool = False
    router_parameters: int = 0

    def expert_matmul(self, hidden: int) -> int:
        """Entries of one expert's three matrices."""
        return 3 * hidden * self.intermediate

    def expert_parameters(self, hidden: int) -> int:
        """All parameters of one expert."""
        return self.expert_matmul(hidden) + (2 * self.intermediate + hidden) * self.bias

    def fixed_matmul(self, hidden: int) -> int:
        """Entries of what every token visits in a layer: the router and the shared experts."""
        return hidden * self.experts + 3 * hidden * self.shared_intermediate

    def expected_coverage(self, batch: int) -> float:
        """Expected share of the experts that `batch` tokens visit: 1 − (1 − k/E)^B, were routing uniform."""
        return float(1.0 - (1.0 - self.experts_per_token / self.experts) ** batch)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """The shape of a decoder-only transformer.

    Attributes:
        name: As the caller calls it.
        architecture: `model_type` of its configuration.
        layers: Transformer layers.
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
        vision_parameters: Of an image encoder that is loaded, but idle for text.
        checkpoint_dtype: Format of the published weights; None if the configuration does not tell.
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
    checkpoint_dtype: str | None = None

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
    def parameters(self) -> int:
        """All parameters, as the published checkpoint counts them."""
        embeddings = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return embeddings + self._layer_parameters + self._routed_parameters + self.vision_parameters

    @property
    def active_parameters(self) -> int:
        """Parameters less the experts that one token does not visit (embeddings counted, image encoder not)."""
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
        return self._bytes(self.parameters - self._routed_parameters, self._routed_parameters, dtype)

    def step_weight_bytes(self, batch: int, dtype: str = "bfloat16") -> float:
        """Bytes of weights that one decode step of `batch` requests reads (or one forward of `batch` tokens).

        All layers and the output head once, of the routed experts the expected share that is visited, and of the
        embedding table a row for each token.
        """
        head = self.vocabulary * self.hidden
        covered = 0.0 if self.experts is None else self.experts.expected_coverage(batch) * self._routed_parameters
        return self._bytes(self._layer_parameters + head + batch * self.hidden, covered, dtype)

    def kv_bytes_per_token(self, dtype: str = "bfloat16") -> float:
        """Bytes that a token adds to the KV cache while no window is full; under MLA the latents are kept."""
        return self.layers * self.attention.cached_values * _cache_bytes(dtype)

    def kv_bytes(self, context_tokens: int, dtype: str = "bfloat16") -> float:
        """Bytes of KV cache of one request with `context_tokens`; a sliding window keeps no more than itself."""
        return self._seen(context_tokens, context_tokens) * self.attention.cached_values * _cache_bytes(dtype)

    def prefill_flops(self, input_tokens: int, *, causal: bool = True) -> int:
        """FLOPs of one prompt: 2 × matrices × tokens, attention, and the output head on the last position.

        `causal` counts each token's look at itself and those before it (inside its window): the work that is needed,
        and that flash kernels do but for the diagonal blocks. Not causal counts the full square in every layer, as
        kernels with a mask do and as PyTorch's FLOP counter and profilers assume.
        """
        pairs = self._seen(1, input_tokens) if causal else self.layers * input_tokens**2
        matmul = self.matmul_parameters * input_tokens + self.vocabulary * self.hidden
        return 2 * matmul + self.attention.pair_flops() * pairs

    def decode_flops(self, context_tokens: int, *, absorbed: bool = True) -> int:
        """FLOPs of one output token that sees `context_tokens`, itself included.

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

    def step_bytes(self, batch: int, context_tokens: int, dtype: str = "bfloat16") -> float:
        """Bytes that a decode step moves: weights and KV cache read, one token a request written."""
        cache = self.kv_bytes(context_tokens, dtype) + self.kv_bytes_per_token(dtype)
        return self.step_weight_bytes(batch, dtype) + batch * cache

    def output_bytes(self, input_tokens: int, output_tokens: int, batch: int, dtype: str = "bfloat16") -> float:
        """Bytes that all decode steps of `batch` equal requests move: the sum of `step_bytes`."""
        steps = output_tokens - 1
        read = self._seen(input_tokens + 1, input_tokens + steps) * self.attention.cached_values
        cache = read * _cache_bytes(dtype) + steps * self.kv_bytes_per_token(dtype)
        return steps * self.step_weight_bytes(batch, dtype) + batch * cache

    @property
    def _fixed_matmul(self) -> int:
        """Entries of the matrices that every token is multiplied with, over all layers."""
        sparse = 0 if self.experts is None else self.experts.layers
        dense = (3 if self.gated else 2) * self.hidden * self.intermediate * (self.layers - sparse)
        routed = 0 if self.experts is None else sparse * self.experts.fixed_matmul(self.hidden)
        return self.layers * self.attention.matmul_parameters(self.hidden) + dense + routed

    @property
    def _layer_parameters(self) -> int:
        """All but embeddings, head matrix, image encoder and routed experts."""
        norms = (self.layers * self.norms + 1) * self.norm_parameters
        others = self.layers * self.attention.other_parameters(self.hidden) + self.vocabulary * self.head_bias
        if self.experts is not None:
            others += self.experts.layers * self.experts.router_parameters
        if self.mlp_bias:
            sparse = 0 if self.experts is None else self.experts.layers
            others += (self.layers - sparse) * ((2 if self.gated else 1) * self.intermediate + self.hidden)
        return self._fixed_matmul + norms + others

    @property
    def _routed_parameters(self) -> int:
        if self.experts is None:
            return 0
        return self.experts.layers * self.experts.experts * self.experts.expert_parameters(self.hidden)

    def _seen(self, first: int, last: int) -> int:
        """Positions that the tokens `first` to `last` look at, over all layers."""
        windowed = self.attention.window_layers
        full = attended_tokens(first, last, None) * (self.layers - windowed)
        return full + attended_tokens(first, last, self.attention.window_tokens) * windowed

    def _decode_flops(self, first: int, last: int, *, absorbed: bool) -> int:
        steps = max(0, last - first + 1)
        flops = 2 * (self.matmul_parameters + self.vocabulary * self.hidden) * steps
        flops += self.attention.pair_flops(absorbed=absorbed) * self._seen(first, last)
        if not absorbed:
            earlier = attended_tokens(first, last, None) - steps
            flops += 2 * self.layers * self.attention.expansion_parameters * earlier
        return flops

    def _bytes(self, shared: float, routed: float, dtype: str) -> float:
        return shared * _shared_bytes(dtype) + routed * dtype_bytes(dtype)


def _cache_bytes(dtype: str) -> float:
    """Bytes of a value in the KV cache, which serving engines keep in bfloat16 unless told otherwise."""
    return max(dtype_bytes("bfloat16"), _shared_bytes(dtype))


def _shared_bytes(dtype: str) -> float:
    """Bytes of a value outside the experts."""
    return dtype_bytes("bfloat16" if dtype in EXPERTS_ONLY else dtype)
