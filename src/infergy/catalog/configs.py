"""Reads the shape of a model from its `config.json`, or from plain numbers.

What no reader knows can be described by hand (docs/models.md):

    layers = 32
    hidden = 4096
    heads = 32
    kv_heads = 8            # default: as many as heads
    head_dim = 128          # default: hidden / heads
    intermediate = 14336    # 0: no layer has a dense MLP
    vocabulary = 128256

    [experts]               # left out: a dense model
    count = 128
    per_token = 8
    intermediate = 768

Norms and biases have no keys there (below 0.1 % of the parameters): each layer is taken to have two norms.

Readers of multimodal models are here too: the text model, with the parameters of its encoders added. These are loaded,
but idle for text; docstrings name the class in transformers (5.x) that each count follows. Standard library only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from infergy.catalog.config_parts import LARGEST, Config, Reader
from infergy.catalog.hybrid_models import HYBRIDS
from infergy.catalog.layers import AttentionShape, ExpertShape, MambaShape, MlpShape, Window
from infergy.catalog.mixture_models import MIXTURES
from infergy.catalog.quantization import find_quantization, with_quantization
from infergy.catalog.shape import Checkpoint, ModelShape, with_checkpoint
from infergy.catalog.text_models import DENSE
from infergy.errors import DataError, UsageError

LLAMA4_VISION = {
    "hidden_size": 768,
    "intermediate_size": 5632,
    "num_hidden_layers": 34,
    "image_size": 448,
    "patch_size": 14,
    "projector_input_dim": 4096,
    "projector_output_dim": 4096,
    "vision_output_dim": 7680,
}
"""Llama4VisionConfig, where a configuration leaves it out."""
TEXT: Mapping[str, Reader] = {**DENSE, **MIXTURES, **HYBRIDS}
RADIO_H = {"width": 1280, "layers": 32, "inner": 5120}
"""ViT-H of C-RADIOv2-H (arXiv 2412.07679), whose dimensions are not in the configuration."""


def _multimodal(
    text_model: str,
    text_key: str = "text_config",
    missing: Mapping[str, int] | None = None,
    **encoders: Callable[[Config, int], int],
) -> Reader:
    """A reader of the text model under `text_key`, or beside the encoders where there is no such part.

    Its kind is what it names, else `text_model`; each of `encoders` counts the part of its name, if there is one,
    or else `missing`.
    """
    other = None if missing is None else Config(data=missing, name="")

    def read(config: Config) -> ModelShape:
        text = config.part(text_key)
        if text is None and "hidden_size" not in config.data:
            raise config.missing(text_key)
        kind = str((text or config).data.get("model_type"))
        shape = TEXT.get(kind, TEXT[text_model])(text or config)
        parts = ((count, config.part(key) or other) for key, count in encoders.items())
        return with_checkpoint(
            # Qwen has it outside of the text's configuration.
            dataclasses.replace(shape, name=config.name, tied=config.flag("tie_word_embeddings", shape.tied)),
            architecture=str(config.data.get("model_type")),
            encoder_parameters=sum(count(part, shape.hidden) for count, part in parts if part is not None),
            dtype=config.checkpoint_dtype or shape.checkpoint.dtype,
        )

    return read


def _read_qwen3_omni_moe(config: Config) -> ModelShape:
    """Qwen3OmniMoeThinkerForConditionalGeneration, which writes text: of Qwen3-Omni, vLLM loads the thinker only."""
    thinker = config.required_part("thinker_config")
    read = _multimodal("qwen3_moe", vision_config=_qwen3_vision, audio_config=_qwen3_audio)
    shape = read(thinker)
    dtype = config.checkpoint_dtype or shape.checkpoint.dtype
    shape = with_checkpoint(shape, architecture="qwen3_omni_moe", dtype=dtype)
    return dataclasses.replace(shape, name=config.name)


def _read_nemotron_vl(config: Config) -> ModelShape:
    """NVIDIA Nemotron Nano v2 VL: Nemotron-H with C-RADIOv2-H and a projector of two matrices."""
    shape = _multimodal("nemotron_h", "llm_config")(config)
    width = RADIO_H["width"]
    encoder = RADIO_H["layers"] * _block(width, RADIO_H["inner"])
    # Patches without a bias, and one position for each of the largest picture's.
    patch = config.integer("patch_size")
    positions = (config.required_part("vision_config").integer("max_resolution", 2048) // patch) ** 2
    encoder += width * 3 * patch**2 + width * positions
    merged, between = width * 4, config.integer("projector_hidden_size")
    projector = merged + merged * between + between * shape.hidden
    return with_checkpoint(shape, encoder_parameters=encoder + projector)


def _block(width: int, inner: int) -> int:
    """A transformer layer with biases: four projections, an MLP without a gate, two LayerNorms."""
    return 4 * (width * width + width) + 2 * width * inner + inner + width + 4 * width


def _siglip(vision: Config, text_hidden: int) -> int:
    """SiglipVisionModel without its pooling head, and Gemma 3's projector (one matrix, one norm)."""
    hidden, patch = vision.integer("hidden_size"), vision.integer("patch_size")
    embeddings = hidden * (3 * patch**2 + 1) + hidden * (vision.integer("image_size") // patch) ** 2
    layers = vision.layers * _block(hidden, vision.integer("intermediate_size"))
    return embeddings + layers + 2 * hidden + hidden * text_hidden + hidden


def _llama4_vision(vision: Config, text_hidden: int) -> int:
    """Llama4VisionModel (patches, class and positions; two more norms; adapter) and Llama4MultiModalProjector."""
    hidden, inner = vision.integer("hidden_size"), vision.integer("intermediate_size")
    patch = vision.integer("patch_size")
    embeddings = hidden * (3 * patch**2 + 1 + (vision.integer("image_size") // patch) ** 2 + 1) + 4 * hidden
    adapter = inner * vision.integer("projector_input_dim") + vision.integer("projector_output_dim") ** 2
    projector = vision.integer("vision_output_dim") * text_hidden
    return embeddings + vision.layers * _block(hidden, inner) + adapter + projector


def _pixtral(vision: Config, text_hidden: int) -> int:
    """PixtralVisionModel (no biases, gated MLPs) and Mistral3MultiModalProjector, which merges 2 × 2 patches."""
    hidden, inner = vision.integer("hidden_size"), vision.integer("intermediate_size")
    layer = 4 * hidden**2 + 3 * hidden * inner + 2 * hidden
    patches = hidden * 3 * vision.integer("patch_size") ** 2 + hidden
    projector = hidden + 4 * hidden**2 + hidden * text_hidden + text_hidden**2
    return patches + vision.layers * layer + projector


def _qwen3_vision(vision: Config, text_hidden: int, default_deepstack: tuple[int, ...] = (8, 16, 24)) -> int:
    """Qwen3VLVisionModel: patches of two frames, positions, and four mergers of 2 × 2 patches (three are DeepStack's).

    Qwen3VLVisionConfig: 2304 positions; DeepStack after three layers.
    """
    hidden, patch = vision.integer("hidden_size"), vision.integer("patch_size")
    merged = hidden * vision.integer("spatial_merge_size") ** 2
    embeddings = hidden * (3 * vision.integer("temporal_patch_size") * patch**2 + 1)
    embeddings += hidden * vision.integer("num_position_embeddings", 2304)
    merger = merged**2 + merged + merged * text_hidden + text_hidden
    deepstack = vision.listed("deepstack_visual_indexes", default_deepstack)
    layers = vision.integer("depth") * _block(hidden, vision.integer("intermediate_size"))
    return embeddings + layers + (merger + 2 * hidden) + len(deepstack) * (merger + 2 * merged)


def _qwen3_audio(audio: Config, text_hidden: int) -> int:
    """Qwen3OmniMoeAudioEncoder: three convolutions that halve, layers, and a projection."""
    hidden, channels = audio.integer("d_model"), audio.integer("downsample_hidden_size")
    bins = audio.integer("num_mel_bins")
    for _ in range(3):
        bins = (bins + 1) // 2
    convolutions = channels * (9 + 1) + 2 * channels * (9 * channels + 1) + channels * bins * hidden
    layers = audio.integer("encoder_layers") * _block(hidden, audio.integer("encoder_ffn_dim"))
    return convolutions + layers + 2 * hidden + hidden * hidden + hidden + hidden * text_hidden + text_hidden


def _qwen2_vision(vision: Config, text_hidden: int) -> int:
    """Qwen2VisionTransformerPretrainedModel: no bias on patches, a merger of 2 × 2 patches."""
    width = vision.integer("embed_dim", 1280)
    patches = width * 3 * vision.integer("temporal_patch_size", 2) * vision.integer("patch_size", 14) ** 2
    layers = vision.integer("depth", 32) * _block(width, vision.integer("mlp_ratio", 4) * width)
    merged = width * vision.integer("spatial_merge_size", 2) ** 2
    return patches + layers + 2 * width + merged**2 + merged + merged * text_hidden + text_hidden


def _qwen2_5_vision(vision: Config, text_hidden: int) -> int:
    """Qwen2_5_VisionTransformerPretrainedModel: gated MLPs with biases, RMS norms."""
    width, inner = vision.integer("hidden_size", 1280), vision.integer("intermediate_size", 3420)
    patches = width * 3 * vision.integer("temporal_patch_size", 2) * vision.integer("patch_size", 14) ** 2
    block = 4 * (width**2 + width) + 3 * width * inner + 2 * inner + width + 2 * width
    merged = width * vision.integer("spatial_merge_size", 2) ** 2
    merger = width + merged**2 + merged + merged * text_hidden + text_hidden
    return patches + vision.integer("depth", 32) * block + merger


def _gemma4_vision(vision: Config, text_hidden: int) -> int:
    """Gemma4VisionModel (gated MLPs, four norms and two on heads, no biases) and a projection."""
    width, heads = vision.integer("hidden_size"), vision.integer("num_attention_heads")
    dim = vision.integer("head_dim", 64)
    values = heads + vision.integer("num_key_value_heads", heads)
    block = 2 * width * dim * values + 3 * width * vision.integer("intermediate_size") + 4 * width + 2 * dim
    patches = width * 3 * vision.integer("patch_size", 16) ** 2
    positions = 2 * width * vision.integer("position_embedding_size", 10_240)
    return patches + positions + vision.layers * block + width * text_hidden


def _kimi_vision(vision: Config, text_hidden: int) -> int:
    """MoonViT of Kimi-K2.5 (patches with bias, a grid of positions) and a projector of merged patches."""
    width, inner = vision.integer("vt_hidden_size"), vision.integer("vt_intermediate_size")
    patches = width * (3 * vision.integer("patch_size") ** 2 + 1)
    positions = width * vision.integer("init_pos_emb_height") * vision.integer("init_pos_emb_width")
    merged = 4 * width
    projector = 2 * width + merged**2 + merged + merged * text_hidden + text_hidden
    return patches + positions + vision.integer("vt_num_hidden_layers") * _block(width, inner) + 2 * width + projector


MULTIMODAL: Mapping[str, Reader] = {
    "NemotronH_Nano_VL_V2": _read_nemotron_vl,
    "gemma3": _multimodal("gemma3_text", vision_config=_siglip),
    "gemma4": _multimodal("gemma4_text", vision_config=_gemma4_vision),
    "kimi_k25": _multimodal("kimi_k2", vision_config=_kimi_vision),
    "llama4": _multimodal("llama4_text", missing=LLAMA4_VISION, vision_config=_llama4_vision),
    "mistral3": _multimodal("mistral", vision_config=_pixtral),
    "qwen2_5_vl": _multimodal("qwen2", vision_config=_qwen2_5_vision),
    "qwen2_vl": _multimodal("qwen2", vision_config=_qwen2_vision),
    "qwen3_5": _multimodal("qwen3_5_text", vision_config=partial(_qwen3_vision, default_deepstack=())),
    "qwen3_5_moe": _multimodal("qwen3_5_moe_text", vision_config=partial(_qwen3_vision, default_deepstack=())),
    "qwen3_omni_moe": _read_qwen3_omni_moe,
    "qwen3_vl": _multimodal("qwen3", vision_config=_qwen3_vision),
    "qwen3_vl_moe": _multimodal("qwen3_vl_moe_text", vision_config=_qwen3_vision),
}
"""By `model_type`."""


BY_HAND_HINT = "Or give its numbers by hand in a small TOML file: docs/models.md"
BY_HAND = "by hand"
"""The architecture of such a model."""

REQUIRED = {
    "": ("layers", "hidden", "heads", "intermediate", "vocabulary"),
    "experts": ("count", "per_token", "intermediate"),
    "mamba": ("layers", "heads", "head_dim", "state", "groups"),
}
"""Keys of the file ("") and of its tables that must be there."""

OPTIONAL = {
    "": (
        *("kv_heads", "head_dim", "tied", "gated", "attention_layers", "mlp_layers", "window_tokens", "window_layers"),
        *("experts", "mamba"),
    ),
    "experts": ("shared_intermediate", "layers", "gated"),
    "mamba": ("kernel",),
}
FLAGS = frozenset({"tied", "gated"})
MAY_BE_ZERO = frozenset({"intermediate", "shared_intermediate", "mlp_layers", "window_layers"})


READERS: Mapping[str, Reader] = {**TEXT, **MULTIMODAL}
"""By `model_type`."""


def read_shape(config: Mapping[str, Any], *, name: str) -> ModelShape:
    """The shape that `config` describes, a Hugging Face configuration or numbers by hand; `name` is for messages.

    Raises:
        UsageError: Its `model_type` is not known.
        DataError: A key is missing or has an invalid value.
    """
    # Configurations of the hub have a `model_type`.
    if "model_type" not in config and "layers" in config:
        return _read_by_hand(config, name)
    kind = config.get("model_type")
    if not isinstance(kind, str):
        raise DataError.missing_field(name, ["model_type"], BY_HAND_HINT)
    if kind not in READERS:
        what = f"architecture (model_type of {name})"
        fields = {"place": name, "key": "model_type"}
        raise UsageError.unknown(what, kind, READERS, BY_HAND_HINT, code="unknown-architecture", **fields)
    shape = READERS[kind](Config(data=config, name=name))
    parts = {"attention": shape.attention_layers, "dense": shape.mlp.layers}
    parts |= {title: part.layers for title in ("experts", "mamba") if (part := getattr(shape, title)) is not None}
    for title, layers in parts.items():
        if not 0 <= layers <= shape.layers:
            raise DataError.bad_field(name, f"{title} layers", layers, f"0 to {shape.layers}, its layers")
    quantization = find_quantization(config)
    return shape if quantization is None else with_quantization(shape, quantization)


def _read_by_hand(config: Mapping[str, Any], name: str) -> ModelShape:
    own = _checked(config, "", name)
    parts = {title: _checked(own[title], title, name) for title in ("experts", "mamba") if title in own}
    layers, heads = own["layers"], own["heads"]
    kv_heads = own.get("kv_heads", heads)
    if heads % kv_heads:
        raise DataError.bad_field(name, "kv_heads", kv_heads, f"a divisor of heads ({heads})")
    if "head_dim" not in own and own["hidden"] % heads:
        raise DataError.bad_field(name, "hidden", own["hidden"], f"a multiple of heads ({heads}), or head_dim")
    head_dim = own.get("head_dim", own["hidden"] // heads)
    window = (
        Window(tokens=own["window_tokens"], layers=own.get("window_layers", layers)) if "window_tokens" in own else None
    )
    experts = _experts(parts["experts"], layers) if "experts" in parts else None
    shape = ModelShape(
        name=name,
        layers=layers,
        hidden=own["hidden"],
        vocabulary=own["vocabulary"],
        tied=own.get("tied", False),
        attention=AttentionShape(
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            value_dim=head_dim,
            window=window,
        ),
        attention_layers=own.get("attention_layers", layers),
        mlp=MlpShape(
            intermediate=own["intermediate"],
            layers=own.get("mlp_layers", layers - (experts.layers if experts else 0)),
            gated=own.get("gated", True),
        ),
        experts=experts,
        mamba=MambaShape(**parts["mamba"]) if "mamba" in parts else None,
        other_parameters=(2 * layers + 1) * own["hidden"],
        checkpoint=Checkpoint(architecture=BY_HAND),
    )
    _check_layers(shape, own)
    return shape


def _experts(table: dict[str, Any], layers: int) -> ExpertShape:
    counts = {"experts": table.pop("count"), "experts_per_token": table.pop("per_token")}
    return ExpertShape(**{"layers": layers} | table | counts)


def _check_layers(shape: ModelShape, own: Mapping[str, Any]) -> None:
    """Reject parts with more layers than the model, and tokens that visit more experts than there are."""
    experts, window = shape.experts, shape.attention.window
    whole = f"layers ({shape.layers})"
    limits = [
        ("attention_layers", shape.attention_layers, shape.layers, whole),
        ("mlp_layers", own.get("mlp_layers", 0), shape.layers, whole),
        ("mamba.layers", shape.mamba.layers if shape.mamba else 0, shape.layers, whole),
        ("experts.layers", experts.layers if experts else 0, shape.layers, whole),
        (
            "window_layers",
            window.layers if window else 0,
            shape.attention_layers,
            f"the layers with attention ({shape.attention_layers})",
        ),
    ]
    if experts is not None:
        most = f"experts.count ({experts.experts})"
        limits.append(("experts.per_token", experts.experts_per_token, experts.experts, most))
    for key, value, limit, what in limits:
        if value > limit:
            raise DataError.bad_field(shape.name, key, value, f"at most {what}")
    if shape.mamba is not None and "attention_layers" not in own:
        raise DataError.missing_field(shape.name, ["attention_layers"], "which a table [mamba] needs")
    if not shape.mlp.intermediate and shape.mlp.layers:
        raise DataError.bad_field(shape.name, "intermediate", 0, "above 0, or mlp_layers = 0")


def _checked(table: object, title: str, name: str) -> dict[str, Any]:
    """The table `title`, each key known and valid, none missing."""
    where = f"{name}: [{title}]" if title else name
    if not isinstance(table, Mapping):
        raise DataError.bad_field(where, title, str(table), "a table")
    required = REQUIRED[title]
    known = (*required, *OPTIONAL[title])
    missing = [key for key in required if key not in table]
    for key, value in table.items():
        if key not in known:
            raise DataError.unknown_field(where, str(key), known, "docs/models.md explains each")
        if key not in REQUIRED and not missing:
            _check_value(where, key, value)
    if missing:
        raise DataError.missing_field(where, missing, "whole numbers; docs/models.md explains each")
    return dict(table)


def _check_value(where: str, key: str, value: object) -> None:
    if key in FLAGS:
        if not isinstance(value, bool):
            raise DataError.bad_field(where, key, value, "true or false")
        return
    least = 0 if key in MAY_BE_ZERO else 1
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= LARGEST:
        raise DataError.bad_field(where, key, value, f"a whole number of at least {least}")
