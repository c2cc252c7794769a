"""What is known now, sent to a collector of OpenTelemetry by OTLP over HTTP: the extra ``otel``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Self

from infergy import VERSION
from infergy.errors import MissingError, UsageError
from infergy.watch.export import gauges_of
from infergy.watch.live import Live

EVERY_S, LAST_S = 10.0, 3.0


class Sender:
    """Sends the values of the last refresh, each ten seconds; what is not known is not sent.

    Energy and power of a GPU have the names of the semantic conventions for hardware, ``hw.energy`` and ``hw.power``;
    all others are those of the exporter.

    Args:
        url: Of the collector, ``http://localhost:4318``; keys for it come from OTEL_EXPORTER_OTLP_HEADERS.

    Raises:
        MissingError: The extra ``otel`` is not installed.
        UsageError: It is no URL of HTTP.
    """

    def __init__(self, url: str) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
            from opentelemetry.metrics import Observation
            from opentelemetry.sdk.metrics import MeterProvider
            from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
        except ImportError as error:
            packages, install = "opentelemetry-sdk and its OTLP exporter", "pip install 'infergy[otel]'"
            raise MissingError.package("--otlp", packages, install, str(error)) from error
        if not url.startswith(("http://", "https://")):
            raise UsageError.bad_value("--otlp", url, "the URL of a collector, as http://localhost:4318")
        exporter = OTLPMetricExporter(endpoint=f"{url.rstrip('/')}/v1/metrics")
        reader = PeriodicExportingMetricReader(exporter, export_interval_millis=1000 * EVERY_S)
        self._provider = MeterProvider([reader], shutdown_on_exit=False)
        self._meter, self._observation = self._provider.get_meter("infergy", VERSION), Observation
        self._live: Live | None = None
        self._names = set[str]()
        self._meter.create_observable_counter("hw.energy", [lambda _: self._of_gpus("energy_j")], unit="J")
        self._meter.create_observable_gauge("hw.power", [lambda _: self._of_gpus("power_w")], unit="W")

    def show(self, live: Live) -> None:
        """Send these values from now on."""
        self._live = live
        for name in {name for name, _, _ in gauges_of(live)} - self._names:
            self._names.add(name)
            self._meter.create_observable_gauge(f"infergy.{name}", [lambda _, name=name: self._of_gauge(name)])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Send the last values."""
        self._provider.shutdown(timeout_millis=1000 * LAST_S)

    def _of_gpus(self, field: str) -> Iterator[Any]:
        for gpu in () if self._live is None else self._live.gpus:
            if (value := getattr(gpu, field)) is not None:
                yield self._observation(value, {"hw.id": gpu.uuid, "hw.name": gpu.name, "hw.type": "gpu"})

    def _of_gauge(self, wanted: str) -> Iterator[Any]:
        for name, label, values in () if self._live is None else gauges_of(self._live):
            for own, value in values.items() if name == wanted else ():
                if value is not None:
                    yield self._observation(value, {label: own} if label else {})
