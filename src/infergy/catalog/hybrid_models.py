"""Readers of hybrids, whose layers are attention or have a recurrent state, by family.

Docstrings name the family's class in transformers (5.x). Standard library only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from infergy.catalog.config_parts import FULL, Config, Reader, biased, make_attention, make_experts, make_shape
from infergy.catalog.layers import ExpertShape, MambaShape
from infergy.catalog.mixture_models import qwen_shared_experts
from infergy.catalog.shape import ModelShape, dtype_bytes
from infergy.errors import DataError

LINEAR = "linear_attention"
NEMOTRON_LAYERS = {"M": "Mamba-2", "*": "attention", "-": "MLP", "E": "experts"}
NEMOTRON_KINDS = {"mamba": "M", LINEAR: "M", "attention": "*", FULL: "*", "mlp": "-", "moe": "E"}
HYBRID_KINDS = {"mamba": LINEAR, LINEAR: LINEAR, "attention": FULL, FULL: FULL}


def _qwen_hybrid(config: Config) -> ModelShape:
    """Qwen3-Next and Qwen3.5: Gated DeltaNet, and each `full_attention_interval`-th layer (4) attention with a gate."""
    kinds = config.kinds({LINEAR: LINEAR, FULL: FULL})
    every = config.integer("full_attention_interval", 4)
    full = config.layers // every if kinds is None else kinds.count(FULL)
    attention = make_attention(config, default_dim=256, head_norms=True, **biased(config))
    mamba = MambaShape(
        layers=config.layers - full,
        heads=config.integer("linear_num_value_heads"),
        head_dim=config.integer("linear_value_head_dim"),
        state=config.integer("linear_key_head_dim"),
        groups=config.integer("linear_num_key_heads"),
        kernel=config.integer("linear_conv_kernel_dim", 4),
        convolution_bias=False,
        state_value_bytes=dtype_bytes(str(config.data.get("mamba_ssm_dtype", "float32"))),
        delta=True,
    )
    experts = None if config.get("num_experts") is None else qwen_shared_experts(config)
    return make_shape(
        config,
        dataclasses.replace(attention, gate_width=attention.heads * attention.head_dim),
        attention_layers=full,
        mlp_width=0 if experts is not None and experts.layers == config.layers else None,
        experts=experts,
        mamba=mamba,
    )


def _granite_hybrid(config: Config) -> ModelShape:
    """Granite 4: Mamba-2 or attention, then an MLP (`shared_intermediate_size`), and experts if there are any."""
    kinds = config.kinds(HYBRID_KINDS) or [LINEAR] * config.layers
    heads, inner = (
        config.integer("mamba_n_heads", 128),
        config.integer("mamba_expand", 2) * config.integer("hidden_size"),
    )
    given = config.data.get("mamba_d_head")
    experts = None
    if config.integer("num_local_experts", 8, least=0):
        experts = make_experts(config, "num_local_experts", width="intermediate_size")
    return make_shape(
        config,
        make_attention(config, **biased(config)),
        attention_layers=kinds.count(FULL),
        mlp_width=config.integer("shared_intermediate_size", 1024),
        mlp_layers=config.layers,
        experts=experts,
        mamba=MambaShape(
            layers=kinds.count(LINEAR),
            heads=heads,
            head_dim=inner // heads if given in (None, "auto") else config.integer("mamba_d_head"),
            state=config.integer("mamba_d_state", 256),
            groups=config.integer("mamba_n_groups", 1),
            kernel=config.integer("mamba_d_conv", 4),
            projection_bias=config.flag("mamba_proj_bias"),
            convolution_bias=config.flag("mamba_conv_bias", True),
        )
        if LINEAR in kinds
        else None,
    )


def _nemotron_h(config: Config) -> ModelShape:
    """Each layer is one of four kinds with one norm; its MLPs and experts have no gate (squared ReLU).

    NemotronHConfig: no biases except the convolution's; heads of 128; states in float32.
    """
    kinds, pattern = config.kinds(NEMOTRON_KINDS), config.data.get("hybrid_override_pattern")
    pattern = pattern if kinds is None else "".join(kinds)
    if not isinstance(pattern, str) or len(pattern) != config.layers or not set(pattern) <= set(NEMOTRON_LAYERS):
        names = ", ".join(f"{sign} ({kind})" for sign, kind in NEMOTRON_LAYERS.items())
        expected = f"a sign per layer ({config.layers}): {names}"
        raise DataError.bad_field(config.name, "hybrid_override_pattern", pattern, expected)
    mamba = MambaShape(
        layers=pattern.count("M"),
        heads=config.integer("mamba_num_heads"),
        head_dim=config.integer("mamba_head_dim"),
        state=config.integer("ssm_state_size"),
        groups=config.integer("n_groups"),
        kernel=config.integer("conv_kernel", 4),
        projection_bias=config.flag("use_bias"),
        convolution_bias=config.flag("use_conv_bias", True),
        state_value_bytes=dtype_bytes(str(config.data.get("mamba_ssm_cache_dtype", "float32"))),
    )
    return make_shape(
        config,
        make_attention(config, default_dim=128, **biased(config)),
        experts=_nemotron_experts(config, pattern.count("E")) if "E" in pattern else None,
        gated=False,
        mlp_bias=config.flag("mlp_bias"),
        norms=1,
        attention_layers=pattern.count("*"),
        mlp_width=None if "-" in pattern else 0,
        mlp_layers=pattern.count("-"),
        mamba=mamba,
    )


def _nemotron_experts(config: Config, layers: int) -> ExpertShape:
    has_shared = config.integer("n_shared_experts", least=0) > 0
    return make_experts(
        config,
        "n_routed_experts",
        layers=layers,
        shared_intermediate=config.integer("moe_shared_expert_intermediate_size") if has_shared else 0,
        gated=False,
        router_parameters=config.integer("n_routed_experts"),
        latent=None if config.data.get("moe_latent_size") is None else config.integer("moe_latent_size"),
    )


HYBRIDS: Mapping[str, Reader] = {
    "granitemoehybrid": _granite_hybrid,
    "nemotron_h": _nemotron_h,
    "qwen3_5_moe_text": _qwen_hybrid,
    "qwen3_5_text": _qwen_hybrid,
    "qwen3_next": _qwen_hybrid,
}
"""Readers by `model_type`."""
