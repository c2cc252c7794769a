"""The rules that every engine keeps, so that any engine works with any meter.

Loading a model is expensive: the rules share one session, in the order of `ENGINE_RULES`. The last but one closes it,
since the last one may leave an engine that is unusable and opens its own.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from infergy.engines import Completion, Engine, EngineOutOfMemoryError, Session, Work
from infergy.errors import MissingError, UsageError
from infergy.records import GREEDY, Arrivals, EngineSetup, Load
from infergy.records.cell import POISSON
from infergy.testing.rules import calling, demand, named, run_rules
from infergy.workload.load_generator import make_prompts

SHAPES = ((1, 9, 1), (3, 5, 4), (2, 16, 9), (3, 5, 4))
"""Batch, input and output tokens of the work that is run; the last repeats an earlier one on the same session."""

CLOCKS = 1e-3
"""How far the clock of an engine, such as a GPU's, may differ from ours, as a fraction."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineTrial:
    """An engine under test.

    Attributes:
        engine: The engine.
        session: Its session, shared by the rules.
        setup: What was loaded.
        config: The model's Hugging Face `config.json`.
        vocabulary: Token ids are drawn below this.
        too_large: Work that does not fit, or None where that is unknown.
        now_s: The clock of the engine, in seconds.
    """

    engine: Engine
    session: Session
    setup: EngineSetup
    config: Mapping[str, Any]
    vocabulary: int
    too_large: Work | None
    now_s: Callable[[], float] = time.monotonic

    def work(self, batch: int, length: int, output: int) -> Work:
        """A batch of equal requests, all arriving at once."""
        prompts = make_prompts(Load(input_tokens=length, output_tokens=output, batch=batch), self.vocabulary, seed=0)
        return Work(prompts=prompts, output_tokens=(output,) * batch, arrival_s=(0.0,) * batch)


ENGINE_RULES: dict[str, Callable[[EngineTrial], None]] = {}
"""By name; each takes an `EngineTrial` and raises an AssertionError whose message is a sentence."""

OUT_OF_MEMORY = "running out of memory is reported"


def check_engine(
    engine: Engine,
    setup: EngineSetup,
    config: Mapping[str, Any],
    *,
    too_large: Work | None = None,
    now_s: Callable[[], float] = time.monotonic,
) -> tuple[str, ...]:
    """Run `ENGINE_RULES` on a session of `engine`; a second one is loaded if `too_large` is given.

    Args:
        engine: The engine.
        setup: What to load; a tiny model will do.
        config: The model's Hugging Face `config.json`.
        too_large: Work that does not fit in memory. Without it the rule of running out of memory is left out.
        now_s: The clock of the engine, in seconds: `SimulatedGpu.now_s` for a simulated one.

    Returns:
        The names of the rules that were checked, all of them kept.

    Raises:
        BrokenRuleError: Rules are broken: a sentence for each.
        MissingError: The engine is not installed.
        InfergyError: It rejected `setup` or could not load the model.
    """
    engine.check(setup)
    trial = EngineTrial(
        engine=engine,
        session=engine.open(setup, config, 0),
        setup=setup,
        config=config,
        vocabulary=int(config.get("vocab_size") or config["text_config"]["vocab_size"]),
        too_large=too_large,
        now_s=now_s,
    )
    rules = {name: partial(rule, trial) for name, rule in ENGINE_RULES.items()}
    if too_large is None:
        del rules[OUT_OF_MEMORY]
    return run_rules(f"engine {getattr(engine, 'name', type(engine).__name__)!r}", rules)


@named(ENGINE_RULES, "the engine is named")
def _engine_is_named(trial: EngineTrial) -> None:
    name, packages = trial.engine.name, trial.engine.packages
    demand(isinstance(name, str) and bool(name), f"name is {name!r}; a plan asks for an engine by its name")
    demand(
        isinstance(packages, tuple) and all(isinstance(package, str) and package for package in packages),
        f"packages is {packages!r}; expected a tuple of distribution names, whose versions go into each row",
    )


@named(ENGINE_RULES, "check rejects by UsageError")
def _check_rejects_by_usage_error(trial: EngineTrial) -> None:
    changes = ({"cuda_graphs": True}, {"cuda_graphs": False}, {"tensor_parallel": 4096}, {"dtype": "float16"})
    calls = [partial(trial.engine.check, replace(trial.setup, **change)) for change in changes]
    calls += [partial(trial.engine.check, trial.setup, GREEDY, Arrivals(law=POISSON, rate_per_s=1.0))]
    for call in calls:
        with suppress(MissingError, UsageError), calling("check()", UsageError):
            call()


