"""A running server beside its GPUs' counters: what it draws now, for each token, and why a value is not known."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from infergy.errors import InfergyError
from infergy.meters import Meter
from infergy.records import GpuState
from infergy.records.environment import processes_by_gpu, slowdowns_by_gpu
from infergy.watch.counters import Counters
from infergy.watch.metrics import Page
from infergy.watch.phases import Phases, phases_of
from infergy.watch.span import FEWEST_S, FEWEST_TOKENS, EnergyPerToken, Reading, Span, enough_of, powers_between

if TYPE_CHECKING:
    from infergy.cost.model import StepCost

WATCH_SCHEMA = "infergy.watch/1"
LATENCIES_S = 60.0
"""Percentiles of latencies are of the last minute."""
KEPT_S = 300.0
"""How far back a span may reach that needs tokens."""
FLOOR_SHARE = 0.8
"""Of the roofline's floor: it is of fitted energies and mean lengths, and one H200 drew 8 % less than those fitted."""
STATES_S = 10.0
"""Between two looks at temperatures, clocks and processes of the GPUs."""
PER_TOKEN = {"per_output_token": ("output_tokens",), "per_token": ("input_tokens", "output_tokens")}
RATES = ("input_tokens", "cached_tokens", "computed_tokens", "output_tokens", "preemptions")
FLAGS = {
    "simulated": "SIMULATED: this energy says nothing about real hardware",
    "elsewhere": "{place}",
    "restarted": "the server began again: what was counted before is left out",
    "counter-gap": "a counter was reset, jumped or stood still: energy of that time is not counted",
    "below-floor": "much less energy per output token than the work at the roofline, {floor_j:.3g} J: the server "
    "counts too many tokens, or it has other GPUs (--gpus) or another model (--model)",
    "several-processes": "several processes on {crowded}: their energy cannot be separated",
    "slowed-down": "clocks were lowered by {slowed} (nvidia-smi -q -d PERFORMANCE)",
}
NO_TICK = "its energy counter has not ticked since the last refresh, or had a gap"
TOO_FEW = f"fewer than {FEWEST_S:g} s or {FEWEST_TOKENS} output tokens since the watch began or a gap"


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuNow:
    """A GPU: power since the last look, by its counter, and energy since the watch began; None with a blank."""

    uuid: str
    name: str
    power_w: float | None
    energy_j: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerNow:
    """What a server says of itself.

    Attributes:
        kind: vLLM, SGLang, TGI or llama.cpp.
        models: As its metrics name them.
        running: Requests now; `waiting` in the queue. `kv_share` of the KV cache is in use.
        rates_per_s: Tokens and preemptions per second over the last ten seconds or more.
        latencies_s: ``ttft_p50``, ``ttft_p99``, ``itl_p50`` and ``itl_p99`` over the last minute or less.
        mfu: Share of the dense peak by the FLOPs that vLLM itself counts; `bandwidth_share` of memory's by its bytes.
    """

    kind: str
    models: tuple[str, ...]
    running: float | None
    waiting: float | None
    kv_share: float | None
    rates_per_s: Mapping[str, float]
    latencies_s: Mapping[str, float]
    mfu: float | None = None
    bandwidth_share: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """What `infergy recommend` would change at this load: a command, and the share of the energy that it saves."""

    command: str | None
    saving: float | None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Recent:
    """What lies in the last ten seconds or more; None where that is not known, for a reason in `blanks`.

    Attributes:
        seconds: How far back it reaches: ten seconds, or to 500 output tokens.
        per_output_token: Energy over output tokens; `per_token` over input and output tokens.
        idle_share: Share of the time in which no request ran.
        phases: By the cost model.
    """

    seconds: float | None
    per_output_token: EnergyPerToken | None
    per_token: EnergyPerToken | None
    idle_share: float | None
    phases: Phases | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """What is known now.

    Attributes:
        elapsed_s: Since the watch began, by the meter's clock.
        energy_j: Of all GPUs since the watch began.
        power_w: Of all GPUs since the last look; None where that of one is not known.
        server: None where no metrics can be read.
        blanks: Why a value is not known, by its name.
        flags: What makes values uncertain, by code.
    """

    time_unix_s: float
    elapsed_s: float
    gpus: tuple[GpuNow, ...]
    energy_j: float
    power_w: float | None
    server: ServerNow | None
    recent: Recent
    advice: Advice | None
    blanks: Mapping[str, str]
    flags: Mapping[str, str]
    schema: str = WATCH_SCHEMA


