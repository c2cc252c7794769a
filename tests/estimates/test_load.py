"""Overload: whether a server keeps up with arrivals, and with how many replicas it would."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from infergy.estimates.estimate import estimate
from infergy.estimates.load import FEWEST
from infergy.estimates.servers import ServerSpec
from infergy.serving.config import EngineOptions
from infergy.workload import open_trace
from infergy.workload.requests import Requests
from served import some_requests

SPEEDS = (0.25, 1.0, 2.0, 4.0, 7.0, 10.0, 14.0, 20.0, 40.0, 100.0)
SERVERS = [
    ServerSpec(),
    ServerSpec(options=EngineOptions(num_gpu_blocks=1500)),
    ServerSpec(options=EngineOptions(max_num_seqs=16)),
    ServerSpec(engine="transformers", replicas=4),
    ServerSpec(engine="transformers", replicas=12),
]
CONV = open_trace("azure-conv-2023").requests().slice(0, 1500)


def overload_of(requests: Requests, spec: ServerSpec) -> str | None:
    served = estimate(requests, spec, offline=False, paper=False).estimates[0].served
    assert served is not None
    return served.overload


@pytest.mark.parametrize("spec", SERVERS, ids=lambda spec: f"{spec.engine}-{spec.options.num_gpu_blocks}")
def test_a_load_too_fast_for_a_server_is_too_fast_when_it_comes_faster(spec: ServerSpec) -> None:
    over = [overload_of(CONV.window(speed=speed), spec) is not None for speed in SPEEDS]
    assert over == sorted(over)
    assert (over[0], over[-1]) == (False, True)


def test_a_trace_that_ends_long_after_its_last_arrival_is_overload() -> None:
    code = open_trace("azure-code-2023").requests()
    assert overload_of(code, ServerSpec(engine="transformers")) is not None
    assert overload_of(code, ServerSpec()) is None


@pytest.mark.parametrize("speed", [7.0, 20.0])
@pytest.mark.parametrize("spec", SERVERS, ids=lambda spec: f"{spec.engine}-{spec.options.num_gpu_blocks}")
def test_the_advised_number_of_replicas_keeps_up(spec: ServerSpec, speed: float) -> None:
    requests = CONV.window(speed=speed)
    told = overload_of(requests, spec)
    assert told is not None
    found = re.search(r"; (\d+) replicas would keep up", told)
    assert found is not None, told
    assert int(found[1]) > spec.replicas
    assert overload_of(requests, replace(spec, replicas=int(found[1]))) is None


def test_few_requests_are_no_overload() -> None:
    slow = ServerSpec(options=EngineOptions(max_num_seqs=1))
    few, more = some_requests(FEWEST - 1, rate_per_s=100.0), some_requests(FEWEST, rate_per_s=100.0)
    assert overload_of(few, slow) is None
    assert overload_of(more, slow) is not None


def test_long_answers_that_outlast_a_short_trace_are_no_overload() -> None:
    count = 60
    requests = Requests(
        source="test",
        input_tokens=np.full(count, 100),
        output_tokens=np.full(count, 4000),
        arrival_s=np.arange(count) / 4,
        order_reason=None,
    )
    assert overload_of(requests, ServerSpec()) is None


def test_a_day_has_energy_only_at_a_load_that_goes_on() -> None:
    def daily_j(requests: Requests, spec: ServerSpec = ServerSpec()) -> tuple[float | None, float | None]:  # noqa: B008 - frozen
        one = estimate(requests, spec, paper=False).estimates[0]
        assert one.offline is not None
        return None if one.served is None else one.served.load.daily_j, one.offline.load.daily_j

    served = estimate(CONV, paper=False).estimates[0].run
    a_day = served.energy_j / served.duration_s * 86_400
    assert daily_j(CONV) == (a_day, None)
    assert daily_j(CONV.window(speed=20.0)) == (None, None)
    assert daily_j(CONV.slice(0, 1)) == (None, None)
    assert daily_j(CONV.all_at_once()) == (None, None)
    # Two requests within a tenth of a second: seconds of answers are no load that goes on.
    assert daily_j(CONV.slice(0, 2).window(speed=100.0)) == (None, None)