@named(ENGINE_RULES, "token counts are forced")
def _counts_are_forced(trial: EngineTrial) -> None:
    for shape in SHAPES:
        work = trial.work(*shape)
        with calling("run(), of equal lengths at once,"):
            completion = trial.session.run(work)
        _judge_counts(work, completion)


@named(ENGINE_RULES, "times are reported or None")
def _times_are_reported_or_none(trial: EngineTrial) -> None:
    work = trial.work(2, 8, 3)
    begun_s = trial.now_s()
    completion = trial.session.run(work)
    took_s = trial.now_s() - begun_s
    for name in ("first_token_s", "finished_s"):
        times = getattr(completion, name)
        demand(
            times is None or (isinstance(times, tuple) and len(times) == len(work.prompts)),
            f"{name} is {times!r}; expected a time for each of {len(work.prompts)} requests, or None where unknown",
        )
        for seconds in times or ():
            sound = math.isfinite(seconds) and seconds > 0
            demand(sound, f"{name} holds {seconds} s; an unknown time is None, never 0")
            demand(
                seconds <= took_s * (1 + CLOCKS),
                f"{name} holds {seconds} s, but run() returned after {took_s} s; expected no later",
            )
    for first_s, last_s in zip(completion.first_token_s or (), completion.finished_s or (), strict=False):
        demand(first_s <= last_s, f"a first token came after {first_s} s, after the last one at {last_s} s")


@named(ENGINE_RULES, "mixed work is served or rejected")
def _mixed_work_is_served_or_rejected(trial: EngineTrial) -> None:
    equal = trial.work(2, 6, 3)
    first, second = equal.prompts
    kinds = {
        "mixed input lengths": replace(equal, prompts=(first, second[:4])),
        "mixed output lengths": replace(equal, output_tokens=(3, 5)),
        "requests that arrive later": replace(equal, arrival_s=(0.0, 0.02)),
    }
    for kind, work in kinds.items():
        begun_s = trial.now_s()
        completion: Completion | None = None
        with suppress(UsageError), calling(f"run(), of {kind}, must serve them or raise UsageError; it", UsageError):
            completion = trial.session.run(work)
        took_s = trial.now_s() - begun_s
        if completion is not None:
            _judge_counts(work, completion)
            last_s = max(work.arrival_s)
            demand(
                took_s >= last_s * (1 - CLOCKS),
                f"run(), of {kind}, returned after {took_s} s, before its last request arrived, at {last_s} s",
            )
        with calling(f"run(), of ordinary work after {kind},"):
            _judge_counts(equal, trial.session.run(equal))


@named(ENGINE_RULES, "facts are strings or None")
def _facts_are_strings_or_none(trial: EngineTrial) -> None:
    for key, value in trial.session.facts().items():
        demand(
            isinstance(key, str) and (value is None or (isinstance(value, str) and bool(value))),
            f"facts() holds {key!r}: {value!r}; expected strings, and None for what is unknown",
        )


@named(ENGINE_RULES, "closing twice is harmless")
def _closing_twice_is_harmless(trial: EngineTrial) -> None:
    with calling("close()"):
        trial.session.close()
    with calling("close(), called again,"):
        trial.session.close()


@named(ENGINE_RULES, OUT_OF_MEMORY)
def _running_out_of_memory_is_reported(trial: EngineTrial) -> None:
    assert trial.too_large is not None
    session = trial.engine.open(trial.setup, trial.config, 0)
    try:
        what = "run(), of work that does not fit, must raise EngineOutOfMemoryError; it"
        with calling(what, EngineOutOfMemoryError):
            session.run(trial.too_large)
    except EngineOutOfMemoryError as error:
        if error.is_usable:
            work = trial.work(*SHAPES[0])
            with calling("is_usable was True, but run(), of ordinary work thereafter,"):
                _judge_counts(work, session.run(work))
            session.close()
    else:
        demand(False, "run(), of work that does not fit, served it; expected EngineOutOfMemoryError")


def _judge_counts(work: Work, completion: Completion) -> None:
    asked = tuple(len(prompt) for prompt in work.prompts)
    demand(
        completion.input_tokens == asked,
        f"prompts of {asked} tokens were given, input_tokens is {completion.input_tokens}; expected one number per "
        "request, equal to its prompt",
    )
    demand(
        completion.output_tokens == work.output_tokens,
        f"{work.output_tokens} output tokens were asked for, output_tokens is {completion.output_tokens}; the counts "
        "are forced, whatever the model generates",
    )
