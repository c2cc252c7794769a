"""What a grid asks for that cannot be: all reasons at once, before anything runs. Standard library only."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from infergy.catalog import BY_HAND, ModelShape, read_shape
from infergy.catalog.gpus import find_gpu_by_driver_name, gpu_names
from infergy.engines import find_engine
from infergy.engines.engine import check_assisted_batch
from infergy.errors import DataError, InfergyError, MissingError, UsageError
from infergy.records import GREEDY, Arrivals, Decoding, EngineSetup, Load, Plan


class Problems:
    """Errors of the plan or grid `name`, collected until all are known."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._errors: dict[str, InfergyError] = {}

    @contextmanager
    def collect(self) -> Iterator[None]:
        """Keep what the block raises, and go on after it."""
        try:
            yield
        except (UsageError, DataError) as error:
            self._errors.setdefault(str(error), error)

    def add(self, errors: Iterable[UsageError]) -> None:
        """Keep these errors."""
        for error in errors:
            self._errors.setdefault(str(error), error)

    def report(self) -> None:
        """Raise what was collected, if anything.

        Raises:
            UsageError: All reasons, a line each; the error itself if there is but one.
        """
        if len(self._errors) == 1:
            raise next(iter(self._errors.values()))
        if self._errors:
            lines = "".join(f"\n  - {reason}" for reason in self._errors)
            reasons = [{"code": e.code, "message": str(e), "fields": e.fields} for e in self._errors.values()]
            raise UsageError(
                f"{self._name} cannot be measured, for {len(self._errors)} reasons:{lines}",
                code="grid-rejected",
                grid=self._name,
                reasons=reasons,
            )


def setup_errors(
    setup: EngineSetup,
    shape: ModelShape | None,
    decodings: Iterable[Decoding],
    arrivals: Iterable[Arrivals | None] = (),
) -> Iterator[UsageError]:
    """Why an engine cannot serve an engine config under any of `decodings` and `arrivals`; not whether it is installed.

    `shape` is that of the model; None where the model itself is rejected.
    """
    try:
        engine = find_engine(setup.engine)
    except UsageError as error:
        yield error
        return
    # Each option alone first: an engine that rejects one would hide what it thinks of the next.
    plain = EngineSetup(engine=setup.engine, model=setup.model)
    asked: list[tuple[Decoding, Arrivals | None]] = [(one, None) for one in decodings]
    asked += [(GREEDY, one) for one in arrivals]
    for one, decoding, coming in (
        *((one, GREEDY, None) for one in _single_options(setup, plain)),
        *((plain, *pair) for pair in asked),
        *((setup, *pair) for pair in [(GREEDY, None), *asked]),
    ):
        try:
            engine.check(one, decoding, coming)
        except UsageError as error:
            yield error.within(setup.label)
        except MissingError:
            # A plan is made on one machine and measured on another.
            continue
    if shape is not None:
        yield from _head_errors(setup, shape)


def _single_options(setup: EngineSetup, plain: EngineSetup) -> Iterator[EngineSetup]:
    """The plain engine config with each of the options that `setup` changes."""
    for name in (field.name for field in dataclasses.fields(setup)):
        if getattr(setup, name) != getattr(plain, name):
            one = dataclasses.replace(plain, **{name: getattr(setup, name)})
            # Whether acceptance is set or measured follows from the weights: it is never alone.
            yield dataclasses.replace(one, weights=setup.weights) if one.speculation else one


def draft_errors(setup: EngineSetup, models: Mapping[str, Mapping[str, Any]]) -> Iterator[UsageError]:
    """Why an engine config's draft model cannot draft for its model; a model that `models` lacks is rejected elsewhere.

    Raises:
        UsageError: The draft's architecture is not known.
    """
    speculation = setup.speculation
    if speculation is None or speculation.draft not in models:
        return
    draft = read_shape(models[speculation.draft], name=speculation.draft)
    yield from _head_errors(setup, draft)
    reason = None
    if draft.name == setup.model:
        reason = f"{setup.model} cannot draft for itself: that saves no step. Name a smaller model"
    elif setup.model in models:
        vocabulary = read_shape(models[setup.model], name=setup.model).vocabulary
        if vocabulary != draft.vocabulary:
            reason = (
                f"{draft.name} drafts from {draft.vocabulary} tokens, {setup.model} has {vocabulary}: a draft model "
                "needs the same vocabulary, as llama-3.2-1b has for llama-3.1-8b"
            )
    if reason:
        yield UsageError(f"{setup.label}: {reason}", code="wrong-draft", draft=draft.name, model=setup.model)


