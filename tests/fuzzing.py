"""Files damaged at random, and what each reader makes of them: an answer that can be, or an error of infergy.

An input is drawn from its number alone (`damaged`), so that the number in a failure brings the input back.
"""

from __future__ import annotations

import copy
import gzip
import importlib.util
import io
import json
import math
import os
import random
import re
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from infergy.catalog.gpus import read_gpu_file
from infergy.catalog.models import get_model, model_config
from infergy.cli import main, make_app
from infergy.cli.options import fraction, seconds_of
from infergy.cli.server_options import ServerSelection
from infergy.cost.table import SHIPPED_TABLE, read_table
from infergy.errors import InfergyError
from infergy.estimates.build import build_table
from infergy.estimates.footprint import parse_intensity, read_intensity
from infergy.estimates.servers import load_tables, open_server
from infergy.estimates.vllm_command import parse_command
from infergy.measure.forecast import total_s
from infergy.measure.grid import make_plan, parse_grid, read_toml
from infergy.measure.validation import check_contents
from infergy.quality.compare import compare
from infergy.quality.phases import find_phases
from infergy.records import Plan
from infergy.records.cell import Arrivals, Decoding
from infergy.records.check import check_rows
from infergy.records.codec import to_json
from infergy.records.engine_setup import EngineSetup
from infergy.records.store import read_store, shipped_rows
from infergy.testing.recording import ReplayMeter
from infergy.workload import Histogram, open_requests, open_trace
from infergy.workload.bins import edges_of
from infergy.workload.histograms import requests_of_histogram

SEED = os.environ.get("FUZZ_SEED", "0")
LONGEST_S = 30
"""Of one input, on a slow and busy machine."""
HUGE, DEEP = "9" * 400, "[" * 3000 + "]" * 3000
TEXTS = ("", "x", "-1", "nan", "inf", "1e400", HUGE, "²", "\x00", "\x1b[2J", "[/b]", "é\u202e", "9" * 5000, "x" * 5000)
VALUES: tuple[Any, ...] = (
    *(None, True, False, "", "x", [], {}, [1], [[]], {"a": 1}),
    *(0, 1, -1, 2, 7, 1000, 2**31, 2**32, 2**63, -(2**63), 10**18, 10**400),
    *(0.0, 0.5, -0.5, 1e-300, 1e30, 1e300, float("inf"), float("-inf"), float("nan")),
    *TEXTS,
)
GONE = object()


class NonsenseError(AssertionError):
    """A reader accepted what cannot be."""


def demand(*, holds: bool, what: object) -> None:
    if not holds:
        raise NonsenseError(f"accepted: {what}")


@contextmanager
def limited(seconds: int = LONGEST_S) -> Iterator[None]:
    """The block ends within so many seconds, or fails."""

    def fail(*_: object) -> None:
        raise TimeoutError(f"over {seconds} s")

    kept = signal.signal(signal.SIGALRM, fail)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, kept)


# Damage.


