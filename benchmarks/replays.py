"""Replays measured on an H200, beside what was predicted for them before they ran: the tables of docs/replay.md.

Usage: python benchmarks/replays.py [--again [INTAKE_MS]]

With --again, what the table that ships now says of the same runs, after the fact, with another time of intake if given.
Predictions: benchmarks/replays/h200-N-predictions.json of round N, committed before its first run, as they were; nothing
is fitted again. Rows: round 1 in src/infergy/data/tables/h200-llama-3.1-8b_replays.jsonl, which the table that ships is
fitted to; of later rounds in benchmarks/replays/h200-N-rows.jsonl, which it is not.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from infergy.estimates.build import requests_of
from infergy.estimates.estimate import Z90
from infergy.estimates.replay import measured, replica_groups, spec_of
from infergy.estimates.servers import open_server, shipped_table
from infergy.records import Measurement
from infergy.records.latency import percentiles
from infergy.records.store import read_store, shipped_rows
from infergy.serving.run import latency_of
from infergy.workload.requests import whole

PREDICTIONS = Path(__file__).parent / "replays"
ROWS = "h200-llama-3.1-8b_replays"
LATENCIES = {"ttft_s": "first_token", "tpot_s": "per_output_token", "e2e_s": "end_to_end"}
FIGURES = ("energy", "duration", *(f"{name[:-2].upper()} {p}" for name in LATENCIES for p in ("p50", "p99")))
WANTED = {"energy": 0.015, "TTFT p50": 0.08, "TTFT p99": 0.08, "TPOT p50": 0.03, "TPOT p99": 0.05, "E2E p99": 0.04}
"""Largest median error that is aimed at."""
WORST_ENERGY = 0.04
LATER = (2, 3, 4, 5, 6, 7)
"""Rounds whose rows no fit has seen."""
SAVINGS = (
    "requests, change",
    "measured, kJ",
    "saved",
    "predicted",
    "difference, points",
    "TTFT p99, ms",
    "TPOT p99, ms",
)
PROOF = (
    (4, "", "conv @1x, fp8, eager", "conversations as they arrive: FP8, no CUDA graphs"),
    (4, "", "code @1x, fp8", "code as it arrives: FP8"),
    (4, "", "code at once, fp8", "code all at once: FP8"),
    (6, "2 replicas", "conv @3x", "conversations @3x: one GPU for two"),
    (5, "2 replicas", "conv @3x, fp8", "conversations @3x: one GPU for two, FP8"),
    (5, "", "sessions @40x, prefix caching", "Mooncake: prefix caching"),
    (5, "transformers, s32", "conv at once", "conversations all at once: vLLM for static batches of transformers"),
)
"""Round, what is saved on, the run, and the same in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """A measured run beside its prediction; figures in the order of `FIGURES`.

    Attributes:
        name: The engine's options and the requests.
        row: Of several replicas the first one's; `requests` of all of them.
        widths: Half-width of each figure's 90 % interval over the prediction; None for the duration, which has none.
    """

    name: str
    row: Measurement
    requests: int
    predicted: tuple[float, ...]
    measured: tuple[float, ...]
    widths: tuple[float | None, ...]

    @property
    def inside(self) -> tuple[bool | None, ...]:
        """Whether each interval contains what was measured."""
        return tuple(
            None if width is None else abs(math.log1p(error)) <= math.log1p(width)
            for error, width in zip(self.errors, self.widths, strict=True)
        )

    @property
    def errors(self) -> tuple[float, ...]:
        """Predicted over measured, less 1."""
        return tuple(guess / seen - 1 for guess, seen in zip(self.predicted, self.measured, strict=True))


def predictions(number: int) -> dict[str, dict[str, Any]]:
    """What a round predicted, by id of the cell."""
    text = (PREDICTIONS / f"h200-{number}-predictions.json").read_text(encoding="utf-8")
    return {one["cell_id"]: one for one in json.loads(text)["traces"]}


def load(number: int = 1) -> list[Compared]:
    """The runs of a round in the order in which they were measured."""
    predicted = predictions(number)
    paths = [path for path in shipped_rows() if path.name.startswith(ROWS)]
    paths += [path for path in [PREDICTIONS / f"h200-{number}-rows.jsonl"] if path.exists()]
    rows = [row for path in paths for row in read_store(path).rows]
    groups = (rows for rows in replica_groups(rows) if rows[0].cell_id in predicted)
    return [_compare(rows, predicted[rows[0].cell_id]["predicted"]) for rows in groups]


def _compare(rows: Sequence[Measurement], predicted: dict[str, Any]) -> Compared:
    result, latency = measured(rows), predicted["latency"]
    assert result.latency is not None
    figures = [result.energy_j, result.duration_s]
    guesses = [predicted["energy_j"], predicted["duration_s"]]
    widths: list[float | None] = [predicted["high_j"] / predicted["energy_j"] - 1, None]
    for name, own in LATENCIES.items():
        seen = getattr(result.latency, own)
        figures += [seen.p50_s, seen.p99_s]
        guesses += [latency[name]["p50"], latency[name]["p99"]]
        if "high" in latency[name]:
            widths += [latency[name]["high"][p] / latency[name][p] - 1 for p in ("p50", "p99")]
        else:  # earlier rounds: a standard deviation, in the first two one for all latencies
            sd = latency.get(f"{name[:-2]}_sd", latency.get("relative_sd"))
            widths += [math.expm1(Z90 * sd)] * 2
    return Compared(
        name=name_of(rows[0]),
        row=rows[0],
        requests=sum(row.cell.load.batch for row in rows),
        predicted=tuple(guesses),
        measured=tuple(figures),
        widths=tuple(widths),
    )


