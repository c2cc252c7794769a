"""Assisted generation in transformers on tiny models whose weights are files, with CPU PyTorch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engines.test_transformers_engine import TINY, keep_tokens, work
from infergy.engines import find_engine
from infergy.engines.engine import Session
from infergy.records import Decoding, EngineSetup
from infergy.records.engine_setup import Speculation
from raising import raises

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("default")

OUTPUT = 23


def saved(folder: Path, seed: int, **changes: Any) -> str:
    """A folder with a model of random weights."""
    torch.manual_seed(seed)
    kept = {key: value for key, value in (TINY | changes).items() if key not in ("torch_dtype", "architectures")}
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**kept)).save_pretrained(folder)
    return str(folder)


def opened(model: str, draft: str | None, look_ahead: int = 4) -> Session:
    speculation = None if draft is None else Speculation(draft="tiny", look_ahead=look_ahead, weights=draft)
    setup = EngineSetup(engine="transformers", model="tiny", dtype="float16", weights=model, speculation=speculation)
    engine = find_engine("transformers")
    engine.check(setup)
    # float32, so that a step over several tokens rounds as several steps do.
    object.__setattr__(setup, "dtype", "float32")
    return engine.open(setup, TINY, seed=0, draft=TINY)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[str, str]:
    return saved(tmp_path / "model", 1), saved(tmp_path / "draft", 2, num_hidden_layers=1)


@pytest.mark.parametrize("look_ahead", [1, 4])
def test_the_tokens_are_those_of_the_model_alone(
    look_ahead: int, folders: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, draft = folders
    kept = []
    for session in (opened(model, None), opened(model, draft, look_ahead)):
        tokens = keep_tokens(session, monkeypatch)
        done = session.run(work(batch=1, length=9, output=OUTPUT))
        assert done.output_tokens == (OUTPUT,)
        kept.append(tokens[0])
    assert torch.equal(*kept)


def test_a_draft_that_agrees_has_all_accepted_and_one_that_does_not_fewer(folders: tuple[str, str]) -> None:
    model, draft = folders
    twin = opened(model, model).run(work(batch=1, length=9, output=OUTPUT)).drafts
    assert twin is not None
    assert twin.accepted_tokens == twin.drafted_tokens
    # Rounds of four drafted tokens and one of the model's own; the last of what is left.
    assert twin.rounds == -(-OUTPUT // 5)
    assert twin.accepted_tokens + twin.rounds == OUTPUT
    other = opened(model, draft).run(work(batch=1, length=9, output=OUTPUT)).drafts
    assert other is not None
    assert other.accepted_share is not None
    assert other.accepted_share < 1
    assert other.rounds > twin.rounds


def test_it_drafts_as_many_tokens_a_round_as_were_asked_for_and_each_run_is_counted_anew(
    folders: tuple[str, str],
) -> None:
    model, draft = folders
    session = opened(model, draft, look_ahead=3)
    asked = work(batch=1, length=9, output=OUTPUT)
    first, again = session.run(asked).drafts, session.run(asked).drafts
    assert first == again
    assert first is not None
    # Near the last token fewer are wanted.
    assert 3 * (first.rounds - 2) <= first.drafted_tokens <= 3 * first.rounds
    assert session.facts()["speculative_tokens"] == "3, constant"


def test_one_token_needs_no_draft(folders: tuple[str, str]) -> None:
    done = opened(*folders).run(work(batch=1, length=9, output=1))
    assert done.output_tokens == (1,)
    assert done.drafts is not None
    assert (done.drafts.rounds, done.drafts.drafted_tokens, done.drafts.accepted_tokens) == (0, 0, 0)


def test_sampling_is_assisted_too(folders: tuple[str, str]) -> None:
    asked = replace(work(batch=1, length=9, output=OUTPUT), decoding=Decoding(temperature=0.8, top_p=0.9))
    done = opened(*folders).run(asked)
    assert done.output_tokens == (OUTPUT,)
    assert done.drafts is not None
    assert done.drafts.drafted_tokens > 0


def test_several_requests_are_rejected_and_the_session_goes_on(folders: tuple[str, str]) -> None:
    session = opened(*folders)
    with raises("engine-lacks", option="batch", value=2):
        session.run(work(batch=2, length=9, output=4))
    assert session.run(work(batch=1, length=9, output=4)).output_tokens == (4,)
    session.close()


def test_random_weights_beams_and_compiling_are_rejected_with_a_draft() -> None:
    engine = find_engine("transformers")
    real = Speculation(draft="tiny", look_ahead=4, weights="d")
    setup = EngineSetup(engine="transformers", model="tiny", weights="m", speculation=real)
    with raises("engine-lacks", option="speculation"):
        engine.check(replace(setup, weights="random", speculation=replace(real, weights=None, acceptance=0.8)))
    with raises("options-conflict", options={"decoding": "beam2", "speculation": real.label}):
        engine.check(setup, Decoding(beams=2))
    with raises("options-conflict", options={"compiled": True, "speculation": real.label}):
        engine.check(replace(setup, compiled=True))
