"""A draft model in vLLM: what it is asked for and what it counts, on doubles of the shapes of vLLM 0.25."""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

from infergy.engines import Work
from infergy.engines.vllm import VllmEngine, VllmSession
from infergy.engines.vllm_options import draw_draft_weights
from infergy.records import EngineSetup
from infergy.records.engine_setup import Speculation
from infergy.records.window import Drafts
from raising import raises

SETUP = EngineSetup(
    engine="vllm",
    model="big",
    tensor_parallel=2,
    speculation=Speculation(draft="small", look_ahead=3, acceptance=0.5),
)
WORK = Work(prompts=((1, 2), (3, 4)), output_tokens=(4, 4), arrival_s=(0.0, 0.0))


class FakeEngine:
    """`LLMEngine`: hands each step's `SchedulerStats` to its loggers, as `LLMEngine.step` does."""

    def __init__(self) -> None:
        self.log_stats = True
        self.output_processor = SimpleNamespace(log_stats=True)
        self.logger_manager: Any = None
        self.engine_core = SimpleNamespace(shutdown=lambda: None)

    def step(self, stats: Any) -> None:
        scheduler = SimpleNamespace(spec_decoding_stats=stats)
        self.logger_manager.record(scheduler_stats=scheduler, iteration_stats=object(), mm_cache_stats=None)
        self.logger_manager.log()


class FakeLlm:
    made: FakeLlm

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.llm_engine = FakeEngine()
        self.calls: list[tuple[str, Any]] = []
        speculative = options.get("speculative_config") or {}
        self.draft_config = json.loads((Path(speculative["model"]) / "config.json").read_text()) if speculative else {}
        FakeLlm.made = self

    def apply_model(self, function: Any) -> list[Any]:
        self.calls.append(("model", function))
        return []

    def collective_rpc(self, function: Any) -> list[Any]:
        self.calls.append(("worker", function))
        return []

    def generate(self, prompts: Any, parameters: Any, use_tqdm: bool) -> list[Any]:
        # The prefill drafts nothing; then two rounds of two requests.
        self.llm_engine.step(None)
        for accepted in (3, 1):
            self.llm_engine.step(SimpleNamespace(num_drafts=2, num_draft_tokens=6, num_accepted_tokens=accepted))
        return [
            SimpleNamespace(
                prompt_token_ids=prompt["prompt_token_ids"],
                outputs=[SimpleNamespace(token_ids=[7] * one["max_tokens"])],
            )
            for prompt, one in zip(prompts, parameters, strict=True)
        ]


@pytest.fixture(autouse=True)
def sessions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[VllmSession]]:
    module = ModuleType("vllm")
    module.LLM = FakeLlm  # type: ignore[attr-defined]
    module.SamplingParams = module.TokensPrompt = dict  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("VLLM_ALLOW_INSECURE_SERIALIZATION", "VLLM_WORKER_MULTIPROC_METHOD"):
        # Set and undone here, so that what the engine sets does not outlive the test.
        monkeypatch.setenv(name, "")
    opened_ones: list[VllmSession] = []
    yield opened_ones
    for session in opened_ones:
        session.close()


Opened = Callable[..., tuple[VllmSession, FakeLlm]]


@pytest.fixture
def opened(sessions: list[VllmSession]) -> Opened:
    def open_one(setup: EngineSetup = SETUP) -> tuple[VllmSession, FakeLlm]:
        session = VllmEngine().open(setup, {"model_type": "big"}, 5, {"model_type": "small"})
        assert isinstance(session, VllmSession)
        sessions.append(session)
        return sessions[-1], FakeLlm.made

    return open_one


def test_the_draft_is_loaded_from_its_configuration_and_accepts_by_the_law_that_is_set(opened: Opened) -> None:
    _, llm = opened()
    asked = dict(llm.options["speculative_config"])
    assert llm.draft_config == {"model_type": "small"}
    assert asked.pop("model") != llm.options["model"]
    assert asked == {
        "method": "draft_model",
        "num_speculative_tokens": 3,
        "draft_tensor_parallel_size": 2,
        "rejection_sample_method": "synthetic",
        "synthetic_acceptance_rates": [0.5, 0.25, 0.125],
    }
    assert llm.options["load_format"] == "dummy", "the draft's too, by vLLM's default"
    assert llm.options["disable_log_stats"] is False, "else its scheduler counts nothing"


