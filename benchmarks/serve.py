"""How fast a server is simulated, many steps at once and one by one: seconds of one core, in the same process.

Usage: python benchmarks/serve.py [MOONCAKE.jsonl] [--million]

The Azure 2023 conversation hour that ships, MOONCAKE (a trace with block hashes, if given), and with --million the hour
52 times over. The server is vLLM 0.25 with its own defaults on an H200, Llama-3.1-8B in bf16, 56,057 blocks, prefix
caching on. The plain loop is the same scheduler, one step at a time; of a million requests it would take half an hour,
so it is left out. Python and numpy alone, one thread. Last, `infergy estimate` of the hour in processes of its own: it
serves the hour as it arrives and all at once, and the batches of the study's bins.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from dataclasses import replace
from typing import Any

import numpy as np

import infergy
from infergy.catalog.gpus import get_gpu
from infergy.catalog.models import get_model
from infergy.cost.constants import prior_fit
from infergy.cost.model import Server, StepCost
from infergy.cost.work import server_work
from infergy.serving.config import EngineConfig, EngineOptions, resolve
from infergy.serving.run import Run
from infergy.serving.simulate import simulate

HOURS = 52
RUNS = 3


def make_server() -> tuple[EngineConfig, StepCost]:
    shape, gpu = get_model("llama-3.1-8b"), get_gpu("h200")
    config = resolve(shape, gpu, EngineOptions(num_gpu_blocks=56_057), context_tokens=131_072)
    server = Server(engine="vllm", model="llama-3.1-8b", work=server_work(shape), gpu=gpu, idle_w=123.7, is_api=True)
    return config, StepCost(server, prior_fit("vllm"))


def timed(requests: Any, *, skip: bool = True) -> tuple[float, Run]:
    """Seconds of CPU, and the run."""
    config, cost = make_server()
    begin = time.process_time()
    run = simulate(requests, config, cost, skip=skip)
    return time.process_time() - begin, run


def show(name: str, seconds: float, run: Run, note: str = "") -> None:
    tokens, peak = int(run.requests.output_tokens.sum()), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    steps = int(run.steps.count.sum())
    print(
        f"{name:<32} {seconds:8.2f} s  {run.counts.requests:>9,} requests {tokens / 1e6:7.1f} M tokens {steps:>10,} steps "
        f"{run.energy_j / 3.6e3:9.1f} Wh {peak:6.0f} MiB {note}"
    )


def compare(name: str, requests: Any) -> None:
    cold, run = timed(requests)
    show(name, cold, run, "first run")
    warm = min(timed(requests)[0] for _ in range(RUNS))
    show(name, warm, run, f"best of {RUNS}")
    plain, single = timed(requests, skip=False)
    off = single.energy_j / run.energy_j - 1
    show(f"{name}, one by one", plain, single, f"{plain / warm:.0f} times as long; energy {off:+.4%}")


def show_cold() -> None:
    """Seconds and CPU of a whole command, the best of fresh processes; modules are compiled by the first."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-m", "infergy", "estimate", "azure-conv-2023"]
    elapsed, cpu = [], []
    for _ in range(RUNS + 1):
        before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        elapsed.append(time.perf_counter() - begin)
        cpu.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    print(f"{'infergy estimate, cold':<32} {min(cpu[1:]):8.2f} s  {min(elapsed[1:]):.2f} s elapsed, best of {RUNS}")


def main() -> None:
    hour = infergy.open_trace("azure-conv-2023").requests()
    compare("conversation hour", hour)
    for path in (name for name in sys.argv[1:] if not name.startswith("--")):
        compare("Mooncake with its hashes", infergy.open_trace(path).requests())
    if "--million" in sys.argv:
        assert hour.arrival_s is not None
        long = replace(
            hour,
            input_tokens=np.tile(hour.input_tokens, HOURS),
            output_tokens=np.tile(hour.output_tokens, HOURS),
            arrival_s=np.concatenate([hour.arrival_s + 3600.0 * k for k in range(HOURS)]),
        )
        show(f"the hour {HOURS} times", *timed(long))
    show_cold()


if __name__ == "__main__":
    main()
