"""What a grid asks for and cannot have: every reason at once, before anything runs. Standard library only."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from infergy.engines import find_engine
from infergy.errors import DataError, InfergyError, MissingError, UsageError
from infergy.hardware import ModelShape
from infergy.records import GREEDY, Arrivals, Decoding, EngineSetup, Load


class Refusals:
    """Errors kept until all are known."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._kept: dict[str, InfergyError] = {}

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keep what the block refuses, and go on after it."""
        try:
            yield
        except (UsageError, DataError) as error:
            self._kept.setdefault(str(error), error)

    def add(self, reasons: Iterable[str]) -> None:
        """Keep reasons in words."""
        for reason in reasons:
            self._kept.setdefault(reason, UsageError(reason))

    def tell(self) -> None:
        """Raise what was kept; nothing if there is nothing.

        Raises:
            UsageError: All reasons, a line each; the error itself if there is but one.
        """
        if len(self._kept) == 1:
            raise next(iter(self._kept.values()))
        if self._kept:
            lines = "".join(f"\n  - {reason}" for reason in self._kept)
            raise UsageError(f"{self._name} cannot be measured, for {len(self._kept)} reasons:{lines}")


def refuse_setup(
    setup: EngineSetup,
    shape: ModelShape | None,
    decodings: Iterable[Decoding],
    arrivals: Iterable[Arrivals | None] = (),
) -> Iterator[str]:
    """Why an engine cannot serve a set-up, under any of `decodings` and `arrivals`; not whether it is installed.

    `shape` is that of the model; None where the model is refused itself.

    Each option is tried alone first: an engine that refuses one would else hide what it thinks of the next.
    """
    try:
        engine = find_engine(setup.engine)
    except UsageError as error:
        yield str(error)
        return
    plain = EngineSetup(engine=setup.engine, model=setup.model)
    names = [field.name for field in dataclasses.fields(setup)]
    changed = [name for name in names if getattr(setup, name) != getattr(plain, name)]
    tried = [dataclasses.replace(plain, **{name: getattr(setup, name)}) for name in changed]
    pairs: list[tuple[EngineSetup, Decoding, Arrivals | None]] = [(one, GREEDY, None) for one in tried]
    pairs += [(plain, decoding, None) for decoding in decodings] + [(plain, GREEDY, one) for one in arrivals]
    for one, decoding, coming in [*pairs, *((setup, decoding, coming) for _, decoding, coming in pairs)]:
        try:
            engine.check(one, decoding, coming)
        except UsageError as error:
            yield f"{setup.label}: {error}"
        except MissingError:
            # A plan is made on one machine and measured on another.
            continue
    if shape is not None:
        yield from _refuse_heads(setup, shape)


def _refuse_heads(setup: EngineSetup, shape: ModelShape) -> Iterator[str]:
    """Each GPU of vLLM has as many query heads as the others (its ModelConfig.verify_with_parallel_config)."""
    gpus, heads = setup.tensor_parallel, shape.attention.heads
    if heads % gpus:
        fitting = ", ".join(str(count) for count in range(1, min(heads, 16) + 1) if heads % count == 0)
        yield (
            f"{setup.label}: tensor_parallel = {gpus} does not divide the {heads} attention heads of {setup.model}; "
            f"these do: {fitting}"
        )


def refuse_length(setup: EngineSetup, config: Mapping[str, Any], load: Load) -> Iterator[str]:
    """Why a request is too long for a set-up: vLLM takes none past the positions of the model."""
    text = config.get("text_config") or config
    scaling = text.get("rope_scaling") or {}
    positions = text.get("max_position_embeddings")
    # Other scalings stretch the positions by rules of their own, which only the engine knows.
    is_known = scaling.get("rope_type", scaling.get("type", "llama3")) == "llama3"
    tokens = load.input_tokens + load.output_tokens
    if setup.engine == "vllm" and is_known and isinstance(positions, int) and tokens > positions:
        yield (
            f"{setup.label}: {load.input_tokens} input and {load.output_tokens} output tokens are more than the "
            f"{positions} positions of {setup.model}"
        )