def name_of(row: Measurement) -> str:
    """Trace, rate and what is not at a server's defaults: ``conv @1x, fp8``."""
    setup, arrivals = row.cell.setup, row.cell.load.arrivals
    assert arrivals is not None
    assert arrivals.trace is not None
    trace = arrivals.trace.split("-")[1]
    when = f"@{arrivals.speed or 1:g}x" if arrivals.timed else "at once"
    other = [
        *([f"{arrivals.replicas} replicas"] if arrivals.replicas > 1 else []),
        *([setup.engine] if setup.engine != "vllm" else []),
        *(["fp8"] if setup.dtype == "fp8" else []),
        *(["eager"] if setup.cuda_graphs is False else []),
        *([f"s{setup.max_sequences}"] if setup.max_sequences else []),
        *([f"bt{setup.max_batched_tokens}"] if setup.max_batched_tokens else []),
        *(["prefix caching"] if setup.prefix_caching else []),
        *(["over HTTP"] if row.environment.engine.get("engine") == "server" else []),
    ]
    return ", ".join([f"{trace} {when}", *other])


def signed(value: float) -> str:
    return f"{100 * value:+.1f}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, numbers to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def runs_table(runs: Sequence[Compared]) -> str:
    """Each run: energy, and errors in percent; what lies outside its 90 % interval is marked."""
    header = ["run", "requests", "measured kJ", "predicted kJ", *(f"{name} %" for name in FIGURES)]
    rows = []
    for run in runs:
        errors = [
            f"{signed(error)}{'!' if inside is False else ''}"
            for error, inside in zip(run.errors, run.inside, strict=True)
        ]
        kilojoules = [f"{figures[0] / 1e3:.2f}" for figures in (run.measured, run.predicted)]
        rows.append([run.name, f"{run.requests:,}", *kilojoules, *errors])
    return table(header, rows)


def proof_table() -> str:
    """A run of each kind of change: the README's."""
    rows = []
    for number, base, name, words in PROOF:
        (columns,) = (columns for columns in _savings(number, base) if columns[0] == name)
        _, kilojoules, seen, guess, _, ttft, tpot = columns
        rows.append([words, kilojoules, seen, guess, ttft, tpot])
    return table(["requests: change", *(SAVINGS[k] for k in (1, 2, 3, 5, 6))], rows)


def savings_table(number: int, base: str = "") -> str:
    """Runs of a round whose requests `base` served too, on the same GPU: what each saved, and was to save.

    Args:
        number: Of the round.
        base: What is not at vLLM's defaults of the run that is saved on; by default nothing.
    """
    return table(SAVINGS, _savings(number, base))


def _savings(number: int, base: str) -> Iterator[list[str]]:
    bases = {_asked(run): run for run in load(number) if run.name.partition(", ")[2] == base}
    for run in load(number):
        other = bases.get(_asked(run))
        # Static batches and more replicas are saved on, not savings.
        if other is None or run.name == other.name or "transformers" in run.name or "replicas" in run.name:
            continue
        seen, guess = (
            1 - own[0] / base_j[0] for own, base_j in ((run.measured, other.measured), (run.predicted, other.predicted))
        )
        tails = [
            " → ".join(_milliseconds(one.measured[FIGURES.index(name)]) for one in (other, run))
            for name in ("TTFT p99", "TPOT p99")
        ]
        kilojoules = f"{other.measured[0] / 1e3:.1f} → {run.measured[0] / 1e3:.1f}"
        yield [run.name, kilojoules, f"{100 * seen:.1f} %", f"{100 * guess:.1f} %", signed(guess - seen), *tails]


def _milliseconds(time_s: float) -> str:
    return f"{1e3 * time_s:,.0f}"


def _asked(run: Compared) -> tuple[object, ...]:
    """Which requests, and when they arrive."""
    arrivals = run.row.cell.load.arrivals
    assert arrivals is not None
    return arrivals.trace, arrivals.first, arrivals.timed, arrivals.speed, arrivals.from_s, arrivals.for_s


