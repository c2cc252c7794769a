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
        for name, parameter in sorted(model.named_parameters()):
            if not parameter.is_floating_point() or parameter.numel() == 1:
                continue
            if generator is None:
                generator = torch.Generator(device=parameter.device).manual_seed(seed)
            if law == UNIFORM_WEIGHTS:
                parameter.uniform_(-UNIFORM_BOUND, UNIFORM_BOUND, generator=generator)
            else:
                _fill_normal(name, parameter, generator)
            count += parameter.numel()
    return count


def _fill_normal(name: str, parameter: Tensor, generator: Generator) -> None:
    if parameter.dim() >= 2:
        parameter.normal_(0.0, STANDARD_DEVIATION, generator=generator)
    elif name.endswith("bias"):
        parameter.zero_()
    else:
        parameter.fill_(1.0)
