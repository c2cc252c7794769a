"""Kinds of layers: widths, and what follows from them: parameters, FLOPs, cached values. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass

CONVOLUTION_BYTES = 2.0
"""Bytes of a value in a convolution's window, which vLLM keeps in the model's dtype (`mamba_cache_dtype` auto)."""


def attended_tokens(first: int, last: int, window: int | None) -> int:
    """Positions seen by the tokens `first` to `last` (from 1) of a sequence: the sum of min(t, `window`)."""
    if last < first:
        return 0
    if window is None or last <= window:
        return (first + last) * (last - first + 1) // 2
    if first > window:
        return window * (last - first + 1)
    return attended_tokens(first, window, None) + window * (last - window)


def chunked_tokens(first: int, last: int, chunk: int) -> int:
    """As `attended_tokens`, where each token sees its own chunk only: the sum of (t − 1) mod `chunk` + 1."""

    def upto(token: int) -> int:
        whole, rest = divmod(token, chunk)
        return whole * chunk * (chunk + 1) // 2 + rest * (rest + 1) // 2

    return upto(last) - upto(first - 1) if first <= last else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentAttention:
    """Ranks of multi-head latent attention (MLA; DeepSeek-V2, arXiv 2405.04434, section 2.1).

    Attributes:
        query_rank: Width of the compressed query; None if queries are not compressed.
        kv_rank: Width of the latent that is cached for keys and values together.
        rope_dim: Width of the rotary key shared by all heads, cached with the latent.
    """

    query_rank: int | None
    kv_rank: int
    rope_dim: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """The layers that see the last tokens only.

    Attributes:
        tokens: How many they see, the token itself included.
        layers: How many such layers there are.
        chunked: Whether the window is a chunk (Llama 4): it starts again at each multiple of its length.
        attention: The attention of these layers; None where it is that of the others.
    """

    tokens: int
    layers: int
    chunked: bool = False
    attention: AttentionShape | None = None

    def attended(self, first: int, last: int) -> int:
        """Positions that the tokens `first` to `last` see, in one layer."""
        return (chunked_tokens if self.chunked else attended_tokens)(first, last, self.tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Indexer:
    """Chooses the positions that latent attention sees (DeepSeek Sparse Attention; arXiv 2512.02556, section 2.1).

    Attributes:
        layers: Layers that choose; the others take the choice of the layer before.
        heads: Heads of the scores.
        head_dim: Width of a head, and of the one key that is cached.
        query_rank: Width of the compressed query that it starts from.
        tokens: Positions that are chosen, at most.
    """

    layers: int
    heads: int
    head_dim: int
    query_rank: int
    tokens: int

    def matmul_parameters(self, hidden: int) -> int:
        """Entries of a layer's matrices: queries, the key, a weight for each head."""
        return self.query_rank * self.heads * self.head_dim + hidden * (self.head_dim + self.heads)

    def other_parameters(self, _hidden: int) -> int:
        """A layer's norm of the key."""
        return 2 * self.head_dim

    @property
    def pair_flops(self) -> int:
        """FLOPs of the scores of one position in one layer."""
        return 2 * self.heads * self.head_dim


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionShape:
    """Attention of one layer; the same in every layer that has attention unless its window says otherwise.

    Attributes:
        heads: Query heads.
        kv_heads: Heads of keys and values (grouped-query attention); equal to `heads` under MLA.
        head_dim: Width of a query and of a key.
        value_dim: Width of a value; `head_dim` except under MLA.
        vector_parameters: Of norms inside attention (on queries and keys, on MLA's latents) and sinks, per layer.
        gate_width: Width of a gate on the output; 0 without.
        values_are_keys: Whether values are the keys before their norm (Gemma 4), and have no matrix.
        window: Layers that have a sliding window; None without such layers.
        latent: Ranks of MLA; None for ordinary attention.
        indexer: What chooses the positions that MLA sees; None where it sees all.
    """

    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    qkv_bias: bool = False
    output_bias: bool = False
    vector_parameters: int = 0
    gate_width: int = 0
    values_are_keys: bool = False
    window: Window | None = None
    latent: LatentAttention | None = None
    indexer: Indexer | None = None

    def matmul_parameters(self, hidden: int) -> int:
        """Entries of a layer's projection matrices."""
        queries, values = self.heads * self.head_dim, self.heads * self.value_dim
        if self.latent is None:
            keys = self.kv_heads * self.head_dim if self.values_are_keys else self.key_values
            return hidden * (queries + keys + self.gate_width) + values * hidden
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
        return bias + hidden * self.output_bias + self.vector_parameters

    @property
    def key_values(self) -> int:
        """Values in one token's keys and values, in one layer."""
        return self.kv_heads * (self.head_dim + self.value_dim)

    @property
    def cached_values(self) -> int:
        """Values that one token adds to a layer's KV cache: its keys and values, under MLA the latent."""
        return self.key_values if self.latent is None else self.latent.kv_rank + self.latent.rope_dim

    @property
    def cached_heads(self) -> int:
        """Parts of a token's cache in a layer that GPUs can divide: heads of keys and values, under MLA one latent."""
        return self.kv_heads if self.latent is None else 1

    def pair_flops(self, *, absorbed: bool = False) -> int:
        """FLOPs of one token attending to one position in one layer: scores, and the weighted sum of values.

        `absorbed`: MLA on the cached latents themselves, as serving engines decode (arXiv 2405.04434, section 2.1.2).
        """
        if self.latent is not None and absorbed:
            return 2 * self.heads * (2 * self.latent.kv_rank + self.latent.rope_dim)
        return 2 * self.heads * (self.head_dim + self.value_dim)

    def attended(self, first: int, last: int) -> int:
        """Positions that the tokens `first` to `last` see, in one layer without a window."""
        return attended_tokens(first, last, None if self.indexer is None else self.indexer.tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class MlpShape:
    """The dense MLP: its width, how many layers have one, whether it has a gate (three matrices) or not (two)."""

    intermediate: int
    layers: int
    gated: bool = True
    bias: bool = False

    def matmul_parameters(self, hidden: int) -> int:
        """Entries of a layer's matrices."""
        return (3 if self.gated else 2) * hidden * self.intermediate

    def other_parameters(self, hidden: int) -> int:
        """Biases of a layer."""
        return ((2 if self.gated else 1) * self.intermediate + hidden) * self.bias


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertShape:
    """A mixture of experts in place of the MLP.

    Attributes:
        experts: Routed experts of a layer.
        experts_per_token: How many of them a token visits.
        intermediate: Width inside one expert.
        layers: Layers that have experts; the others have the dense MLP.
        shared_intermediate: Width of the experts that every token visits, together; 0 without.
        gated: Whether an expert has a gate (three matrices) or not (two).
        bias: Whether experts and router have biases (gpt-oss).
        router_parameters: Of a layer's router besides its matrix: biases and corrections, a gate on shared experts.
        latent: Width of what routed experts take and give, between two matrices (Nemotron 3); None: the model's.
    """

    experts: int
    experts_per_token: int
    intermediate: int
    layers: int
    shared_intermediate: int = 0
    gated: bool = True
    bias: bool = False
    router_parameters: int = 0
    latent: int | None = None

    def expert_matmul(self, hidden: int) -> int:
        """Entries of one expert's matrices."""
        return (3 if self.gated else 2) * (self.latent or hidden) * self.intermediate

    def expert_parameters(self, hidden: int) -> int:
        """All parameters of one expert."""
        return self.expert_matmul(hidden) + (2 * self.intermediate + hidden) * self.bias

    def matmul_parameters(self, hidden: int) -> int:
        """Entries of what every token visits in a layer: router, shared experts, the way into a latent and back."""
        shared = (3 if self.gated else 2) * hidden * self.shared_intermediate
        return hidden * self.experts + shared + 2 * hidden * (self.latent or 0)

    def other_parameters(self, _hidden: int) -> int:
        """Biases and corrections of a layer's router."""
        return self.router_parameters

    def expected_coverage(self, batch: int) -> float:
        """Expected share of the experts that `batch` tokens visit under uniform routing: 1 − (1 − k/E)^B."""
        return float(1.0 - (1.0 - self.experts_per_token / self.experts) ** batch)


@dataclass(frozen=True, slots=True, kw_only=True)
class MambaShape:
    """The Mamba-2 layers of a hybrid model, or its Gated DeltaNet layers (arXiv 2412.06464), as Qwen3-Next has them.

    Layout and names: Dao and Gu 2024, arXiv 2405.21060, section 7, as Nemotron-H builds it (arXiv 2504.03624):

        hidden ─▶ in: gate, x, B, C, Δ ─▶ convolution over x, B, C ─▶ state ─▶ norm × gate ─▶ out ─▶ hidden

    Attributes:
        layers: How many layers are of this kind.
        heads: Heads of the state; of the values of a DeltaNet.
        head_dim: Width of a head.
        state: Width of the state of each of a head's values; of a DeltaNet's keys.
        groups: Groups that share B and C; a DeltaNet's heads of keys.
        kernel: Tokens that the convolution sees, the current one included.
        projection_bias: Whether the two projections have biases.
        convolution_bias: Whether the convolution has one.
        state_value_bytes: Bytes of a value of the state: 4 (float32) unless `mamba_ssm_cache_dtype` says otherwise
            (NemotronHConfig; vLLM since pull request 39032 of April 2026, which before kept 16 bits by default).
        delta: Whether it is a Gated DeltaNet: B, C and x are keys, queries and values, and each head has two gates.
    """

    layers: int
    heads: int
    head_dim: int
    state: int
    groups: int
    kernel: int = 4
    projection_bias: bool = False
    convolution_bias: bool = True
    state_value_bytes: float = 4.0
    delta: bool = False

    @property
    def inner(self) -> int:
        """Width between the two projections."""
        return self.heads * self.head_dim

    @property
    def convolved(self) -> int:
        """Values of a token that pass the convolution: x, and B and C of each group."""
        return self.inner + 2 * self.groups * self.state

    def matmul_parameters(self, hidden: int) -> int:
        """Entries of a layer's two projections."""
        return hidden * (self.inner + self.convolved + self.heads * (1 + self.delta)) + self.inner * hidden

    def other_parameters(self, hidden: int) -> int:
        """A layer's convolution, its norm, A, D and the bias of Δ of each head, and biases; a DeltaNet has no D."""
        convolution = self.convolved * (self.kernel + self.convolution_bias)
        if self.delta:
            return convolution + self.head_dim + 2 * self.heads
        bias = (self.inner + self.convolved + self.heads + hidden) * self.projection_bias
        return convolution + self.inner + 3 * self.heads + bias

    @property
    def token_flops(self) -> int:
        """FLOPs of one token in one layer besides its matrices.

        Five per value of the state: h ← a·h + (Δx)·B takes three, y = C·h two (arXiv 2405.21060, section 2.1), and
        two per tap of the convolution; seven of a DeltaNet: h ← a·h + β·(x − C·(a·h))·C takes five. A prefill in chunks
        does more (section 6): at Nemotron Nano v2's chunks of 128 tokens, a quarter more of what is 2 % of the layer.
        """
        return (7 if self.delta else 5) * self.inner * self.state + 2 * self.kernel * self.convolved

    @property
    def state_bytes(self) -> float:
        """Bytes of state and convolution window of one request in all these layers, whatever its length.

        A decode step reads and writes all of them.
        """
        window = (self.kernel - 1) * self.convolved * CONVOLUTION_BYTES
        return self.layers * (self.inner * self.state * self.state_value_bytes + window)
