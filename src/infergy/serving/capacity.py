"""How many KV cache blocks an engine has: its share of the memory less weights, activations and its own needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from infergy.errors import UsageError
from infergy.hardware.gpus import Gpu
from infergy.hardware.memory import activation_values_per_token
from infergy.hardware.shape import DTYPE_BYTES, ModelShape
from infergy.units import format_bytes

if TYPE_CHECKING:
    from infergy.serving.config import EngineOptions

FEWER_TOKENS = (16384, 8192, 2048)
"""Tokens of a step to advise where more leave no room: vLLM's defaults."""
FIXED_BYTES = 0.57e9
MEMORY_SHARE = 0.0021
ACTIVATION_SHARE = 0.92
LINK_BYTES = 0.43e9
SERVER_SHARE = 0.0212
"""What vLLM keeps back on each GPU, calibrated to `num_gpu_blocks` of 16 engines of 0.25.0 on H100s and H200s (Llama
1B and 8B, OLMo 1B and 7B, OLMoE, Qwen 32B; bf16 and FP8; 1, 2 and 4 GPUs), all met within 1 %: 0.57 GB and 0.21 % of
the memory (the driver reports more than CUDA hands out), 92 % of the upper bound of a step's activations, 0.43 GB for
collectives of several GPUs, and of a mixture the outputs of the visited experts. The API server kept
back 2.1 % of the memory more, in both of its configurations on an H200; the cause is not known, so it is taken as a
share of the memory."""


def kv_blocks(shape: ModelShape, gpu: Gpu, options: EngineOptions, *, dtype: str, tokens: int, server: bool) -> int:
    """VLLM's `num_gpu_blocks`, the null block included; `tokens` is the largest step.

    Raises:
        UsageError: The weights leave no room for a block on each GPU.
    """
    size = options.tensor_parallel_size
    block = options.block_size * shape.kv_bytes_per_token() * _copies(shape, size) / size

    def room(tokens: int) -> int:
        left = _left_bytes(shape, gpu, options.gpu_memory_utilization, dtype, size, tokens, server=server)
        return int(left // block) if block else 0

    blocks = room(tokens)
    if blocks < 2:
        weights = shape.weight_bytes(dtype)
        few = next((few for few in FEWER_TOKENS if few < tokens and room(few) > 1), None)
        if few is not None:
            message = (
                f"--max-num-batched-tokens {tokens}: activations of a step of so many tokens leave no room for the KV "
                f"cache of {shape.name} on {size} × {gpu.title}: type --max-num-batched-tokens {few} or fewer"
            )
            raise UsageError(
                message,
                code="does-not-fit",
                model=shape.name,
                gpu=gpu.name,
                option="--max-num-batched-tokens",
                value=tokens,
            )
        raise UsageError(
            f"{shape.name} does not fit: its {dtype} weights need {format_bytes(weights)} on {size} × {gpu.title}, of "
            f"which vLLM takes {format_bytes(options.gpu_memory_utilization * gpu.memory_bytes * size)}; "
            + _what_fits(shape, gpu, options, dtype, tokens, server=server),
            code="does-not-fit",
            model=shape.name,
            gpu=gpu.name,
        )
    return blocks


def _left_bytes(
    shape: ModelShape, gpu: Gpu, utilization: float, dtype: str, size: int, tokens: int, *, server: bool
) -> float:
    """Bytes of one GPU that are left for the KV cache; negative where the weights alone do not fit."""
    values = activation_values_per_token(shape)
    whole = 3 * shape.hidden  # of the residual stream each GPU keeps all
    activations = 2.0 * tokens * (whole + (values - whole) / size) * ACTIVATION_SHARE
    if shape.experts is not None:
        activations += 2.0 * tokens * shape.experts.experts_per_token * shape.hidden
    kept_back = FIXED_BYTES + gpu.memory_bytes * (MEMORY_SHARE + (SERVER_SHARE if server else 0.0))
    kept_back += LINK_BYTES if size > 1 else 0.0
    return utilization * gpu.memory_bytes - shape.weight_bytes(dtype) / size - activations - kept_back


def _copies(shape: ModelShape, size: int) -> float:
    """How often a group of GPUs keeps the same keys and values: heads fewer than GPUs, and MLA's latent, are copied."""
    heads = shape.attention.kv_heads if shape.attention.latent is None else 1
    return max(1.0, size / heads)


def _what_fits(shape: ModelShape, gpu: Gpu, options: EngineOptions, dtype: str, tokens: int, *, server: bool) -> str:
    block = options.block_size * shape.kv_bytes_per_token()

    def fits(precision: str, size: int) -> bool:
        left = _left_bytes(shape, gpu, options.gpu_memory_utilization, precision, size, tokens, server=server)
        return left >= 2 * block * _copies(shape, size) / size

    ways = []
    sizes = [k for k in (2, 4, 8, 16) if k > options.tensor_parallel_size and shape.attention.heads % k == 0]
    size = next((k for k in sizes if fits(dtype, k)), None)
    if size is not None:
        ways.append(f"--tensor-parallel-size {size}")
    if DTYPE_BYTES[dtype] > DTYPE_BYTES["fp8"] and fits("fp8", options.tensor_parallel_size):
        ways.append("--precision fp8")
    return f"{' or '.join(ways)} would" if ways else "no --tensor-parallel-size up to 16 and no --precision would"
