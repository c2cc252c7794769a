"""What options and metrics say of what is served."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from infergy.estimates.servers import ServerSpec, open_server
from infergy.serving.run import Run
from infergy.serving.simulate import requests_of_lengths
from infergy.watch.metrics import Histogram, Page, read_page
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


def page_at(time_s: float, run: Run, *, inputs: int, outputs: int) -> Page:
    """What vLLM would publish at a time of a simulated run of requests of one length."""
    steps, served = run.steps, run.requests
    taken = np.clip((time_s - steps.start_s) / steps.duration_s, 0.0, 1.0) * steps.count
    began, ended = (int((times <= time_s).sum()) for times in (served.first_token_s, served.finished_s))
    return Page(
        server="vLLM",
        models=(MODEL,),
        started_s=None,
        counters={"input_tokens": {(): inputs * began}, "output_tokens": {(): float(taken @ steps.sampled)}},
        gauges={"running": float(began - ended)},
        histograms={
            "step_tokens": Histogram({math.inf: float(taken.sum())}, 0.0),
            "input_lengths": Histogram({math.inf: ended}, inputs * ended),
            "output_lengths": Histogram({math.inf: ended}, outputs * ended),
        },
        at_end=frozenset(),
        blanks={},
    )


@pytest.mark.parametrize(
    ("inputs", "outputs", "per_s", "seconds", "window"),
    [
        (1000, 200, 4, 80, (30, 60)),
        # More than the power limit allows; and a load that grows, and one that ends: other requests end than begin.
        (2000, 300, 12, 80, (30, 60)),
        (2000, 1000, 10, 60, (20, 40)),
        (4000, 2000, 4, 30, (31, 42)),
        (500, 2, 20, 60, (20, 50)),
    ],
)
def test_the_load_of_a_simulated_run(
    inputs: int, outputs: int, per_s: int, seconds: int, window: tuple[int, int]
) -> None:
    server = open_server(ServerSpec(gpu="h200"))
    requests = requests_of_lengths("load", [(inputs, outputs)] * (per_s * seconds))
    run = server.serve(replace(requests, arrival_s=np.arange(per_s * seconds) / per_s))
    steps, (begin_s, end_s) = run.steps, window
    pages = [page_at(time_s, run, inputs=inputs, outputs=outputs) for time_s in window]
    readings = [
        Reading(time_s=time_s, ticks={}, page=page, page_s=time_s, late_s=0.0, segment=0)
        for time_s, page in zip(window, pages, strict=True)
    ]
    phases = phases_of(span := Span(readings=readings), server.cost)
    assert not isinstance(phases, str)
    part = np.diff([np.clip((at_s - steps.start_s) / steps.duration_s, 0.0, 1.0) for at_s in window], axis=0)[0]
    busy_s = float(part @ steps.duration_s)
    true_j = float(part @ (steps.count * server.cost.step_energy_j(steps))) + server.cost.idle_w * (
        end_s - begin_s - busy_s
    )
    output = span.count("output_tokens")
    assert output is not None
    assert phases.energy_per_output_token_j == pytest.approx(true_j / output, rel=0.05)
    assert phases.floor_per_output_token_j < true_j / output
