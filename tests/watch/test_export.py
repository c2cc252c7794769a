"""The exporter: what it says, whom it answers, and what malformed requests do to it."""

from __future__ import annotations

import random
import re
import socket
import time
import urllib.error
import urllib.request
from contextlib import suppress
from urllib.parse import urlsplit

import pytest
from typer.testing import CliRunner

from infergy.cli import app
from infergy.errors import UsageError
from infergy.estimates.servers import ServerSpec, open_server
from infergy.meters import open_meter
from infergy.meters.exporter import TOKEN_VARIABLE
from infergy.watch.export import Exporter, metrics_of
from infergy.watch.live import Live
from watched import Server, node_of, run, silent, watch_of

pytest.importorskip("prometheus_client")


@pytest.fixture(scope="module")
def live() -> Live:
    node = node_of(2)
    return run(watch_of(Server(node)), node, 14)[-1]


def fetch(url: str, token: str | None = None, method: str = "GET") -> tuple[int, str]:
    heads = {} if token is None else {"Authorization": f"Bearer {token}"}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=heads, method=method), timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def values_of(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    from prometheus_client.parser import text_string_to_metric_families

    samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
    return {(sample.name, tuple(sorted(sample.labels.items()))): sample.value for sample in samples}


def test_what_is_known_is_there(live: Live) -> None:
    with Exporter(":0", None) as exporter:
        exporter.show(live)
        assert exporter.url.startswith("http://127.0.0.1:")
        status, text = fetch(exporter.url)
    values = values_of(text)
    assert status == 200
    for gpu in live.gpus:
        labels = (("gpu", gpu.uuid), ("name", gpu.name))
        assert values["infergy_gpu_energy_joules_total", labels] == gpu.energy_j
        assert values["infergy_gpu_power_watts", labels] == gpu.power_w
    assert live.recent.per_output_token is not None
    assert (
        values["infergy_energy_per_output_token_joules", (("bound", "value"),)] == live.recent.per_output_token.value_j
    )
    assert values["infergy_server_rate_per_second", (("counter", "output_tokens"),)] == pytest.approx(1000, rel=0.01)
    assert values["infergy_server_up", ()] == 1
    assert values["infergy_flag", (("flag", "simulated"),)] == 1


def test_what_is_not_known_is_not_there() -> None:
    node = node_of()
    server = Server(node, faults=[silent(may_run_on=False)])
    with Exporter(":0", None) as exporter:
        exporter.show(run(watch_of(server), node, 1)[-1])
        values = values_of(fetch(exporter.url)[1])
    assert values["infergy_server_up", ()] == 0
    assert values["infergy_blank", (("name", "server"),)] == 1
    assert not any(name.startswith(("infergy_energy_per", "infergy_gpu_power")) for name, _ in values)


def test_other_paths_and_methods(live: Live) -> None:
    with Exporter("127.0.0.1:0", None) as exporter:
        exporter.show(live)
        assert fetch(exporter.url.replace("/metrics", "/"))[0] == 404
        assert fetch(exporter.url, method="POST")[0] == 405
        assert fetch(exporter.url, method="HEAD") == (200, "")


def test_a_token_is_asked_for(live: Live) -> None:
    with Exporter("0.0.0.0:0", "hush") as exporter:
        exporter.show(live)
        url = exporter.url.replace("0.0.0.0", "127.0.0.1")
        assert [fetch(url, token)[0] for token in (None, "", "hus", "hush", "hushh", "häsh")] == [
            401,
            401,
            401,
            200,
            401,
            401,
        ]


def test_a_token_may_have_any_letters(live: Live) -> None:
    with Exporter(":0", "häsh") as exporter:
        exporter.show(live)
        sent = "häsh".encode().decode("latin-1")
        assert [fetch(exporter.url, token)[0] for token in (sent, f"{sent}h")] == [200, 401]


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", "example.org:9464"])
def test_no_address_that_others_reach_without_a_token(address: str) -> None:
    with pytest.raises(UsageError) as caught:
        Exporter(address, None)
    assert caught.value.code == "token-missing"
    assert caught.value.fields["variable"] == TOKEN_VARIABLE


@pytest.mark.parametrize("address", ["9464", ":", ":port", ":99999", ":-1", "127.0.0.1"])
def test_what_is_no_address_is_rejected(address: str) -> None:
    with pytest.raises(UsageError) as caught:
        Exporter(address, "token")
    assert caught.value.code == "bad-value"


def test_an_address_in_use_is_rejected() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UsageError) as caught:
        Exporter(f":{taken.getsockname()[1]}", None)
    assert caught.value.code == "bad-value"


def malformed(source: random.Random) -> bytes:
    """A request that is none."""
    noise = source.randbytes(source.randrange(200))
    return source.choice(
        [
            noise,
            b"GET /metrics\r\n\r\n",
            b"GET /metrics HTTP/9.9\r\n\r\n",
            b"GET /" + noise.replace(b"\n", b"") + b" HTTP/1.1\r\n\r\n",
            b"GET /metrics HTTP/1.1\r\nAuthorization: Bearer " + noise.replace(b"\n", b"") + b"\r\n\r\n",
            b"POST /metrics HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n" + noise,
            b"GET /metrics HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
            b"G" * 70_000,
            b"GET /metrics HTTP/1.1\r\n" + b"X: y\r\n" * 500,
            b"",
        ]
    )


def test_a_thousand_malformed_requests(live: Live, capfd: pytest.CaptureFixture[str]) -> None:
    source = random.Random(0)
    with Exporter(":0", "hush") as exporter:
        exporter.show(live)
        host, port = exporter.url.split("/")[2].split(":")
        for _ in range(1000):
            with socket.create_connection((host, int(port)), timeout=20) as connection:
                try:
                    connection.sendall(malformed(source))
                    connection.shutdown(socket.SHUT_WR)
                    answer = connection.recv(65536)
                except ConnectionError:
                    continue
            assert b"infergy_" not in answer
        status, text = fetch(exporter.url, "hush")
    assert status == 200
    assert values_of(text)["infergy_server_up", ()] == 1
    assert "Traceback" not in capfd.readouterr().err


def test_a_request_that_drips_is_cut_off(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infergy.watch.export.HEAD_S", 0.5)
    with Exporter(":0", None) as exporter:
        exporter.show(live)
        with socket.create_connection(("127.0.0.1", urlsplit(exporter.url).port), timeout=20) as client:
            sent = 0
            with suppress(OSError):
                while sent < 400:
                    client.sendall(b"G")
                    sent += 1
                    time.sleep(0.05)
            assert sent < 400


def test_the_dashboard_shows_what_is_exported() -> None:
    node = node_of()
    live = run(watch_of(Server(node, per_s=500), cost=lambda models: open_server(ServerSpec()).cost), node, 14)[-1]
    exported = {name for name, _ in values_of(metrics_of(live).decode())}
    exported |= {"infergy_server_waiting", "infergy_server_kv_share"}  # which this page lacks
    shown = set(re.findall(r"infergy_\w+", CliRunner().invoke(app, ["list", "dashboard"]).stdout))
    assert shown <= exported
    assert len(shown) > 8


def test_a_replay_elsewhere_reads_the_same_counters(live: Live) -> None:
    with Exporter(":0", None) as exporter:
        exporter.show(live)
        meter = open_meter(exporter.url, None)
        energy_j = meter.read()
        meter.close()
    assert energy_j == {gpu.uuid: gpu.energy_j for gpu in live.gpus}
    assert meter.is_simulated
