"""What options and metrics say of what is served."""

from __future__ import annotations

from pathlib import Path

import pytest

from infergy.watch.phases import Served
from watched import MODEL


def test_the_model_of_the_metrics_on_all_gpus() -> None:
    served = Served(gpu="NVIDIA H200", gpus=2)
    cost = served.cost((MODEL,))
    assert not isinstance(cost, str)
    assert (cost.server.model, cost.server.work.gpus, cost.server.gpu.name) == ("llama-3.1-8b", 2, "h200")
    assert served.words == ("--present", f"vllm serve {MODEL} --tensor-parallel-size 2", "-g", "h200")


def test_the_command_that_started_it_says_more() -> None:
    served = Served(gpu="h200", gpus=4, present="vllm serve Qwen/Qwen3-8B --quantization fp8 -tp 2", model="qwen3-8b")
    cost = served.cost(("a", "b"))
    assert not isinstance(cost, str)
    assert (cost.server.model, cost.server.work.gpus, cost.server.work.dtype) == ("qwen3-8b", 2, "fp8")
    assert served.words[-2:] == ("-m", "qwen3-8b")


@pytest.mark.parametrize(
    ("models", "options", "words"),
    [
        ((), {}, "0 models"),
        (("a", "b"), {}, "2 models"),
        (("someone/their-model",), {}, "their-model"),
        (("--host",), {}, "host"),
        ((MODEL,), {"gpu": "simulated steady GPU"}, "unknown GPU"),
        ((MODEL,), {"model": str(Path("nowhere.json"))}, "nowhere"),
        (("meta-llama/Llama-3.1-405B-Instruct",), {}, "405"),
        ((MODEL,), {"present": "docker compose up"}, "vllm serve"),
    ],
)
def test_what_is_not_known_is_a_reason(models: tuple[str, ...], options: dict[str, str], words: str) -> None:
    served = Served(**{"gpu": "h200", "gpus": 1, **options})  # type: ignore[arg-type]
    reason = served.cost(models)
    assert isinstance(reason, str)
    assert words.lower() in reason.lower()
    assert served.words == ()
