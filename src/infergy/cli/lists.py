"""`infergy list`: GPUs, models, studies and JSON schemas: all of a kind, or what is known of one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any

import typer

from infergy.cli.options import JsonOption, argument, make_group, option, with_options
from infergy.cli.output import NONE, print_json, print_table
from infergy.cli.schemas import SCHEMAS, make_schema
from infergy.files import read_toml
from infergy.units import count_of, format_bytes, format_duration, format_number, format_percent, format_si

if TYPE_CHECKING:
    from infergy.catalog import Gpu, ModelShape
    from infergy.measure.studies import Study, StudySize

catalog = make_group(
    "List GPUs, models, studies or JSON schemas, or print one of them, or the dashboard of Grafana.\n\n"
    "Example: infergy list models llama-3.1-8b --gpu h200"
)

EXAMPLE_INPUT = 2048
EXAMPLE_OUTPUT = 512
EXAMPLE_BATCHES = (1, 8, 32, 128)
BINS_NOTE = "Figure 7, lengths before and after binning, needs no measuring: infergy trace TRACE --bins paper"


@catalog.command()
@with_options
def gpus(
    name: str | None = argument("One GPU, or a TOML file of one [default: all]", "NAME_OR_PATH", default=None),
    as_json: JsonOption = False,
) -> None:
    """List the GPUs of the catalog, or print all that is known of one, with its source.

    Example: infergy list gpus h200
    """
    from infergy.catalog import get_gpu, gpu_names
    from infergy.records.codec import to_json

    if name is not None:
        gpu = get_gpu(name)
        _echo_json(to_json(gpu)) if as_json else _print_pairs(_gpu_lines(gpu))
        return
    found = [get_gpu(known) for known in gpu_names()]
    if as_json:
        _echo_json([to_json(gpu) for gpu in found])
        return
    rows = (
        (
            gpu.name,
            format_si(gpu.peak_flops["bfloat16"], "FLOP/s"),
            format_bytes(gpu.memory_bytes),
            format_si(gpu.memory_bandwidth, "B/s"),
            f"{gpu.tdp_w:g} W",
        )
        for gpu in found
    )
    print_table(("Name", "bfloat16 (dense)", "Memory", "Bandwidth", "TDP"), rows)


@catalog.command()
@with_options
def models(
    name: str | None = argument(
        "A shipped model, a config.json, or numbers by hand [default: all]", "NAME_OR_PATH", default=None
    ),
    gpu: str = option("GPU of the largest batch; a TOML file too", "--gpu", "-g", default="h200"),
    as_json: JsonOption = False,
) -> None:
    """List the shipped models, or print what follows from the shape of one: FLOPs, bytes, largest batch.

    Example: infergy list models llama-3.1-8b --gpu h200
    """
    from infergy.catalog import get_gpu, get_model, model_names

    device = get_gpu(gpu)
    if name is not None:
        shape = get_model(name)
        _echo_json(_model_facts(shape, device)) if as_json else _print_pairs(_model_lines(shape, device))
        return
    shapes = [get_model(known) for known in model_names()]
    if as_json:
        _echo_json([_model_facts(shape, device) for shape in shapes])
        return
    rows = (
        (
            shape.name,
            f"{format_number(shape.parameters / 1e9)} B",
            f"{format_number(shape.active_parameters / 1e9)} B",
            format_bytes(shape.weight_bytes()),
            format_bytes(shape.kv_bytes_per_token()),
        )
        for shape in shapes
    )
    print_table(("Name", "Parameters", "Active", "bfloat16 weights", "KV cache per token"), rows)


@catalog.command()
@with_options
def studies(
    name: str | None = argument("Print the grid of this study, a TOML file [default: all]", default=None),
    model: str | None = option("Forecast for it [default: the study's]", "--model", "-m"),
    gpu: str | None = option("Forecast for it [default: the study's]", "--gpu", "-g"),
    as_json: JsonOption = False,
) -> None:
    """List the shipped studies: figure of the paper, cells, forecast time and energy, full and quick; or print one.

    Example: infergy list studies --gpu a100-80gb-sxm

    A grid to start your own from: infergy list studies paper-bins > mine.toml
    """
    from infergy.catalog import canonical_name, get_gpu, get_model
    from infergy.measure.studies import StudyList, describe_study, study_names, study_path

    if name is not None:
        path = study_path(name)
        if as_json:
            _echo_json(read_toml(path, "a study"))
        else:
            typer.echo(path.read_text(encoding="utf-8"), nl=False)
        return
    changes: dict[str, Any] = {}
    if gpu is not None:
        changes["gpu"] = get_gpu(gpu).name
    if model is not None:
        get_model(model)
        changes["model"] = model if model.endswith((".json", ".toml")) else canonical_name(model)
    measured = _measured()
    found = tuple(describe_study(known, changes, measured) for known in study_names())
    if as_json:
        print_json([StudyList(studies=found)])
    else:
        _print_studies(found)


def _print_studies(found: Sequence[Study]) -> None:
    rows = []
    for one in found:
        cells, *size = _sizes(one.full)
        measured_cells = NONE if one.full is None else f"{one.full.measured}"
        rows.append((one.name, one.figure or NONE, cells, measured_cells, *size, *_sizes(one.quick)))
    heads = ("Study", "Of the paper", "Cells", "Measured", "Time", "Energy", "Quick", "Time", "Energy")
    print_table(heads, rows, left=2)
    for one in found:
        if one.reason is not None:
            reason = f"needs {', '.join(one.needs)}" if one.needs else one.reason
            typer.echo(f"{one.name}: not runnable yet: {reason}")
        elif one.quick_reason is not None:
            typer.echo(f"{one.name}: no quick grid: {one.quick_reason}")
    typer.echo(BINS_NOTE)
    typer.echo(
        "Measured: cells with a row in the shipped tables of that GPU. Time and energy are forecasts of the model that "
        "estimates use. Run one: infergy measure NAME --quick -o mine.jsonl",
        err=True,
    )


@catalog.command()
@with_options
def schemas(
    name: str | None = argument("Print the JSON Schema of this format [default: list names]", "NAME", default=None),
) -> None:
    """List the published JSON Schemas of infergy's files and of what verbs print as --json, or print one.

    Example: infergy list schemas measurement > measurement.schema.json
    """
    typer.echo("\n".join(SCHEMAS) if name is None else json.dumps(make_schema(name), indent=1))


@catalog.command()
def dashboard() -> None:
    """Print the dashboard of Grafana that shows what `infergy watch --export` serves.

    Example: infergy list dashboard > infergy.json
    """
    typer.echo((resources.files("infergy") / "data" / "grafana.json").read_text(encoding="utf-8"), nl=False)


def _gpu_lines(gpu: Gpu) -> list[tuple[str, str]]:
    headline = "none" if gpu.headline_flops is None else format_si(gpu.headline_flops, "FLOP/s", 4)
    return [
        ("name", gpu.name),
        ("title", gpu.title),
        ("also called", ", ".join(gpu.aliases) or "-"),
        ("compute capability", gpu.compute_capability),
        *((f"dense peak, {dtype}", format_si(peak, "FLOP/s", 4)) for dtype, peak in gpu.peak_flops.items()),
        ("vendor's headline", f"{headline} ({gpu.headline_basis})"),
        ("memory", format_bytes(gpu.memory_bytes)),
        ("memory bandwidth", format_si(gpu.memory_bandwidth, "B/s", 4)),
        ("TDP", f"{gpu.tdp_w:g} W"),
        ("link", f"{gpu.link.kind}, {format_si(gpu.link.bandwidth, 'B/s')} each way"),
        ("source", gpu.source),
    ]


def _model_facts(shape: ModelShape, gpu: Gpu) -> dict[str, Any]:
    from infergy.records import ENGINES

    inputs, outputs = EXAMPLE_INPUT, EXAMPLE_OUTPUT
    return {
        "name": shape.name,
        "architecture": shape.checkpoint.architecture,
        "layers": shape.layers,
        "attention_layers": shape.attention_layers,
        "parameters": shape.parameters,
        "active_parameters": shape.active_parameters,
        "checkpoint_dtype": shape.checkpoint.dtype,
        "experts": None if shape.experts is None else shape.experts.experts,
        "experts_per_token": None if shape.experts is None else shape.experts.experts_per_token,
        "expected_experts_touched": _coverage(shape),
        "weight_bytes": {dtype: shape.weight_bytes(dtype) for dtype in _weight_dtypes(shape)},
        "kv_bytes_per_token": shape.kv_bytes_per_token(),
        "state_bytes": shape.state_bytes,
        "example": {
            "input_tokens": inputs,
            "output_tokens": outputs,
            "prefill_flops": shape.prefill_flops(inputs),
            "decode_flops_per_token": shape.decode_flops(inputs),
            "request_flops": shape.request_flops(inputs, outputs),
            "kv_bytes": shape.kv_bytes(inputs + outputs),
        },
        "gpu": gpu.name,
        "largest_batch": {engine: _limit(shape, gpu, engine) for engine in ENGINES},
    }


def _model_lines(shape: ModelShape, gpu: Gpu) -> list[tuple[str, str]]:
    from infergy.records import ENGINES

    inputs, outputs = EXAMPLE_INPUT, EXAMPLE_OUTPUT
    weights = (f"{format_bytes(shape.weight_bytes(dtype))} in {dtype}" for dtype in _weight_dtypes(shape))
    lines = [
        ("name", shape.name),
        ("architecture", f"{shape.checkpoint.architecture}, {_layers(shape)}"),
        ("parameters", f"{shape.parameters:,}"),
        ("active per token", f"{shape.active_parameters:,}"),
        ("weights", ", ".join(weights)),
        *_expert_lines(shape),
        ("KV cache", f"{format_bytes(shape.kv_bytes_per_token())} per token, bfloat16"),
        *_state_lines(shape),
        (f"prefill of {inputs}", format_si(shape.prefill_flops(inputs), "FLOP")),
        (f"output token at {inputs}", format_si(shape.decode_flops(inputs), "FLOP")),
        (f"request of {inputs}/{outputs}", format_si(shape.request_flops(inputs, outputs), "FLOP")),
        ("largest batch", f"on one {gpu.title}, {inputs} tokens in and {outputs} out:"),
    ]
    for engine in ENGINES:
        limit = _limit(shape, gpu, engine)
        lines.append((f"  {engine}", f"{limit['batch']} in {limit['dtype']} ({limit['reason']})"))
    return lines


def _layers(shape: ModelShape) -> str:
    """How many layers, and of a hybrid how many of each kind."""
    if shape.mamba is None:
        return count_of(shape.layers, "layer")
    experts = 0 if shape.experts is None else shape.experts.layers
    kinds = {
        _state_kind(shape): shape.mamba.layers,
        "attention": shape.attention_layers,
        "MLP": shape.mlp.layers,
        "experts": experts,
    }
    return (
        f"{count_of(shape.layers, 'layer')}: {', '.join(f'{count} {kind}' for kind, count in kinds.items() if count)}"
    )


def _state_lines(shape: ModelShape) -> list[tuple[str, str]]:
    if shape.mamba is None:
        return []
    return [
        (
            f"{_state_kind(shape)} state",
            f"{format_bytes(shape.state_bytes)} per request of any length, read and written each step",
        )
    ]


def _state_kind(shape: ModelShape) -> str:
    """What its layers with a recurrent state are called."""
    return "Gated DeltaNet" if shape.mamba is not None and shape.mamba.delta else "Mamba-2"


def _coverage(shape: ModelShape) -> dict[str, float]:
    """Expected share of the experts that a decode step reads, by its batch; empty for a dense model."""
    return {} if shape.experts is None else {str(b): shape.experts.expected_coverage(b) for b in EXAMPLE_BATCHES}


def _expert_lines(shape: ModelShape) -> list[tuple[str, str]]:
    if shape.experts is None:
        return []
    shares = ", ".join(f"{format_percent(share)} at batch {batch}" for batch, share in _coverage(shape).items())
    count, each = shape.experts.experts, shape.experts.experts_per_token
    return [("experts", f"{count}, {each} per token; a step reads {shares}, if routing were uniform")]


def _weight_dtypes(shape: ModelShape) -> list[str]:
    """bfloat16, in which infergy runs models, and the format of the checkpoint if its size is known."""
    from infergy.catalog import DTYPE_BYTES

    published = shape.checkpoint.dtype
    if published is None or published == "bfloat16" or published not in DTYPE_BYTES:
        return ["bfloat16"]
    return ["bfloat16", published]


def _limit(shape: ModelShape, gpu: Gpu, engine: str) -> dict[str, Any]:
    from infergy.catalog.memory import largest_batch
    from infergy.records import DEFAULT_DTYPE

    dtype = shape.precision if engine == "vllm" else DEFAULT_DTYPE
    limit = largest_batch(shape, gpu, EXAMPLE_INPUT, EXAMPLE_OUTPUT, engine=engine, dtype=dtype)
    return {"batch": limit.batch, "dtype": dtype, "reason": limit.reason}


def _measured() -> Mapping[str, frozenset[str]]:
    """Ids of the cells that have a row in a shipped table, by GPU."""
    from infergy.catalog import catalog_name
    from infergy.records.store import read_store, shipped_rows

    cells: dict[str, frozenset[str]] = {}
    for path in shipped_rows():
        for row in read_store(path).rows:
            if row.is_ok and row.environment.gpus:
                gpu = catalog_name(row.environment.gpus[0].name)
                cells[gpu] = cells.get(gpu, frozenset()) | {row.cell_id}
    return cells


def _sizes(size: StudySize | None) -> tuple[str, str, str]:
    if size is None:
        return NONE, NONE, NONE
    return f"{size.cells}", format_duration(size.forecast_s), format_si(size.forecast_energy_j, "J")


def _echo_json(content: object) -> None:
    typer.echo(json.dumps(content, indent=1))


def _print_pairs(pairs: Sequence[tuple[str, str]]) -> None:
    width = max(len(head) for head, _ in pairs)
    for head, text in pairs:
        typer.echo(f"{head:{width}}  {text}")
