"""VLLM under arrivals: driven by its own step loop, on a double that has the shapes of vLLM 0.25's `LLM`."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from infergy.engines import Completion, Work
from infergy.engines.vllm import VllmSession
from raising import raises

STEP_S = 0.25


class Clock:
    """Time passes only when somebody waits, and a little at each look."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.slept_s: list[float] = []

    def monotonic(self) -> float:
        self.now_s += 1e-6
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.slept_s.append(seconds)
        self.now_s += seconds


@dataclass
class Request:
    request_id: str
    prompt: list[int]
    left: int
    made: list[int] = field(default_factory=list)
    first_ts: float = 0.0


class FakeEngine:
    """`LLMEngine`: a step makes one token of each request in flight; without any it would wait for ever."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.in_flight: list[Request] = []
        self.most_at_once = 0
        self.steps = 0
        self.log_stats = False
        self.output_processor = SimpleNamespace(log_stats=False)

    def has_unfinished_requests(self) -> bool:
        return bool(self.in_flight)

    def step(self) -> list[Any]:
        assert self.in_flight, "the engine waits for ever"
        self.clock.now_s += STEP_S
        self.steps += 1
        self.most_at_once = max(self.most_at_once, len(self.in_flight))
        now_s = self.clock.monotonic()
        for one in self.in_flight:
            one.made.append(7)
            one.first_ts = one.first_ts or now_s
        done = [one for one in self.in_flight if len(one.made) == one.left]
        self.in_flight = [one for one in self.in_flight if one not in done]
        # Later ones first: answers come in no order.
        return [
            SimpleNamespace(
                request_id=one.request_id,
                finished=True,
                prompt_token_ids=one.prompt,
                outputs=[SimpleNamespace(token_ids=one.made)],
                metrics=SimpleNamespace(first_token_ts=one.first_ts, last_token_ts=now_s),
            )
            for one in reversed(done)
        ]


class FakeLlm:
    def __init__(self, engine: FakeEngine, *, fail_at: int | None = None) -> None:
        self.llm_engine = engine
        self.handed_s: list[float] = []
        self._next = 8
        self._fail_at = fail_at

    def enqueue(self, prompts: Any, sampling_params: Any, use_tqdm: bool) -> list[str]:
        assert not use_tqdm
        (prompt,), (one,) = prompts, sampling_params
        if len(self.handed_s) == self._fail_at:
            raise ValueError("the prompt is too long")
        self.handed_s.append(self.llm_engine.clock.monotonic())
        # Ids count on from run to run, through a power of ten: as text, 10 comes before 9.
        self._next += 1
        self.llm_engine.in_flight.append(Request(str(self._next), prompt["prompt_token_ids"], one["max_tokens"]))
        return [str(self._next)]


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    module = ModuleType("vllm")
    module.SamplingParams = module.TokensPrompt = dict  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)
    found = Clock()
    monkeypatch.setattr("infergy.engines.vllm.time", found)
    return found


def run(llm: FakeLlm, work: Work) -> Completion:
    return VllmSession(llm).run(work)


def work(*arrival_s: float, output: int = 3) -> Work:
    count = len(arrival_s)
    prompts = tuple((place, place + 1) for place in range(count))
    return Work(prompts=prompts, output_tokens=tuple(output + n for n in range(count)), arrival_s=arrival_s)


def test_requests_are_handed_over_when_they_arrive_and_join_those_that_run(clock: Clock) -> None:
    llm = FakeLlm(FakeEngine(clock))
    done = run(llm, work(0.0, 0.3, 10.0))
    handed_s = [one - 100.0 for one in llm.handed_s]
    # The second comes in the middle of a step, and is handed over after it.
    assert handed_s == pytest.approx([0.0, 0.5, 10.0], abs=1e-4)
    assert llm.llm_engine.most_at_once == 2
    assert done.output_tokens == (3, 4, 5)
    assert done.input_tokens == (2, 2, 2)


def test_answers_come_back_in_the_order_of_the_requests_whatever_that_of_their_arrival(clock: Clock) -> None:
    assert run(FakeLlm(FakeEngine(clock)), work(3.0, 0.0, 1.5)).output_tokens == (3, 4, 5)


def test_times_are_from_each_requests_own_arrival(clock: Clock) -> None:
    done = run(FakeLlm(FakeEngine(clock)), work(0.0, 0.3))
    # The second waits for 0.2 s until the step has ended, which is a part of its time to first token.
    assert done.first_token_s == pytest.approx([STEP_S, 0.2 + STEP_S], abs=1e-4)
    assert done.finished_s == pytest.approx([3 * STEP_S, 0.2 + 4 * STEP_S], abs=1e-4)


def test_nothing_spins_while_nothing_is_in_flight(clock: Clock) -> None:
    engine = FakeEngine(clock)
    run(FakeLlm(engine), work(0.0, 50.0))
    assert engine.steps == 3 + 4
    assert clock.slept_s == pytest.approx([50 - 3 * STEP_S], abs=1e-3), "one sleep until the next arrival"


def test_a_request_that_vllm_rejects_ends_the_session_by_its_reason(clock: Clock) -> None:
    with raises("engine-failed", reason="the prompt is too long"):
        run(FakeLlm(FakeEngine(clock), fail_at=1), work(0.0, 0.01))
