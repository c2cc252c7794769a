"""`infergy watch URL`: what a running server draws now, for each token."""

from __future__ import annotations

import itertools
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from infergy.catalog.gpus import SIMULATED_PREFIX
from infergy.cli.measure import check_meter
from infergy.cli.options import MeterOption, SimulateOption, argument, flag, option, seconds_of, with_options
from infergy.cli.output import NONE, make_table
from infergy.errors import UsageError
from infergy.files import append_line, check_output
from infergy.units import format_interval, format_latency, format_number, format_percent, format_si, parse_count

if TYPE_CHECKING:
    from infergy.meters import Meter
    from infergy.watch.live import Live, ServerNow, Watch
    from infergy.watch.phases import Served
    from infergy.watch.span import EnergyPerToken

SHORTEST_S, LONGEST_S = 0.5, 60.0
ELSEWHERE = "Its energy is that of GPUs there: run infergy watch on that machine, or name those of this one: --gpus"
SHOWN = ("per_output_token", "phases")
"""Blanks with their reason on screen; all are in --json."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedSelection:
    """What serves: its GPUs, and the model on them."""

    gpus: str | None = option("GPUs of the server: indexes or UUIDs, 0,1 [default: all visible]")
    model: str | None = option("Name or config.json [default: as the metrics name it]", "--model", "-m")
    gpu: str | None = option("Kind of GPU [default: as the driver names it]", "--gpu", "-g")
    present: str | None = option(
        'What started the server: "vllm serve MODEL --max-num-seqs 256" [default: vLLM\'s defaults, on all of --gpus]',
        metavar="COMMAND",
    )
    api_key_env: str | None = option("Environment variable with the server's key", metavar="NAME")
    meter: MeterOption = "nvml"
    simulate: SimulateOption = False

    def open(self, url: str, closing: ExitStack) -> tuple[Watch, Served]:
        """The watch of a server, closed with `closing`, and what it serves; the GPUs are named on stderr.

        Raises:
            UsageError: An option has no meaning here.
            MissingError: There is no such meter, or no GPU.
        """
        from infergy.engines.server_client import key_of
        from infergy.meters import open_meter
        from infergy.meters.simulated import SteadyMeter
        from infergy.watch.live import Watch
        from infergy.watch.page_reader import PageReader
        from infergy.watch.phases import Served

        pages = closing.enter_context(PageReader(url, key=key_of(self.api_key_env)))
        meter: Meter = SteadyMeter() if self.simulate else open_meter(self.meter, None)
        closing.callback(meter.close)
        names = _choose(meter, self.gpus)
        served = Served(
            gpu=self.gpu or next(iter(names.values())).removeprefix(SIMULATED_PREFIX),
            gpus=len(names),
            model=self.model,
            present=self.present,
        )
        served.check()
        listed = ", ".join(f"{uuid} ({name})" for uuid, name in names.items())
        typer.echo(f"{pages.place} on {listed}{'' if self.gpus else ', all that are visible: --gpus'}", err=True)
        is_theirs = pages.is_local or self.gpus is not None or "://" in self.meter
        elsewhere = None if is_theirs else f"{pages.place} is on another machine. {ELSEWHERE}"
        return Watch(meter, tuple(names), pages.read, cost=served.cost, elsewhere=elsewhere), served


@with_options
def watch(
    served: ServedSelection,
    url: str = argument("The server, or its page of metrics: http://localhost:8000", "URL"),
    interval: str = option("Time between two refreshes", default="1s", metavar="TIME"),
    seconds: str | None = option("End after so long [default: at Ctrl-C]", "--for", metavar="TIME"),
    as_json: bool = flag("Print one JSON line per refresh, in SI units", "--json"),
    record: Path | None = option("Append to a recording, which estimate and recommend read", metavar="FILE.jsonl"),
    export: str | None = option("Also serve Prometheus metrics: :9464", metavar="[HOST]:PORT"),
    otlp: str | None = option("Also send them to a collector of OpenTelemetry: http://localhost:4318", metavar="URL"),
    advise: bool = flag("Also ask infergy recommend, every ten minutes, what it would change at this load", "--advise"),
) -> None:
    """Watch a running server: power, tokens, energy per token, latencies, and what the model says of them.

    What --export serves is asked for with the token in INFERGY_EXPORT_TOKEN, if there is one.

    Example: infergy watch http://localhost:8000 --record load.jsonl
    """
    from infergy.meters.exporter import TOKEN_VARIABLE
    from infergy.watch.advise import Adviser
    from infergy.watch.export import Exporter
    from infergy.watch.otel import Sender
    from infergy.watch.record import recorded_line
    from infergy.workload.recording import RECORDING_SCHEMA

    check_meter(served.meter, simulate=served.simulate)
    every_s = seconds_of("--interval", interval)
    if not SHORTEST_S <= every_s <= LONGEST_S:
        raise UsageError.bad_value("--interval", interval, f"{SHORTEST_S:g}s to {LONGEST_S:g}s")
    end_s = math.inf if seconds is None else seconds_of("--for", seconds)
    if record is not None:
        check_output(record, "recording of infergy watch", f'"{RECORDING_SCHEMA.partition("/")[0]}/')
    # Ctrl-C is how a watch ends.
    with suppress(KeyboardInterrupt), ExitStack() as closing:
        watched, what = served.open(url, closing)
        uses: list[Callable[[Live], None]] = [_screen(closing, as_json=as_json)]
        if export is not None:
            exporter = closing.enter_context(Exporter(export, os.environ.get(TOKEN_VARIABLE)))
            typer.echo(f"metrics: {exporter.url}", err=True)
            uses.append(exporter.show)
        if otlp is not None:
            uses.append(closing.enter_context(Sender(otlp)).show)
        adviser = closing.enter_context(Adviser()) if advise else None
        begun_s = time.monotonic()
        for number in itertools.count(1):
            live = watched.refresh(None if adviser is None else adviser.look(watched.readings, what.words))
            if record is not None and len(watched.readings) > 1:
                *before, first, last = watched.readings
                append_line(record, recorded_line((first, last), live.time_unix_s, before))
            for use in uses:
                use(live)
            # A pipe's reader waits for each line.
            sys.stdout.flush()
            if live.elapsed_s + every_s > end_s:
                break
            time.sleep(max(0.0, begun_s + number * every_s - time.monotonic()))


def _choose(meter: Meter, wanted: str | None) -> dict[str, str]:
    """Names of the GPUs that are counted, by UUID."""
    names = {gpu.uuid: gpu.name for gpu in meter.gpus}
    if wanted is None:
        return names
    uuids, chosen = list(names), dict[str, str]()
    for word in wanted.split(","):
        near = [uuid for uuid in uuids if word.strip() and uuid.startswith(word.strip())]
        index = parse_count(word.strip())
        found = uuids[index : index + 1] if index is not None else near
        if len(found) != 1 or found[0] in chosen:
            raise UsageError.bad_value("--gpus", wanted, f"indexes of 0 to {len(uuids) - 1}, or UUIDs, each once")
        chosen[found[0]] = names[found[0]]
    return chosen


def _screen(closing: ExitStack, *, as_json: bool) -> Callable[[Live], None]:
    """Shows what is known: a table that is redrawn in a terminal, a line for each refresh elsewhere."""
    from rich.console import Console
    from rich.live import Live as Redrawn

    from infergy.records.codec import to_json

    console = Console(file=getattr(sys.stdout, "rich_proxied_file", sys.stdout))
    if as_json:
        return lambda live: typer.echo(json.dumps(to_json(live), allow_nan=False))
    if not console.is_terminal:
        return _print_line
    redrawn = closing.enter_context(Redrawn(console=console, auto_refresh=False))
    return lambda live: redrawn.update(make_table(("", ""), _rows(live)), refresh=True)


def _print_line(live: Live) -> None:
    shown = ((name, text) for name, text in _rows(live) if text != NONE and not name.startswith("  "))
    typer.echo("; ".join(f"{name} {text}" for name, text in shown))


def _rows(live: Live) -> Iterator[tuple[str, str]]:
    yield "Power", _known(live.power_w, "W")
    for index, gpu in enumerate(live.gpus):
        reason = live.blanks.get(f"gpu {gpu.uuid}")
        yield f"  GPU {index} {gpu.uuid[:12]}", reason or _known(gpu.power_w, "W")
    yield "Energy", _known(live.energy_j, "J")
    for name, energy in {
        "J per output token": live.recent.per_output_token,
        "J per token": live.recent.per_token,
    }.items():
        yield name, NONE if energy is None else _interval(energy)
    yield from [("Server", live.blanks["server"])] if live.server is None else _server_rows(live.server)
    yield "Idle", _share(live.recent.idle_share)
    if (phases := live.recent.phases) is not None:
        shares = ", ".join(f"{name} {format_percent(getattr(phases, name))}" for name in ("prefill", "decode", "idle"))
        yield "By the cost model", shares
        yield "Roofline floor", f"{_known(phases.floor_per_output_token_j, 'J')} per output token"
    if (advice := live.advice) is not None:
        saved = "" if advice.saving is None else f" saves {format_percent(advice.saving)}"
        yield "recommend", f"{advice.command or advice.reason}{saved}"
    yield from (
        (f"  {name} {NONE}", reason)
        for name, reason in live.blanks.items()
        if name in SHOWN and live.server is not None
    )
    yield from (("!", text) for text in live.flags.values())


def _server_rows(server: ServerNow) -> Iterator[tuple[str, str]]:
    rates = {name: format_number(rate) for name, rate in server.rates_per_s.items() if rate}
    preempted = rates.pop("preemptions", None)
    tokens = (f"{name.removesuffix('_tokens')} {rate}" for name, rate in rates.items())
    yield "Tokens per second", ", ".join(tokens) or "0"
    now = {"running": server.running, "waiting": server.waiting}
    shown = [f"{name} {count:.0f}" for name, count in now.items() if count is not None]
    shown += [] if server.kv_share is None else [f"KV cache {_share(server.kv_share)}"]
    shown += [] if preempted is None else [f"{preempted} preemptions per second"]
    yield "Requests", ", ".join(shown) or NONE
    latencies = (f"{name.replace('_', ' ')} {format_latency(value)}" for name, value in server.latencies_s.items())
    yield "Latencies", ", ".join(latencies) or NONE
    if server.mfu is not None:
        yield f"{server.kind}'s own count", f"MFU {_share(server.mfu)}, bandwidth {_share(server.bandwidth_share)}"


def _share(value: float | None) -> str:
    return NONE if value is None else format_percent(value)


def _known(value: float | None, unit: str) -> str:
    return NONE if value is None else format_si(value, unit)


def _interval(energy: EnergyPerToken) -> str:
    most_j = energy.most_j if energy.most_j is not None else math.inf
    return format_interval(energy.value_j, energy.least_j, most_j, (1.0, "J"))
