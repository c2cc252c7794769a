"""What is known now as metrics for Prometheus, from a small server of this process: on loopback, or with a token."""

from __future__ import annotations

import hmac
import ipaddress
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from socketserver import ThreadingMixIn
from typing import Any, Self
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from infergy.errors import UsageError
from infergy.meters.exporter import METRIC, NAME_LABEL, PATH, TOKEN_VARIABLE, UUID_LABEL
from infergy.watch.live import Live
from infergy.watch.span import EnergyPerToken

EXPECTED = "an address as :9464, 0.0.0.0:9464 or [::1]:9464"
GPU_LABELS, HELP = (UUID_LABEL, NAME_LABEL), "docs/watch.md"
HEAD_S = 5.0
"""For a request to be sent; one that drips is cut off."""
MOST_AT_ONCE = 16
TEXT = "text/plain; charset=utf-8"


def metrics_of(live: Live) -> bytes:
    """The metrics in Prometheus' text format; a value that is not known is not there, and named in infergy_blank."""
    from prometheus_client import generate_latest

    class Collector:
        def collect(self) -> Iterator[Any]:
            return _families(live)

    return generate_latest(Collector())


def _families(live: Live) -> Iterator[Any]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    energy = CounterMetricFamily(METRIC, HELP, labels=GPU_LABELS)
    power = GaugeMetricFamily("infergy_gpu_power_watts", HELP, labels=GPU_LABELS)
    for gpu in live.gpus:
        energy.add_metric([gpu.uuid, gpu.name], gpu.energy_j)
        if gpu.power_w is not None:
            power.add_metric([gpu.uuid, gpu.name], gpu.power_w)
    yield from (energy, power)
    for name, label, values in gauges_of(live):
        gauge = GaugeMetricFamily(f"infergy_{name}", HELP, labels=[label] if label else [])
        for own, value in values.items():
            if value is not None:
                gauge.add_metric([own] if label else [], value)
        yield gauge


def gauges_of(live: Live) -> Iterator[tuple[str, str, Mapping[str, float | None]]]:
    """Name, label, and values by that label; of one without a label, the value."""
    server, phases = live.server, live.recent.phases
    for name in ("per_output_token", "per_token"):
        found: EnergyPerToken | None = getattr(live.recent, name)
        bounds = {} if found is None else {"value": found.value_j, "least": found.least_j, "most": found.most_j}
        yield f"energy_{name}_joules", "bound", bounds
    yield "idle_ratio", "", {"": live.recent.idle_share}
    yield "server_up", "", {"": float(server is not None)}
    yield "blank", "name", dict.fromkeys(live.blanks, 1.0)
    yield "flag", "flag", dict.fromkeys(live.flags, 1.0)
    if phases is not None:
        yield "phase_energy_ratio", "phase", {n: getattr(phases, n) for n in ("prefill", "decode", "idle")}
        yield "floor_per_output_token_joules", "", {"": phases.floor_per_output_token_j}
    if server is not None:
        yield from ((f"server_{n}", "", {"": getattr(server, n)}) for n in ("running", "waiting", "kv_share"))
        yield "server_rate_per_second", "counter", server.rates_per_s
        yield "server_latency_seconds", "latency", server.latencies_s


class Exporter:
    """Serves the metrics of the last refresh on ``/metrics``.

    Args:
        address: ``:9464`` is loopback; ``0.0.0.0:9464`` needs a token.
        token: Of a request's header ``Authorization: Bearer …``; None asks for none.

    Raises:
        UsageError: No such address, one that is in use, or one that others can reach, without a token.
    """

    def __init__(self, address: str, token: str | None) -> None:
        host, port = _parse(address)
        if not token and not _is_loopback(host):
            message = (
                f"--export {address} can be reached from elsewhere: set a token in {TOKEN_VARIABLE}, or export :{port}"
            )
            raise UsageError(message, code="token-missing", option="--export", value=address, variable=TOKEN_VARIABLE)
        self._token, self._metrics = (token or "").encode(), b""
        try:
            self._server = _Server(host, port, self._answer)
        except (OSError, OverflowError) as error:
            expected = f"{EXPECTED} that is free ({getattr(error, 'strerror', None) or error})"
            raise UsageError.bad_value("--export", address, expected) from error
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self._server.server_port}{PATH}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def show(self, live: Live) -> None:
        """Answer with these values from now on."""
        self._metrics = metrics_of(live)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, environ: dict[str, Any], start: Callable[..., Any]) -> list[bytes]:
        given = str(environ.get("HTTP_AUTHORIZATION", "")).encode("latin-1", "replace")  # as WSGI has its bytes
        status, body = "200 OK", self._metrics
        if self._token and not hmac.compare_digest(given, b"Bearer " + self._token):
            status, body = "401 Unauthorized", b"a token is needed\n"
        elif environ.get("PATH_INFO") != PATH:
            status, body = "404 Not Found", b"the metrics are at /metrics\n"
        elif environ.get("REQUEST_METHOD") not in ("GET", "HEAD"):
            status, body = "405 Method Not Allowed", b"GET alone\n"
        start(status, [("Content-Type", TEXT), ("Content-Length", str(len(body)))])
        return [] if environ.get("REQUEST_METHOD") == "HEAD" else [body]


class _Handler(WSGIRequestHandler):
    timeout = HEAD_S

    def handle(self) -> None:
        """Answer one request; a client that leaves in the middle of it is no error."""
        cut = threading.Timer(HEAD_S, self._cut)
        cut.daemon = True
        cut.start()
        try:
            super().handle()
        except (OSError, ValueError):
            self.close_connection = True
        finally:
            cut.cancel()

    def _cut(self) -> None:
        """End a request that is sent byte by byte: each of them begins the socket's own timeout again."""
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *_: Any) -> None:
        """Log nothing: who asks says nothing that should be kept."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def __init__(self, host: str, port: int, answer: Callable[..., Any]) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._free = threading.BoundedSemaphore(MOST_AT_ONCE)
        super().__init__((host, port), _Handler)
        self.set_app(answer)

    def server_bind(self) -> None:
        """Bind without asking for the name of the host, which may take seconds."""
        self.server_name = "infergy"
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_port = self.server_address[1]
        self.setup_environ()

    def process_request(self, request: Any, client: Any) -> None:
        """Answer in a thread; of too many at once the further ones are cut off."""
        if self._free.acquire(blocking=False):
            super().process_request(request, client)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client: Any) -> None:
        """Answer, and let the next one in."""
        try:
            super().process_request_thread(request, client)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client: Any) -> None:
        """Nothing: a malformed request is the error of its client."""


def _parse(address: str) -> tuple[str, int]:
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal() or not 0 <= int(port) < 65536:
        raise UsageError.bad_value("--export", address, EXPECTED)
    return host.strip("[]") or "127.0.0.1", int(port)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
