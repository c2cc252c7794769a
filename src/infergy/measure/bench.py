"""What a calibration asks of whoever does its work: torch on a GPU, or a simulation. Standard library only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from infergy.measure.calibration_plan import Traits
from infergy.records.calibration import Workload


def look_nowhere() -> None:
    """Look at nothing."""


class Work(Protocol):
    """A workload that is loaded and warm.

    Attributes:
        how: Which kernels do it, and how they are launched, in words.
        in_graph: Whether a CUDA graph launches them; None where nothing is launched.
    """

    how: str
    in_graph: bool | None

    def run(self, seconds: float, look: Callable[[], None] = look_nowhere) -> int:
        """Repeat it for about so long; returns how many calls were done when it returned.

        Args:
            seconds: At least one call is made.
            look: Called once, about half-way, while the GPU has work in its queue.
        """
        ...

    def close(self) -> None:
        """Give its memory back."""
        ...


class Bench(Protocol):
    """Whoever does the work.

    Attributes:
        name: What does it, for the record.
        traits: Of the GPU.
    """

    name: str
    traits: Traits

    def load(self, work: Workload) -> Work:
        """Allocate operands, load kernels, run them once.

        Raises:
            EngineOutOfMemoryError: The operands do not fit.
            EngineError: The GPU or the library cannot do it; the message says why.
        """
        ...

    def close(self) -> None:
        """Give all back."""
        ...