class Watch:
    """Reads counters and metrics at each refresh, and says what they mean.

    Args:
        meter: Its clock stamps counters and metrics.
        uuids: The GPUs that serve.
        read_page: Reads the metrics.
        cost: Step costs of a server of these models, or why they are not known.
        elsewhere: Why the counters are not those of the server's GPUs; None where they are.
    """

    def __init__(
        self,
        meter: Meter,
        uuids: tuple[str, ...],
        read_page: Callable[[], Page],
        *,
        cost: Callable[[tuple[str, ...]], StepCost | str] = lambda models: "no model is known",
        elsewhere: str | None = None,
    ) -> None:
        self.meter, self.readings = meter, deque[Reading]()
        self._counters, self._read_page, self._elsewhere = Counters(meter, uuids), read_page, elsewhere
        self._cost_of, self._cost = cost, dict[tuple[str, ...], "StepCost | str"]()
        self._names = {gpu.uuid: gpu.name for gpu in meter.gpus}
        self._begun_s = self._states_s = meter.clock.now_s()
        self._states: tuple[GpuState, ...] = ()
        self._restarted = False

    def refresh(self, advice: Advice | None = None) -> Live:
        """Look at counters and metrics now; a failure of either is a blank with its reason."""
        clock, last = self.meter.clock, self.readings[-1] if self.readings else None
        self._counters.look()
        asked_s, page, reason, may_run_on = clock.now_s(), None, None, True
        try:
            page = self._read_page()
        except InfergyError as error:
            reason, may_run_on = str(error), bool(error.fields.get("may_run_on"))
        now_s = clock.now_s()
        segment = 0 if last is None else last.segment
        self._restarted = page is not None and self._began_again(page)
        segment += self._restarted or (page is None and not may_run_on)
        reading = Reading(
            time_s=now_s,
            ticks=dict(self._counters.ticks),
            page=page,
            page_s=(asked_s + now_s) / 2,
            late_s=(now_s - asked_s) / 2,
            segment=segment,
            reason=reason,
        )
        self.readings.append(reading)
        while self.readings[0].time_s < now_s - KEPT_S:
            self.readings.popleft()
        return self._live(reading, last, advice)

    def _began_again(self, page: Page) -> bool:
        """Whether counts of a page cannot be compared with those of the last one."""
        was = next((reading.page for reading in reversed(self.readings) if reading.page is not None), None)
        if was is None:
            return False
        if (page.server, page.started_s) != (was.server, was.started_s):
            return True
        shared = page.counters.keys() & was.counters.keys()
        return any(
            page.counters[name].keys() != was.counters[name].keys()
            or any(page.counters[name][key] < count for key, count in was.counters[name].items())
            for name in shared
        )

    def _live(self, now: Reading, last: Reading | None, advice: Advice | None) -> Live:
        blanks = {f"gpu {uuid}": reason for uuid, reason in self._counters.blanks.items()}
        blanks |= {} if now.reason is None else {"server": now.reason}
        blanks |= {} if now.page is None else now.page.blanks
        recent = self._recent(now, blanks)
        gpus = self._gpus(last, now)
        blanks = {f"gpu {gpu.uuid}": NO_TICK for gpu in gpus if gpu.power_w is None} | blanks
        powers_w = [gpu.power_w for gpu in gpus if gpu.power_w is not None]
        return Live(
            time_unix_s=time.time(),
            elapsed_s=now.time_s - self._begun_s,
            gpus=gpus,
            energy_j=sum(gpu.energy_j for gpu in gpus),
            power_w=sum(powers_w) if len(powers_w) == len(gpus) else None,
            server=None if now.page is None else self._server(now.page),
            recent=recent,
            advice=advice,
            blanks=blanks,
            flags=self._find_flags(now, recent),
        )

    def _recent(self, now: Reading, blanks: dict[str, str]) -> Recent:
        """What lies in the last seconds; why it is not known is added to `blanks`."""
        counted = enough_of(self.readings, FEWEST_S, FEWEST_TOKENS)
        span = counted or enough_of(self.readings, FEWEST_S)
        energies = {name: self._energy(counted, counters, now, blanks) for name, counters in PER_TOKEN.items()}
        too_few = now.reason or TOO_FEW
        phases = too_few if span is None or now.page is None else self._phases(span, now.page)
        blanks |= {name: own for name, own in {**energies, "phases": phases}.items() if isinstance(own, str)}
        idle_share = None if span is None else _idle_share(span)
        if idle_share is None:
            blanks["idle_share"] = too_few if span is None else blanks.get("running", "no requests are known")
        return Recent(
            seconds=None if span is None else span.seconds,
            idle_share=idle_share,
            phases=None if isinstance(phases, str) else phases,
            **{name: None if isinstance(own, str) else own for name, own in energies.items()},
        )

    def _energy(
        self, span: Span | None, counters: tuple[str, ...], now: Reading, blanks: Mapping[str, str]
    ) -> EnergyPerToken | str:
        """Energy over the tokens of some counters, or why it is not known."""
        missing = (blanks[counter] for counter in counters if counter in blanks)
        reasons = (self._elsewhere, now.reason, *missing, *self._counters.blanks.values())
        reason = next(filter(None, reasons), TOO_FEW if span is None else None)
        if reason is not None or span is None:
            return reason or TOO_FEW
        return span.per_token(*counters) or "a counter of a GPU was reset, jumped or stood still in this time"

    def _gpus(self, last: Reading | None, now: Reading) -> tuple[GpuNow, ...]:
        powers_w = {} if last is None else powers_between(last, now)
        return tuple(
            GpuNow(
                uuid=uuid,
                name=self._names[uuid],
                power_w=None if uuid in self._counters.blanks else powers_w.get(uuid),
                energy_j=now.ticks[uuid].energy_j if uuid in now.ticks else 0.0,
            )
            for uuid in self._counters.uuids
        )

    def _server(self, page: Page) -> ServerNow:
        recent = enough_of(self.readings, FEWEST_S)
        rates = {} if recent is None else {name: recent.rate(name) for name in RATES}
        now = self.readings[-1]
        oldest = next(own for own in self.readings if own.segment == now.segment and own.page is not None)
        minute = enough_of(self.readings, LATENCIES_S) or Span(readings=(oldest, now))
        latencies = {
            f"{name}_p{share * 100:g}": minute.percentile(f"{name}_s", share)
            for name in ("ttft", "itl")
            for share in (0.5, 0.99)
        }
        cost = self._cost.get(page.models)
        shares: dict[str, float | None] = {}
        if recent is not None and cost is not None and not isinstance(cost, str):
            # Of one GPU, and added up over the replicas on the page.
            flops, moved = (recent.rate(*names) for names in (("flops",), ("read_bytes", "write_bytes")))
            replicas, bandwidth = self._replicas(cost), cost.server.gpu.memory_bandwidth
            shares["mfu"] = None if flops is None else flops / replicas / (cost.peak_flops / cost.server.work.gpus)
            shares["bandwidth_share"] = None if moved is None else moved / replicas / bandwidth
        return ServerNow(
            kind=page.server,
            models=page.models,
            **{name: page.gauges.get(name) for name in ("running", "waiting", "kv_share")},
            rates_per_s={name: rate for name, rate in rates.items() if rate is not None},
            latencies_s={name: latency for name, latency in latencies.items() if latency is not None},
            **shares,
        )

    def _phases(self, span: Span, page: Page) -> Phases | str:
        if page.models not in self._cost:
            self._cost[page.models] = self._cost_of(page.models)
        cost = self._cost[page.models]
        return cost if isinstance(cost, str) else phases_of(span, cost, self._replicas(cost))

    def _replicas(self, cost: StepCost) -> int:
        return max(1, len(self._counters.uuids) // cost.server.work.gpus)

    def _find_flags(self, now: Reading, recent: Recent) -> dict[str, str]:
        if not self._states or now.time_s - self._states_s >= STATES_S:
            with suppress(InfergyError):
                self._states = tuple(one for one in self.meter.states() if one.uuid in self._counters.uuids)
            self._states_s = now.time_s
        crowded = [uuid for uuid, count in processes_by_gpu(self._states).items() if count > 1]
        slowed = sorted({name for names in slowdowns_by_gpu(self._states).values() for name in names})
        floor_j = 0.0 if recent.phases is None else recent.phases.floor_per_output_token_j
        most_j = None if recent.per_output_token is None else recent.per_output_token.most_j
        is_so = {
            "simulated": self.meter.is_simulated,
            "elsewhere": self._elsewhere is not None,
            "restarted": self._restarted,
            "counter-gap": any(tick.gaps for tick in now.ticks.values()),
            "below-floor": most_j is not None and most_j < FLOOR_SHARE * floor_j,
            "several-processes": crowded,
            "slowed-down": slowed,
        }
        words = {
            "place": self._elsewhere,
            "floor_j": floor_j,
            "crowded": ", ".join(crowded),
            "slowed": ", ".join(slowed),
        }
        return {code: text.format(**words) for code, text in FLAGS.items() if is_so[code]}


def _idle_share(span: Span) -> float | None:
    """Share of the time between two pages on neither of which a request ran."""
    idle_s = 0.0
    for first, last in pairwise(span.answered):
        running = [own.page.gauges.get("running") for own in (first, last) if own.page is not None]
        if None in running:
            return None
        idle_s += (last.page_s - first.page_s) * (
            not any(running) and not Span(readings=(first, last)).count("output_tokens")
        )
    return idle_s / span.seconds
