"""What a grid asks for and cannot have: every reason at once, before anything runs. Standard library only."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from infergy.engines import find_engine
from infergy.engines.engine import check_assisted_batch
from infergy.errors import DataError, InfergyError, MissingError, UsageError
from infergy.hardware import ModelShape, read_shape
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

    def add(self, errors: Iterable[UsageError]) -> None:
        """Keep errors that were not raised."""
        for error in errors:
            self._kept.setdefault(str(error), error)

    def tell(self) -> None:
        """Raise what was kept; nothing if there is nothing.

        Raises:
            UsageError: All reasons, a line each; the error itself if there is but one.
        """
        if len(self._kept) == 1:
            raise next(iter(self._kept.values()))
        if self._kept:
            lines = "".join(f"\n  - {reason}" for reason in self._kept)
            message = f"{self._name} cannot be measured, for {len(self._kept)} reasons:{lines}"
            raise UsageError(
                message,
                code="grid-rejected",
                grid=self._name,
                reasons=[{"code": one.code, "message": str(one), "fields": one.fields} for one in self._kept.values()],
            )


def refuse_setup(
    setup: EngineSetup,
    shape: ModelShape | None,
    decodings: Iterable[Decoding],
    arrivals: Iterable[Arrivals | None] = (),
) -> Iterator[UsageError]:
    """Why an engine cannot serve a set-up, under any of `decodings` and `arrivals`; not whether it is installed.

    `shape` is that of the model; None where the model is refused itself.

    Each option is tried alone first: an engine that refuses one would else hide what it thinks of the next.
    """
    try:
        engine = find_engine(setup.engine)
    except UsageError as error:
        yield error
        return
    plain = EngineSetup(engine=setup.engine, model=setup.model)
    names = [field.name for field in dataclasses.fields(setup)]
    changed = [name for name in names if getattr(setup, name) != getattr(plain, name)]
    tried = [dataclasses.replace(plain, **{name: getattr(setup, name)}) for name in changed]
    # Whether its acceptance is set or measured follows from the weights: it is never alone.
    tried = [dataclasses.replace(one, weights=setup.weights) if one.speculation else one for one in tried]
    pairs: list[tuple[EngineSetup, Decoding, Arrivals | None]] = [(one, GREEDY, None) for one in tried]
    pairs += [(plain, decoding, None) for decoding in decodings] + [(plain, GREEDY, one) for one in arrivals]
    for one, decoding, coming in [*pairs, *((setup, decoding, coming) for _, decoding, coming in pairs)]:
        try:
            engine.check(one, decoding, coming)
        except UsageError as error:
            yield error.within(setup.label)
        except MissingError:
            # A plan is made on one machine and measured on another.
            continue
    if shape is not None:
        yield from _refuse_heads(setup, shape)


def refuse_draft(setup: EngineSetup, models: Mapping[str, Mapping[str, Any]]) -> Iterator[UsageError]:
    """Why a set-up's draft model cannot draft for its model: their tokens are not the same, or heads do not part.

    Where `models` lacks one of the two, that one is refused itself.

    Raises:
        UsageError: The draft's architecture is not known.
    """
    speculation = setup.speculation
    if speculation is None or speculation.draft not in models:
        return
    draft = read_shape(models[speculation.draft], name=speculation.draft)
    yield from _refuse_heads(setup, draft)
    if speculation.draft == setup.model:
        reason = f"{setup.label}: {setup.model} cannot draft for itself: that saves no step. Name a smaller model"
        yield UsageError(reason, code="wrong-draft", draft=draft.name, model=setup.model)
    if setup.model in models:
        shape = read_shape(models[setup.model], name=setup.model)
        if shape.vocabulary != draft.vocabulary:
            yield UsageError(
                f"{setup.label}: {draft.name} drafts from {draft.vocabulary} tokens, {shape.name} has "
                f"{shape.vocabulary}: a draft model needs the same vocabulary, as llama-3.2-1b has for llama-3.1-8b",
                code="wrong-draft",
                draft=draft.name,
                model=shape.name,
            )


def _refuse_heads(setup: EngineSetup, shape: ModelShape) -> Iterator[UsageError]:
    """Each GPU of vLLM has as many query heads as the others (its ModelConfig.verify_with_parallel_config)."""
    gpus, heads = setup.tensor_parallel, shape.attention.heads
    if heads % gpus:
        fitting = ", ".join(str(count) for count in range(1, min(heads, 16) + 1) if heads % count == 0)
        expected = f"a divisor of the {heads} attention heads of {shape.name}: {fitting}"
        yield UsageError.bad_value("tensor_parallel", gpus, expected).within(setup.label)


def refuse_assisted(setup: EngineSetup, load: Load) -> Iterator[UsageError]:
    """Why a batch is too large for a draft model under transformers, which assists one request at a time."""
    if setup.engine == "transformers" and setup.speculation is not None:
        try:
            check_assisted_batch(setup.speculation, load.batch)
        except UsageError as error:
            yield error.within(setup.label)


def refuse_length(setup: EngineSetup, models: Mapping[str, Mapping[str, Any]], load: Load) -> Iterator[UsageError]:
    """Why a request is too long for a set-up: vLLM takes none past the positions of the model, or past its option.

    Past those of a draft model it goes on without drafting (its `_input_fits_in_drafter`), and would be taken for what
    it is not.
    """
    tokens = load.input_tokens + load.output_tokens
    if setup.max_model_len is not None and tokens > setup.max_model_len:
        yield UsageError(
            f"{setup.label}: {tokens} input and output tokens are more than max_model_len = {setup.max_model_len}",
            code="too-long",
            tokens=tokens,
            limit=setup.max_model_len,
        )
    for name in setup.models:
        yield from _refuse_positions(setup, name, models[name], load)


def _refuse_positions(setup: EngineSetup, name: str, config: Mapping[str, Any], load: Load) -> Iterator[UsageError]:
    text = config.get("text_config") or config
    scaling = text.get("rope_scaling") or {}
    positions = text.get("max_position_embeddings")
    # Other scalings stretch the positions by rules of their own, which only the engine knows.
    is_known = scaling.get("rope_type", scaling.get("type", "llama3")) == "llama3"
    tokens = load.input_tokens + load.output_tokens
    if setup.engine == "vllm" and is_known and isinstance(positions, int) and tokens > positions:
        yield UsageError(
            f"{setup.label}: {load.input_tokens} input and {load.output_tokens} output tokens are more than the "
            f"{positions} positions of {name}",
            code="too-long",
            tokens=tokens,
            limit=positions,
        )
