"""The rules that every engine keeps, so that any engine can stand over any meter.

Loading a model is dear: the rules share one session, in the order of `ENGINE_RULES`. The last but one closes it, since
the last one may leave an engine that is of no more use and opens its own.
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
from infergy.records.load import POISSON
from infergy.testing.rules import calling, demand, run_rules
from infergy.units import count_of
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
        too_large: Work that does not fit, or None where nobody said.
        now_s: The clock on which the engine lives, in seconds.
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
        setup: What it shall load; a tiny model will do.
        config: The model's Hugging Face `config.json`.
        too_large: Work that does not fit in memory. Without it the rule of running out of memory is left out.
        now_s: The clock on which the engine lives, in seconds: `SimulatedGpu.now_s` for a simulated one.

    Returns:
        The names of the rules that were checked, all of them kept.

    Raises:
        BrokenRuleError: Rules are broken: a sentence for each.
        MissingError: The engine is not installed.
        InfergyError: It refused `setup` or could not load the model.
    """
    engine.check(setup)
    vocabulary = int(config.get("vocab_size") or config["text_config"]["vocab_size"])
    trial = EngineTrial(
        engine=engine,
        session=engine.open(setup, config, 0),
        setup=setup,
        config=config,
        vocabulary=vocabulary,
        too_large=too_large,
        now_s=now_s,
    )
    rules = {name: partial(rule, trial) for name, rule in ENGINE_RULES.items()}
    if too_large is None:
        del rules[OUT_OF_MEMORY]
    return run_rules(f"engine {getattr(engine, 'name', type(engine).__name__)!r}", rules)


def _engine_is_named(trial: EngineTrial) -> None:
    name, packages = trial.engine.name, trial.engine.packages
    demand(isinstance(name, str) and bool(name), f"name is {name!r}; a plan asks for an engine by its name")
    demand(
        isinstance(packages, tuple) and all(isinstance(package, str) and package for package in packages),
        f"packages is {packages!r}; expected a tuple of distribution names, whose versions go into each row",
    )


def _check_refuses_by_usage_error(trial: EngineTrial) -> None:
    for online in (None, Arrivals(law=POISSON, rate_per_s=1.0)):
        with suppress(MissingError), calling("check()"):
            _unless_refused(partial(trial.engine.check, trial.setup, GREEDY, online))
    for change in ({"cuda_graphs": True}, {"cuda_graphs": False}, {"tensor_parallel": 4096}, {"dtype": "float16"}):
        try:
            with calling("check()"):
                _unless_refused(partial(trial.engine.check, replace(trial.setup, **change)))
        except MissingError:
            continue


def _counts_are_forced(trial: EngineTrial) -> None:
    for shape in SHAPES:
        work = trial.work(*shape)
        with calling("run(), of equal lengths at once,"):
            completion = trial.session.run(work)
        _judge_counts(work, completion)


def _times_are_told_or_none(trial: EngineTrial) -> None:
    work = trial.work(2, 8, 3)
    begun_s = trial.now_s()
    completion = trial.session.run(work)
    took_s = trial.now_s() - begun_s
    for name in ("first_token_s", "finished_s"):
        times = getattr(completion, name)
        demand(
            times is None or (isinstance(times, tuple) and len(times) == len(work.prompts)),
            f"{name} is {times!r}; expected a time for each of {count_of(len(work.prompts), 'request')}, or None where "
            "it does not tell",
        )
        for seconds in times or ():
            demand(
                math.isfinite(seconds) and seconds > 0, f"{name} holds {seconds} s; an unknown time is None, never 0"
            )
            demand(
                seconds <= took_s * (1 + CLOCKS),
                f"{name} holds {seconds} s, but run() returned after {took_s} s; expected no later",
            )
    pairs = zip(completion.first_token_s or (), completion.finished_s or (), strict=False)
    for first_s, last_s in pairs:
        demand(first_s <= last_s, f"a first token came after {first_s} s, after the last one at {last_s} s")


def _mixed_work_is_served_or_refused(trial: EngineTrial) -> None:
    equal = trial.work(2, 6, 3)
    first, second = equal.prompts
    kinds = {
        "mixed input lengths": replace(equal, prompts=(first, second[:4])),
        "mixed output lengths": replace(equal, output_tokens=(3, 5)),
        "requests that arrive later": replace(equal, arrival_s=(0.0, 0.02)),
    }
    for kind, work in kinds.items():
        begun_s = trial.now_s()
        with calling(f"run(), of {kind}, must serve them or raise UsageError; it"):
            completion = _unless_refused(partial(trial.session.run, work))
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


def _facts_are_strings_or_none(trial: EngineTrial) -> None:
    for key, value in trial.session.facts().items():
        demand(
            isinstance(key, str) and (value is None or (isinstance(value, str) and bool(value))),
            f"facts() holds {key!r}: {value!r}; expected strings, and None for what is unknown",
        )


def _running_out_of_memory_is_told(trial: EngineTrial) -> None:
    assert trial.too_large is not None
    session = trial.engine.open(trial.setup, trial.config, 0)
    with calling("run(), of work that does not fit, must raise EngineOutOfMemoryError; it"):
        refused = _unless_too_large(session, trial.too_large)
    demand(refused is not None, "run(), of work that does not fit, served it; expected EngineOutOfMemoryError")
    if refused is not None and refused.is_usable:
        work = trial.work(*SHAPES[0])
        with calling("is_usable was True, but run(), of ordinary work thereafter,"):
            _judge_counts(work, session.run(work))
        session.close()


def _closing_twice_is_harmless(trial: EngineTrial) -> None:
    with calling("close()"):
        trial.session.close()
    with calling("close(), called again,"):
        trial.session.close()


def _unless_refused(call: Callable[[], Completion | None]) -> Completion | None:
    try:
        return call()
    except UsageError:
        return None


def _unless_too_large(session: Session, work: Work) -> EngineOutOfMemoryError | None:
    try:
        session.run(work)
    except EngineOutOfMemoryError as error:
        return error
    return None


def _judge_counts(work: Work, completion: Completion) -> None:
    asked = tuple(len(prompt) for prompt in work.prompts)
    demand(
        completion.input_tokens == asked,
        f"prompts of {asked} tokens were given, input_tokens is {completion.input_tokens}; expected one number a "
        "request, equal to its prompt",
    )
    demand(
        completion.output_tokens == work.output_tokens,
        f"{work.output_tokens} output tokens were asked for, output_tokens is {completion.output_tokens}; the counts "
        "are forced, whatever the model would say",
    )


OUT_OF_MEMORY = "running out of memory is told"

ENGINE_RULES: Mapping[str, Callable[[EngineTrial], None]] = {
    "the engine is named": _engine_is_named,
    "check refuses by UsageError": _check_refuses_by_usage_error,
    "token counts are forced": _counts_are_forced,
    "times are told or None": _times_are_told_or_none,
    "mixed work is served or refused": _mixed_work_is_served_or_refused,
    "facts are strings or None": _facts_are_strings_or_none,
    "closing twice is harmless": _closing_twice_is_harmless,
    OUT_OF_MEMORY: _running_out_of_memory_is_told,
}
"""By name; each takes an `EngineTrial` and raises an AssertionError whose message is a sentence."""
