"""A real Prometheus server, Debian's package, that scrapes `infergy watch --export`."""

from __future__ import annotations

import json
import shutil
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from programs import free_port, running
from waiting import wait_until

pytest.importorskip("prometheus_client")
PROMETHEUS = shutil.which("prometheus")
pytestmark = pytest.mark.skipif(PROMETHEUS is None, reason="apt-get install prometheus")
ROOT = Path(__file__).parents[2]
DASHBOARD = ROOT / "src" / "infergy" / "data" / "grafana.json"


@pytest.fixture(scope="module")
def ports() -> tuple[int, int]:
    return free_port(), free_port()


@pytest.fixture(scope="module")
def query(ports: tuple[int, int], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("prometheus")
    exporter, port = ports
    config = folder / "prometheus.yml"
    config.write_text(
        "global: {scrape_interval: 1s}\n"
        "scrape_configs:\n"
        f"  - {{job_name: infergy, static_configs: [{{targets: ['127.0.0.1:{exporter}']}}]}}\n",
        encoding="utf-8",
    )
    watch = [
        sys.executable,
        "-m",
        "infergy",
        "watch",
        "127.0.0.1:1",
        "--simulate",
        "--export",
        f":{exporter}",
        "--json",
    ]
    command = [str(PROMETHEUS), f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}"]
    command.append(f"--web.listen-address=127.0.0.1:{port}")
    url = f"http://127.0.0.1:{port}"

    def ask(expression: str) -> list[dict[str, Any]]:
        asked = f"{url}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
        with urllib.request.urlopen(asked, timeout=20) as answer:
            found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        return found

    with (
        running(watch, folder / "watch.log", f"http://127.0.0.1:{exporter}/metrics"),
        running(command, folder / "prometheus.log", f"{url}/-/ready"),
    ):
        yield ask


def test_the_slope_of_the_scraped_energy_is_the_power(query: Any) -> None:
    wait_until(lambda: query("count_over_time(infergy_gpu_energy_joules_total[1m]) >= 8"))
    (series,) = query("rate(infergy_gpu_energy_joules_total[6s])")
    assert series["metric"]["gpu"] == "GPU-simulated-0"
    assert float(series["value"][1]) == pytest.approx(100, rel=0.2)
    (power,) = query("infergy_gpu_power_watts")
    assert float(power["value"][1]) == pytest.approx(100, rel=0.05)
    assert [one["metric"]["flag"] for one in query("infergy_flag")] == ["simulated"]
    assert query("infergy_server_up == 0")


def test_prometheus_takes_each_expression_of_the_dashboard(query: Any) -> None:
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    assert len(expressions) > 8
    for expression in expressions:
        query(expression.replace("$__rate_interval", "10s").replace("$__range", "1m"))
