"""Energy counters of another machine, as ``watch --export`` serves them there: a page of Prometheus metrics."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

from infergy.catalog.gpus import SIMULATED_PREFIX
from infergy.errors import MeterError, MissingError, UsageError
from infergy.meters.meter import Clock, SystemClock
from infergy.meters.nvml import is_module
from infergy.records import GpuIdentity, GpuState
from infergy.records.endpoint import base_url

METRIC, UUID_LABEL, NAME_LABEL = "infergy_gpu_energy_joules_total", "gpu", "name"
TOKEN_VARIABLE = "INFERGY_EXPORT_TOKEN"
PATH = "/metrics"
TIMEOUT_S, PAUSE_S = 2.0, 0.02


class PageClock(SystemClock):
    """The machine's clock, which asks a page 50 times a second at most while it waits for a tick."""

    def pause(self) -> None:
        """Wait between two reads of a counter."""
        time.sleep(PAUSE_S)


class ExporterMeter:
    """The GPUs of a page, by their UUIDs; stamped when the page has arrived."""

    name = "exporter"

    def __init__(self, client: Any, url: str, gpus: tuple[GpuIdentity, ...]) -> None:
        self._client, self._url = client, url
        self.gpus = gpus
        self.scope = "gpu-module" if any(is_module(gpu.name) for gpu in gpus) else "gpu-board"
        self.is_simulated = any(gpu.name.startswith(SIMULATED_PREFIX) for gpu in gpus)
        self.clock: Clock = PageClock()

    @classmethod
    def open(cls, url: str, count: int | None) -> ExporterMeter:
        """The GPUs that CUDA_VISIBLE_DEVICES names by UUID; else all of the page, which must be `count`.

        Raises:
            MissingError: A package is missing, the page cannot be read, or has no such counter.
            UsageError: It has other GPUs, or another number of them.
        """
        try:
            import httpx
            import prometheus_client  # noqa: F401 - the parser of its pages
        except ImportError as error:
            install = 'pip install "infergy[server]"'
            raise MissingError.package("a meter behind a URL", str(error.name), install) from error
        token = os.environ.get(TOKEN_VARIABLE, "").strip()
        if not token.isprintable():
            message = f"{TOKEN_VARIABLE} is no token: it has control characters. Export the one of watch --export"
            raise UsageError(message, code="key-missing", option="--meter", variable=TOKEN_VARIABLE)
        headers = {b"Authorization": f"Bearer {token}".encode()} if token else {}
        page = base_url("--meter", url).removesuffix(PATH) + PATH
        client = httpx.Client(headers=headers, timeout=TIMEOUT_S, trust_env=False)
        try:
            found = _counters(client, page)
        except MeterError as error:
            client.close()
            raise MissingError(str(error), code="counter-missing", path=page) from error
        chosen = [uuid for uuid in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if uuid] or list(found)
        if not set(chosen) <= set(found) or (count is not None and len(chosen) != count):
            client.close()
            expected = f"{count} of the GPUs of {page}, by UUID: {', '.join(found)}"
            raise UsageError.bad_value("--energy-gpu-ids", ",".join(chosen), expected)
        gpus = tuple(GpuIdentity(uuid=uuid, name=found[uuid][1]) for uuid in chosen)
        return cls(client, page, gpus)

    def read(self) -> Mapping[str, float]:
        """Energy of each GPU by UUID, as the page has it."""
        found = _counters(self._client, self._url)
        # One that is gone is missing here too, and is reported as that.
        return {gpu.uuid: found[gpu.uuid][0] for gpu in self.gpus if gpu.uuid in found}

    def states(self) -> tuple[GpuState, ...]:
        """Nothing is known of clocks and temperatures."""
        return tuple(GpuState(uuid=gpu.uuid) for gpu in self.gpus)

    def facts(self) -> Mapping[str, str]:
        """None."""
        return {}

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


def _counters(client: Any, url: str) -> dict[str, tuple[float, str]]:
    """Joules and name of each GPU of a page, by UUID.

    Raises:
        MeterError: The page cannot be read, or has none.
    """
    import httpx
    from prometheus_client.parser import text_string_to_metric_families

    try:
        response = client.get(url)
        response.raise_for_status()
        samples = [sample for family in text_string_to_metric_families(response.text) for sample in family.samples]
    except (httpx.HTTPError, ValueError) as error:
        message = f"{url}: no page of metrics: {error}. Start an exporter there (watch --export)"
        raise MeterError(message, code="counter-unreadable", uuid=None, reason=str(error)) from error
    found = {
        sample.labels[UUID_LABEL]: (sample.value, sample.labels.get(NAME_LABEL, ""))
        for sample in samples
        if sample.name == METRIC and UUID_LABEL in sample.labels
    }
    if not found:
        message = f"{url}: no {METRIC} on the page. Start an exporter there (watch --export)"
        raise MeterError(message, code="counter-unreadable", uuid=None, reason="no counter")
    return found
