"""A server on loopback that answers as OpenAI-compatible ones do, or wrongly: what a test says of it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar


@dataclass
class Behaviour:
    """How the server answers; and what it was asked."""

    models: Any = field(default_factory=lambda: [{"id": "tiny", "owned_by": "vllm"}])
    version: str | None = "0.25.0"
    takes_ids: bool = True
    takes_forced: bool = True
    has_completions: bool = True
    tokens_per_word: int = 1
    has_usage: bool = True
    input_lie: int = 0
    output_lie: int = 0
    stops_after: int | None = None
    half_stream: bool = False
    endless: bool = False
    in_one_piece: bool = False
    html: bool = False
    redirect: str | None = None
    key: str | None = None
    rejections: list[int] = field(default_factory=list)
    retry_after: str | None = None
    pause_s: float = 0.0005
    hang: bool = False
    keep_alive: bool = False
    nested: bool = False
    error_in_stream: bool = False
    cached: int | None = None
    asked: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    most_open: int = 0


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    behaviour: ClassVar[Behaviour]
    open_now: ClassVar[list[int]]

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self, status: int, body: str, kind: str = "application/json", **headers: str) -> None:
        data = body.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def _is_odd(self) -> bool:
        b = self.behaviour
        self.__class__.behaviour.headers.append(dict(self.headers))
        if b.redirect is not None:
            self._answer(307, "", Location=b.redirect)
        elif b.html:
            self._answer(200, "<html><body>Sign in</body></html>", "text/html")
        elif b.key is not None and self.headers.get("Authorization") != f"Bearer {b.key}":
            self._answer(401, json.dumps({"error": f"bad key {self.headers.get('Authorization')}"}))
        else:
            return False
        return True

    def do_GET(self) -> None:
        if self._is_odd():
            return
        b = self.behaviour
        if self.path == "/v1/models":
            self._answer(200, json.dumps({"object": "list", "data": b.models}))
        elif self.path == "/version" and b.version is not None:
            self._answer(200, json.dumps({"version": b.version}))
        else:
            self._answer(404, "{}")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self._is_odd():
            return
        b = self.behaviour
        is_chat = self.path.endswith("chat/completions")
        if not b.has_completions and not is_chat:
            self._answer(404, '{"detail": "Not Found"}')
            return
        prompt = body["messages"][0]["content"] if is_chat else body["prompt"]
        if (isinstance(prompt, list) and not b.takes_ids) or ("ignore_eos" in body and not b.takes_forced):
            self._answer(400, '{"error": "unsupported"}')
            return
        if b.rejections and len(b.asked):
            headers: dict[str, str] = {} if b.retry_after is None else {"Retry_After": b.retry_after}
            self._answer(b.rejections.pop(), '{"error": "busy"}', **headers)
            return
        b.asked.append(body)
        self.open_now.append(1)
        b.most_open = max(b.most_open, len(self.open_now))
        try:
            self._stream(body, prompt, is_chat=is_chat)
        finally:
            self.open_now.pop()

    def _stream(self, body: dict[str, Any], prompt: Any, *, is_chat: bool) -> None:
        b = self.behaviour
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        count = body["max_tokens"] if b.stops_after is None else min(b.stops_after, body["max_tokens"])
        while b.keep_alive:
            self._chunk(b": still here\n\n")
            time.sleep(0.02)
        if b.nested:
            self._chunk(b"data: " + b"[" * 100_000 + b"\n\n")
        if b.error_in_stream:
            self._event({"error": {"message": "out of memory"}})
            count = 0
        for index in range(10**6 if b.endless else 1 if b.in_one_piece else count):
            if b.hang and index:
                time.sleep(60)
            time.sleep(b.pause_s)
            if b.half_stream and index == count // 2:
                self.close_connection = True
                self._chunk(b"")
                return
            piece: dict[str, Any] = {"delta": {"content": " a"}} if is_chat else {"text": " a"}
            self._event({"choices": [{"index": 0, "finish_reason": None, **piece}]})
        reason = "length" if count == body["max_tokens"] else "stop"
        last: dict[str, Any] = {"delta": {}} if is_chat else {"text": ""}
        self._event({"choices": [{"index": 0, "finish_reason": reason, **last}]})
        if b.has_usage and body.get("stream_options", {}).get("include_usage"):
            words = len(prompt) if isinstance(prompt, list) else b.tokens_per_word * len(prompt.split()) + 3 * is_chat
            details = {} if b.cached is None else {"prompt_tokens_details": {"cached_tokens": b.cached}}
            usage = {"prompt_tokens": words + b.input_lie, "completion_tokens": count + b.output_lie, **details}
            self._event({"choices": [], "usage": usage})
        self._chunk(b"data: [DONE]\n\n")
        self._chunk(b"")

    def _event(self, event: dict[str, Any]) -> None:
        self._chunk(b"data: " + json.dumps(event).encode() + b"\n\n")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_: Any) -> None:
        pass


@contextmanager
def running(behaviour: Behaviour) -> Iterator[str]:
    """The URL of a server that behaves so."""
    handler = type("Handler", (Handler,), {"behaviour": behaviour, "open_now": []})
    server = _Server(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        with suppress(OSError):
            server.shutdown()
        server.server_close()
        thread.join()