def _head_errors(setup: EngineSetup, shape: ModelShape) -> Iterator[UsageError]:
    """Each GPU of vLLM has as many query heads as the others (its ModelConfig.verify_with_parallel_config)."""
    gpus, heads = setup.tensor_parallel, shape.attention.heads
    if heads % gpus:
        fitting = ", ".join(str(count) for count in range(1, heads + 1) if heads % count == 0)
        expected = f"a divisor of the {heads} attention heads of {shape.name}: {fitting}"
        yield UsageError.bad_value("tensor_parallel", gpus, expected).within(setup.label)


def length_errors(
    setup: EngineSetup, models: Mapping[str, Mapping[str, Any]], lengths: tuple[int, int]
) -> Iterator[UsageError]:
    """Why a request of so many input and output tokens is too long for an engine config.

    vLLM takes no request past the positions of the model or past its option. Past those of a draft model it goes on
    without drafting (its `_input_fits_in_drafter`), which would be measured as if it drafted.
    """
    tokens = sum(lengths)
    limits = {}
    if setup.max_model_len is not None:
        limits[f"max_model_len = {setup.max_model_len}"] = setup.max_model_len
    if setup.engine == "vllm":
        for name in setup.models:
            if (positions := _positions(models[name])) is not None:
                limits[f"the {positions} positions of {name}"] = positions
    for words, limit in limits.items():
        if tokens > limit:
            message = f"{setup.label}: {lengths[0]} input and {lengths[1]} output tokens exceed {words}"
            yield UsageError(message, code="too-long", tokens=tokens, limit=limit)


def _positions(config: Mapping[str, Any]) -> int | None:
    text = config.get("text_config") or config
    scaling = text.get("rope_scaling") or {"type": "llama3"}
    positions = text.get("max_position_embeddings")
    # Other scalings stretch the positions by rules of their own, which only the engine knows.
    is_known = isinstance(scaling, Mapping) and scaling.get("rope_type", scaling.get("type", "llama3")) == "llama3"
    return positions if is_known and isinstance(positions, int) else None


def batch_errors(setup: EngineSetup, load: Load) -> Iterator[UsageError]:
    """Why a batch is too large for a draft model under transformers, which assists one request at a time."""
    if setup.engine == "transformers" and setup.speculation is not None:
        try:
            check_assisted_batch(setup.speculation, load.batch)
        except UsageError as error:
            yield error.within(setup.label)


def load_plan(path: Path) -> Plan:
    """As `Plan.load`, for a GPU of the catalog or of a file.

    Raises:
        DataError: As of `Plan.load`, or its GPU is unknown.
    """
    plan = Plan.load(path)
    if not plan.gpu.endswith(".toml") and find_gpu_by_driver_name(plan.gpu) is None:
        raise DataError.bad_field(path, "gpu", plan.gpu, f"one of {', '.join(gpu_names())}, or a file of one")
    return plan


def check_contents(plan: Plan, *, simulate: bool) -> None:
    """Reject a plan that no machine can run.

    Raises:
        UsageError: A draft model does not fit its model, a request is too long, or an engine is to load a model that is
            described by hand.
        DataError: The plan lacks a model or arrival times, or holds a model that is no configuration.
    """
    for setup, cells in plan.by_setup().items():
        for name in setup.models:
            if name not in plan.models:
                message = (
                    f"the plan holds no configuration of {name}. Make it again with: infergy measure GRID --plan FILE"
                )
                raise DataError(message, code="plan-incomplete", plan=plan.name, missing=name)
            shape = read_shape(plan.models[name], name=name)
            if shape.checkpoint.architecture == BY_HAND and not simulate:
                message = (
                    f"{name} is described by hand, in numbers that no engine loads. Measure it with its config.json, "
                    "or simulate: --simulate"
                )
                raise UsageError(message, code="not-supported", model=name, reason="described by hand")
        longest = {max(planned.lengths or (planned.cell.load.lengths,), key=sum) for planned in cells}
        for error in chain(
            draft_errors(setup, plan.models),
            *(length_errors(setup, plan.models, lengths) for lengths in longest),
            *(batch_errors(setup, planned.cell.load) for planned in cells),
        ):
            raise error
        for planned in cells:
            planned.check_requests()
