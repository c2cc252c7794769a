"""The engine of vLLM's server, on a double that has the shapes of vLLM 0.25's `AsyncLLM`."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from infergy.engines import Completion, Work
from infergy.engines.vllm import VllmEngine
from infergy.engines.vllm_server import VllmServerSession
from infergy.records import GREEDY, EngineSetup
from raising import raises

STEP_S = 0.001


class EngineDeadError(Exception):
    """As vLLM's: no RuntimeError."""


@dataclass
class FakeAsyncLlm:
    """Makes a token of each request in each of its steps; `fail` says what to raise for a prompt."""

    options: dict[str, Any]
    usage_context: str
    logger: Any
    fail: dict[int, Exception] = field(default_factory=dict)
    clock: Callable[[], float] = time.monotonic
    errored: bool = False
    busy_resets: int = 0
    calls: list[Any] = field(default_factory=list)
    submitted: list[int] = field(default_factory=list)
    shut_down: int = 0

    @property
    def vllm_config(self) -> Any:
        return SimpleNamespace(
            model_config=SimpleNamespace(
                dtype="bfloat16", max_model_len=131072, enforce_eager=False, quantization=self.options["quantization"]
            ),
            scheduler_config=SimpleNamespace(max_num_seqs=1024, max_num_batched_tokens=8192, async_scheduling=True),
            cache_config=SimpleNamespace(
                gpu_memory_utilization=0.92,
                num_gpu_blocks=56057,
                block_size=16,
                enable_prefix_caching=self.options["enable_prefix_caching"],
            ),
            compilation_config=SimpleNamespace(cudagraph_mode="FULL", mode=3, cudagraph_capture_sizes=[1, 2, 4]),
            speculative_config=None,
        )

    async def collective_rpc(self, method: str, args: tuple[Any, ...] = ()) -> list[Any]:
        self.calls.append((method, args))
        if self.errored:
            # vLLM 0.25 never answers where the engine's process has died.
            await asyncio.Event().wait()
        return ["GPU-1"]

    async def reset_prefix_cache(self) -> bool:
        self.calls.append("reset")
        return self.calls.count("reset") > self.busy_resets

    async def generate(self, prompt: Any, parameters: Any, request_id: str) -> AsyncIterator[Any]:
        tokens = prompt["prompt_token_ids"]
        self.submitted.append(tokens[0])
        if tokens[0] in self.fail:
            raise self.fail[tokens[0]]
        assert parameters["output_kind"] == "delta"
        stamps = SimpleNamespace(
            queued_ts=self.clock(), scheduled_ts=self.clock(), first_token_ts=0.0, last_token_ts=0.0
        )
        for made in range(1, parameters["max_tokens"] + 1):
            await asyncio.sleep(STEP_S)
            stamps.last_token_ts = self.clock()
            stamps.first_token_ts = stamps.first_token_ts or stamps.last_token_ts
            stats = SimpleNamespace(num_running_reqs=made, num_waiting_reqs=2, kv_cache_usage=0.25)
            self.logger.record(stats, SimpleNamespace(num_preempted_reqs=1 if made == 1 else 0), mm_cache_stats=None)
            yield SimpleNamespace(
                prompt_token_ids=tokens,
                outputs=[SimpleNamespace(token_ids=[7])],
                finished=made == parameters["max_tokens"],
                metrics=stamps,
                num_cached_tokens=1,
            )

    def shutdown(self) -> None:
        self.shut_down += 1


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[FakeAsyncLlm]:
    made: list[FakeAsyncLlm] = []

    def from_engine_args(options: dict[str, Any], usage_context: str, stat_loggers: list[Any]) -> FakeAsyncLlm:
        made.append(FakeAsyncLlm(options=options, usage_context=usage_context, logger=stat_loggers[0](None, 0)))
        return made[-1]

    modules: dict[str, dict[str, Any]] = {
        "vllm": {"AsyncEngineArgs": dict, "SamplingParams": dict, "TokensPrompt": dict},
        "vllm.usage": {},
        "vllm.usage.usage_lib": {"UsageContext": SimpleNamespace(OPENAI_API_SERVER="server")},
        "vllm.sampling_params": {"RequestOutputKind": SimpleNamespace(DELTA="delta")},
        "vllm.v1": {},
        "vllm.v1.engine": {},
        "vllm.v1.engine.async_llm": {"AsyncLLM": SimpleNamespace(from_engine_args=from_engine_args)},
        "vllm.v1.engine.exceptions": {"EngineDeadError": EngineDeadError, "EngineGenerateError": EngineDeadError},
    }
    for name, content in modules.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("VLLM_ALLOW_INSECURE_SERIALIZATION", "VLLM_WORKER_MULTIPROC_METHOD"):
        # Set and undone here, so that what the engine sets does not outlive the test.
        monkeypatch.setenv(name, "")
    return made


