"""Readers of models that see or hear: the text model inside, with its encoders' parameters beside it.

Encoders are loaded and idle for text, so only their parameters count; docstrings name the class in transformers (5.x)
that each count follows. Standard library only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from infergy.hardware import families
from infergy.hardware.config_keys import Config
from infergy.hardware.shape import ModelShape

RADIO_H = {"width": 1280, "layers": 32, "inner": 5120}
"""ViT-H of C-RADIOv2-H (arXiv 2412.07679), whose dimensions the configuration does not tell."""


def read_gemma3(config: Config) -> ModelShape:
    """Gemma3ForConditionalGeneration."""
    return _whole(config, "text_config", families.read_gemma3_text, vision_config=_siglip)


def read_llama4(config: Config) -> ModelShape:
    """Llama4ForConditionalGeneration."""
    return _whole(config, "text_config", families.read_llama4_text, vision_config=_llama4_vision)


def read_mistral3(config: Config) -> ModelShape:
    """Mistral3ForConditionalGeneration over a Mistral text model."""
    return _whole(config, "text_config", families.read_mistral, vision_config=_pixtral)


def read_qwen3_vl(config: Config) -> ModelShape:
    """Qwen3VLForConditionalGeneration; whether the head is tied stands outside the text's configuration."""
    return _tied(config, _whole(config, "text_config", families.read_qwen3, vision_config=_qwen3_vision))


def read_qwen3_vl_moe(config: Config) -> ModelShape:
    """Qwen3VLMoeForConditionalGeneration."""
    return _tied(config, _whole(config, "text_config", families.read_qwen3_moe, vision_config=_qwen3_vision))


def read_qwen3_omni_moe(config: Config) -> ModelShape:
    """The thinker of Qwen3-Omni, which writes text: Qwen3OmniMoeThinkerForConditionalGeneration.

    Talker and vocoder, which speak, are left out: vLLM loads the thinker alone.
    """
    thinker = config.inside("thinker_config")
    shape = _whole(
        thinker, "text_config", families.read_qwen3_moe, vision_config=_qwen3_vision, audio_config=_qwen3_audio
    )
    dtype = config.checkpoint_dtype() or shape.checkpoint_dtype
    return dataclasses.replace(shape, name=config.name, architecture="qwen3_omni_moe", checkpoint_dtype=dtype)


def read_nemotron_vl(config: Config) -> ModelShape:
    """NVIDIA Nemotron Nano v2 VL: Nemotron-H under C-RADIOv2-H and a projector of two matrices."""
    shape = _whole(config, "llm_config", families.read_nemotron_h)
    width, inner = RADIO_H["width"], RADIO_H["inner"]
    encoder = RADIO_H["layers"] * _block(width, inner)
    # Patches without a bias, and one position for each of the largest picture's.
    patches = config.inside("vision_config")
    positions = (patches.integer("max_resolution", 2048) // config.integer("patch_size")) ** 2
    encoder += width * 3 * config.integer("patch_size") ** 2 + width * positions
    merged, between = width * 4, config.integer("projector_hidden_size")
    return dataclasses.replace(shape, vision_parameters=encoder + merged + merged * between + between * shape.hidden)


def _whole(
    config: Config,
    key: str,
    read_text: Callable[[Config], ModelShape],
    **encoders: Callable[[Config, int], int],
) -> ModelShape:
    """The shape of the text model under `key`; each of `encoders` counts the part of its name, if that is there."""
    shape = read_text(config.inside(key))
    parameters = 0
    for name, count in encoders.items():
        part = config.part(name)
        if part is not None:
            parameters += count(part, shape.hidden)
    return dataclasses.replace(
        shape,
        name=config.name,
        architecture=str(config.data.get("model_type")),
        vision_parameters=parameters,
        checkpoint_dtype=config.checkpoint_dtype() or shape.checkpoint_dtype,
    )


def _tied(config: Config, shape: ModelShape) -> ModelShape:
    return dataclasses.replace(shape, tied=config.flag("tie_word_embeddings", shape.tied))


def _block(width: int, inner: int) -> int:
    """A transformer layer with biases: four projections, an MLP without a gate, two LayerNorms."""
    return 4 * (width * width + width) + 2 * width * inner + inner + width + 4 * width


def _siglip(vision: Config, text_hidden: int) -> int:
    """SiglipVisionModel without its pooling head, and Gemma 3's projector (one matrix, one norm)."""
    hidden, patch = vision.integer("hidden_size"), vision.integer("patch_size")
    embeddings = hidden * (3 * patch**2 + 1) + hidden * (vision.integer("image_size") // patch) ** 2
    layers = vision.integer("num_hidden_layers") * _block(hidden, vision.integer("intermediate_size"))
    return embeddings + layers + 2 * hidden + hidden * text_hidden + hidden


def _llama4_vision(vision: Config, text_hidden: int) -> int:
    """Llama4VisionModel (patches, class and positions; two more norms; adapter) and Llama4MultiModalProjector."""
    hidden, inner = vision.integer("hidden_size"), vision.integer("intermediate_size")
    patch = vision.integer("patch_size")
    embeddings = hidden * (3 * patch**2 + 1 + (vision.integer("image_size") // patch) ** 2 + 1) + 4 * hidden
    layers = vision.integer("num_hidden_layers") * _block(hidden, inner)
    adapter = inner * vision.integer("projector_input_dim") + vision.integer("projector_output_dim") ** 2
    return embeddings + layers + adapter + vision.integer("vision_output_dim") * text_hidden


def _pixtral(vision: Config, text_hidden: int) -> int:
    """PixtralVisionModel (no biases, gated MLPs) and Mistral3MultiModalProjector, which merges 2 × 2 patches."""
    hidden, inner = vision.integer("hidden_size"), vision.integer("intermediate_size")
    layer = 4 * hidden**2 + 3 * hidden * inner + 2 * hidden
    patches = hidden * 3 * vision.integer("patch_size") ** 2 + hidden
    projector = hidden + 4 * hidden**2 + hidden * text_hidden + text_hidden**2
    return patches + vision.integer("num_hidden_layers") * layer + projector


def _qwen3_vision(vision: Config, text_hidden: int) -> int:
    """Qwen3VLVisionModel: patches of two frames, positions, and four mergers of 2 × 2 patches (three are DeepStack's).

    Qwen3VLVisionConfig: 2304 positions; DeepStack after three layers.
    """
    hidden, patch = vision.integer("hidden_size"), vision.integer("patch_size")
    merged = hidden * vision.integer("spatial_merge_size") ** 2
    embeddings = hidden * (3 * vision.integer("temporal_patch_size") * patch**2 + 1)
    embeddings += hidden * vision.integer("num_position_embeddings", 2304)
    merger = merged**2 + merged + merged * text_hidden + text_hidden
    deepstack = vision.listed("deepstack_visual_indexes", (8, 16, 24))
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
