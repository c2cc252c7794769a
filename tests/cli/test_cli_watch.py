"""`infergy watch` as it is typed, on the simulated meter and a server on loopback."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from infergy.cli import app
from infergy.errors import UsageError
from infergy.workload import open_trace

pytest.importorskip("httpx")
pytest.importorskip("prometheus_client")
LABEL = 'model_name="meta-llama/Llama-3.1-8B-Instruct"'


class Handler(BaseHTTPRequestHandler):
    """A page whose counters grow with time."""

    def do_GET(self) -> None:
        count = int(time.monotonic() * 1000)
        lines = [f"vllm:{name}_tokens_total{{{LABEL}}} {count}" for name in ("prompt", "generation")]
        lines.append(f"vllm:num_requests_running{{{LABEL}}} 4")
        for name in ("request_prompt_tokens", "request_generation_tokens"):
            requests = count // 100
            lines += [f'vllm:{name}_bucket{{le="{edge}",{LABEL}}} {requests}' for edge in ("200", "+Inf")]
            lines.append(f"vllm:{name}_sum{{{LABEL}}} {requests * 100}")
        body = ("\n".join(lines) + "\n").encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def watch(*words: str) -> list[str]:
    result = CliRunner().invoke(app, ["watch", *words, "--simulate", "--interval", "0.5s"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout.splitlines()


def test_json_lines_and_a_recording(url: str, tmp_path: Path) -> None:
    path = tmp_path / "load.jsonl"
    lines = [json.loads(line) for line in watch(url, "--json", "--for", "3s", "--record", str(path), "-g", "h200")]
    assert len(lines) == 6
    assert {line["schema"] for line in lines} == {"infergy.watch/1"}
    assert lines[-1]["server"]["kind"] == "vLLM"
    assert lines[-1]["power_w"] == pytest.approx(100, rel=0.05)
    assert "simulated" in lines[-1]["flags"]
    assert len(path.read_text(encoding="utf-8").splitlines()) == 5
    assert len(open_trace(path).requests()) > 10


def test_plain_lines_say_what_is_blank(url: str) -> None:
    *_, last = watch(url, "--for", "1.5s")
    assert "Power" in last
    assert "running 4" in last
    assert "SIMULATED" in last


def test_a_server_that_is_down_is_watched_all_the_same() -> None:
    *_, last = watch("127.0.0.1:1", "--for", "1.5s")
    assert "does not answer" in last


@pytest.mark.parametrize(
    "words",
    [
        ["--interval", "1ms"],
        ["--interval", "1h"],
        ["--for", "soon"],
        ["--gpus", "7"],
        ["--gpus", "0,0"],
        ["--gpus", ","],
        ["--gpus", "GPU-other"],
        ["--export", "0.0.0.0:0"],
        ["--record", "/"],
        ["--meter", "zeus-gpu"],
        ["--model", "nope"],
        ["--present", "foo"],
    ],
    ids=" ".join,
)
def test_options_that_cannot_be_meant(url: str, words: list[str]) -> None:
    with pytest.raises(UsageError):
        CliRunner().invoke(app, ["watch", url, "--simulate", "--for", "1s", *words], catch_exceptions=False)


def test_a_file_of_another_kind_is_not_appended_to(url: str, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("mine\n", encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        CliRunner().invoke(app, ["watch", url, "--simulate", "--record", str(path)], catch_exceptions=False)
    assert caught.value.code == "file-exists"
    assert path.read_text(encoding="utf-8") == "mine\n"


@pytest.mark.parametrize("key", ["sk-hush\rX: y", "sk-hushé", " "])
def test_a_key_that_cannot_stand_in_a_header_is_not_shown(url: str, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", key)
    with pytest.raises(UsageError) as caught:
        CliRunner().invoke(app, ["watch", url, "--simulate", "--api-key-env", "MY_KEY"], catch_exceptions=False)
    assert caught.value.code == "key-missing"
    assert "hush" not in str(caught.value)


def test_space_around_a_key_is_no_part_of_it(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "sk-hush\n")
    (line,) = watch(url, "--for", "0.5s", "--json", "--api-key-env", "MY_KEY")
    assert json.loads(line)["server"] is not None
    assert "hush" not in line
