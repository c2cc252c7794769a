"""Time of vLLM's fused expert kernels beside the dense layer with as many active parameters, by torch's profiler.

    python benchmarks/expert_kernels.py [-o src/infergy/data/expert_kernels.json]

Needs a GPU, torch and vLLM. Layers of OLMoE-1B-7B (64 experts of 2048 × 1024, 8 for each token) and of OLMo-1B (2048 × 8192), in
bfloat16 with random weights N(0, 0.02). Seconds are sums over all kernels of the layer (of the experts': sorting of tokens,
both matmuls, activation, weighted sum; without the router), mean of 200 calls over 32 draws of tokens and experts.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

HIDDEN, EXPERTS, CHOSEN, EXPERT_SIZE, DENSE_SIZE = 2048, 64, 8, 1024, 8192
TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 512, 2048)
CALLS = 200


def main() -> None:
    """Measure and print each number of tokens; with -o write all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output-file", type=Path)
    path = parser.parse_args().output_file
    import torch

    torch.manual_seed(0)
    layers = dense(), experts()
    rows = []
    for tokens in TOKENS:
        (dense_s, dense_kernels), (experts_s, expert_kernels) = (measured(layer, tokens) for layer in layers)
        rows.append({"tokens": tokens, "dense_s": dense_s, "experts_s": experts_s})
        print(
            f"{tokens:>5} tokens: dense {1e6 * dense_s:7.1f} µs, experts {1e6 * experts_s:7.1f} µs, {experts_s / dense_s - 1:+.1%}"
        )
    gpu = torch.cuda.get_device_properties(0)
    answer = {
        "gpu": gpu.name,
        "uuid": f"GPU-{gpu.uuid}",
        "packages": {name: version(name) for name in ("torch", "vllm", "triton")},
        "weights": "random weights",
        "kernels": {"dense": dense_kernels, "experts": expert_kernels},
        "rows": rows,
    }
    if path is not None:
        path.write_text(json.dumps(answer, indent=1) + "\n", encoding="utf-8")


def dense() -> Callable[..., Any]:
    """The feed-forward layer of OLMo-1B, as vLLM has it: gate and up in one matmul."""
    import torch
    import vllm._custom_ops  # noqa: F401 - registers silu_and_mul
    from torch.nn.functional import linear

    gate_up, down = draw(2 * DENSE_SIZE, HIDDEN), draw(HIDDEN, DENSE_SIZE)

    def run(x: Any, _weights: Any, _chosen: Any) -> Any:
        activated = torch.empty(len(x), DENSE_SIZE, dtype=x.dtype, device=x.device)
        torch.ops._C.silu_and_mul(activated, linear(x, gate_up))
        return linear(activated, down)

    return run


def experts() -> Callable[..., Any]:
    """The experts of OLMoE-1B-7B."""
    from vllm.model_executor.layers.fused_moe.fused_moe import fused_experts

    gate_up, down = draw(EXPERTS, 2 * EXPERT_SIZE, HIDDEN), draw(EXPERTS, HIDDEN, EXPERT_SIZE)
    return lambda x, weights, chosen: fused_experts(x, gate_up, down, weights, chosen)


def draw(*shape: int) -> Any:
    """A matrix of random weights."""
    import torch

    return torch.randn(*shape, dtype=torch.bfloat16, device="cuda") * 0.02


def inputs_of(tokens: int) -> tuple[Any, Any, Any]:
    """Tokens, and the weights and numbers of the experts that each takes."""
    import torch

    weights, chosen = torch.rand(tokens, EXPERTS, device="cuda").softmax(1).topk(CHOSEN)
    return torch.randn(tokens, HIDDEN, dtype=torch.bfloat16, device="cuda"), weights, chosen.int()


def measured(layer: Callable[..., Any], tokens: int) -> tuple[float, Sequence[str]]:
    """Seconds of a layer's kernels per call, and their names."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    inputs = [inputs_of(tokens) for _ in range(32)]
    for drawn in inputs:
        layer(*drawn)
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        for k in range(CALLS):
            layer(*inputs[k % len(inputs)])
        torch.cuda.synchronize()
    is_kernel = torch.autograd.DeviceType.CUDA
    kernels = [event for event in profiled.key_averages() if event.device_type == is_kernel]
    return sum(event.self_device_time_total for event in kernels) / CALLS / 1e6, [event.key for event in kernels]


if __name__ == "__main__":
    main()