Opened = Callable[..., tuple[VllmServerSession, FakeAsyncLlm]]


@pytest.fixture
def opened(engines: list[FakeAsyncLlm]) -> Iterator[Opened]:
    sessions: list[VllmServerSession] = []

    def open_one(label: str = "vllm-server") -> tuple[VllmServerSession, FakeAsyncLlm]:
        setup = EngineSetup(model="big", **EngineSetup.parse_label(label))
        session = VllmEngine().open(setup, {"model_type": "big"}, 5)
        assert isinstance(session, VllmServerSession)
        sessions.append(session)
        return session, engines[-1]

    yield open_one
    for session in sessions:
        session.close()


def work(*arrival_s: float, output: int = 2) -> Work:
    count = len(arrival_s)
    prompts = tuple((place, place + 1) for place in range(count))
    return Work(prompts=prompts, output_tokens=tuple(output + n for n in range(count)), arrival_s=arrival_s)


def test_it_starts_as_a_server_with_the_options_of_the_set_up_alone(opened: Opened) -> None:
    _, engine = opened()
    assert engine.usage_context == "server"
    assert engine.options["enable_prefix_caching"] is False
    assert (
        not {"max_num_seqs", "max_num_batched_tokens", "gpu_memory_utilization", "max_model_len"}
        & engine.options.keys()
    )
    _, engine = opened("vllm-server-fp8-s16-bt2048-pc-mem0.8-len16384")
    asked = {name: engine.options[name] for name in ("max_num_seqs", "max_num_batched_tokens", "max_model_len")}
    assert asked == {"max_num_seqs": 16, "max_num_batched_tokens": 2048, "max_model_len": 16384}
    assert (engine.options["gpu_memory_utilization"], engine.options["enable_prefix_caching"]) == (0.8, True)
    assert (engine.options["quantization"], engine.options["dtype"]) == ("fp8_per_tensor", "bfloat16")


def test_random_weights_are_drawn_in_its_workers_after_loading(opened: Opened) -> None:
    _, engine = opened()
    ((method, (draw,)),) = engine.calls
    assert method == "apply_model"
    assert draw.keywords == {"law": "random", "seed": 5}


def test_requests_are_submitted_in_the_order_of_arrival_and_never_before_it(opened: Opened) -> None:
    session, engine = opened()
    done = session.run(work(0.02, 0.0, 0.01))
    assert engine.submitted == [1, 2, 0]
    assert (done.input_tokens, done.output_tokens) == ((2, 2, 2), (2, 3, 4))
    assert done.engine_times is not None
    assert min(done.engine_times.submitted_s) >= 0


def test_a_request_that_follows_an_answer_comes_so_long_after_its_last_token(opened: Opened) -> None:
    session, engine = opened()
    # The second follows the first, the third the second; the fourth comes by itself.
    asked = replace(work(0.0, 0.0, 0.0, 0.0), after=(-1, 0, 1, -1), gap_s=(0.0, 0.03, 0.01, 0.0))
    done = session.run(asked)
    assert engine.submitted == [0, 3, 1, 2]
    assert done.output_tokens == (2, 3, 4, 5)
    assert done.first_token_s is not None
    assert done.finished_s is not None
    assert all(
        0 < first_s <= last_s < 0.03 for first_s, last_s in zip(done.first_token_s, done.finished_s, strict=True)
    ), "times are from the request's own arrival"


