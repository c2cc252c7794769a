"""The laws by which random weights are drawn, the same in every engine.

Engines' own dummy weights differ (vLLM draws U(±1e-3), norms too; transformers draws N(0, 0.02)), and the power of
a matrix product depends on its operands. So infergy draws them itself, after loading, in place.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from infergy.records import RANDOM_WEIGHTS, UNIFORM_WEIGHTS

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn

STANDARD_DEVIATION = 0.02
"""The usual `initializer_range` of Hugging Face configurations."""

UNIFORM_BOUND = 1e-3
"""What vLLM's `load_format="dummy"` draws by."""

LAWS: Mapping[str, str] = {
    RANDOM_WEIGHTS: "random weights: matrices N(0, 0.02), norms 1, biases 0",
    UNIFORM_WEIGHTS: "random weights: all U(-0.001, 0.001), norms and biases too",
}
"""By the name that `EngineSetup.weights` gives; any other name stands for real weights."""


def describe_weights(name: str) -> str:
    """What an environment says of the weights: the law, or where real ones came from."""
    return LAWS.get(name, f"real weights: {name}")


def draw_weights(model: nn.Module, law: str, seed: int) -> int:
    """Fill all parameters of a loaded model by one of `LAWS`; returns how many values were drawn or set.

    Runs inside the engine's own process (vLLM ships it to its workers), so it takes and returns plain values.
    """
    import torch

    count = 0
    generator: torch.Generator | None = None
    with torch.no_grad():
        parameters = dict(model.named_parameters())
        for name, parameter in sorted(parameters.items()):
            if not parameter.is_floating_point() or parameter.numel() == 1:
                continue
            if generator is None:
                generator = torch.Generator(device=parameter.device).manual_seed(seed)
            if parameter.dtype == torch.float8_e4m3fn:
                _fill_fp8(parameter, parameters.get(f"{name}_scale"), law, generator)
            elif law == UNIFORM_WEIGHTS:
                parameter.uniform_(-UNIFORM_BOUND, UNIFORM_BOUND, generator=generator)
            else:
                _fill_normal(name, parameter, generator)
            count += parameter.numel()
    return count


def _fill_fp8(parameter: Tensor, scale: Tensor | None, law: str, generator: Generator) -> None:
    """Values of the law as vLLM's quantisation leaves them: the largest of a matrix becomes the largest of e4m3.

    Raises:
        RuntimeError: The scale of the matrix is not a single one beside it: another scheme than one scale a matrix.
    """
    import torch

    if scale is None or scale.numel() != 1:
        raise RuntimeError("an fp8 matrix without one scale of its own: weights cannot be drawn into it")
    drawn = torch.empty(parameter.shape, dtype=torch.float32, device=parameter.device)
    if law == UNIFORM_WEIGHTS:
        drawn.uniform_(-UNIFORM_BOUND, UNIFORM_BOUND, generator=generator)
    else:
        drawn.normal_(0.0, STANDARD_DEVIATION, generator=generator)
    one = drawn.abs().max() / torch.finfo(parameter.dtype).max
    scale.copy_(one.reshape(scale.shape))
    parameter.copy_((drawn / one).to(parameter.dtype))


def _fill_normal(name: str, parameter: Tensor, generator: Generator) -> None:
    if parameter.dim() >= 2:
        parameter.normal_(0.0, STANDARD_DEVIATION, generator=generator)
    elif name.endswith("bias"):
        parameter.zero_()
    else:
        parameter.fill_(1.0)
