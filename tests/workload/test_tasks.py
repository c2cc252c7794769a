"""Tasks: lengths by a law that has the published moments, or counted in the real data sets; and which one is told."""

from __future__ import annotations

import json
import math
import statistics
import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import infergy
from infergy.cli import app
from infergy.workload import TaskOptions, open_trace
from infergy.workload.tasks import LengthLaw, Task, find_task, fit_lengths, task_lengths, tasks
from raising import raises

PUBLISHED = {
    "translation": [49.96, 39.39, 550, 64],
    "generation": [136.89, 93.13, 547, 64],
    "classification": [292.48, 239.94, 3112, 1],
    "summarisation": [838.49, 400.70, 2386, 64],
}
"""Input tokens of arXiv 2504.17674: mean, standard deviation, longest; and output tokens."""


def printed(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_tasks_are_the_studys() -> None:
    found = {one.name: [one.mean, one.std, one.longest, one.output_tokens] for one in tasks().values()}
    assert found == PUBLISHED


@given(mu=st.floats(0.5, 8.0), sigma=st.floats(0.1, 1.5), longest=st.sampled_from([50, 547, 3112]))
@settings(max_examples=60, deadline=None)
def test_a_fit_recovers_the_moments_of_any_law_after_it_is_cut(mu: float, sigma: float, longest: int) -> None:
    mean, std = LengthLaw(mu=mu, sigma=sigma, longest=longest).moments()
    # Past this the cut takes nearly all, and what is left tells little of µ and σ.
    assume(1.5 < mean < 0.6 * longest and 0.2 < std < mean)
    found = fit_lengths(mean, std, longest)
    assert found.moments() == pytest.approx((mean, std), rel=1e-7)


@pytest.mark.parametrize("task", tasks().values(), ids=lambda task: task.name)
def test_the_law_of_each_task_has_the_published_moments(task: Task) -> None:
    law = fit_lengths(task.mean, task.std, task.longest)
    assert law.moments() == pytest.approx((task.mean, task.std), rel=1e-8)
    shares = law.shares()
    assert len(shares) == task.longest
    assert sum(shares) == pytest.approx(1)
    # The log-normal that has the moments before it is cut misses them after.
    variance = math.log1p((task.std / task.mean) ** 2)
    plain = LengthLaw(mu=math.log(task.mean) - variance / 2, sigma=math.sqrt(variance), longest=task.longest)
    assert plain.moments() != pytest.approx((task.mean, task.std), rel=1e-4)


@pytest.mark.parametrize("task", tasks().values(), ids=lambda task: task.name)
@given(seed=st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_1024_drawn_lengths_have_nearly_the_published_moments(task: Task, seed: int) -> None:
    drawn = task_lengths(task, TaskOptions(seed=seed)).input_tokens
    assert len(drawn) == 1024
    assert 1 <= min(drawn) <= max(drawn) <= task.longest
    assert statistics.fmean(drawn) == pytest.approx(task.mean, rel=0.01)
    assert statistics.stdev(drawn) == pytest.approx(task.std, rel=0.06)


def test_a_seed_gives_the_same_lengths_again_and_another_one_others() -> None:
    task = find_task("task:translation")

    def drawn(seed: int) -> tuple[int, ...]:
        return task_lengths(task, TaskOptions(seed=seed)).input_tokens

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
    assert list(drawn(1)) != sorted(drawn(1))


@pytest.mark.parametrize("moments", [(0.5, 1.0, 100), (200.0, 10.0, 100), (50.0, 0.0, 100), (50.0, 60.0, 100)])
def test_moments_that_no_law_has_are_refused(moments: tuple[float, float, int]) -> None:
    with raises("bad-value", option="moments", value=moments[:2]):
        fit_lengths(*moments)


def test_a_task_is_a_trace_like_any_other() -> None:
    trace = open_trace("task:imdb", task=TaskOptions(requests=100))
    summary, histogram = trace.describe(), trace.histogram()
    assert (trace.source, summary.requests, histogram.requests) == ("task:classification", 100, 100)
    assert summary.output.longest == summary.output.total // 100 == 1
    assert summary.input.total == histogram.input_tokens
    assert summary.arrival_reason == "its lengths are drawn, without arrivals"
    assert infergy.estimate(trace).trace.requests == 100


@pytest.mark.parametrize("name", ["translation", "wmt14", "WMT-14"])
def test_a_task_is_found_by_its_name_and_by_that_of_its_data_set(name: str) -> None:
    assert find_task(f"task:{name}").name == "translation"


def test_an_unknown_task_gives_the_nearest() -> None:
    with raises("unknown-name", kind="task", name="translate"):
        open_trace("task:translate")


@pytest.mark.parametrize("requests", [0, -1, 10**7])
def test_a_number_of_requests_that_cannot_be_is_refused(requests: int) -> None:
    with raises("bad-value", option="--requests", value=requests):
        TaskOptions(requests=requests)


def test_options_of_a_task_are_refused_for_a_trace_that_has_its_own_requests() -> None:
    with raises("option-not-applicable", options=["--requests", "--seed", "--tokenizer"]):
        open_trace("azure-code-2023", task=TaskOptions(requests=3))


@pytest.mark.parametrize("verb", [("estimate",), ("trace",), ("trace", "--bins", "powers-of-two")])
def test_each_verb_says_by_which_distribution_lengths_were_drawn(verb: tuple[str, ...]) -> None:
    text = " ".join(printed(*verb, "task:generation", "--requests", "64", "--seed", "7").split())
    for words in ("drawn with seed 7 from a log-normal", "truncated to 1 to 547", "136.89 ± 93.13", "--tokenizer NAME"):
        assert words in text
    found = json.loads(printed(*verb, "task:generation", "--requests", "64", "--seed", "7", "--json"))
    facts = found["trace"] if verb == ("estimate",) else found
    assert "log-normal" in facts["lengths_from"]
    assert facts["requests"] == 64
    real = json.loads(printed(*verb, "azure-code-2023", "--json"))
    assert (real["trace"] if verb == ("estimate",) else real)["lengths_from"] is None


class Stream:
    """What a streamed data set of the hub offers."""

    def __init__(self, examples: list[Any]) -> None:
        self.examples = examples
        self.shuffled: dict[str, int] = {}

    def shuffle(self, *, seed: int, buffer_size: int) -> Stream:
        self.shuffled = {"seed": seed, "buffer_size": buffer_size}
        return self

    def __iter__(self) -> Iterator[Any]:
        return iter(self.examples)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Modules `datasets` and `transformers` whose data sets and tokenizer are here; keeps what they were asked."""
    asked: dict[str, Any] = {"examples": [{"text": "one two three"}, {"text": " \n"}, {"text": "one"}]}

    def load_dataset(path: str, name: str | None, *, split: str, streaming: bool) -> Stream:
        if isinstance(asked["examples"], Exception):
            raise asked["examples"]
        asked.update(path=path, name=name, split=split, streaming=streaming, stream=Stream(asked["examples"]))
        stream: Stream = asked["stream"]
        return stream

    def from_pretrained(name: str) -> Any:
        asked["tokenizer"] = name
        return lambda text: {"input_ids": [0, *text.split()]}

    datasets: Any = types.ModuleType("datasets")
    datasets.load_dataset = load_dataset
    transformers: Any = types.ModuleType("transformers")
    transformers.AutoTokenizer = types.SimpleNamespace(from_pretrained=from_pretrained)
    monkeypatch.setitem(sys.modules, "datasets", datasets)
    monkeypatch.setitem(sys.modules, "transformers", transformers)
    return asked


@pytest.mark.parametrize("verb", ["recommend", "breakdown"])
def test_advice_on_a_task_says_by_which_distribution_lengths_were_drawn(verb: str) -> None:
    assert "drawn with seed 0 from a log-normal" in " ".join(printed(verb, "task:imdb").split())
    assert "log-normal" in json.loads(printed(verb, "task:imdb", "--json"))["trace"]["lengths_from"]


def test_a_named_tokenizer_counts_the_real_texts_and_leaves_blank_ones_out(hub: dict[str, Any]) -> None:
    found = task_lengths(find_task("task:generation"), TaskOptions(requests=2, seed=5, tokenizer="some/tokenizer"))
    assert found.input_tokens == (4, 2)
    assert found.output_tokens == 64
    assert (hub["path"], hub["name"], hub["split"]) == ("Salesforce/wikitext", "wikitext-2-raw-v1", "test")
    assert (hub["tokenizer"], hub["streaming"], hub["stream"].shuffled["seed"]) == ("some/tokenizer", True, 5)
    for words in ("2 texts (text) of Salesforce/wikitext", "some/tokenizer", "seed 5", "no instructions"):
        assert words in found.origin
    assert "log-normal" not in found.origin


def test_texts_nested_in_an_example_are_found(hub: dict[str, Any]) -> None:
    hub["examples"] = [{"translation": {"de": "eins zwei drei", "en": "one two"}}]
    found = task_lengths(find_task("task:wmt14"), TaskOptions(requests=1, tokenizer="t"))
    assert found.input_tokens == (3,)


def test_a_data_set_without_a_configuration_is_asked_for_none(hub: dict[str, Any]) -> None:
    task_lengths(find_task("task:imdb"), TaskOptions(requests=1, tokenizer="t"))
    assert hub["name"] is None


def test_more_requests_than_texts_are_refused(hub: dict[str, Any]) -> None:
    with raises("too-few-requests", found=2, expected=3):
        task_lengths(find_task("task:imdb"), TaskOptions(requests=3, tokenizer="t"))


@pytest.mark.parametrize("error", [ConnectionError("no route\nto host"), ValueError("no such file"), KeyError("text")])
def test_without_a_network_the_published_moments_serve_and_the_reason_is_told(
    hub: dict[str, Any], error: Exception
) -> None:
    hub["examples"] = error
    found = task_lengths(find_task("task:imdb"), TaskOptions(requests=8, tokenizer="t"))
    assert "log-normal" in found.origin
    assert "the real texts of stanfordnlp/imdb could not be read" in found.origin
    assert str(error).split("\n")[0] in found.origin
    assert found.input_tokens == task_lengths(find_task("task:imdb"), TaskOptions(requests=8)).input_tokens


def test_without_the_packages_the_published_moments_serve_and_what_to_install_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    found = task_lengths(find_task("task:imdb"), TaskOptions(requests=8, tokenizer="t"))
    assert "pip install datasets transformers" in found.origin
    assert "log-normal" in found.origin


def test_the_command_line_counts_real_texts_too(hub: dict[str, Any]) -> None:
    found = json.loads(printed("trace", "task:imdb", "--requests", "2", "--tokenizer", "t", "--json"))
    assert found["input"]["total"] == 6
    assert "as the tokenizer t counts them" in found["lengths_from"]
