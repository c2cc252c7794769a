"""Servers on loopback that answer wrongly in every way there is."""

from __future__ import annotations

import gzip
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from infergy.errors import DataError, MissingError, UsageError
from infergy.watch.page_reader import MOST_BYTES, PageReader

pytest.importorskip("httpx")
pytest.importorskip("prometheus_client")
PAGE = (Path(__file__).parent / "data" / "vllm.txt").read_bytes()
Talk = Callable[[socket.socket, bytes], None]


@contextmanager
def server(talk: Talk) -> Iterator[str]:
    """A server that talks as it is made to with each connection, and its URL."""
    listener = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    def serve(connection: socket.socket) -> None:
        with connection:
            connection.settimeout(20)
            try:
                while asked := connection.recv(65536):
                    talk(connection, asked)
            except OSError:
                pass

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.close()


def answer(body: bytes, status: str = "200 OK", *heads: str) -> Talk:
    def talk(connection: socket.socket, _: bytes) -> None:
        lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *heads, "", ""]
        connection.sendall("\r\n".join(lines).encode() + body)

    return talk


def half(connection: socket.socket, _: bytes) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\n" + PAGE[:100])
    connection.close()


def half_without_length(connection: socket.socket, _: bytes) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + PAGE[:1700])
    connection.close()


def silence(_: socket.socket, __: bytes) -> None:
    time.sleep(5)


def drip(connection: socket.socket, _: bytes) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    for _number in range(50):
        connection.sendall(b"X-More: 1\r\n")
        time.sleep(0.1)


def huge(connection: socket.socket, _: bytes) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
    for _number in range(MOST_BYTES // (1 << 20) + 2):
        connection.sendall(b"# filler\n" * (1 << 17))


def noise(connection: socket.socket, _: bytes) -> None:
    connection.sendall(b"\x00\xff\x00 SSH-2.0\r\n")
    connection.close()


def nothing(connection: socket.socket, _: bytes) -> None:
    connection.close()


@pytest.mark.parametrize("path", ["", "/", "/metrics", "/v1"])
def test_the_page_is_found(path: str) -> None:
    def talk(connection: socket.socket, asked: bytes) -> None:
        assert asked.startswith(b"GET /metrics HTTP/1.1")
        answer(PAGE)(connection, asked)

    with server(talk) as url, PageReader(url + path) as pages:
        assert pages.is_local
        assert [pages.read().server for _ in range(3)] == ["vLLM"] * 3


def test_a_redirect_on_the_same_host_is_followed() -> None:
    def talk(connection: socket.socket, asked: bytes) -> None:
        is_there = asked.startswith(b"GET /metrics/ ")
        (answer(PAGE) if is_there else answer(b"", "307 Temporary Redirect", "Location: /metrics/"))(connection, asked)

    with server(talk) as url, PageReader(url) as pages:
        assert pages.read().server == "vLLM"


@pytest.mark.parametrize(
    ("talk", "kind", "words"),
    [
        (answer(b"<html><body>It works</body></html>\n"), DataError, "HTML"),
        (answer(b"", "302 Found", "Location: http://203.0.113.7/metrics"), DataError, "another host"),
        (answer(b"", "302 Found", "Location: /metrics"), DataError, "without end"),
        (answer(b"not here", "404 Not Found"), DataError, "404"),
        (answer(b"no", "401 Unauthorized"), DataError, "--api-key-env"),
        (answer(b"no", "503 Service Unavailable"), DataError, "503"),
        (answer(b"Ollama is running", "404 Not Found"), DataError, "prompt_eval_count"),
        (answer(PAGE[:1700]), DataError, "within a line"),
        (answer(b"\xff\xfe\x00" * 30 + b"\n"), MissingError, "codec"),
        (answer(gzip.compress(b"x" * (MOST_BYTES + 9)), "200 OK", "Content-Encoding: gzip"), DataError, "MiB"),
        (answer(b"none", "200 OK", "Content-Encoding: gzip"), MissingError, "DecodingError"),
        (half, MissingError, "RemoteProtocolError"),
        (half_without_length, DataError, "within a line"),
        (silence, MissingError, "in 0.5 s"),
        (drip, MissingError, "in 0.5 s"),
        (huge, DataError, "MiB"),
        (noise, MissingError, "RemoteProtocolError"),
        (nothing, MissingError, "RemoteProtocolError"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_a_server_that_misbehaves_is_an_error(talk: Talk, kind: type[Exception], words: str) -> None:
    timeout_s = 0.5 if talk in (silence, drip) else 20.0
    with server(talk) as url, PageReader(url, timeout_s=timeout_s) as pages:
        for _ in range(2):
            with pytest.raises(kind, match=words):
                pages.read()


def test_no_server_at_all() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with PageReader(f"127.0.0.1:{port}") as pages, pytest.raises(MissingError) as caught:
        pages.read()
    assert caught.value.code == "server-unreachable"
    assert not caught.value.fields["may_run_on"]


def test_the_token_is_sent_and_never_shown() -> None:
    seen: list[bytes] = []

    def talk(connection: socket.socket, asked: bytes) -> None:
        seen.append(asked)
        answer(b"no", "403 Forbidden")(connection, asked)

    with server(talk) as url, PageReader(url, key="hush") as pages, pytest.raises(DataError) as caught:
        pages.read()
    assert b"authorization: bearer hush" in seen[0].lower()
    assert "hush" not in str(caught.value) + str(caught.value.fields)


@pytest.mark.parametrize("url", ["", "ftp://localhost/metrics", "http://", "http://[::1", "http://localhost:99999999"])
def test_what_is_no_url_is_rejected(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        PageReader(url)
    assert caught.value.code == "bad-value"


def test_another_machine_is_not_this_one() -> None:
    with PageReader("http://203.0.113.7:8000") as pages:
        assert not pages.is_local
