"""The one law by which random weights are drawn, in every engine.

Engines' own dummy weights differ (vLLM draws U(±1e-3), norms too; transformers draws N(0, 0.02)), and the power of
a matrix product depends on its operands. So infergy draws them itself, after loading, in place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Generator, Tensor, nn

STANDARD_DEVIATION = 0.02
"""The usual `initializer_range` of Hugging Face configurations."""

LAW = "random weights: matrices N(0, 0.02), norms 1, biases 0"


def draw_weights(model: nn.Module, seed: int) -> int:
    """Fill all parameters of a loaded model by `LAW`; returns how many values were drawn or set.

    Runs inside the engine's own process (vLLM ships it to its workers), so it takes and returns plain values.
    """
    import torch

    count = 0
    generator: torch.Generator | None = None
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if not parameter.is_floating_point() or parameter.numel() == 1:
                continue
            if generator is None:
                generator = torch.Generator(device=parameter.device).manual_seed(seed)
            _fill(name, parameter, generator)
            count += parameter.numel()
    return count


def _fill(name: str, parameter: Tensor, generator: Generator) -> None:
    if parameter.dim() >= 2:
        parameter.normal_(0.0, STANDARD_DEVIATION, generator=generator)
    elif name.endswith("bias"):
        parameter.zero_()
    else:
        parameter.fill_(1.0)
