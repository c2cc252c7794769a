"""Runs that other tools measured, as entries of an energy table: those whose files say what was served, and on what.

    file ──▶ recognised by its fields ──▶ ForeignRun ──▶ requests, simulated ──▶ entry of a table
                                     └──▶ what is missing, in a sentence

Such files have no ticks of a counter, so that they make no rows of a store. An entry has energy, seconds and steps
alone, which they say. pydantic reads what foreign programs wrote; only the verb imports this module.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError

from infergy.catalog.gpus import find_gpu_by_driver_name, gpu_names
from infergy.catalog.models import shape_of_id
from infergy.catalog.shape import ModelShape
from infergy.cost.fit import make_table
from infergy.cost.step import compress
from infergy.cost.table import Origin, ServedBy, Table, TableEntry
from infergy.errors import DataError, InfergyError
from infergy.estimates.build import ENTRIES, environment_id
from infergy.estimates.servers import ServerSpec, open_server
from infergy.files import parse_json, read_text
from infergy.serving.config import EngineOptions
from infergy.serving.simulate import requests_of_lengths
from infergy.units import count_of

FORMATS = "a results.json of ML.ENERGY, an aggregate of InferenceX (agg_*.json), or an emissions.csv of CodeCarbon"
GPU_NAMES: Mapping[str, str] = {"h100": "h100-sxm", "a100": "a100-80gb-sxm"}
"""What others call GPUs, and the catalog; others by the catalog's name."""
COUNTED_SD, SAMPLED_SD = 0.02, 0.05
"""Standard deviations of the logarithm of energy that one run is taken to have: GPUs of a kind differ by 2 %; sampled
power errs by more (docs/uncertainty.md)."""
MOST_REQUESTS = 100_000
LEAST_SHARE, MOST_SHARE = 0.05, 1.3
"""Between which shares of the TDP the mean power of any run lies."""
Lengths = list[tuple[int, int]]


