"""What the simulated engine takes for equal requests at once, from the model that it plays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from infergy.catalog import get_gpu, get_model
from infergy.catalog.models import Draft
from infergy.records import EngineSetup
from infergy.serving.run import Run
from infergy.serving.setups import cost_of_setup, serve_setup
from infergy.serving.simulate import requests_of_lengths


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """Of one batch; the energy of a prefill is that of the same batch with one output token, which pairs measure."""

    prefill_s: float
    first_token_s: float
    finished_s: float
    duration_s: float
    prefill_energy_j: float
    energy_j: float

    @property
    def decode_energy_j(self) -> float:
        return self.energy_j - self.prefill_energy_j


def truth_of(
    input_tokens: int,
    output_tokens: int,
    batch: int,
    *,
    model: str = "llama-3.1-8b",
    gpu: str = "h200",
    draft: Draft | None = None,
    **setup: Any,
) -> Truth:
    whole, prompts = (
        play(((input_tokens, output),) * batch, model=model, gpu=gpu, draft=draft, **setup)
        for output in (output_tokens, 1)
    )
    return Truth(
        prefill_s=prompts.duration_s,
        first_token_s=float(np.mean(whole.requests.first_token_s)),
        finished_s=float(np.mean(whole.requests.finished_s)),
        duration_s=whole.duration_s,
        prefill_energy_j=prompts.energy_j,
        energy_j=whole.energy_j,
    )


def play(
    lengths: tuple[tuple[int, int], ...],
    arrival_s: tuple[float, ...] = (),
    *,
    model: str = "llama-3.1-8b",
    gpu: str = "h200",
    draft: Draft | None = None,
    **setup: Any,
) -> Run:
    served = EngineSetup(**{"engine": "vllm", "model": model} | setup)
    shape, device = get_model(model), get_gpu(gpu)
    cost = cost_of_setup(served, shape, device, draft=draft)
    return serve_setup(served, shape, device, cost, requests_of_lengths(served.label, lengths, arrival_s))
