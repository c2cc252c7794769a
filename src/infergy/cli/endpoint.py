"""Options of `infergy replay --server`, and what is done with a server where there is no meter."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import typer

from infergy.cli.options import option
from infergy.errors import MissingError, UsageError

if TYPE_CHECKING:
    from infergy.cost.table import Table
    from infergy.estimates.replay import Replay
    from infergy.records import EngineSetup, Plan
    from infergy.records.endpoint import Endpoint

NO_METER = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointSelection:
    """A server that runs already, and how it is asked."""

    server: str | None = option(
        "Replay on this OpenAI-compatible server, which runs already (extra server)", metavar="URL"
    )
    served_model: str | None = option("The server's name of the model [default: the one it serves]")
    api_key_env: str | None = option(
        "Environment variable that holds the server's key [default: no key]", metavar="NAME"
    )
    max_concurrency: int | None = option(
        "Requests open at once; later ones wait [default: all that have arrived]", min=1
    )
    max_retries: int | None = option(
        "How often a request is sent again after 429, 503 or no connection [default: 3]", min=0
    )
    timeout: float | None = option("Seconds without a piece of an answer until it has failed [default: 120]")
    energy_gpu_ids: str | None = option(
        "GPUs whose energy is the server's: UUIDs or indices, with commas [default: the first visible ones]"
    )

    def open(self) -> Endpoint | None:
        """The server, which has answered; None without --server.

        Raises:
            UsageError: An option is out of range, or needs --server.
            MissingError: It does not answer.
            EngineError: It is no OpenAI-compatible server.
        """
        from infergy.records.endpoint import base_url

        given = {
            "concurrency": self.max_concurrency,
            "retries": self.max_retries,
            "timeout_s": self.timeout,
        }
        limits = {name: value for name, value in given.items() if value is not None}
        if self.server is None:
            if limits or self.served_model or self.api_key_env:
                message = "these options are of a server that runs already: --server URL"
                raise UsageError(message, code="option-missing", option="--server")
            return None
        if self.timeout is not None and not self.timeout > 0:
            raise UsageError.bad_value("--timeout", self.timeout, "seconds, above 0")
        from infergy.engines.server_client import find_endpoint

        return find_endpoint(base_url("--server", self.server), self.served_model, self.api_key_env, **limits)

    def choose_gpus(self) -> None:
        """Let this process and those it starts meter the GPUs that are named."""
        if self.energy_gpu_ids is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = self.energy_gpu_ids


def setups_on(endpoint: Endpoint | None, setups: Sequence[EngineSetup], replicas: int) -> Sequence[EngineSetup]:
    """The one engine config that a server is said to run, with its own weights; without a server all.

    Raises:
        UsageError: Several are named, or such as a server is not.
    """
    from infergy.records import SERVER

    if endpoint is None:
        return setups
    (first, *others) = setups
    if others or replicas > 1:
        given: dict[str, object] = {"--server": endpoint.url}
        given |= {"--replicas": replicas} if replicas > 1 else {"--engine": [one.label for one in setups]}
        raise UsageError.conflict(given, "one server is one engine config; replay on each by its own URL")
    if first.engine != "vllm" or first.usage_context != SERVER or first.gpu_settings or first.speculation is not None:
        why = "a server that runs already is predicted as vllm serve: --engine vllm, and options that it runs with"
        raise UsageError.engine_lacks("server", "--engine", first.label, why)
    return [replace(first, weights=endpoint.model)]


def demand_energy(found: Sequence[Replay], meter: str) -> None:
    """End with the status of what is missing where energy was asked for and not measured.

    Raises:
        Exit: There is none.
    """
    if meter != NO_METER and any(one.compared and one.is_inside is None for one in found):
        raise typer.Exit(MissingError.exit_code)


def serve_unmetered(plan: Plan, gpu: str, table: Table) -> list[Replay]:
    """Each replay of a plan on its server without a meter: predicted and measured latencies, and no energy.

    Raises:
        EngineError: The server failed.
        MissingError: It does not answer.
    """
    from infergy.estimates.replay import Timed, beside, predict
    from infergy.measure.endpoint import serve
    from infergy.records.latency import find_latency

    found = []
    for planned, batch in serve(plan):
        latency = find_latency([batch], [tokens for _, tokens in planned.lengths])
        cached = None if batch.served is None else batch.served.cached_tokens
        timed = Timed(duration_s=batch.duration_s, latency=latency, cached_tokens=cached)
        has_cache = planned.cell.setup.prefix_caching
        found.append(beside(predict([planned], gpu, table), timed, has_cache=has_cache))
    return found
