"""A Mamba-2 layer keeps the state that the shape says."""

from __future__ import annotations

import pytest

from infergy.catalog import model_config, read_shape

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("default")


def test_a_mamba_layer_keeps_the_state_that_the_shape_says() -> None:
    """One step of a small Nemotron-H: what its cache holds, at the widths that it holds them in."""
    config = model_config("nemotron-nano-9b-v2") | {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "hybrid_override_pattern": "M-*M",
        "mamba_num_heads": 8,
        "mamba_head_dim": 16,
        "n_groups": 2,
        "ssm_state_size": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 160,
        "torch_dtype": "float32",
    }
    built = transformers.CONFIG_MAPPING["nemotron_h"].from_dict(dict(config))
    model = transformers.AutoModelForCausalLM.from_config(built).eval()

    shape = read_shape(config, name="small")
    with torch.no_grad():
        cache = model(input_ids=torch.randint(1, 160, (1, 24)), use_cache=True).past_key_values
    layers = [layer for layer in cache.layers if getattr(layer, "recurrent_states", None) is not None]
    assert shape.mamba is not None
    assert len(layers) == shape.mamba.layers == 2
    recurrent = sum(state.numel() for layer in layers for state in layer.recurrent_states.values())
    assert recurrent == shape.mamba.layers * shape.mamba.inner * shape.mamba.state
    # transformers keeps a column more than the three of the past that a step needs.
    columns = {tuple(state.shape[1:]) for layer in layers for state in layer.conv_states.values()}
    assert columns == {(shape.mamba.convolved, shape.mamba.kernel)}
