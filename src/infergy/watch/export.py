"""What is known now as metrics for Prometheus, from a small server of this process: on loopback, or with a token."""

from __future__ import annotations

import hmac
import ipaddress
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from socketserver import ThreadingMixIn
from typing import Any, Self
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from infergy.errors import MissingError, UsageError
from infergy.watch.live import Live

TOKEN = "INFERGY_EXPORT_TOKEN"
EXPECTED = "an address as :9464, 0.0.0.0:9464 or [::1]:9464"
HEAD_S = 5.0
"""For a request to be sent; one that drips is cut off."""
MOST_AT_ONCE = 16
TEXT = "text/plain; charset=utf-8"


def metrics_of(live: Live) -> bytes:
    """The metrics in Prometheus' text format; a value that is not known is not there, and named in infergy_blank.

    Raises:
        MissingError: The extra ``server`` is not installed.
    """
    try:
        from prometheus_client import generate_latest
    except ImportError as error:
        needed_by, install = "infergy watch --export", "pip install 'infergy[server]'"
        raise MissingError.package(needed_by, "prometheus-client", install, str(error)) from error

    class Collector:
        def collect(self) -> Iterator[Any]:
            return _families(live)

    return generate_latest(Collector())


def _families(live: Live) -> Iterator[Any]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    def family(kind: Any, name: str, help: str, values: Iterable[tuple[dict[str, str], float | None]]) -> Iterator[Any]:  # noqa: A002
        known = [(labels, value) for labels, value in values if value is not None]
        if known:
            made = kind(f"infergy_{name}", help, labels=[*known[0][0]])
            for labels, value in known:
                made.add_metric([*labels.values()], value)
            yield made

    gauge, counter = GaugeMetricFamily, CounterMetricFamily
    gpus = [({"gpu": gpu.uuid, "name": gpu.name}, gpu) for gpu in live.gpus]
    yield from family(counter, "gpu_energy_joules", "Since the watch began", ((own, gpu.energy_j) for own, gpu in gpus))
    yield from family(gauge, "gpu_power_watts", "By the energy counter", ((own, gpu.power_w) for own, gpu in gpus))
    for name, own in {"output_token": live.per_output_token, "token": live.per_token}.items():
        ends = {} if own is None else {"value": own.value_j, "least": own.least_j, "most": own.most_j}
        values = (({"bound": end}, value) for end, value in ends.items())
        yield from family(gauge, f"energy_per_{name}_joules", "Energy of all GPUs over tokens", values)
    yield from family(gauge, "idle_ratio", "Share of the time without a running request", [({}, live.idle_share)])
    if (phases := live.phases) is not None:
        shares = (({"phase": name}, getattr(phases, name)) for name in ("prefill", "decode", "idle"))
        yield from family(gauge, "phase_energy_ratio", "Shares of the energy by the cost model", shares)
        name, floor_j = "floor_per_output_token_joules", phases.floor_per_output_token_j
        yield from family(gauge, name, "By the roofline of the model and batch", [({}, floor_j)])
    if (server := live.server) is not None:
        for name in ("running", "waiting", "kv_share"):
            yield from family(gauge, f"server_{name}", "As the server says", [({}, getattr(server, name))])
        rates = (({"counter": name}, rate) for name, rate in server.rates_per_s.items())
        yield from family(gauge, "server_rate_per_second", "Tokens and preemptions", rates)
        latencies = (({"latency": name}, latency) for name, latency in server.latencies_s.items())
        yield from family(gauge, "server_latency_seconds", "From the server's histograms", latencies)
    yield from family(gauge, "server_up", "Whether its metrics can be read", [({}, float(server is not None))])
    yield from family(gauge, "blank", "Values that are not known", (({"name": name}, 1.0) for name in live.blanks))
    yield from family(gauge, "flag", "What makes values uncertain", (({"flag": name}, 1.0) for name in live.flags))


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
                f"--export {address} can be reached from other machines: set a token in {TOKEN}, or export :{port}"
            )
            raise UsageError(message, code="token-missing", option="--export", value=address, variable=TOKEN)
        self._token, self._metrics = (token or "").encode(), b""
        try:
            self._server = _Server(host, port, self._answer)
        except (OSError, OverflowError) as error:
            expected = f"{EXPECTED} that is free ({getattr(error, 'strerror', None) or error})"
            raise UsageError.bad_value("--export", address, expected) from error
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self._server.server_port}/metrics"
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
        given = str(environ.get("HTTP_AUTHORIZATION", "")).encode("utf-8", "replace")
        status, body = "200 OK", self._metrics
        if self._token and not hmac.compare_digest(given, b"Bearer " + self._token):
            status, body = "401 Unauthorized", b"a token is needed\n"
        elif environ.get("PATH_INFO") != "/metrics":
            status, body = "404 Not Found", b"the metrics are at /metrics\n"
        elif environ.get("REQUEST_METHOD") not in ("GET", "HEAD"):
            status, body = "405 Method Not Allowed", b"GET alone\n"
        start(status, [("Content-Type", TEXT), ("Content-Length", str(len(body)))])
        return [] if environ.get("REQUEST_METHOD") == "HEAD" else [body]


class _Handler(WSGIRequestHandler):
    timeout = HEAD_S

    def handle(self) -> None:
        """Answer one request; a client that leaves in the middle of it is no error."""
        try:
            super().handle()
        except (OSError, ValueError):
            self.close_connection = True

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
