"""Which experts of a mixture decode steps visit, counted by hooks on the routers of a torch model."""

from __future__ import annotations

from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Self

ROUTER_NAME = "router"
"""Part of the class names of routers that return which experts they chose (transformers from 5 on: OlmoeTopKRouter)."""


class ExpertCounter(AbstractContextManager["ExpertCounter"]):
    """Counts while it is open.

    A router takes all tokens of a forward pass and returns, among others, the numbers of the experts of each: whole
    numbers, a row a token. Passes of `tokens` tokens are decode steps, and no others count.

    Args:
        model: A torch module.
        tokens: Tokens of one decode step: requests, or beams of them.
    """

    def __init__(self, model: Any, tokens: int) -> None:
        self._tokens = tokens
        self._routers = [one for one in model.modules() if ROUTER_NAME in type(one).__name__.lower()]
        self._handles: list[Any] = []
        self._shares: list[Any] = []

    def __enter__(self) -> Self:
        self._handles = [router.register_forward_hook(self._count) for router in self._routers]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()

    def share(self) -> float | None:
        """Mean share of a layer's experts that one decode step visited, 0 to 1; None where no router told."""
        return float(sum(self._shares) / len(self._shares)) if self._shares else None

    def _count(self, router: Any, _inputs: Any, outputs: Any) -> None:
        import torch

        parts = outputs if isinstance(outputs, tuple) else (outputs,)
        chosen = next((one for one in parts if torch.is_tensor(one) and not one.is_floating_point()), None)
        if chosen is None or chosen.dim() != 2 or len(chosen) != self._tokens:
            return
        # The matrix of a router has a row an expert.
        visited = torch.zeros(len(router.weight), device=chosen.device)
        visited[chosen.flatten()] = 1.0
        self._shares.append(visited.mean())
