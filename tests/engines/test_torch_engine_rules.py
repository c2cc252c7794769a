"""The transformers engine, on CPU PyTorch, keeps the rules of engines."""

from __future__ import annotations

from typing import Any

import pytest

from infergy.engines import Work, find_engine
from infergy.records import EngineSetup
from infergy.testing import ENGINE_RULES, check_engine

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("default")

TINY: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "bos_token_id": 1,
    "eos_token_id": list(range(128)),
}
LIMIT = 7


def test_transformers_keeps_every_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import GenerationMixin

    generate = GenerationMixin.generate

    def bounded(self: Any, ids: Any, **options: Any) -> Any:
        # CPU memory cannot be run out of in a test: more than LIMIT requests are taken not to fit.
        if len(ids) > LIMIT:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB\nmore")
        return generate(self, ids, **options)

    monkeypatch.setattr(GenerationMixin, "generate", bounded)
    count = LIMIT + 1
    too_large = Work(prompts=((1, 2, 3),) * count, output_tokens=(2,) * count, arrival_s=(0.0,) * count)
    setup = EngineSetup(engine="transformers", model="tiny")
    assert check_engine(find_engine("transformers"), setup, TINY, too_large=too_large) == tuple(ENGINE_RULES)
