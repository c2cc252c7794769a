"""Searches: floors are below what is simulated, windows find what the whole trace says, cores change nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from multiprocessing import active_children
from pathlib import Path
from subprocess import PIPE

import numpy as np
import pytest

from infergy.estimates.candidates import Space, layouts, plain_spec, static_batches, steps_between, variations
from infergy.estimates.latency import Limits
from infergy.estimates.recommend import recommend
from infergy.estimates.search import COARSE, Pool, Pruned, Screened, Whole, fewest_gpus, thin
from infergy.estimates.servers import ServerSpec, shipped_table
from infergy.serving.config import EngineOptions
from infergy.workload import open_trace
from infergy.workload.requests import Requests, whole
from raising import raises
from served import some_requests

BUSY = some_requests(400, rate_per_s=8.0)
SPECS = [
    ServerSpec(),
    ServerSpec(precision="fp8"),
    ServerSpec(options=EngineOptions(enforce_eager=True)),
    ServerSpec(options=EngineOptions(tensor_parallel_size=2)),
    ServerSpec(replicas=2, router="least_loaded"),
]


def conversation() -> Requests:
    trace = open_trace("azure-conv-2023").requests()
    assert isinstance(trace, Requests)
    return trace


def screened(pool: Pool, specs: list[ServerSpec]) -> list[Screened]:
    found = [one for one in pool.screen(specs) if isinstance(one, Screened)]
    assert len(found) == len(specs)
    return found


@pytest.mark.parametrize("spec", SPECS)
def test_floors_are_below_what_is_simulated(spec: ServerSpec) -> None:
    with Pool(whole(BUSY), shipped_table(), Limits()) as pool:
        (found,) = pool.serve([spec])
    assert isinstance(found, Whole)
    latency = found.estimate.run.latency
    assert latency.ttft_s is not None
    assert latency.tpot_s is not None
    assert latency.e2e_s is not None
    kept = Limits(ttft_p99_s=latency.ttft_s.p99, tpot_p99_s=latency.tpot_s.p50, e2e_p99_s=latency.e2e_s.p99)
    with Pool(whole(BUSY), shipped_table(), kept) as pool:
        assert isinstance(pool.screen([spec])[0], Screened)


def test_what_floors_rule_out_is_not_simulated() -> None:
    hot = some_requests(2000, rate_per_s=4000.0)
    for requests, limits, word in (
        (BUSY, Limits(tpot_p99_s=1e-4), "tpot p99"),
        (BUSY, Limits(ttft_p99_s=1e-4), "ttft p99"),
        (BUSY, Limits(e2e_p99_s=1e-2), "e2e p99"),
        (hot, Limits(), "overloaded"),
    ):
        with Pool(whole(requests), shipped_table(), limits) as pool:
            (found,) = pool.screen([ServerSpec()])
        assert isinstance(found, Pruned)
        assert found.reason.startswith(word)


def test_few_requests_and_short_bursts_are_no_overload() -> None:
    for few in (some_requests(2, rate_per_s=1000.0), some_requests(100, rate_per_s=1000.0)):
        with Pool(whole(few), shipped_table(), Limits()) as pool:
            ((screened,), (served,)) = pool.screen([ServerSpec()]), pool.serve([ServerSpec()])
        assert isinstance(served, Whole)
        assert served.estimate.run.overload is None
        assert isinstance(screened, Screened)


def test_windows_have_requests_where_a_trace_is_bursts() -> None:
    burst = some_requests(6000, rate_per_s=None)
    arrival_s = np.repeat([0.0, 1e5], 3000)
    few = thin(whole(replace(burst, arrival_s=arrival_s)))
    assert 0 < sum(len(window.requests) for window in few.windows) <= 2 * COARSE
    assert sum(window.weight * len(window.requests) for window in few.windows) == pytest.approx(6000)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_tighter_limit_takes_no_less_and_more_gpus_no_more(seed: int) -> None:
    busy = some_requests(200, rate_per_s=8.0, seed=seed)
    energies = []
    for limit_s in (0.2, 0.02, 0.015, 0.012, 0.01, 0.008):
        found = recommend(busy, limits=Limits(tpot_p99_s=limit_s), present=ServerSpec())
        assert found.recommended is not None
        energies.append(found.of(found.recommended).energy_j)
    assert energies == sorted(energies)
    for gpus in ((1,), (1, 2), (1, 2, 3, 4, 5, 6, 7, 8)):
        space = Space(gpus=gpus, kinds=("h200",))
        found = recommend(busy, limits=Limits(tpot_p99_s=0.02), present=ServerSpec(), space=space)
        assert found.recommended is not None
        assert found.of(found.recommended).energy_j <= energies[1] * (1 + 1e-9)


def test_the_present_configuration_is_varied() -> None:
    space = Space(gpus=(1,), kinds=("h200",), keep_outputs=True)
    searched = recommend(BUSY, present=ServerSpec(), space=space).searched
    assert searched.configurations == 2 * 42
    # Not where its GPUs are not among those that may serve.
    found = recommend(BUSY, present=ServerSpec(replicas=3), space=space)
    assert {one.estimate.gpus for one in found.configurations if one.label != found.present} == {1}


def test_windows_rank_as_the_whole_trace_does() -> None:
    sample = whole(conversation())
    few = thin(sample)
    assert sum(len(window.requests) for window in few.windows) < 0.2 * sample.requests
    assert sum(window.weight * len(window.requests) for window in few.windows) == pytest.approx(sample.requests)
    with Pool(sample, shipped_table(), Limits()) as pool:
        by_windows = [one.energy_j for one in screened(pool, SPECS)]
        by_all = [one.estimate.run.energy_j for one in pool.serve(SPECS) if isinstance(one, Whole)]
    assert np.argsort(by_windows).tolist() == np.argsort(by_all).tolist()
    assert np.array(by_windows) == pytest.approx(by_all, rel=0.15)


def test_a_short_trace_and_sessions_are_not_thinned() -> None:
    sample = whole(BUSY)
    assert thin(sample) is sample
    together = whole(conversation().all_at_once())
    (window,) = thin(together).windows
    assert window.requests.arrival_s is None
    assert window.weight * len(window.requests) == pytest.approx(together.requests)


def test_processes_change_nothing() -> None:
    sample = whole(conversation().slice(0, 6000))
    found = []
    for processes in (1, 2):
        with Pool(sample, shipped_table(), Limits(), processes=processes) as pool:
            found.append((screened(pool, SPECS * 2), pool.serve(SPECS[:2])))
    (serial, serial_whole), (parallel, parallel_whole) = found
    assert serial == parallel
    for own, other in zip(serial_whole, parallel_whole, strict=True):
        assert isinstance(own, Whole)
        assert isinstance(other, Whole)
        assert own.estimate == other.estimate


def test_a_process_that_is_killed_is_done_without() -> None:
    sample = whole(conversation().slice(0, 6000))
    with Pool(sample, shipped_table(), Limits(), processes=2) as pool:
        first = pool.serve(SPECS[:4])
        for child in active_children():
            child.kill()
        again = pool.serve(SPECS[:4])
        assert pool.done == pool.known == 8
    energies = [[one.estimate.run.energy_j for one in some if isinstance(one, Whole)] for some in (first, again)]
    assert energies[0] == energies[1]


@pytest.mark.skipif(
    not Path("/proc/self/task").exists() or (os.cpu_count() or 1) < 2, reason="counts children in /proc"
)
def test_ctrl_c_prints_no_stack_of_a_process() -> None:
    command = [sys.executable, "-m", "infergy", "recommend", "azure-conv-2023", "--gpus", "1..2"]
    running = subprocess.Popen(command, stdout=PIPE, stderr=PIPE, text=True, start_new_session=True)
    for _ in range(600):
        time.sleep(0.05)
        children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text(encoding="utf-8").split()
        if len(children) > 2:
            break
    os.killpg(running.pid, signal.SIGINT)
    output, errors = running.communicate(timeout=60)
    assert (running.returncode, output) == (130, "")
    assert "Traceback" not in errors


def test_variations_are_those_that_bind() -> None:
    spec = plain_spec(ServerSpec())
    limits = {(own.options.max_num_seqs, own.options.max_num_batched_tokens) for own in variations(spec, 33, 600)}
    assert limits == {(None, 512), (32, None), (16, None), (32, 512), (16, 512)}
    assert not [*variations(spec, 1, 1)]


def test_layouts_use_the_gpus_that_may_serve() -> None:
    space = Space(gpus=(2, 4), kinds=("h200",), keep_outputs=True)
    found = [*layouts(ServerSpec(), space, shares_prefixes=False)]
    sizes = {(own.options.tensor_parallel_size, own.replicas, own.router) for own in found}
    assert sizes == {
        (2, 1, "round_robin"), (4, 1, "round_robin"),
        *((size, count, router) for size, count in ((1, 2), (1, 4), (2, 2)) for router in ("round_robin", "least_loaded")),
    }  # fmt: skip
    assert {own.precision for own in found} == {"bfloat16"}
    assert {own.options.enforce_eager for own in found} == {False, True}
    with raises("bad-value", option="--gpus"):
        Space(gpus=(0,), kinds=("h200",))
    uncached = ServerSpec(options=EngineOptions(enable_prefix_caching=False))
    kept, cached = (
        {own.options.enable_prefix_caching for own in layouts(uncached, space, shares_prefixes=shares)}
        for shares in (False, True)
    )
    assert (kept, cached) == ({False}, {True})


def test_a_gpu_without_fp8_gets_none() -> None:
    space = Space(gpus=(1,), kinds=("a100-80gb-sxm",))
    assert {own.precision for own in layouts(ServerSpec(), space, shares_prefixes=False)} == {"bfloat16"}


def test_steps_lead_from_one_configuration_to_another() -> None:
    now = plain_spec(ServerSpec(replicas=4, router="least_loaded"))
    wanted = plain_spec(ServerSpec(engine="vllm-fp8-eager", options=EngineOptions(max_num_seqs=32)))
    steps = steps_between(now, wanted)
    assert set(steps) == {"precision", "GPUs and replicas", "max_num_seqs", "enforce_eager"}
    for change, spec in steps.items():
        assert set(steps_between(spec, wanted)) == set(steps) - {change}
    assert set(steps_between(static_batches(now), wanted)) == {"engine"}
    llm = plain_spec(ServerSpec(usage_context="llm", version="0.33"))
    assert set(steps_between(plain_spec(ServerSpec()), llm)) == {"usage_context", "version"}


def test_the_fewest_gpus_that_keep_up() -> None:
    table = shipped_table()
    one = fewest_gpus(ServerSpec(), whole(BUSY), table)
    assert (one.replicas, one.options.tensor_parallel_size) == (1, 1)
    assert fewest_gpus(ServerSpec(model="llama-3.1-70b"), whole(BUSY), table).options.tensor_parallel_size == 2
    slow = ServerSpec(options=EngineOptions(max_num_seqs=4))
    few = fewest_gpus(slow, whole(BUSY), table)
    assert few.replicas > 1
    with Pool(whole(BUSY), table, Limits()) as pool:
        enough, fewer = pool.serve([few, ServerSpec(replicas=few.replicas - 1, options=few.options)])
    assert isinstance(enough, Whole)
    assert isinstance(fewer, Whole)
    assert enough.estimate.run.overload is None
    assert fewer.estimate.run.overload is not None


def test_a_search_reports_each_change_and_what_none_betters() -> None:
    found = recommend(BUSY, present=ServerSpec(replicas=2), limits=Limits(tpot_p99_s=0.05))
    assert found.recommended is not None
    chosen, present = found.of(found.recommended), found.of(found.present)
    assert not chosen.breaks
    assert sum(step.share for step in found.steps) == pytest.approx(chosen.saving.share)
    assert found.steps[-1].label == found.recommended
    assert chosen.estimate.gpus < present.estimate.gpus
    points = {}
    for label in found.pareto:
        run = found.of(label).estimate.run
        assert run.latency.e2e_s is not None
        points[label] = (run.energy_j, run.latency.e2e_s.p99, found.of(label).estimate.gpus)
    for own in points.values():
        assert not any(
            other != own and all(a <= b for a, b in zip(other, own, strict=True)) for other in points.values()
        )
    assert found.static_batches is not None
    assert found.static_batches.share > 0.5
    searched = found.searched
    assert searched.configurations == searched.pruned + searched.equal + searched.windows
