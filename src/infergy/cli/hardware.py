"""`infergy gpus`, `infergy models`: what is known of hardware and models, and what follows from it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infergy.units import count_of, format_bytes, format_number, format_percent, format_si

if TYPE_CHECKING:
    from infergy.hardware import Gpu, ModelShape

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, in SI units.")]

EXAMPLE_INPUT = 2048
EXAMPLE_OUTPUT = 512
EXAMPLE_BATCHES = (1, 8, 32, 128)


def gpus(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME_OR_PATH", help="One GPU, or a TOML file of one; none: list all.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the GPUs of the catalogue, or tell all that is known of one, with its source.

    Example: infergy gpus h200
    """
    from infergy.hardware import get_gpu, gpu_names

    if name is not None:
        gpu = get_gpu(name)
        _print_json(_gpu_facts(gpu)) if as_json else _print_pairs(_gpu_lines(gpu))
        return
    found = [get_gpu(known) for known in gpu_names()]
    if as_json:
        _print_json([_gpu_facts(gpu) for gpu in found])
        return
    heads = ("name", "bfloat16 (dense)", "memory", "bandwidth", "TDP")
    rows = [
        (
            gpu.name,
            format_si(gpu.peak_flops["bfloat16"], "FLOP/s"),
            format_bytes(gpu.memory_bytes),
            format_si(gpu.memory_bandwidth, "B/s"),
            f"{gpu.tdp_w:g} W",
        )
        for gpu in found
    ]
    _print_table(heads, rows)


def models(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME_OR_PATH", help="A shipped model, a config.json, numbers by hand."),
    ] = None,
    gpu: Annotated[
        str, typer.Option("--gpu", "-g", help="GPU for which to tell the largest batch; a TOML file too.")
    ] = "h200",
    as_json: JsonOption = False,
) -> None:
    """List the shipped models, or tell what follows from the shape of one: FLOPs, bytes, largest batch.

    Example: infergy models llama-3.1-8b --gpu h200
    """
    from infergy.hardware import get_gpu, get_model, model_names

    device = get_gpu(gpu)
    if name is not None:
        shape = get_model(name)
        _print_json(_model_facts(shape, device)) if as_json else _print_pairs(_model_lines(shape, device))
        return
    shapes = [get_model(known) for known in model_names()]
    if as_json:
        _print_json([_model_facts(shape, device) for shape in shapes])
        return
    heads = ("name", "parameters", "active", "bfloat16 weights", "KV cache a token")
    rows = [
        (
            shape.name,
            _count(shape.parameters),
            _count(shape.active_parameters),
            format_bytes(shape.weight_bytes()),
            format_bytes(shape.kv_bytes_per_token()),
        )
        for shape in shapes
    ]
    _print_table(heads, rows)


def _gpu_facts(gpu: Gpu) -> dict[str, Any]:
    return {
        "name": gpu.name,
        "title": gpu.title,
        "aliases": list(gpu.aliases),
        "compute_capability": gpu.compute_capability,
        "peak_flops": dict(gpu.peak_flops),
        "headline_flops": gpu.headline_flops,
        "headline_basis": gpu.headline_basis,
        "memory_bytes": gpu.memory_bytes,
        "memory_bandwidth": gpu.memory_bandwidth,
        "tdp_w": gpu.tdp_w,
        "link": {"kind": gpu.link.kind, "bandwidth": gpu.link.bandwidth},
        "source": gpu.source,
    }


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
        ("active a token", f"{shape.active_parameters:,}"),
        ("weights", ", ".join(weights)),
        *_expert_lines(shape),
        ("KV cache", f"{format_bytes(shape.kv_bytes_per_token())} a token, bfloat16"),
        *_state_lines(shape),
        (f"prefill of {inputs}", format_si(shape.prefill_flops(inputs), "FLOP")),
        (f"output token at {inputs}", format_si(shape.decode_flops(inputs), "FLOP")),
        (f"request of {inputs}/{outputs}", format_si(shape.request_flops(inputs, outputs), "FLOP")),
        ("largest batch", f"on one {gpu.title} in bfloat16, {inputs} tokens in and {outputs} out:"),
    ]
    for engine in ENGINES:
        limit = _limit(shape, gpu, engine)
        lines.append((f"  {engine}", f"{limit['batch']} ({limit['reason']})"))
    return lines


def _layers(shape: ModelShape) -> str:
    """How many layers, and of a hybrid how many of each kind."""
    if shape.mamba is None:
        return count_of(shape.layers, "layer")
    experts = 0 if shape.experts is None else shape.experts.layers
    kinds = {
        "Mamba-2": shape.mamba.layers,
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
    return [("Mamba-2 state", f"{format_bytes(shape.state_bytes)} a request of any length, read and written each step")]


def _coverage(shape: ModelShape) -> dict[str, float]:
    """Expected share of the experts that a decode step visits, by its batch; empty of a dense model."""
    return {} if shape.experts is None else {str(b): shape.experts.expected_coverage(b) for b in EXAMPLE_BATCHES}


def _expert_lines(shape: ModelShape) -> list[tuple[str, str]]:
    if shape.experts is None:
        return []
    shares = ", ".join(f"{format_percent(share)} at batch {batch}" for batch, share in _coverage(shape).items())
    count, each = shape.experts.experts, shape.experts.experts_per_token
    return [("experts", f"{count}, {each} a token; a step visits {shares}, were routing uniform")]


def _weight_dtypes(shape: ModelShape) -> list[str]:
    """bfloat16, in which infergy runs models, and the format of the checkpoint if its size is known."""
    from infergy.hardware import DTYPE_BYTES

    published = shape.checkpoint.dtype
    if published is None or published == "bfloat16" or published not in DTYPE_BYTES:
        return ["bfloat16"]
    return ["bfloat16", published]


def _limit(shape: ModelShape, gpu: Gpu, engine: str) -> dict[str, Any]:
    from infergy.hardware import largest_batch

    limit = largest_batch(shape, gpu, EXAMPLE_INPUT, EXAMPLE_OUTPUT, engine=engine)
    return {"batch": limit.batch, "reason": limit.reason}


def _count(parameters: int) -> str:
    """Parameters in the field's way: 8.03 B."""
    return f"{format_number(parameters / 1e9)} B"


def _print_json(content: object) -> None:
    typer.echo(json.dumps(content, indent=1))


def _print_pairs(pairs: Sequence[tuple[str, str]]) -> None:
    width = max(len(head) for head, _ in pairs)
    for head, text in pairs:
        typer.echo(f"{head:{width}}  {text}")


def _print_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as their content, the first to the left, figures to the right."""
    widths = [max(len(row[i]) for row in (heads, *rows)) for i in range(len(heads))]
    for row in (heads, *rows):
        cells = (f"{text:>{width}}" for text, width in zip(row[1:], widths[1:], strict=True))
        typer.echo("  ".join([f"{row[0]:{widths[0]}}", *cells]))