def test_times_are_the_clients_and_lie_around_the_engines(opened: Opened) -> None:
    session, _ = opened()
    done = session.run(work(0.0, 0.005))
    engine = done.engine_times
    assert engine is not None
    assert done.first_token_s is not None
    assert done.finished_s is not None
    stages = zip(
        engine.submitted_s,
        engine.queued_s,
        engine.scheduled_s,
        engine.first_token_s,
        done.first_token_s,
        engine.finished_s,
        done.finished_s,
        strict=True,
    )
    for instants in stages:
        assert list(instants) == sorted(instants)


def test_stamps_of_another_clock_are_not_kept(opened: Opened) -> None:
    session, engine = opened()
    engine.clock = lambda: 5.0
    done = session.run(work(0.0, 0.005))
    assert done.engine_times is None
    assert done.first_token_s is not None


def test_steps_and_preemptions_are_counted_anew_in_each_run(opened: Opened) -> None:
    session, _ = opened()
    session.run(work(0.0, 0.0, 0.0))
    counts = session.run(work(0.0, 0.0)).counts
    assert counts is not None
    assert (counts.steps, counts.preemptions, counts.cached_tokens) == (2 + 3, 2, 2)
    assert (counts.peak_running, counts.peak_waiting, counts.peak_cache_share) == (3, 2, 0.25)


def test_a_prefix_cache_begins_each_run_empty(opened: Opened) -> None:
    session, engine = opened("vllm-server-pc")
    session.run(work(0.0))
    session.run(work(0.0))
    assert engine.calls.count("reset") == 2
    session, engine = opened()
    session.run(work(0.0))
    assert "reset" not in engine.calls


def test_a_prefix_cache_that_is_in_use_is_emptied_later_or_ends_the_run(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infergy.engines.vllm_server.ALIVE_S", 0.01)
    session, engine = opened("vllm-server-pc")
    engine.busy_resets = 2
    session.run(work(0.0))
    assert engine.calls.count("reset") == 3
    engine.busy_resets = 100
    with raises("engine-failed"):
        session.run(work(0.0))
    assert engine.submitted == [0], "nothing is served with the blocks of an earlier run"


def test_facts_are_the_options_as_vllm_resolved_them(opened: Opened) -> None:
    session, _ = opened()
    facts = session.facts()
    assert facts["usage_context"] == "server"
    assert (facts["max_num_batched_tokens"], facts["kv_cache_blocks"]) == ("8192", "56057")
    assert (facts["async_scheduling"], facts["cuda_graph_sizes"]) == ("True", "[1, 2, 4]")
    assert facts["gpu_uuids"] == "GPU-1"


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (ValueError("the prompt is too long"), "engine-failed"),
        (EngineDeadError("EngineCore encountered an issue"), "engine-failed"),
        (RuntimeError("CUDA out of memory"), "out-of-memory"),
    ],
)
def test_what_vllm_raises_ends_the_run_by_its_reason(opened: Opened, raised: Exception, code: str) -> None:
    session, engine = opened()
    engine.fail[1] = raised
    with raises(code) as error:
        session.run(work(0.0, 0.001, 0.002))
    assert str(raised) in str(error.value)


def test_an_engine_that_has_died_is_not_waited_for(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infergy.engines.vllm_server.ALIVE_S", 0.01)
    session, engine = opened()
    engine.errored = True
    assert session.gpu_uuids() is None


def test_it_is_shut_down_once(opened: Opened) -> None:
    session, engine = opened()
    completion: Completion = session.run(work(0.0))
    assert completion.prepared_s >= 0
    session.close()
    session.close()
    assert engine.shut_down == 1


def test_a_draft_model_beside_a_server_is_rejected(engines: list[FakeAsyncLlm]) -> None:
    setup = EngineSetup(model="big", **EngineSetup.parse_label("vllm-server-spec4:llama-3.2-1b:0.8"))
    with raises("options-conflict", options={"speculation": "spec4:llama-3.2-1b:0.8", "usage_context": "server"}):
        VllmEngine().check(setup, GREEDY)
