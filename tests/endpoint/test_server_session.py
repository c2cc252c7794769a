"""The client of a server that runs already, against one on loopback that answers well, badly, or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("httpx")

from infergy.catalog.models import model_config
from infergy.engines import server as server_module
from infergy.engines.engine import Completion
from infergy.engines.server import ServerEngine, ServerSession
from infergy.engines.server_client import find_endpoint
from infergy.errors import EngineError
from infergy.measure.warmup import make_work
from infergy.records import SERVER, EngineSetup
from infergy.records.endpoint import Endpoint, base_url
from infergy.workload.load_generator import hash_prompts
from openai_server import Behaviour, running
from raising import raises

SETUP = EngineSetup(engine="vllm", model="llama-3.1-8b", usage_context=SERVER, weights="tiny")
PROMPTS = tuple(tuple(range(size)) for size in (40, 7, 90, 7))
OUTPUTS = (5, 1, 9, 3)


@contextmanager
def session_on(behaviour: Behaviour, **limits: Any) -> Iterator[ServerSession]:
    with running(behaviour) as url:
        endpoint = find_endpoint(url, None, None, **({"timeout_s": 5.0} | limits))
        session = ServerEngine(endpoint).open(SETUP, model_config("llama-3.1-8b"), 0)
        behaviour.asked.clear()
        try:
            yield session
        finally:
            session.close()
            session.close()


def run(behaviour: Behaviour, **limits: Any) -> Completion:
    with session_on(behaviour, **limits) as session:
        return session.run(make_work(PROMPTS, OUTPUTS, arrival_s=(0.0, 0.01, 0.02, 0.03)))


def test_token_ids_and_forced_lengths_where_the_server_takes_them() -> None:
    behaviour = Behaviour()
    completion = run(behaviour)
    assert completion.input_tokens == (40, 7, 90, 7)
    assert completion.output_tokens == OUTPUTS
    assert completion.first_token_s is not None
    assert completion.finished_s is not None
    assert all(0 < first <= last for first, last in zip(completion.first_token_s, completion.finished_s, strict=True))
    assert completion.served is not None
    assert (completion.served.uncounted, completion.served.inconsistent, completion.served.retries) == (0, 0, 0)
    asked = {len(body["prompt"]): body for body in behaviour.asked}
    assert asked[90]["max_tokens"] == asked[90]["min_tokens"] == 9
    assert asked[90]["ignore_eos"] is True
    assert asked[90]["stream_options"] == {"include_usage": True}


def test_each_run_has_prompts_of_its_own() -> None:
    behaviour = Behaviour()
    with session_on(behaviour) as session:
        for _ in range(2):
            session.run(make_work(PROMPTS[:2], (2, 2)))
    sent = [hash_prompts((tuple(body["prompt"]),)) for body in behaviour.asked]
    assert len(set(sent)) == 4


@pytest.mark.parametrize("tokens_per_word", [1, 3])
def test_words_make_the_tokens_where_ids_are_not_taken(tokens_per_word: int) -> None:
    behaviour = Behaviour(takes_ids=False, tokens_per_word=tokens_per_word)
    completion = run(behaviour)
    assert all(isinstance(body["prompt"], str) for body in behaviour.asked)
    for found, prompt in zip(completion.input_tokens, PROMPTS, strict=True):
        assert abs(found - len(prompt)) <= tokens_per_word / 2 + 0.5


def test_chat_and_answers_that_the_model_ends() -> None:
    behaviour = Behaviour(has_completions=False, takes_forced=False, stops_after=2)
    completion = run(behaviour)
    assert completion.output_tokens == (2, 1, 2, 2)
    assert completion.input_tokens == (40, 7, 90, 7)
    assert all("ignore_eos" not in body for body in behaviour.asked)


def test_an_answer_follows_an_answer() -> None:
    with session_on(Behaviour()) as session:
        work = replace(make_work(PROMPTS[:2], (3, 2)), after=(-1, 0), gap_s=(0.0, 0.2))
        completion = session.run(work)
    assert completion.served is not None
    assert completion.served.lengths == ((40, 3), (7, 2))


def test_no_more_requests_are_open_than_allowed() -> None:
    behaviour = Behaviour(pause_s=0.005)
    with session_on(behaviour, concurrency=2) as session:
        session.run(make_work(((1,) * 5,) * 12, 4))
    assert behaviour.most_open <= 2


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_asked_again_and_that_is_counted(status: int) -> None:
    with session_on(behaviour := Behaviour(retry_after="0")) as session:
        behaviour.asked.append({})
        behaviour.rejections = [status, status]
        completion = session.run(make_work(PROMPTS[:2], (3, 2)))
    assert completion.served is not None
    assert completion.served.retries == 2


def test_a_server_that_stays_busy_ends_the_run() -> None:
    with session_on(behaviour := Behaviour(retry_after="0"), retries=1) as session:
        behaviour.asked.append({})
        behaviour.rejections = [429] * 9
        with raises("server-failed", status=429):
            session.run(make_work(PROMPTS[:1], 3))


def test_counts_that_cannot_be_are_counted_as_inconsistent() -> None:
    for lie in ({"input_lie": 1}, {"output_lie": -2}, {"output_lie": 1}):
        with session_on(behaviour := Behaviour()) as session:
            for name, value in lie.items():
                setattr(behaviour, name, value)
            completion = session.run(make_work(PROMPTS[:2], (5, 4)))
        assert completion.served is not None
        assert completion.served.inconsistent == 2
        assert completion.served.uncounted == 0


def test_without_usage_pieces_of_text_are_no_tokens() -> None:
    with session_on(behaviour := Behaviour(has_usage=False)) as session:
        completion = session.run(make_work(PROMPTS[:2], (5, 4)))
        assert completion.served is not None
        assert completion.served.uncounted == 2
        assert completion.output_tokens == (5, 4)
        behaviour.stops_after = 2
        with raises("server-counts"):
            session.run(make_work(PROMPTS[:2], (5, 4)))
    with running(Behaviour(has_usage=False, takes_ids=False)) as url, raises("server-counts"):
        ServerEngine(find_endpoint(url, None, None)).open(SETUP, model_config("llama-3.1-8b"), 0)


def test_an_answer_in_one_piece_has_no_time_to_first_token() -> None:
    assert run(Behaviour(in_one_piece=True)).first_token_s is None


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"half_stream": True}, "half stream"),
        ({"endless": True}, "endless stream"),
        ({"html": True}, "status"),
        ({"redirect": "http://elsewhere.example/v1"}, "redirect"),
        ({"error_in_stream": True}, "error in stream"),
        ({"nested": True}, "error in stream"),
        ({"hang": True}, "timeout"),
        ({"keep_alive": True}, "timeout"),
    ],
)
def test_a_bad_answer_ends_the_run_with_its_reason(fault: dict[str, Any], reason: str) -> None:
    with session_on(behaviour := Behaviour(), timeout_s=0.5) as session:
        for name, value in fault.items():
            setattr(behaviour, name, value)
        with raises("server-failed", reason=reason):
            session.run(make_work(PROMPTS[:1], 8))


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        (Behaviour(html=True), "no JSON"),
        (Behaviour(redirect="http://elsewhere.example/v1"), "redirect"),
        (Behaviour(models="none"), "no models"),
        (Behaviour(models=[3]), "no models"),
        (Behaviour(key="sk-other"), "key"),
    ],
)
def test_what_is_no_server_of_models_is_rejected(behaviour: Behaviour, reason: str) -> None:
    with running(behaviour) as url, raises("server-failed", reason=reason):
        find_endpoint(url, None, None)


def test_a_server_that_is_down() -> None:
    with running(Behaviour()) as url:
        pass
    with raises("server-unreachable", url=url):
        find_endpoint(url, None, None)


def test_a_model_is_named_where_there_are_several() -> None:
    models = [{"id": "a", "owned_by": "sglang"}, {"id": "b"}]
    with running(Behaviour(models=models, version=None)) as url:
        with raises("option-missing", known=["a", "b"]):
            find_endpoint(url, None, None)
        with raises("unknown-name", name="c"):
            find_endpoint(url, "c", None)
        assert find_endpoint(url, "a", None) == Endpoint(url=url, model="a", software="sglang")


def test_a_key_comes_from_the_environment_and_stands_in_no_message(monkeypatch: pytest.MonkeyPatch) -> None:
    behaviour = Behaviour(key="sk-secret-1")
    with running(behaviour) as url:
        with raises("key-missing", variable="MY_KEY"):
            find_endpoint(url, None, "MY_KEY")
        monkeypatch.setenv("MY_KEY", "sk-wrong-2")
        with pytest.raises(EngineError) as caught:
            find_endpoint(url, None, "MY_KEY")
        assert "sk-wrong-2" not in str(caught.value) + json.dumps(caught.value.fields)
        monkeypatch.setenv("MY_KEY", "sk-secret-1")
        endpoint = find_endpoint(url, None, "MY_KEY")
        session = ServerEngine(endpoint).open(SETUP, model_config("llama-3.1-8b"), 0)
        assert "sk-secret-1" not in json.dumps(dict(session.facts())) + repr(endpoint)
        session.close()


def test_a_key_that_a_server_repeats_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "sk-secret-1")
    with running(behaviour := Behaviour(key="sk-secret-1")) as url:
        session = ServerEngine(find_endpoint(url, None, "MY_KEY")).open(SETUP, model_config("llama-3.1-8b"), 0)
        behaviour.error_in_stream = True
        client: Any = session._client
        assert "sk-secret-1" not in client.quote("bad key sk-secret-1")
        session.close()


@pytest.mark.parametrize(
    "url", ["localhost:8000", "ftp://a", "http://", "http://u:p@h", "http://h/?key=1", "http://h:x"]
)
def test_urls_that_are_none_or_hold_secrets(url: str) -> None:
    with raises("bad-value", option="--server") as caught:
        base_url("--server", url)
    assert "p@" not in str(caught.value)


def test_a_url_may_end_with_the_version_of_the_interface() -> None:
    assert base_url("--server", "https://host:8000/v1/") == "https://host:8000"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KEYS = ("choices", "usage", "text", "delta", "content", "finish_reason", "prompt_tokens", "completion_tokens", "index")
EVENTS = st.recursive(
    JSON, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(KEYS), inner), max_leaves=12
)


@settings(max_examples=300, deadline=None)
@given(events=st.lists(st.dictionaries(st.sampled_from(KEYS), EVENTS), max_size=6))
def test_any_events_are_noted_or_end_the_answer(events: list[dict[str, Any]]) -> None:
    answer = server_module._Answer()
    for event in events:
        answer.pieces += sum(map(bool, server_module._pieces(event)))
        server_module._note_usage(event, answer)
    assert answer.tokens is None or all(0 < count < 2**32 for count in answer.tokens)
