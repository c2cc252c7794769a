"""How many (configuration, bin) pairs the physical model prices a second, on one core.

    python benchmarks/physics_speed.py [PASSES]

A pass is one decode step of a batch at a context: the step of each of 1,000 configurations (GPUs, batches) in each of
1,000 bins. Beside it curves through measured cells; then a whole estimate of a trace, its table loaded and its bins
counted, with the model given all cells and with curves alone.
"""

from __future__ import annotations

import os
import sys
import time

RUNS = 5


def main() -> None:
    """Print both."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    # NumPy asks how many threads it may use once, when it is loaded.
    import numpy as np

    from infergy.energy.demand import decode_demand
    from infergy.energy.load import load_table
    from infergy.energy.physics import Chips, Physics
    from infergy.energy.surface import Surface
    from infergy.hardware.gpus import get_gpu
    from infergy.hardware.models import get_model

    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    draw = np.random.default_rng(0)
    batch = draw.integers(1, 512, count).astype(float)
    context = np.rint(np.exp(draw.uniform(np.log(16), np.log(32_768), 1000)))[draw.integers(0, 1000, count)]
    physics = Physics()
    for name in ("llama-3.1-8b", "qwen3-30b-a3b"):
        shape, chips = get_model(name), Chips.of([get_gpu("h200")], ["bfloat16"])
        taken = []
        for _ in range(RUNS):
            begun_s = time.perf_counter()
            passes = physics.passes(decode_demand(shape, batch, context), chips)
            taken.append(time.perf_counter() - begun_s)
        assert np.isfinite(passes.energy_j).all()
        print(f"physics, {name}: {count / min(taken):,.0f} predictions a second ({min(taken):.2f} s, best of {RUNS})")
    surface = Surface(load_table(with_shipped=True).find("h200", "llama-3.1-8b", "vllm").by_length())
    pairs = [(float(tokens), 64.0) for tokens in context[:20_000]]
    begun_s = time.perf_counter()
    for pair in pairs:
        surface.at(*pair)
    taken_s = time.perf_counter() - begun_s
    print(f"curves through measured cells: {len(pairs) / taken_s:,.0f} a second")
    _estimates()


def _estimates() -> None:
    import infergy
    from infergy.energy.load import load_table

    table, histogram = load_table(with_shipped=True), infergy.open_trace("azure-conv-2023").histogram()
    for method, name in (("table", "curves alone"), ("ceiling", "the model"), ("physics", "the model, everywhere")):
        taken = []
        for _ in range(RUNS):
            begun_s = time.perf_counter()
            infergy.estimate(histogram, tables=table, engines=["vllm"], method=method)
            taken.append(time.perf_counter() - begun_s)
        print(f"estimate of {len(histogram.counts)} bins, {name}: {1e3 * min(taken):.0f} ms (best of {RUNS})")


if __name__ == "__main__":
    main()
