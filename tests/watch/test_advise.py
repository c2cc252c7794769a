"""What `infergy recommend` is asked, and what is made of its answers."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from infergy.watch import advise
from infergy.watch.advise import Adviser
from infergy.watch.live import Advice, Watch
from waiting import wait_until
from watched import Server, node_of, run, watch_of

pytest.importorskip("prometheus_client")
OPTIONS = ["--present", "vllm serve meta-llama/Llama-3.1-8B-Instruct", "-g", "h200"]


@pytest.fixture(scope="module")
def loaded() -> Watch:
    """A watch of 70 s at 2.5 requests a second."""
    node = node_of()
    watch = watch_of(Server(node, per_s=500))
    run(watch, node, 70)
    return watch


def answer_of(watch: Watch) -> Advice:
    with Adviser() as adviser:
        wait_until(lambda: adviser.look(watch.readings, OPTIONS))
        advice = adviser.look(watch.readings, OPTIONS)
    assert advice is not None
    return advice


def test_the_present_load_is_asked_about(loaded: Watch) -> None:
    advice = answer_of(loaded)
    assert advice.reason in ("saves", "present_is_best")
    if advice.command is not None:
        assert advice.command.startswith("vllm serve")
        assert advice.saving is not None
        assert 0 < advice.saving < 1


def test_nothing_is_asked_without_a_known_server_or_enough_load(loaded: Watch) -> None:
    node = node_of()
    short = watch_of(Server(node))
    run(short, node, 30)
    with Adviser() as adviser:
        assert adviser.look(loaded.readings, []) is None
        assert adviser.look(short.readings, OPTIONS) is None
        assert adviser._child is None


@pytest.mark.parametrize(
    ("stdout", "stderr", "reason"),
    [
        ("", "Killed", "Killed"),
        ("[1, 2", "", "no answer"),
        ('{"recommended": "a"}', "", "no answer"),
        ("", json.dumps({"error": {"message": "the model does not fit"}}), "the model does not fit"),
    ],
)
def test_an_answer_that_is_none_is_a_reason(
    loaded: Watch, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stdout: str, stderr: str, reason: str
) -> None:
    script = tmp_path / "answer.py"
    script.write_text(f"import sys; sys.stdout.write({stdout!r}); sys.stderr.write({stderr!r}); sys.exit(1)\n", "utf-8")
    monkeypatch.setattr(advise, "python_command", lambda module: [sys.executable, str(script)])
    advice = answer_of(loaded)
    assert advice.command is None
    assert reason in advice.reason
