"""All verbs report the same energy for the same trace and server."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from infergy.estimates.breakdown import break_down
from infergy.estimates.estimate import estimate
from infergy.estimates.next_cells import choose_next
from infergy.estimates.recommend import recommend
from infergy.estimates.replay import predict, spec_of
from infergy.estimates.servers import ServerSpec, shipped_table
from infergy.measure.planner import replay_run
from infergy.measure.replays import plan_replays
from infergy.records import Arrivals, Cell, EngineSetup, Load, PlannedCell
from infergy.serving.config import EngineOptions
from infergy.workload.requests import Requests
from served import some_requests
from serving.doubles import hashes

SERVERS = [
    ServerSpec(),
    ServerSpec(engine="vllm-fp8", options=EngineOptions(max_num_seqs=16)),
    ServerSpec(
        engine="vllm-eager", model="qwen3-30b-a3b", gpu="h100-sxm", options=EngineOptions(tensor_parallel_size=2)
    ),
    ServerSpec(engine="transformers", replicas=6, router="least_loaded"),
]


@pytest.mark.parametrize("requests", [some_requests(), some_requests(rate_per_s=None)], ids=["timed", "all at once"])
@pytest.mark.parametrize("spec", SERVERS, ids=lambda spec: f"{spec.engine} {spec.model}")
def test_verbs_report_one_energy(spec: ServerSpec, requests: Requests) -> None:
    table = shipped_table()
    asked = estimate(requests, spec, tables=table, offline=False).estimates[0]
    wanted = asked.run.energy_j, asked.run.low_j, asked.run.high_j
    ranked = recommend(requests, [], table, present=spec)
    broken = break_down(requests, spec, table)
    chosen = choose_next(requests, spec, table, choices=[[]])
    for found in (ranked.of(ranked.present).estimate, broken.estimate, chosen.servers[0].estimate):
        assert (found.run.energy_j, found.run.low_j, found.run.high_j) == wanted
        assert found == asked
    for parts in (broken.by_time, broken.by_source, broken.by_activity):
        assert sum(part.energy_j for part in parts) == pytest.approx(wanted[0], rel=1e-9)
    assert chosen.servers[0].half_width == pytest.approx(wanted[2] / wanted[0] - 1, rel=1e-9)


@pytest.mark.parametrize("engine", ["vllm", "vllm-server-s16", "transformers"])
def test_a_replay_is_predicted_by_the_estimate(engine: str) -> None:
    requests, table = some_requests(), shipped_table()
    assert requests.arrival_s is not None
    setup = EngineSetup(model="llama-3.1-8b", **EngineSetup.parse_label(engine))
    load = Load(
        input_tokens=1, output_tokens=1, batch=len(requests), arrivals=Arrivals.parse_label("replay:azure-conv-2023")
    )
    planned = PlannedCell(
        cell=Cell(setup=setup, load=load),
        batch_choice="test",
        forecast_prefill_s=1.0,
        forecast_batch_s=1.0,
        arrival_s=tuple(requests.arrival_s.tolist()),
        lengths=tuple(zip(requests.input_tokens.tolist(), requests.output_tokens.tolist(), strict=True)),
    )
    asked = estimate(requests, spec_of(setup, "h200", len(requests)), tables=table, offline=False).estimates[0]
    assert predict((planned,), "h200", table).predicted == asked.served


@pytest.mark.parametrize("engine", ["vllm-server-pc", "vllm-server"])
def test_a_replay_of_shared_prompts_is_predicted_by_the_estimate(engine: str) -> None:
    table = shipped_table()
    rows = [list(range(n % 7, n % 7 + 4)) + [n] * (n % 2) for n in range(60)]
    requests = replace(some_requests(), prefix_blocks=hashes(rows, 32)).take(np.arange(60))
    setup = EngineSetup(model="llama-3.1-8b", **EngineSetup.parse_label(engine))
    arrivals = Arrivals(law="replay", trace="log", timed=True)
    (planned,) = plan_replays([(setup, replay_run(requests, arrivals))], gpu="h200").cells
    asked = estimate(requests, spec_of(setup, "h200", 60), tables=table, offline=False).estimates[0]
    found = predict((planned,), "h200", table).predicted
    assert asked.served is not None
    assert (found.load.hit_tokens > 0) == setup.prefix_caching
    assert found.load.hit_tokens == asked.served.load.hit_tokens
    assert found.energy_j == pytest.approx(asked.served.energy_j, rel=1e-6)
