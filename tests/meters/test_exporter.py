"""The meter of a page of Prometheus metrics."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

pytest.importorskip("httpx")
pytest.importorskip("prometheus_client")

from infergy.errors import UsageError
from infergy.meters import open_meter
from infergy.meters.ticks import next_tick
from infergy.testing import check_meter
from raising import raises

NAME = "infergy_gpu_energy_joules_total"


class Page(BaseHTTPRequestHandler):
    """Two GPUs of 100 W and 200 W whose counters move ten times a second."""

    gone = False
    empty = False
    token = ""
    name = "NVIDIA H200"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        ticks = time.monotonic() // 0.1 / 10
        values = {"GPU-a": 100 * ticks, "GPU-b": 200 * ticks}
        if self.gone:
            del values["GPU-b"]
        lines = [f"# TYPE {NAME.removesuffix('_total')} counter"]
        lines += [f'{NAME}{{gpu="{uuid}",name="{self.name}"}} {joules}' for uuid, joules in values.items()]
        data = ("<html>" if self.empty else "\n".join(lines) + "\n").encode()
        is_allowed = not self.token or self.headers.get("Authorization") == f"Bearer {self.token}"
        self.send_response(200 if is_allowed else 401)
        self.end_headers()
        self.wfile.write(data if is_allowed else b"")


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, type[Page]]]:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    handler = type("Own", (Page,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/metrics", handler
    server.shutdown()
    server.server_close()
    thread.join()


def test_it_obeys_the_rules_of_a_meter(page: tuple[str, type[Page]]) -> None:
    check_meter(lambda: open_meter(page[0], 2))


def test_counters_by_uuid(page: tuple[str, type[Page]], monkeypatch: pytest.MonkeyPatch) -> None:
    meter = open_meter(page[0], 2)
    assert [gpu.name for gpu in meter.gpus] == ["NVIDIA H200"] * 2
    first, second = next_tick(meter).ticks, next_tick(meter).ticks
    assert second["GPU-b"].energy_j - first["GPU-b"].energy_j == pytest.approx(
        2 * (second["GPU-a"].energy_j - first["GPU-a"].energy_j)
    )
    meter.close()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-b")
    meter = open_meter(page[0], 1)
    assert [gpu.uuid for gpu in meter.gpus] == ["GPU-b"]
    page[1].gone = True
    with raises("counter-unreadable", uuid="GPU-b"):
        next_tick(meter)
    meter.close()


def test_a_token_that_cannot_stand_in_a_header_is_not_shown(
    page: tuple[str, type[Page]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INFERGY_EXPORT_TOKEN", "tok-SECRET\nmore")
    with pytest.raises(UsageError) as raised:
        open_meter(page[0], None)
    assert (raised.value.code, "SECRET" in str(raised.value)) == ("key-missing", False)


def test_another_number_of_gpus_is_rejected(page: tuple[str, type[Page]]) -> None:
    with raises("bad-value", option="--energy-gpu-ids"):
        open_meter(page[0], 1)


def test_a_page_without_the_counter_or_behind_a_token(
    page: tuple[str, type[Page]], monkeypatch: pytest.MonkeyPatch
) -> None:
    page[1].empty = True
    with raises("counter-missing"):
        open_meter(page[0], 2)
    page[1].empty, page[1].token = False, "t0ken"
    with raises("counter-missing"):
        open_meter(page[0], 2)
    monkeypatch.setenv("INFERGY_EXPORT_TOKEN", "t0ken")
    open_meter(page[0], 2).close()


def test_what_the_gpus_are_follows_from_their_names(page: tuple[str, type[Page]]) -> None:
    page[1].name = "NVIDIA GH200 480GB"
    meter = open_meter(page[0], 2)
    assert (meter.scope, meter.is_simulated) == ("gpu-module", False)
    meter.close()
    page[1].name = "simulated steady GPU"
    meter = open_meter(page[0], 2)
    assert (meter.scope, meter.is_simulated) == ("gpu-board", True)
    meter.close()