class MissingFactError(Exception):
    """Why a run makes no entry, in a sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignRun:
    """A run of requests that were there all at once, under vLLM.

    Attributes:
        tool: What measured it.
        model: Its name on the hub.
        gpu: As the tool calls it; `gpus` how many.
        precision: Of the matrices; None where the model's name says it.
        lengths: Input and output tokens of each request.
        energy_j: Of all GPUs, from the first request to the last token; `energy_sd` the deviation of its logarithm.
        software: What served, as far as it is known.
    """

    tool: str
    model: str
    gpu: str
    gpus: int
    precision: str | None
    max_num_seqs: int
    lengths: Lengths
    energy_j: float
    energy_sd: float
    duration_s: float
    measured: str
    software: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """What became of one run of a file.

    Attributes:
        file: Its name; `run` the run in words.
        missing: Why it makes no entry; None if it does.
    """

    file: str
    run: str
    missing: str | None = None


class _Read(BaseModel):
    model_config = ConfigDict(allow_inf_nan=False)


class _Answer(_Read):
    input_len: PositiveInt
    output_len: PositiveInt
    error: str = ""
    success: bool = True


class _Zeus(_Read):
    gpu_energy: dict[str, PositiveFloat] = Field(min_length=1)
    time: PositiveFloat


class MlEnergy(_Read):
    """``results.json`` of the ML.ENERGY benchmark v3: all requests are sent at once, and all of the run is counted."""

    model_id: str
    gpu_model: str
    num_gpus: PositiveInt
    max_num_seqs: PositiveInt
    results: list[_Answer] = Field(min_length=2)
    entire_benchmark_measurement: _Zeus
    request_rate: Any = None
    num_request_repeats: int = 1
    date: str = ""

    def run(self) -> ForeignRun:
        """What it measured."""
        if str(self.request_rate).lower() not in ("none", "inf", "infinity"):
            raise MissingFactError(f"the arrival times of its {self.request_rate} requests a second")
        if self.num_request_repeats > 1:
            raise MissingFactError("what the prefix cache had of prompts, which were repeated")
        if any(one.error or not one.success for one in self.results):
            raise MissingFactError("answers of requests that failed")
        counted = len(self.entire_benchmark_measurement.gpu_energy)
        if counted != self.num_gpus:
            raise MissingFactError(f"the energy of each of its {self.num_gpus} GPUs alone: it is of {counted}")
        return ForeignRun(
            tool="ML.ENERGY",
            model=self.model_id,
            gpu=self.gpu_model,
            gpus=self.num_gpus,
            precision=None,
            max_num_seqs=self.max_num_seqs,
            lengths=[(one.input_len, one.output_len) for one in self.results],
            energy_j=sum(self.entire_benchmark_measurement.gpu_energy.values()),
            energy_sd=COUNTED_SD,
            duration_s=self.entire_benchmark_measurement.time,
            measured=self.date,
            software="vLLM of the benchmark",
        )


class InferenceX(_Read):
    """``agg_*.json`` of InferenceX with measured power: `conc` requests are kept open, taken for all alike."""

    hw: str
    framework: str
    model: str
    precision: str
    tp: PositiveInt
    conc: PositiveInt
    power_valid: int
    total_gpu_energy_j: PositiveFloat
    avg_total_gpu_power_w: PositiveFloat
    joules_per_successful_query: PositiveFloat
    joules_per_input_token: PositiveFloat
    joules_per_output_token: PositiveFloat
    ep: int = 1
    dp_attention: bool | str = False
    disagg: bool | str = False
    is_multinode: bool | str = False
    spec_decoding: str = "none"
    mtp: str = "off"
    image: str = ""
    date: str = ""

    def run(self) -> ForeignRun:
        """What it measured."""
        if self.framework != "vllm":
            raise MissingFactError(f"a cost model of {self.framework}: only vLLM's is known")
        if not self.power_valid:
            raise MissingFactError("valid power (power_valid is 0)")
        unknown = {name: str(getattr(self, name)).lower() for name in ("dp_attention", "disagg", "is_multinode")}
        is_split = self.ep > 1 or any(value == "true" for value in unknown.values())
        if is_split or self.spec_decoding not in ("none", "") or self.mtp not in ("off", ""):
            raise MissingFactError("how experts, attention or drafts were divided: only tensor parallel is simulated")
        names = {"bf16": "bfloat16", "fp8": "fp8", "fp4": None}
        if self.precision not in names:
            raise MissingFactError(f"a precision that is known: it is {self.precision}")
        query_j = self.joules_per_successful_query
        requests = round(self.total_gpu_energy_j / query_j)
        if not 1 < requests <= MOST_REQUESTS:
            raise MissingFactError(f"a number of requests that can be meant: {requests:.3g}")
        lengths = round(query_j / self.joules_per_input_token), round(query_j / self.joules_per_output_token)
        if not all(lengths):
            raise MissingFactError("input and output tokens of its requests: by its joules per token there are none")
        return ForeignRun(
            tool="InferenceX",
            model=self.model,
            gpu=self.hw.partition("-")[0].partition("_")[0],
            gpus=self.tp,
            precision=names[self.precision],
            max_num_seqs=self.conc,
            lengths=[lengths] * requests,
            energy_j=self.total_gpu_energy_j,
            energy_sd=SAMPLED_SD,
            duration_s=self.total_gpu_energy_j / self.avg_total_gpu_power_w,
            measured=self.date,
            software=self.image or "vLLM",
        )


def import_runs(paths: Sequence[Path], prior: Table | None) -> tuple[Table, list[Imported]]:
    """A table of the runs of files, fitted beside `prior`, and what became of each run.

    Raises:
        DataError: A file cannot be read, is of no known format, or no run of any makes an entry.
    """
    entries: list[TableEntry] = []
    environments: dict[str, Mapping[str, Any]] = {}
    done: list[Imported] = []
    for path in paths:
        for words, data in _runs_of(path):
            try:
                run = _read(data)
                entry, environment = _entry(run, path, data, prior)
            except MissingFactError as error:
                done.append(Imported(file=path.name, run=words, missing=str(error)))
                continue
            entries.append(entry)
            environments[entry.origin.environment] = environment
            done.append(Imported(file=path.name, run=entry.origin.cell))
    if not entries:
        reasons = (
            "; ".join(dict.fromkeys(f"{one.file}: it lacks {one.missing}" for one in done))
            or "there is none in these files"
        )
        raise DataError(f"no run makes an entry: {reasons}", code="no-rows", files=[path.name for path in paths])
    return make_table(entries, environments, prior), done


def _runs_of(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each run of a file in words, and its fields."""
    text = read_text(path, f"Give {FORMATS}")
    if path.suffix == ".csv":
        try:
            rows = list(csv.DictReader(text.splitlines(), restkey=""))
        except csv.Error as error:
            message = f"{path}: no CSV ({error}). Give {FORMATS}"
            raise DataError(message, code="bad-syntax", path=str(path), form="CSV") from error
        for number, row in enumerate(rows, 1):
            yield f"line {number + 1}", row
        return
    data = parse_json(text, path, f"Give {FORMATS}", finite=False)
    runs = data if isinstance(data, list) else [data]
    for number, run in enumerate(runs, 1):
        if not isinstance(run, Mapping):
            raise DataError(f"{path}: no run of a known tool. Give {FORMATS}", code="unknown-format", path=str(path))
        yield f"run {number}" if len(runs) > 1 else "its run", run