def summary_table(runs: Sequence[Compared]) -> str:
    """Median and worst size of the errors of each figure, of all runs and of parts of them, and what is asked for."""
    online = [run for run in runs if "at once" not in run.name]
    groups: list[tuple[str, list[Compared], Callable[[Iterable[float]], float]]] = [
        ("median, all runs", list(runs), median),
        ("median, as they arrive, bf16", [run for run in online if "fp8" not in run.name], median),
        ("median, as they arrive, fp8", [run for run in online if "fp8" in run.name], median),
        ("median, all at once", [run for run in runs if run not in online], median),
        ("worst, all runs", list(runs), max),
    ]
    rows = [
        [name, *(f"{100 * of(abs(run.errors[place]) for run in part):.1f}" for place in range(len(FIGURES)))]
        for name, part, of in groups
        if part
    ]
    asked = {name: f"{100 * most:g}" for name, most in WANTED.items()}
    asked["energy"] += f"; worst {100 * WORST_ENERGY:g}"
    rows.append(["asked for, median", *(asked.get(name, "") for name in FIGURES)])
    met = [_met(runs, place) for place in range(len(FIGURES))]
    rows.append(["met", *met])
    columns = [[(run.inside[place], run.widths[place]) for run in runs] for place in range(len(FIGURES))]
    known = [[(within, width) for within, width in column if width is not None] for column in columns]
    rows.append(
        [f"inside, of {len(runs)}", *(str(sum(bool(one) for one, _ in part)) if part else "" for part in known)]
    )
    rows.append(["interval ±, mean", *(f"{100 * fmean(w for _, w in part):.1f}" if part else "" for part in known)])
    return table(["errors, %", *FIGURES], rows)


def _met(runs: Sequence[Compared], place: int) -> str:
    name, errors = FIGURES[place], [abs(run.errors[place]) for run in runs]
    if name not in WANTED:
        return ""
    met = "yes" if median(errors) <= WANTED[name] else "no"
    return f"{met}; worst {'yes' if max(errors) <= WORST_ENERGY else 'no'}" if name == "energy" else met


def repeats_table(runs: Sequence[Compared]) -> str:
    """Runs that were measured twice: the second over the first."""
    first: dict[str, Compared] = {}
    pairs = [(first[run.row.cell_id], run) for run in runs if first.setdefault(run.row.cell_id, run) is not run]
    rows = [
        [run.name, *(signed(again / seen - 1) for seen, again in zip(before.measured, run.measured, strict=True))]
        for before, run in pairs
    ]
    return table(["second over first, %", *FIGURES], rows)


def intake_table(runs: Sequence[Compared]) -> str:
    """Where the time of a request goes before and after the engine's own: medians in milliseconds, online runs."""
    rows = []
    for run in runs:
        times = run.row.windows[0].batches[0].times
        if times is None or times.engine is None or "at once" in run.name:
            continue
        engine = times.engine
        spans = (
            engine.submitted_s,
            [b - a for a, b in zip(engine.submitted_s, engine.queued_s, strict=True)],
            [b - a for a, b in zip(engine.queued_s, engine.scheduled_s, strict=True)],
            [b - a for a, b in zip(engine.scheduled_s, engine.first_token_s, strict=True)],
            [b - a for a, b in zip(engine.first_token_s, times.first_token_s, strict=True)],
            times.first_token_s,
        )
        p50 = [1e3 * percentiles(span).p50_s for span in spans]
        guess = 1e3 * run.predicted[FIGURES.index("TTFT p50")]
        rows.append([run.name, *(f"{value:.1f}" for value in p50), f"{guess:.1f}"])
    header = ["median, ms", "submitted", "to queue", "waiting", "first step", "to client", "TTFT", "predicted TTFT"]
    return table(header, rows)


def round_table(number: int) -> str:
    """A later round: its runs and their errors."""
    runs = load(number)
    return f"{runs_table(runs)}\n\n{summary_table(runs)}"


def report() -> str:
    """All tables, as docs/replay.md has them."""
    runs = load()
    return "\n\n".join(
        [runs_table(runs), summary_table(runs), repeats_table(runs), intake_table(runs), *map(round_table, LATER)]
    )


def again_table(runs: Sequence[Compared], intake_s: float | None = None) -> str:
    """The runs simulated again by the table that ships now: steps, energy and TTFT, over those measured."""
    rows = []
    for run in runs:
        server = open_server(spec_of(run.row.cell.setup, "h200", run.row.cell.load.batch), shipped_table())
        if intake_s is not None:
            server.cost.intake_s = intake_s
        requests = requests_of(run.row)
        served = server.serve(requests)
        counts = run.row.windows[0].batches[0].counts
        ttft_s = latency_of([(served, whole(requests).windows[0])]).ttft_s
        assert counts is not None
        assert ttft_s is not None
        steps = int(served.steps.count.sum())
        seen = dict(zip(FIGURES, run.measured, strict=True))
        ratios = (
            steps / counts.steps,
            served.energy_j / seen["energy"],
            ttft_s.p50 / seen["TTFT p50"],
            ttft_s.p99 / seen["TTFT p99"],
        )
        rows.append([run.name, f"{counts.steps:,}", f"{steps:,}", *(signed(ratio - 1) for ratio in ratios)])
    header = ["run", "measured steps", "simulated", "steps %", "energy %", "TTFT p50 %", "TTFT p99 %"]
    return table(header, rows)


if __name__ == "__main__":
    if "--again" in sys.argv:
        print(again_table(load(), float(sys.argv[2]) / 1e3 if len(sys.argv) > 2 else None))
    else:
        print(report())