def leaves(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all values, of those that hold others too."""
    if path:
        yield path
    inner = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in inner:
        yield from leaves(value, (*path, key))


def inside(data: Any, path: Sequence[Any]) -> Any:
    for key in path:
        data = data[key]
    return data


def change(data: Any, draw: random.Random) -> None:
    """Change one value of JSON in place: to nonsense, out of scale, gone, twice, that of another, or one key more."""
    paths = list(leaves(data))
    if not paths:
        return
    path = draw.choice(paths)
    parent, key = inside(data, path[:-1]), path[-1]
    kind = draw.choice(("value", "value", "value", "scale", "scale", "gone", "twice", "swap", "key"))
    if kind == "scale" and isinstance(parent[key], (int, float)) and not isinstance(parent[key], bool):
        parent[key] *= draw.choice((-1, 2, 3, 1000, 10**6, 10**12)) if draw.random() < 0.7 else 0.001
    elif kind == "gone":
        del parent[key]
    elif kind == "twice" and isinstance(parent, list):
        parent.insert(draw.randint(0, len(parent)), copy.deepcopy(parent[key]))
    elif kind == "swap":
        parent[key] = copy.deepcopy(inside(data, draw.choice(paths)))
    elif kind == "key" and isinstance(parent, dict):
        parent[draw.choice(TEXTS)] = copy.deepcopy(draw.choice(VALUES))
    else:
        parent[key] = copy.deepcopy(draw.choice(VALUES))


def damage_json(text: str, draw: random.Random) -> str:
    """A line of JSON with one to three of its values changed."""
    data = json.loads(text)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        change(data, draw)
    return json.dumps(data)


NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")


def damage_text(text: str, draw: random.Random) -> str:
    """A text with a number or a word replaced, or a line gone, twice or elsewhere."""
    kind = draw.choice(("number", "number", "word", "line", "twice", "swap", "deep"))
    lines = text.splitlines(keepends=True)
    if kind in ("number", "word"):
        found = list((NUMBER if kind == "number" else re.compile(r"[\w\".-]+")).finditer(text))
        if found:
            match = draw.choice(found)
            return text[: match.start()] + _spelled(draw) + text[match.end() :]
    place = draw.randrange(len(lines)) if lines else 0
    if kind == "line" and lines:
        del lines[place]
    elif kind == "twice" and lines:
        lines.insert(place, lines[place])
    elif kind == "swap" and lines:
        lines[place], lines[-1] = lines[-1], lines[place]
    else:
        lines.insert(place, f"a = {DEEP}\n" if draw.random() < 0.5 else f'{{"a": {DEEP}}}\n')
    return "".join(lines)


def _spelled(draw: random.Random) -> str:
    value = draw.choice(VALUES)
    return value if isinstance(value, str) else json.dumps(value)


def damage_bytes(content: bytes, draw: random.Random) -> bytes:
    """A file that is cut, has other bytes, begins or ends otherwise, or is packed."""
    place = draw.randrange(len(content) + 1)
    kind = draw.choice(("cut", "flip", "flips", "insert", "begin", "lines", "packed", "half packed"))
    if kind == "cut":
        return content[:place]
    if kind in ("flip", "flips"):
        changed = bytearray(content)
        for _ in range(1 if kind == "flip" else 10):
            if changed:
                changed[draw.randrange(len(changed))] = draw.randrange(256)
        return bytes(changed)
    if kind == "insert":
        return (
            content[:place]
            + draw.choice((b"\0", b"\xff", b"\x1b[2J", b"\n", b"\r", b'"', b"{", b"\xf0\x9f"))
            + content[place:]
        )
    if kind == "begin":
        return (
            draw.choice((b"\xef\xbb\xbf", b"\xff\xfe", b"PAR1", b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\n\n", b"#x\n"))
            + content
        )
    if kind == "lines":
        return content.replace(b"\n", draw.choice((b"\r", b"\r\n", b"\n\n", b"", b"\0\n")))
    packed = gzip.compress(content, 1)
    return packed if kind == "packed" else packed[: draw.randrange(len(packed))]


# What is read.


def use_rows(path: Path) -> None:
    rows = read_store(path).rows
    for checked in check_rows(rows):
        if checked.energy_j is not None:
            demand(holds=0 < checked.energy_j < 1e12, what=checked.energy_j)
    for row in rows:
        for window in row.windows:
            for power_w in window.power_by_gpu_w.values():
                demand(holds=1 <= power_w <= 2000, what=f"{power_w} W")
    compare(rows, rows)
    find_phases(rows)
    build_table([path])


def use_table(path: Path) -> None:
    for entry in read_table(path, entries=True).entries:
        demand(holds=entry.energy_j > 0 and entry.idle_w >= 0, what=entry.origin)
    for one in load_tables([path]).measured:
        demand(holds=one.idle_w >= 0 and one.energy_sd >= 0, what=one)


def use_trace(path: Path) -> None:
    requests = open_requests(path)
    if isinstance(requests, Histogram):
        demand(holds=min((count.requests for count in requests.counts), default=1) > 0, what=requests)
        demand(holds=requests.input_tokens >= 0 and requests.output_tokens >= 0, what=requests)
        requests_of_histogram(requests, at_most=1000)
        return
    summary = requests.describe()
    json.dumps(to_json(summary), allow_nan=False)
    requests.histogram()
    whole = requests.requests()
    demand(holds=bool((whole.input_tokens > 0).all() and (whole.output_tokens > 0).all()), what="tokens below 1")
    if whole.arrival_s is not None:
        demand(holds=bool((whole.arrival_s >= 0).all()), what="times before the first")


def use_plan(path: Path) -> None:
    plan = Plan.load(path)
    check_contents(plan, simulate=True)
    demand(holds=0 <= total_s(plan.by_setup().items(), plan.options) < math.inf, what="an endless plan")
    demand(holds=0 < plan.options.target < 1 and plan.options.max_time_s >= 0, what=plan.options)


def use_grid(path: Path) -> None:
    plan = make_plan(parse_grid(read_toml(path), str(path)))
    demand(holds=0 <= total_s(plan.by_setup().items(), plan.options) < math.inf, what="an endless plan")


def use_gpu(path: Path) -> None:
    gpu = read_gpu_file(path)
    figures = (gpu.memory_bytes, gpu.memory_bandwidth, gpu.tdp_w, *gpu.peak_flops.values())
    demand(holds=all(0 < figure < math.inf for figure in figures), what=gpu)


def use_model(path: Path) -> None:
    shape = get_model(str(path))
    demand(holds=0 < shape.parameters < 1e30, what=shape)
    demand(holds=shape.kv_bytes_per_token("bfloat16") >= 0, what=shape)


def use_carbon(path: Path) -> None:
    demand(holds=0 <= read_intensity(path).mean_g_per_kwh < math.inf, what=path)


def use_recording(path: Path) -> None:
    meter = ReplayMeter.load(path)
    demand(holds=all(0 <= energy_j < math.inf for energy_j in meter.read().values()), what=meter)


def use_servers(path: Path) -> None:
    for spec in ServerSelection(compare=path).specs():
        open_server(spec)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of file: a good one, how it is damaged, and what reads it.

    Attributes:
        name: Of the file.
        good: Its content.
        use: Reads it and checks what comes out.
        is_json: Whether a line of it is JSON, whose values are changed.
        verb: A command that reads it, with FILE in the place of its name.
    """

    name: str
    good: Callable[[], bytes]
    use: Callable[[Path], object]
    is_json: bool = False
    verb: str = ""


@cache
def rows_text() -> bytes:
    """Three short rows: a batch, a run of arrivals, a replay."""
    lines = [line for path in shipped_rows() for line in path.read_text(encoding="utf-8").splitlines()]
    kinds = ('"arrivals":null', '"law":"poisson"', '"law":"replay"')
    return "".join(f"{min((line for line in lines if kind in line), key=len)}\n" for kind in kinds).encode()


@cache
def table_text() -> bytes:
    """The header and the first entry of the shipped table."""
    header, entry = SHIPPED_TABLE.read_text(encoding="utf-8").splitlines()[:2]
    first = json.loads(header)
    first["entries"] = first["entries"][:1]
    return f"{json.dumps(first)}\n{entry}\n".encode()


@cache
def histogram_text() -> bytes:
    histogram = open_trace("azure-code-2023").histogram()
    return json.dumps(to_json(histogram) | {"requests": histogram.requests}).encode()


GRID = b"""name = "mine"
gpu = "h200"
model = "llama-3.1-8b"

[[engines]]
engine = "vllm"
max_sequences = 64
power_limit_w = [400, 500.0]

[[engines]]
engine = "transformers"

[[cells]]
input_tokens = [64, 512]
output_tokens = [8]
batch = [1, 8]
decoding = ["greedy"]

[[cells]]
input_tokens = [128]
output_tokens = [16]
max_batch_s = 5.0
paired = true

[options]
seed = 3
target = 0.02
max_time_s = 30
repeats = 2
"""
GPU = b"""memory_bytes = 103_079_215_104
memory_bandwidth = 4.0e12
tdp_w = 400
peak_flops = { bfloat16 = 148e12, fp8 = 296e12 }
link = { kind = "NVLink 4", bandwidth = 450e9 }
title = "Mine"
headline_flops = 592e12
"""
BY_HAND = b"""layers = 32
hidden = 4096
heads = 32
kv_heads = 8
intermediate = 14336
vocabulary = 128256

[experts]
count = 128
per_token = 8
intermediate = 768
"""
CSV = b"""TIMESTAMP,ContextTokens,GeneratedTokens,cached_tokens
2023-11-16 18:15:46.6805900,374,44,0
2023-11-16 18:15:50.9951690,396,109,12
2023-11-16 18:15:51.2224670,879,55,0
2023-11-16 18:15:55.0000000,91,16,1
"""
LOG = b"".join(
    json.dumps(
        {
            "timestamp": 1000 * k,
            "model": "m",
            "usage": {
                "prompt_tokens": 100 + k,
                "completion_tokens": 5 + k,
                "prompt_tokens_details": {"cached_tokens": k},
            },
        }
    ).encode()
    + b"\n"
    for k in range(1, 5)
)
BLOCKS = b"".join(
    json.dumps({"timestamp": 100 * k, "input_length": 1000, "output_length": 5, "hash_ids": [0, 1, k]}).encode() + b"\n"
    for k in range(1, 5)
)
CARBON = b"""Datetime (UTC),Country,Zone id,Carbon intensity gCO2eq/kWh (Life cycle)
2025-01-01 00:00:00,Sweden,SE,30.5
2025-01-01 01:00:00,Sweden,SE,31
2025-01-01 02:00:00,Sweden,SE,
"""


SERVERS = b"""[[server]]
engine = "vllm"
gpu = "h200"
max-num-seqs = 64

[[server]]
engine = "vllm-fp8"
gpu = ["h100-sxm", "h200"]
gpu-memory-utilization = 0.9
replicas = 2
"""
RECORDING = b"""{"schema": "infergy.recording/1", "scope": "gpu-board", "gpus": [{"uuid": "GPU-a", "name": "g"}], "facts": {}}
{"time_s": 1.0, "energy_j": {"GPU-a": 10.0}}
{"time_s": 1.5, "energy_j": {"GPU-a": 60.0}}
{"time_s": 2.0, "energy_j": {"GPU-a": 110.0}}
"""


@cache
def parquet_bytes() -> bytes:
    import polars as pl

    frame = pl.DataFrame(
        {
            "arrival_s": [0.0, 1.0, 2.5],
            "input_tokens": [10, 20, 30],
            "output_tokens": [1, 2, 3],
            "model": ["a", "b", None],
        }
    )
    content = io.BytesIO()
    frame.write_parquet(content)
    return content.getvalue()


@cache
def plan_text() -> bytes:
    return json.dumps(to_json(make_plan(parse_grid(tomllib_of(GRID), "mine")))).encode()


def tomllib_of(content: bytes) -> dict[str, Any]:
    import tomllib

    return tomllib.loads(content.decode())


KINDS: Mapping[str, Kind] = {
    "rows": Kind(name="rows.jsonl", good=rows_text, use=use_rows, is_json=True, verb="check FILE --rows"),
    "table": Kind(
        name="table.jsonl",
        good=table_text,
        use=use_table,
        is_json=True,
        verb="estimate azure-code-2023 -t FILE --requests 20",
    ),
    "histogram": Kind(
        name="bins.json", good=histogram_text, use=use_trace, is_json=True, verb="trace FILE --bins paper"
    ),
    "plan": Kind(
        name="plan.json",
        good=plan_text,
        use=use_plan,
        is_json=True,
        verb="measure FILE --dry-run",
    ),
    "grid": Kind(name="grid.toml", good=lambda: GRID, use=use_grid, verb="measure FILE --dry-run"),
    "gpu": Kind(name="gpu.toml", good=lambda: GPU, use=use_gpu, verb="list gpus FILE"),
    "by hand": Kind(name="model.toml", good=lambda: BY_HAND, use=use_model, verb="list models FILE"),
    "dense": Kind(
        name="config.json",
        good=lambda: json.dumps(model_config("llama-3.1-8b")).encode(),
        use=use_model,
        is_json=True,
        verb="list models FILE",
    ),
    "experts": Kind(
        name="config.json",
        good=lambda: json.dumps(model_config("deepseek-v3")).encode(),
        use=use_model,
        is_json=True,
        verb="list models FILE",
    ),
    "csv": Kind(name="log.csv", good=lambda: CSV, use=use_trace, verb="trace FILE"),
    "jsonl": Kind(name="log.jsonl", good=lambda: LOG, use=use_trace, is_json=True, verb="trace FILE --json"),
    "blocks": Kind(name="log.jsonl", good=lambda: BLOCKS, use=use_trace, is_json=True, verb="trace FILE"),
    "parquet": Kind(name="log.parquet", good=parquet_bytes, use=use_trace, verb="trace FILE"),
    "servers": Kind(
        name="servers.toml",
        good=lambda: SERVERS,
        use=use_servers,
        verb="estimate azure-code-2023 --requests 5 --compare FILE",
    ),
    "recording": Kind(name="meter.jsonl", good=lambda: RECORDING, use=use_recording, is_json=True, verb="check FILE"),
    "carbon": Kind(
        name="carbon.csv",
        good=lambda: CARBON,
        use=use_carbon,
        verb="estimate azure-code-2023 --requests 20 --carbon FILE",
    ),
}


def _logs() -> dict[str, Kind]:
    """The log of each format that the tests of logs have."""
    path = Path(__file__).parent / "workload" / "test_logs.py"
    spec = importlib.util.spec_from_file_location("logs_of_tests", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["logs_of_tests"] = module
    spec.loader.exec_module(module)
    return {
        f"log {name}": Kind(
            name=f"log.{log.suffix}",
            good=partial(bytes, log.text, "utf-8"),
            use=use_trace,
            is_json=log.suffix == "jsonl",
            verb="trace FILE",
        )
        for name, log in module.LOGS.items()
    }


LOGS = _logs()
"""Files of the kind ``logs``, in turn."""


def kind_of(name: str, number: int) -> Kind:
    """What the `number`-th file of a kind is made of."""
    return [*LOGS.values()][number % len(LOGS)] if name == "logs" else KINDS[name]


def damaged(name: str, number: int) -> bytes:
    """The `number`-th damaged file of a kind."""
    kind, draw = kind_of(name, number), random.Random(f"{SEED} {name} {number}")
    good = kind.good()
    if kind.name.endswith(".parquet") or draw.random() < 0.15:
        return damage_bytes(good, draw)
    text = good.decode()
    if not kind.is_json or draw.random() < 0.15:
        return damage_text(text, draw).encode("utf-8", "surrogatepass")
    lines = text.splitlines()
    place = draw.randrange(len(lines))
    lines[place] = damage_json(lines[place], draw)
    return ("\n".join(lines) + "\n").encode("utf-8", "surrogatepass")


def try_file(name: str, number: int, folder: Path) -> None:
    """Read the `number`-th damaged file of a kind: an answer that can be, or an error of infergy.

    Raises:
        NonsenseError: The answer cannot be; all other errors but those of infergy too.
    """
    kind = kind_of(name, number)
    path = folder / kind.name
    path.write_bytes(damaged(name, number))
    with limited():
        try:
            kind.use(path)
        except InfergyError as error:
            demand(holds=len(str(error)) < 5000, what=f"an error of {len(str(error))} characters")


# Options.

WORDS: Mapping[str, tuple[Callable[[str], object], str]] = {
    "engine": (EngineSetup.parse_label, "vllm-server-s16-bt2048-mem0.9-len16384-pl400-clk1200-spec4:llama-3.2-1b:0.8"),
    "arrivals": (Arrivals.parse_label, "gamma4-b0.5"),
    "replay": (Arrivals.parse_label, "replay:azure-conv-2023@1x+600s/75s"),
    "decoding": (Decoding.parse_label, "t0.8-p0.95-k50"),
    "duration": (lambda text: seconds_of("--for", text), "50ms"),
    "share": (lambda text: fraction("--target", text), "2%"),
    "edges": (edges_of, "32,128,512"),
    "intensity": (parse_intensity, "120"),
    "command": (
        parse_command,
        "vllm serve meta-llama/Llama-3.1-8B --tensor-parallel-size 2 --max-num-seqs 64 --gpu-memory-utilization 0.9 "
        "--max-model-len 16k --no-enable-prefix-caching --port 8000",
    ),
}


def try_word(kind: str, number: int) -> None:
    """Read the `number`-th damaged text of an option: a value, or an error that says what is expected."""
    parse, good = WORDS[kind]
    draw = random.Random(f"{SEED} {kind} {number}")
    text = good
    for _ in range(draw.choice((1, 1, 2))):
        text = damage_text(text, draw).replace("\n", " ")[:6000]
    with limited():
        try:
            value = parse(text)
        except InfergyError:
            return
        if isinstance(value, float):
            demand(holds=math.isfinite(value) and value >= 0, what=value)


# Whole commands.

COMMANDS = (
    "trace LOG",
    "trace LOG --bins paper",
    "estimate LOG --requests 4",
    "estimate LOG --rate 4 --requests 4 --json",
    "estimate LOG --method ceiling",
    "recommend LOG --requests 4 --gpus 1",
    "breakdown LOG --requests 4",
    "next LOG --requests 4",
    "check ROWS",
    "compare ROWS ROWS",
    "show phases ROWS",
    "list models llama-3.1-8b",
    "measure --engine vllm --input 64 --output 8 --batch 1 --dry-run",
)
NOT_TRIED = {"--output-file", "--again", "--plan", "--rescale", "--ray", "--tokenizer", "--meter", "--help", "--table"}
"""Options that write, or look for what is not here."""
NUMBERS = ("0", "1", "2", "3", "7", "64", "1000", "123456", "4294967296", "-3", "0.5", "0.01", "0.92", "1e6", "1e-9")
TIMES = ("0s", "1s", "5m", "50ms", "1h", "1e9s", "0.001s", "999999h")
LIKELY: Mapping[str, tuple[str, ...]] = {
    "engine": (
        "vllm",
        "transformers",
        "vllm-server-s16",
        "vllm-fp8",
        "vllm-eager-tp2",
        "vllm-s1-bt1",
        "transformers-compiled",
    ),
    "gpu": ("h200", "rtx-4090", "l4", "b200"),
    "model": ("llama-3.1-8b", "qwen3-30b-a3b", "llama-3.2-1b", "deepseek-v3"),
    "precision": ("bfloat16", "fp8", "float16"),
    "usage-context": ("llm", "server"),
    "bins": ("paper", "powers-of-two"),
    "method": ("simulation", "ceiling", "datasheet"),
    "edges": ("32,128,512", "1", "8,4", "4294967296"),
    "column": ("ContextTokens", "GeneratedTokens", "cached_tokens", "TIMESTAMP"),
    "time-unit": ("s", "ms", "us", "ns"),
    "format": ("azure", "tokens", "columns"),
    "from|for|budget|p50|p90|p99|within": TIMES,
    "target|worse|share": ("1%", "2%", "99%", "0.5"),
    "gpus|batch|input|output": ("1", "2", "1,2", "1..4", "64,512"),
    "": NUMBERS,
}
"""Values of options that may be meant, by a part of their names; the last are of all others."""
OF_OPTIONS = (*(text for text in TEXTS if "\0" not in text), *NUMBERS)
ENDS = (0, 2, 3, 4, 5)


@cache
def options_of(*verb: str) -> tuple[str, ...]:
    """The options of a verb that take a value."""
    import typer.main

    command: Any = typer.main.get_command(make_app(verb[:1]))
    for name in verb:
        command = command.commands[name] if hasattr(command, "commands") else command
    own = (one for one in command.params if one.opts[0].startswith("-") and not getattr(one, "is_flag", False))
    return tuple(name for one in own if (name := max(one.opts, key=len)) not in NOT_TRIED)


def command_line(number: int, folder: Path) -> list[str]:
    """The `number`-th command with one or two options of nonsense."""
    draw = random.Random(f"{SEED} options {number}")
    files = {"LOG": ("log.csv", CSV), "ROWS": ("rows.jsonl", rows_text()), "TABLE": ("table.jsonl", b"")}
    words = draw.choice(COMMANDS).split()
    verb = words[:2] if words[0] in ("list", "show", "table") else words[:1]
    for place, word in enumerate(words):
        if word in files:
            name, content = files[word]
            (folder / name).write_bytes(content)
            words[place] = str(folder / name)
    for _ in range(draw.choice((1, 1, 2))):
        name = draw.choice(options_of(*verb) or ("--nosuch",))
        likely = next(values for part, values in LIKELY.items() if re.search(part, name))
        words.append(f"{name}={draw.choice(likely if draw.random() < 0.85 else OF_OPTIONS)}")
    return words


def try_command(words: Sequence[str]) -> None:
    """Run a command in this process: it ends with a status that says what was wrong, and with no bug."""
    out, err = io.StringIO(), io.StringIO()
    with limited(), redirect_stdout(out), redirect_stderr(err), patch("sys.argv", ["infergy", *words]):
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
    demand(holds=code in ENDS, what=f"{words}: {code}: {err.getvalue()[-1000:]}")
