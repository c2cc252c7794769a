"""Mamba-2 layers of a hybrid model: parameters, FLOPs, and a state that does not grow. Standard library only.

Layout and names: Dao and Gu 2024, "Transformers are SSMs", arXiv 2405.21060, section 7, as Nemotron-H builds it
(arXiv 2504.03624; NemotronHMamba2Mixer in transformers):

    hidden ─▶ in: gate, x, B, C, Δ ─▶ convolution over x, B, C ─▶ state ─▶ norm × gate ─▶ out ─▶ hidden
"""

from __future__ import annotations

from dataclasses import dataclass

CONVOLUTION_BYTES = 2.0
"""Bytes of a value in the convolution's window, which vLLM keeps in the model's dtype (`mamba_cache_dtype` auto)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MambaShape:
    """The Mamba-2 layers of a model; all are alike.

    Attributes:
        layers: How many layers are of this kind.
        heads: Heads of the state.
        head_dim: Width of a head.
        state: Width of the state of each of a head's values.
        groups: Groups that share B and C.
        kernel: Tokens that the convolution sees, the present one included.
        projection_bias: Whether the two projections have biases.
        convolution_bias: Whether the convolution has one.
        state_value_bytes: Bytes of a value of the state: 4 (float32) unless `mamba_ssm_cache_dtype` says otherwise
            (NemotronHConfig; vLLM since pull request 39032 of April 2026, before which it kept 16 bits unless told).
    """

    layers: int
    heads: int
    head_dim: int
    state: int
    groups: int
    kernel: int
    projection_bias: bool = False
    convolution_bias: bool = True
    state_value_bytes: float = 4.0

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
        return hidden * (self.inner + self.convolved + self.heads) + self.inner * hidden

    def other_parameters(self, hidden: int) -> int:
        """A layer's convolution, its norm, A, D and the bias of Δ of each head, and biases."""
        convolution = self.convolved * (self.kernel + self.convolution_bias)
        bias = (self.inner + self.convolved + self.heads + hidden) * self.projection_bias
        return convolution + self.inner + 3 * self.heads + bias

    @property
    def token_flops(self) -> int:
        """FLOPs of one token in one layer beside its matrices.

        Of each value of the state five: h ← a·h + (Δx)·B takes three, y = C·h two (arXiv 2405.21060, section 2.1), and
        two for each tap of the convolution. A prefill in chunks does more (section 6): at Nemotron Nano v2's chunks of
        128 tokens, a quarter more of what is 2 % of the layer.
        """
        return 5 * self.inner * self.state + 2 * self.kernel * self.convolved

    @property
    def state_bytes(self) -> float:
        """Bytes that one request keeps in all these layers, however long it is: states, and the convolution's window.

        A decode step reads and writes all of them.
        """
        window = (self.kernel - 1) * self.convolved * CONVOLUTION_BYTES
        return self.layers * (self.inner * self.state * self.state_value_bytes + window)