def test_without_a_draft_nothing_of_it_is_asked_for_or_counted(opened: Opened) -> None:
    session, llm = opened(EngineSetup(engine="vllm", model="big"))
    assert not {"speculative_config", "disable_log_stats"} & llm.options.keys()
    assert llm.llm_engine.logger_manager is None
    assert [where for where, _ in llm.calls] == ["model"]
    llm.llm_engine.step = lambda stats: None  # type: ignore[method-assign]
    assert session.run(WORK).drafts is None


def test_real_weights_are_loaded_by_name_and_their_acceptance_is_left_alone(tmp_path: Path, opened: Opened) -> None:
    (tmp_path / "config.json").write_text("{}")
    real = Speculation(draft="small", look_ahead=3, weights=str(tmp_path))
    _, llm = opened(EngineSetup(engine="vllm", model="big", weights="me/big", speculation=real))
    assert llm.options["speculative_config"] == {
        "method": "draft_model",
        "model": str(tmp_path),
        "num_speculative_tokens": 3,
        "draft_tensor_parallel_size": 1,
    }
    assert llm.options["load_format"] == "auto"
    assert llm.calls == []


def test_each_run_counts_its_own_rounds_and_prints_nothing(capsys: pytest.CaptureFixture[str], opened: Opened) -> None:
    session, _ = opened()
    for _ in range(2):
        assert session.run(WORK).drafts == Drafts(rounds=4, drafted_tokens=12, accepted_tokens=4)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["drafter", "speculator"])
def test_the_drafts_weights_are_drawn_by_our_law_in_either_of_vllms_runners(
    name: str, monkeypatch: pytest.MonkeyPatch, opened: Opened
) -> None:
    _, llm = opened()
    (_, first), (where, second) = llm.calls
    assert where == "worker"
    assert isinstance(first, partial)
    assert isinstance(second, partial)
    assert first.keywords == second.keywords == {"law": "random", "seed": 5}
    assert pickle.loads(pickle.dumps(second)).func is draw_draft_weights, "it goes to other processes"
    drawn: list[Any] = []

    def note(model: Any, law: str, seed: int) -> int:
        drawn.append((model, law, seed))
        return 1

    monkeypatch.setattr("infergy.engines.vllm_options.draw_weights", note)
    draft = object()
    second(SimpleNamespace(model_runner=SimpleNamespace(**{name: SimpleNamespace(model=draft)})))
    assert drawn == [(draft, "random", 5)]


def test_vllm_rejects_a_draft_whose_acceptance_is_neither_set_nor_measured_before_it_is_looked_for() -> None:
    unset = EngineSetup(engine="vllm", model="big", speculation=Speculation(draft="small", look_ahead=3))
    with raises("option-missing", option="acceptance"):
        VllmEngine().check(unset)


def test_an_engine_loaded_again_finds_the_model_where_it_compiled_it(opened: Opened) -> None:
    """VLLM's compiled graphs are kept by the path of the model (`ModelConfig.compute_hash`)."""
    _, first = opened()
    _, second = opened()
    assert first.options["model"] == second.options["model"]
    assert json.loads((Path(second.options["model"]) / "config.json").read_text()) == {"model_type": "big"}
    assert first.options["speculative_config"]["model"] == second.options["speculative_config"]["model"]


@pytest.mark.parametrize(("is_second", "told"), [(False, {"model_runner": "v1"}), (True, {})])
def test_a_runner_is_reported_where_vllm_falls_back_to_its_first(
    is_second: bool, told: dict[str, str], opened: Opened
) -> None:
    session, llm = opened()
    llm.llm_engine.vllm_config = MagicMock(use_v2_model_runner=is_second)  # type: ignore[attr-defined]
    facts = session.facts()
    assert {key: facts[key] for key in facts if key == "model_runner"} == told
