"""The rules of engines: infergy's own keep them, and each can be broken (transformers: tests/engines)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from infergy.catalog import get_gpu, model_config
from infergy.engines import Completion, EngineOutOfMemoryError, Work
from infergy.engines.simulated_engine import SimulatedEngine, SimulatedSession
from infergy.errors import EngineError
from infergy.meters.simulated import SimulatedGpu
from infergy.records import GREEDY, Arrivals, Decoding, EngineSetup, GpuIdentity
from infergy.testing import ENGINE_RULES, BrokenRuleError, check_engine

SETUP = EngineSetup(engine="vllm", model="llama-3.1-8b")
HUGE = Work(prompts=((1,) * 4096,) * 8192, output_tokens=(512,) * 8192, arrival_s=(0.0,) * 8192)


class Engine(SimulatedEngine):
    """The simulated engine with sessions of another kind."""

    kind: type[SimulatedSession] = SimulatedSession

    def __init__(self) -> None:
        self.device = SimulatedGpu(GpuIdentity(uuid="GPU-a", name="simulated"), idle_w=100.0)
        super().__init__(self.device, get_gpu("h200"))

    def open(
        self, setup: EngineSetup, config: Mapping[str, Any], seed: int, draft: Mapping[str, Any] | None = None
    ) -> SimulatedSession:
        session = super().open(setup, config, seed, draft)
        session.__class__ = self.kind
        return session


def check(engine: Engine, too_large: Work | None = HUGE) -> tuple[str, ...]:
    config = model_config("llama-3.1-8b")
    return check_engine(engine, SETUP, config, too_large=too_large, now_s=engine.device.now_s)


def test_the_simulated_engine_keeps_every_rule() -> None:
    assert check(Engine()) == tuple(ENGINE_RULES)


def test_without_work_that_is_too_large_the_rule_of_memory_is_not_said_to_be_kept() -> None:
    assert set(ENGINE_RULES) - set(check(Engine(), too_large=None)) == {"running out of memory is reported"}


class PackageList(Engine):
    packages = ["vllm"]  # type: ignore[assignment]  # noqa: RUF012


class RefusesByValueError(Engine):
    def check(self, setup: EngineSetup, decoding: Decoding = GREEDY, arrivals: Arrivals | None = None) -> None:
        if setup.tensor_parallel > 1:
            raise ValueError("one GPU only")


class Padding(SimulatedSession):
    def run(self, work: Work) -> Completion:
        done = super().run(work)
        if len(work.prompts) <= 2:
            return done
        return replace(done, output_tokens=(max(work.output_tokens) + 1,) * len(work.prompts))


class ZeroTimes(SimulatedSession):
    def run(self, work: Work) -> Completion:
        return replace(super().run(work), first_token_s=(0.0,) * len(work.prompts))


class FirstAfterLast(SimulatedSession):
    def run(self, work: Work) -> Completion:
        done = super().run(work)
        return replace(done, first_token_s=done.finished_s, finished_s=done.first_token_s)


class FirstAfterReturn(SimulatedSession):
    def run(self, work: Work) -> Completion:
        return replace(super().run(work), first_token_s=(9.0,) * len(work.prompts), finished_s=None)


class Truncating(SimulatedSession):
    """Serves mixed lengths as if all were the shortest, without a word."""

    def run(self, work: Work) -> Completion:
        shortest = min(map(len, work.prompts))
        prompts = tuple(prompt[:shortest] for prompt in work.prompts)
        outputs = (min(work.output_tokens),) * len(prompts)
        return super().run(Work(prompts=prompts, output_tokens=outputs, arrival_s=(0.0,) * len(prompts)))


class RefusesByEngineError(SimulatedSession):
    def run(self, work: Work) -> Completion:
        if any(work.arrival_s):
            raise EngineError("no arrivals here")
        return super().run(work)


class NumberFact(SimulatedSession):
    def facts(self) -> Mapping[str, str | None]:
        return {"max_num_seqs": 256}  # type: ignore[dict-item]


class ClosesOnce(SimulatedSession):
    def close(self) -> None:
        del self._gpu


class RunsOut(SimulatedSession):
    def run(self, work: Work) -> Completion:
        try:
            return super().run(work)
        except EngineOutOfMemoryError as error:
            raise RuntimeError("CUDA out of memory") from error


class Boundless(SimulatedSession):
    def run(self, work: Work) -> Completion:
        tokens = tuple(map(len, work.prompts))
        try:
            return super().run(work)
        except EngineOutOfMemoryError:
            return Completion(input_tokens=tokens, output_tokens=work.output_tokens)


class DiesOfMemory(SimulatedSession):
    """Says that it can go on, and cannot."""

    def run(self, work: Work) -> Completion:
        try:
            return super().run(work)
        except EngineOutOfMemoryError:
            del self._shape
            raise


MEMORY = "running out of memory is reported"
MIXED = "mixed work is served or rejected"
BROKEN: list[tuple[type[Engine] | type[SimulatedSession], str, str]] = [
    (PackageList, "the engine is named", "packages is ['vllm']"),
    (RefusesByValueError, "check rejects by UsageError", "check() raised ValueError: one GPU only"),
    (Padding, "token counts are forced", "(4, 4, 4) output tokens were asked for, output_tokens is (5, 5, 5)"),
    (ZeroTimes, "times are reported or None", "first_token_s holds 0.0 s; an unknown time is None, never 0"),
    (FirstAfterLast, "times are reported or None", "after the last one at"),
    (FirstAfterReturn, "times are reported or None", "first_token_s holds 9.0 s, but run() returned after"),
    (Truncating, MIXED, "prompts of (6, 4) tokens were given, input_tokens is (4, 4)"),
    (RefusesByEngineError, MIXED, "must serve them or raise UsageError; it raised EngineError: no arrivals here"),
    (NumberFact, "facts are strings or None", "facts() holds 'max_num_seqs': 256"),
    (ClosesOnce, "closing twice is harmless", "close(), called again, raised AttributeError"),
    (RunsOut, MEMORY, "must raise EngineOutOfMemoryError; it raised RuntimeError: CUDA out of memory"),
    (Boundless, MEMORY, "served it; expected EngineOutOfMemoryError"),
    (DiesOfMemory, MEMORY, "is_usable was True, but run(), of ordinary work thereafter, raised AttributeError"),
]


@pytest.mark.parametrize(("kind", "rule", "words"), BROKEN, ids=lambda value: getattr(value, "__name__", None))
def test_a_broken_engine_is_reported_by_its_rule_and_a_sentence(kind: type[Any], rule: str, words: str) -> None:
    engine = kind() if issubclass(kind, Engine) else Engine()
    if not issubclass(kind, Engine):
        engine.kind = kind
    with pytest.raises(BrokenRuleError) as broken:
        check(engine)
    assert broken.value.rules == (rule,)
    assert words in str(broken.value)


def test_every_rule_has_an_engine_that_breaks_it() -> None:
    assert {rule for _, rule, _ in BROKEN} == set(ENGINE_RULES)
