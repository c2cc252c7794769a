"""A collector on loopback, to which `infergy watch --otlp` sends."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import pytest

from infergy.watch.otel import Sender
from watched import Server, node_of, run, silent, watch_of

pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
pytest.importorskip("prometheus_client")


class Collector(BaseHTTPRequestHandler):
    bodies: ClassVar[list[bytes]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.bodies.append(gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body)
        assert self.path == "/v1/metrics"
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def url() -> Iterator[str]:
    Collector.bodies.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def points() -> dict[str, dict[tuple[str, ...], float]]:
    """Values by name and labels, as the last message has them."""
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

    message: Any = ExportMetricsServiceRequest.FromString(Collector.bodies[-1])
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for metric in message.resource_metrics[0].scope_metrics[0].metrics:
        data = metric.sum if metric.HasField("sum") else metric.gauge
        for point in data.data_points:
            labels = tuple(one.value.string_value for one in point.attributes)
            found.setdefault(metric.name, {})[labels] = point.as_double or float(point.as_int)
    return found


def test_what_is_known_is_sent(url: str) -> None:
    node = node_of(2)
    with Sender(url) as sender:
        live = run(watch_of(Server(node)), node, 14)[-1]
        sender.show(live)
    found = points()
    assert live.recent.per_output_token is not None
    assert found["hw.energy"] == {(gpu.uuid, gpu.name, "gpu"): gpu.energy_j for gpu in live.gpus}
    assert found["infergy.energy_per_output_token_joules"]["value",] == live.recent.per_output_token.value_j
    assert found["infergy.server_up"] == {(): 1.0}


def test_what_is_no_longer_known_is_not_sent(url: str) -> None:
    node = node_of()
    server = Server(node)
    watch = watch_of(server)
    with Sender(url) as sender:
        sender.show(run(watch, node, 14)[-1])
        server.faults = [silent(may_run_on=False)]
        sender.show(run(watch, node, 1)[-1])
    found = points()
    assert "infergy.energy_per_output_token_joules" not in found
    assert found["infergy.server_up"] == {(): 0.0}