def _read(data: Mapping[str, Any]) -> ForeignRun:
    """The run that fields describe.

    Raises:
        MissingFactError: They lack something.
    """
    if "energy_consumed" in data and "emissions" in data:
        raise MissingFactError(
            "the model, its engine and precision, and the requests with their tokens: CodeCarbon counts energy and "
            "time alone"
        )
    if "energy_per_token_joules" in data:
        raise MissingFactError("input tokens: the results.json of the same run has them")
    kind = MlEnergy if "steady_state_energy" in data or "results" in data else InferenceX
    if kind is InferenceX and not {"hw", "conc"} & data.keys():
        raise MissingFactError(f"all that is known of a run: it is none of {FORMATS}")
    try:
        return kind.model_validate(data).run()
    except ValidationError as error:
        faults = [(".".join(map(str, one["loc"])), one["type"]) for one in error.errors()[:4]]
        named = (name if fault == "missing" else f"a valid {name}" for name, fault in faults)
        raise MissingFactError(", ".join(named)) from None


def _entry(
    run: ForeignRun, path: Path, data: Mapping[str, Any], prior: Table | None
) -> tuple[TableEntry, Mapping[str, Any]]:
    """A run as an entry, with the steps that vLLM's scheduler makes of its requests, and its environment."""
    shape, gpu = shape_of_id(run.model), _gpu_name(run.gpu)
    if shape is None:
        raise MissingFactError(f"a model that is known: {run.model} is not among infergy list models")
    if run.gpus > 1 and shape.experts is not None and run.tool == "ML.ENERGY":
        raise MissingFactError("how experts were divided among the GPUs")
    spec = ServerSpec(
        model=shape.name,
        gpu=gpu,
        precision=_precision(run, shape),
        options=EngineOptions(max_num_seqs=run.max_num_seqs, tensor_parallel_size=run.gpus),
    )
    try:
        server = open_server(spec, prior)
    except InfergyError as error:
        raise MissingFactError(f"a server that can be simulated: {error}") from error
    share = run.energy_j / run.duration_s / (server.gpu.tdp_w * run.gpus)
    if not LEAST_SHARE <= share <= MOST_SHARE:
        raise MissingFactError(f"a mean power that can be: {share:.0%} of the TDP of its GPUs")
    served = server.serve(requests_of_lengths(run.model, run.lengths))
    if served.counts.rejected_requests:
        raise MissingFactError("room in the simulated server for its longest request")
    environment = {"gpus": [run.gpu], "tool": run.tool, "software": run.software, "packages": {}}
    identity = hashlib.sha256(json.dumps(data, sort_keys=True, default=str).encode()).hexdigest()[:12]
    words = f"{run.tool}: {run.model}, {run.gpus} × {run.gpu}, {count_of(len(run.lengths), 'request')}"
    entry = TableEntry(
        served_by=ServedBy.of(server.setup, gpu, is_api=True),
        origin=Origin(
            source=path.name,
            cell=f"{words}, max_num_seqs {run.max_num_seqs}",
            cell_id=identity,
            unit=f"{run.tool} {run.gpu}",
            environment=environment_id(environment),
            measured_utc=run.measured,
            weights=f"real weights: {run.model}",
            simulated=False,
        ),
        requests=len(run.lengths),
        energy_j=run.energy_j,
        energy_sd=run.energy_sd,
        duration_s=run.duration_s,
        idle_w=served.idle_w,
        idle_s=0.0,
        calls=0,
        steps=compress(served.steps, ENTRIES),
    )
    return entry, environment


def _precision(run: ForeignRun, shape: ModelShape) -> str:
    dtype = run.precision or shape.checkpoint.dtype or "bfloat16"
    if run.precision is None and run.tool == "InferenceX" and dtype not in ("mxfp4", "nvfp4"):
        raise MissingFactError("the format of its 4-bit weights")
    return dtype


def _gpu_name(name: str) -> str:
    """The catalog's name of a GPU."""
    lower = name.lower()
    found = GPU_NAMES.get(lower, lower)
    known = find_gpu_by_driver_name(name)
    if found in gpu_names():
        return found
    if known is None:
        raise MissingFactError(f"a GPU that is known: {name} is not among infergy list gpus")
    return known.name
