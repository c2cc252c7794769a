"""Derivatives of a run's energy by the constants: those of serving again with other constants."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from infergy.cost.constants import Column
from infergy.cost.model import StepCost
from infergy.estimates.estimate import sample_of, serve_sample
from infergy.estimates.servers import OpenServer, ServerSpec, open_server, shipped_table
from infergy.serving.config import EngineOptions
from infergy.serving.run import open_share, steps_of
from infergy.workload.requests import Requests
from served import some_requests

SHIFT = 0.05
CONSTANTS = ("busy_share", "byte_j", "flop_share", "weight_efficiency", "step_s", "eager_layer_s")


def again(server: OpenServer, requests: Requests, constant: str, shift: float) -> float:
    """Logarithm of the energy with one constant changed."""
    fit, mean = server.cost.fit, server.cost.fit.mean.copy()
    mean[fit.names.index(constant)] += shift
    changed = replace(server, cost=StepCost(server.cost.server, replace(fit, mean=mean)))
    return math.log(changed.serve(requests).energy_j)


def slopes_of(server: OpenServer, requests: Requests) -> tuple[Column, float]:
    runs = serve_sample(sample_of(requests), server)
    share = open_share(runs)
    slopes = server.cost.log_slopes(steps_of(runs), runs[0][0].energy.idle_j, share)[:, 0]
    names, _, _ = server.cost.fit.logs(server.gpu.name)
    return np.array([slopes[names.index(name)] for name in CONSTANTS]), share


@pytest.mark.parametrize(
    ("engine", "rate_per_s", "options", "share"),
    [
        ("vllm", None, EngineOptions(), 0.0),
        ("vllm", 0.1, EngineOptions(), 1.0),
        ("vllm", 5.0, EngineOptions(), 1.0),
        ("vllm-eager", 3.0, EngineOptions(), 1.0),
        ("vllm", 50.0, EngineOptions(max_num_seqs=8), 0.0),
    ],
)
def test_they_are_those_of_serving_again(
    engine: str, rate_per_s: float | None, options: EngineOptions, share: float
) -> None:
    requests = some_requests(300, rate_per_s=rate_per_s)
    server = open_server(ServerSpec(engine=engine, options=options), shipped_table())
    slopes, found = slopes_of(server, requests)
    assert found == pytest.approx(share, abs=0.1)
    served = [
        (again(server, requests, name, SHIFT) - again(server, requests, name, -SHIFT)) / (2 * SHIFT)
        for name in CONSTANTS
    ]
    assert slopes == pytest.approx(np.array(served), abs=0.07)


def test_slower_steps_save_weights_where_requests_come_one_by_one() -> None:
    server = open_server(ServerSpec(), shipped_table())
    place = CONSTANTS.index("weight_efficiency")
    at_once, _ = slopes_of(server, some_requests(200, rate_per_s=None))
    coming, _ = slopes_of(server, some_requests(200, rate_per_s=5.0))
    assert at_once[place] < 0 < coming[place]
