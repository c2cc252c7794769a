"""`transformers serve` on a tiny random model, watched: it publishes no metrics, and its energy is counted all the same."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from programs import free_port, running

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("fastapi")
pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two layers with random weights, whose words are numbers."""
    import tokenizers
    import transformers

    folder = tmp_path_factory.mktemp("tiny")
    words = {"<s>": 0, "</s>": 1, **{str(number): number + 2 for number in range(126)}}
    plain = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="0"))
    plain.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain, bos_token="<s>", eos_token="</s>", pad_token="</s>", unk_token="0"
    )
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    tokenizer.save_pretrained(folder)
    config = transformers.LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=128,
        bos_token_id=0,
        eos_token_id=1,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    url = f"http://127.0.0.1:{(port := free_port())}"
    script = Path(sysconfig.get_path("scripts"), "transformers")
    command = [str(script), "serve", str(model), "--port", str(port), "--device", "cpu"]
    with running(command, tmp_path_factory.mktemp("log") / "serve.log", f"{url}/health"):
        yield url


def ask(url: str, model: Path, tokens: int) -> dict[str, Any]:
    body = {"model": str(model), "prompt": "3 1 4 1 5", "max_tokens": tokens}
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def test_its_energy_is_counted_and_its_tokens_are_blank(server: str, model: Path) -> None:
    command = [sys.executable, "-m", "infergy", "watch", server, "--simulate", "--json", "--for", "6s"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watch:
        assert ask(server, model, 20)["usage"]["completion_tokens"] >= 1
        text, _ = watch.communicate(timeout=120)
    lines = [json.loads(line) for line in text.splitlines()]
    assert watch.returncode == 0
    assert len(lines) == 6
    assert lines[-1]["server"] is None
    assert "transformers serve publishes none" in lines[-1]["blanks"]["server"]
    assert lines[-1]["recent"]["per_output_token"] is None
    assert lines[-1]["energy_j"] == pytest.approx(100 * lines[-1]["elapsed_s"], rel=0.1)
