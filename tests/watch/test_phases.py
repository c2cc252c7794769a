"""What options and metrics say of what is served."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from infergy.watch.metrics import Histogram, read_page
from infergy.watch.phases import Served, phases_of
from infergy.watch.span import Reading, Span
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


def test_the_load_of_a_recorded_page() -> None:
    """239 requests replayed on vLLM 0.25, and 63 that warmed it up, in about 55 s: steps are vLLM's own count."""
    page = read_page((Path(__file__).parent / "data/vllm_0_25.txt").read_text(encoding="utf-8"), "page")
    begin = replace(
        page,
        counters={name: dict.fromkeys(series, 0.0) for name, series in page.counters.items()},
        histograms={name: Histogram(dict.fromkeys(own.counts, 0.0), 0.0) for name, own in page.histograms.items()},
    )
    readings = [
        Reading(time_s=time_s, ticks={}, page=own, page_s=time_s, late_s=0.0, segment=0)
        for time_s, own in ((0.0, begin), (55.0, page))
    ]
    cost = Served(gpu="NVIDIA H200", gpus=1, model="llama-3.1-8b").cost(page.models)
    assert not isinstance(cost, str)
    phases = phases_of(Span(readings=readings), cost)
    assert not isinstance(phases, str)
    # 26.8 kJ were measured for the 58,518 output tokens of the replay: 0.46 J each.
    assert phases.energy_per_output_token_j == pytest.approx(0.46, rel=0.2)
    assert phases.floor_per_output_token_j < phases.energy_per_output_token_j
    assert phases.busy_share == pytest.approx(1, abs=0.06)
    assert 0.15 < phases.prefill < 0.35
