"""When the first token came, as each engine tells it."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from infergy.engines import Completion, Work
from infergy.engines.transformers import FirstToken
from infergy.engines.vllm import VllmSession, token_times


@dataclass
class Stamps:
    first_token_ts: float = 0.0
    last_token_ts: float = 0.0


@dataclass
class Answer:
    prompt_token_ids: list[int]
    outputs: list[Any]
    metrics: Stamps | None


@dataclass
class Processor:
    log_stats: bool = False


@dataclass
class Core:
    log_stats: bool = False
    output_processor: Processor = field(default_factory=Processor)


class FakeLlm:
    """What vLLM's `LLM` answers; stamped, if both switches are on, at the instants that `stamp` makes of the begin."""

    def __init__(self, engine: Any, stamp: Any) -> None:
        self.llm_engine = engine
        self._stamp = stamp

    def generate(self, prompts: Any, parameters: Any, use_tqdm: bool) -> list[Answer]:
        begun_s = time.monotonic()
        # The stamps below lie up to 10 ms after the begin, which is before the end.
        time.sleep(0.02)
        engine = self.llm_engine
        on = getattr(engine, "log_stats", False) and engine.output_processor.log_stats
        return [
            Answer(
                prompt_token_ids=prompt["prompt_token_ids"],
                outputs=[SimpleNamespace(token_ids=[7] * one["max_tokens"])],
                metrics=Stamps(*self._stamp(place, begun_s)) if on else None,
            )
            for place, (prompt, one) in enumerate(zip(prompts, parameters, strict=True))
        ]


@pytest.fixture(autouse=True)
def vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("vllm")
    module.SamplingParams = module.TokensPrompt = dict  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)


def run(engine: Any, stamp: Any) -> Completion:
    session = VllmSession(FakeLlm(engine, stamp))
    return session.run(Work(prompts=((1, 2), (3, 4)), output_tokens=(5, 5), arrival_s=(0.0, 0.0)))


def test_vllm_stamps_each_request_without_its_loggers() -> None:
    engine = Core()
    done = run(engine, lambda place, begun_s: (begun_s + 0.003 * (place + 1), begun_s + 0.01))
    assert engine.log_stats
    assert engine.output_processor.log_stats
    assert done.first_token_s is not None
    assert done.finished_s is not None
    first, second = done.first_token_s
    assert second - first == pytest.approx(0.003)
    assert done.finished_s[0] - first == pytest.approx(0.007)
    assert 0.003 <= first < second < done.finished_s[0]


def test_a_vllm_that_keeps_no_stamps_leaves_the_times_unknown() -> None:
    done = run(SimpleNamespace(), lambda place, begun_s: (begun_s, begun_s))
    assert done.first_token_s is None
    assert done.finished_s is None
    assert done.output_tokens == (5, 5)


@pytest.mark.parametrize(
    "stamps",
    [
        [Stamps(11.0, 12.0), None],
        [Stamps(11.0, 12.0), Stamps()],
        [Stamps(11.0, 12.0), Stamps(1000.0, 1001.0)],
        [Stamps(11.0, 12.0), Stamps(12.0, 11.0)],
        [Stamps(11.0, 12.0), Stamps(9.0, 11.0)],
        [Stamps(11.0, 12.0), Stamps(11.0, 20.5)],
    ],
    ids=["no stamps", "never set", "another clock", "backwards", "before the begin", "after the end"],
)
def test_stamps_that_cannot_be_true_are_no_times(stamps: list[Stamps | None]) -> None:
    answers = [Answer(prompt_token_ids=[1], outputs=[], metrics=one) for one in stamps]
    assert token_times(answers, [10.0, 10.0], 20.0) == (None, None)
    assert token_times(answers[:1], [10.0], 20.0) == ((1.0,), (2.0,))


class FakeEvent:
    """A CUDA event on a clock that the test sets; read only after the work is done."""

    clock_ms = 0.0
    records = 0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at_ms = FakeEvent.clock_ms
        FakeEvent.records += 1

    def elapsed_time(self, later: FakeEvent) -> float:
        return later.at_ms - self.at_ms


def test_on_a_gpu_the_first_token_is_an_event_recorded_once_and_nothing_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = ModuleType("torch")
    torch.bool = bool  # type: ignore[attr-defined]
    torch.zeros = lambda count, dtype, device: [False] * count  # type: ignore[attr-defined]
    # Whatever would wait for the GPU is not there to be called.
    torch.cuda = SimpleNamespace(Event=FakeEvent)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch", torch)
    FakeEvent.clock_ms, FakeEvent.records = 5.0, 0
    first = FirstToken("cuda")
    tokens = type("Ids", (list,), {"device": "cuda:0"})([1, 2])
    assert first.seconds() is None
    for FakeEvent.clock_ms in (45.0, 60.0, 80.0):
        assert first(tokens, None) == [False, False]
    assert FakeEvent.records == 2
    assert first.seconds() == pytest.approx(0.040)
