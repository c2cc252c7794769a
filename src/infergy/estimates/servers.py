"""Servers as they are asked for, resolved: engine options, step cost and what was measured of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from infergy.catalog import canonical_name, get_gpu, get_model, model_config
from infergy.catalog.gpus import IDLE_SHARE, Gpu
from infergy.catalog.models import model_context
from infergy.catalog.shape import ModelShape
from infergy.cost.model import Server, StepCost
from infergy.cost.table import SHIPPED_TABLE as SHIPPED_TABLE
from infergy.cost.table import MeasuredServer, ServedBy, Table, fit_of, is_table, read_table
from infergy.cost.table import shipped_table as shipped_table
from infergy.errors import DataError, UsageError
from infergy.records import DEFAULT_DTYPE, ENGINES, FP8, EngineSetup
from infergy.records.engine_setup import DTYPES, OPTIONS, WEIGHT_ONLY, parse_label_beside
from infergy.serving.config import (
    EngineConfig,
    EngineOptions,
    StaticConfig,
    UsageContext,
    check_context,
    check_options,
    resolve,
)
from infergy.serving.run import Run
from infergy.serving.setups import reject_measured
from infergy.serving.simulate import Router, simulate
from infergy.units import count_of, format_bytes
from infergy.workload.requests import Requests

DEFAULT_MODEL, DEFAULT_GPU = "llama-3.1-8b", "h200"
UNQUANTISED = ("bfloat16", "float16", "float32")
LONGEST_TOKENS = 2**20
"""Of a request to a model that states no context and keeps no keys and values."""
ANY_ENGINE = ("precision", "max_num_seqs", "max_model_len", "tensor_parallel_size", "enforce_eager")
"""Options that not only vLLM has."""
LABELLED = ("max_sequences", "max_batched_tokens", "max_model_len", "gpu_memory_utilization")
STATIC_BATCH = 32
"""Requests of a static batch under transformers, unless --max-num-seqs says otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSpec:
    """A server as it is asked for.

    Attributes:
        engine: ``vllm`` or ``transformers``, and what is not at its default: ``vllm-fp8-tp2``.
        precision: Of weights and matmuls; None is that of `engine`, under vLLM else that of the model's checkpoint.
        replicas: Servers of the same kind; `router` gives each request to one.
        usage_context: Whose defaults: ``server`` (`vllm serve`) or ``llm`` (the `LLM` class).
        version: Of vLLM.
        options: In vLLM's words.
    """

    engine: str = "vllm"
    model: str = DEFAULT_MODEL
    gpu: str = DEFAULT_GPU
    precision: str | None = None
    replicas: int = 1
    router: Router = "round_robin"
    usage_context: UsageContext = "server"
    version: str = "0.25"
    options: EngineOptions = field(default_factory=EngineOptions)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenServer:
    """A server that can serve, in simulation.

    Attributes:
        spec: As it was asked for, with the options that its engine's name gives.
        setup: Engine, model, precision and GPUs, as rows name them.
        gpu: Kind of its GPUs.
        cost: What its steps cost.
        config: Its engine's options.
        measured: The range of its measured steps; None if none was.
        notes: What had to be assumed.
    """

    spec: ServerSpec
    setup: EngineSetup
    gpu: Gpu
    cost: StepCost
    config: EngineConfig | StaticConfig
    measured: MeasuredServer | None
    notes: tuple[str, ...]

    @property
    def label(self) -> str:
        """The engine and all that a label can say of its options, as `--engine` takes it: ``vllm-fp8-s16``."""
        options, plain = self.spec.options, EngineOptions()
        given = {part: getattr(options, OPTIONS[part]) for part in LABELLED}
        changed = {part: value for part, value in given.items() if value != getattr(plain, OPTIONS[part])}
        return replace(self.setup, **changed).label

    def serve(self, requests: Requests, *, shares: bool = False) -> Run:
        """Serve requests in simulation; with `shares` the run has the energy of each."""
        spec = self.spec
        return simulate(requests, self.config, self.cost, replicas=spec.replicas, router=spec.router, shares=shares)


def open_server(spec: ServerSpec, table: Table | None = None) -> OpenServer:
    """Resolve a server: what it costs a step, by the (shipped) table, and the options that its engine runs with.

    Raises:
        UsageError: A name is unknown, the engine rejects an option, or the model does not fit.
        DataError: A file of a model or GPU is not what it should be.
    """
    setup, table = setup_of(spec), table or shipped_table()
    spec = replace(spec, options=options_of(spec))
    gpu, shape = get_gpu(spec.gpu), get_model(spec.model)
    if setup.dtype == "mxfp4" and shape.experts is None:
        raise UsageError.bad_value(
            "--precision", "mxfp4", f"bfloat16: mxfp4 is a format of experts' matrices, and {shape.name} has none"
        )
    if setup.dtype == "float16":
        gpu.dense_flops(setup.dtype)
    by = ServedBy.of(setup, gpu.name, is_api=setup.engine == "vllm" and spec.usage_context == "server")
    measured, idle_w, notes = table.find(by), table.idle_w(gpu.name), table.notes
    if idle_w is None:
        idle_w = IDLE_SHARE * gpu.tdp_w
        notes = (f"idle power of {gpu.title} was not measured: {IDLE_SHARE:.1%} of TDP is taken", *notes)
    server = Server.of(by, shape, gpu, idle_w * by.gpus, table.measured)
    assumed = _assumed_precision(spec, setup, shape, gpu)
    try:
        config = _config(spec, setup, shape, gpu)
    except UsageError as error:
        error.args = (". ".join([str(error), *assumed]),)
        raise
    return OpenServer(
        spec=spec,
        setup=setup,
        gpu=gpu,
        cost=StepCost(server, fit_of(table, by.engine)),
        config=config,
        measured=measured,
        notes=(*assumed, *config.notes, *notes),
    )


def setup_of(spec: ServerSpec) -> EngineSetup:
    """Engine, precision and GPUs that a spec's engine name and options stand for together.

    Raises:
        UsageError: The two contradict, or a part is unknown.
    """
    options, plain = spec.options, ServerSpec()
    given = {"dtype": spec.precision} | {
        part: getattr(of, name)
        for of, default in ((options, plain.options), (spec, plain))
        for part, name in OPTIONS.items()
        if getattr(of, name, None) != getattr(default, name, None)
    }
    parts = parse_label_beside(spec.engine, given)
    check_options(options_of(spec))
    engine = parts["engine"]
    _reject_parts(spec.engine, parts)
    parts.setdefault("tensor_parallel", options.tensor_parallel_size)
    dtype = parts["dtype"] = (
        parts.get("dtype") or spec.precision or (get_model(spec.model).precision if engine == "vllm" else DEFAULT_DTYPE)
    )
    if dtype not in DTYPES:
        raise UsageError.bad_value("--precision", dtype, f"one of {', '.join(DTYPES)}")
    if engine == "transformers" and dtype in (FP8, *WEIGHT_ONLY):
        message = (
            f"--engine {spec.engine} in {dtype}: transformers serves bfloat16 and float16. Other engines in "
            f"it: -e transformers -e vllm-{FP8}"
        )
        raise UsageError(message, code="engine-lacks", engine=engine, option="--precision", value=dtype)
    if options.enforce_eager and engine == "vllm":
        parts["cuda_graphs"] = False
    return EngineSetup(model=canonical_name(spec.model), **parts)


def _reject_parts(label: str, parts: Mapping[str, Any]) -> None:
    """Reject parts of an engine's label that are not simulated, or that the engine has not."""
    engine = parts["engine"]
    if engine not in ENGINES:
        raise UsageError.unknown("engine", engine, ENGINES, code="unknown-engine")
    reject_measured(label, parts)
    if "compiled" in parts and engine == "vllm":
        why = 'vLLM compiles by itself; leave "compiled" out, which is for transformers'
        raise UsageError.engine_lacks(engine, "--engine", label, why)
    reject_vllm_options(label, (OPTIONS[part] for part in parts if part in OPTIONS))


def options_of(spec: ServerSpec) -> EngineOptions:
    """Options of a spec, those that its engine's name gives among them."""
    parts, own = EngineSetup.parse_label(spec.engine), {known.name for known in fields(EngineOptions)}
    given = {OPTIONS[part]: value for part, value in parts.items() if OPTIONS.get(part) in own}
    is_eager = spec.options.enforce_eager or parts.get("cuda_graphs") is False
    return replace(spec.options, enforce_eager=is_eager, **given)


def reject_vllm_options(engine: str, names: Iterable[str]) -> None:
    """Reject options of vLLM, by their names in Python, that are given to an engine which has none of them.

    Raises:
        UsageError: There are any.
    """
    options = [f"--{name.replace('_', '-')}" for name in names if name not in ANY_ENGINE]
    if options and engine.partition("-")[0] == "transformers":
        message = (
            f"--engine {engine}: {', '.join(options)} {'is an option' if len(options) == 1 else 'are options'} of vLLM "
            "alone. Leave out what the engine lacks; servers with options of their own: --compare FILE.toml"
        )
        raise UsageError(message, code="engine-lacks", engine=engine, option=options[0])


def _assumed_precision(spec: ServerSpec, setup: EngineSetup, shape: ModelShape, gpu: Gpu) -> list[str]:
    """The substitute for a format that cannot be costed, or that the GPU does not compute in.

    vLLM's docs, features/quantization: below compute capability 8.9 fp8 models run "as weight-only W8A16, utilizing
    FP8 Marlin".
    """
    published, notes = shape.checkpoint.dtype, []
    is_open = spec.precision is None and "dtype" not in EngineSetup.parse_label(spec.engine)
    if is_open and published not in (None, setup.dtype, *UNQUANTISED):
        other = f"; --engine vllm serves it in {published}" if shape.precision == published else ""
        notes.append(
            f"the checkpoint of {shape.name} is in {published}, which is not simulated under {setup.engine}: it is "
            f"taken as {setup.dtype}, {format_bytes(shape.weight_bytes(setup.dtype))} of weights{other}"
        )
    if setup.dtype in WEIGHT_ONLY:
        notes.append(
            f"{setup.dtype} was not measured anywhere: the estimate has weights of "
            f"{format_bytes(shape.weight_bytes(setup.dtype))}, widened to 16 bits to be multiplied"
        )
    if setup.dtype == FP8 and not gpu.has_units(FP8):
        notes.append(
            f"{gpu.title} has no FP8 arithmetic: vLLM keeps the weights in fp8 there and computes in 16 bits (W8A16), "
            "and so does this estimate"
        )
    return notes


def loaded_setup(setup: EngineSetup) -> EngineSetup:
    """What of an engine config is a matter of engine, precision and GPUs, without the options of its scheduler."""
    return EngineSetup(
        engine=setup.engine,
        model=setup.model,
        dtype=setup.dtype,
        cuda_graphs=setup.cuda_graphs,
        tensor_parallel=setup.tensor_parallel,
        compiled=setup.compiled,
    )


def load_tables(paths: Sequence[str | Path] = (), *, allow_simulated: bool = False) -> Table:
    """The shipped table, with what a user's rows or tables add to it.

    Args:
        paths: Stores of rows, or tables.
        allow_simulated: Whether rows of the simulated GPU may be used.

    Raises:
        DataError: A file is neither rows nor a table, or its rows are simulated.
    """
    table, notes = shipped_table(), []
    for path in map(Path, paths):
        table = add_rows(table, path, allow_simulated=allow_simulated)
        if table.repeated:
            notes.append(f"{path}: {count_of(table.repeated, 'row')} of it known already, which counts once")
        notes += [f"{path}, {note}" for note in outlier_notes(table)]
        if any(entry.origin.simulated for entry in table.entries):
            notes.append(f"{path}: rows of a simulated GPU, which say nothing about real ones")
        notes += table.notes
    return replace(table, notes=tuple(notes)) if notes else table


def outlier_notes(table: Table) -> list[str]:
    """Rows that the fit of a table misses by far."""
    return [
        f"cell {origin.cell_id} ({origin.cell}): {factor:.3g} times the energy by the fit of all rows, which widens "
        "the intervals. Measure it again, or leave the row out"
        for origin, factor in table.outliers
    ]


def add_rows(table: Table, path: Path, *, allow_simulated: bool = False) -> Table:
    """A table with what a store of rows, or another table, adds to it.

    Raises:
        DataError: The file is neither, or its rows are simulated.
    """
    from infergy.cost.fit import make_table
    from infergy.estimates.build import build_table, simulated_rows

    if not path.exists():
        raise DataError.not_found(path, f"Measure one: infergy measure paper-bins -o {path}")
    if not is_table(path):
        return build_table([path], table, allow_simulated=allow_simulated)
    own = read_table(path, entries=True)
    simulated = next((entry.origin for entry in own.entries if entry.origin.simulated), None)
    if simulated is not None and not allow_simulated:
        raise simulated_rows(path, simulated.cell_id, simulated.cell)
    return make_table(own.entries, own.environments, prior=table)


def _config(spec: ServerSpec, setup: EngineSetup, shape: ModelShape, gpu: Gpu) -> EngineConfig | StaticConfig:
    context = model_context(model_config(spec.model))
    if setup.engine == "transformers":
        return _static_config(spec.engine, spec.options, setup, shape, gpu, context)
    return resolve(
        shape,
        gpu,
        spec.options,
        dtype=setup.dtype,
        version=spec.version,
        usage_context=spec.usage_context,
        context_tokens=context,
    )


def _static_config(
    engine: str, options: EngineOptions, setup: EngineSetup, shape: ModelShape, gpu: Gpu, context: int | None
) -> StaticConfig:
    from infergy.catalog.memory import RESERVE_BYTES

    plain = EngineOptions()
    reject_vllm_options(
        engine, (own.name for own in fields(options) if getattr(options, own.name) != getattr(plain, own.name))
    )
    check_context(shape, options.max_model_len, context)
    have = (gpu.memory_bytes - RESERVE_BYTES) * setup.tensor_parallel
    need = shape.weight_bytes(setup.dtype)
    if need > have:
        message = (
            f"{shape.name} does not fit: its {setup.dtype} weights need {format_bytes(need)}, {gpu.title} has "
            f"{format_bytes(gpu.memory_bytes)}, {format_bytes(RESERVE_BYTES)} of it for workspaces; choose a larger "
            "GPU (-g) or a smaller model (-m)"
        )
        raise UsageError(message, code="does-not-fit", model=shape.name, gpu=gpu.name)
    longest, notes = options.max_model_len or context, []
    if context is None:
        # A request alone must leave room for its own keys and values.
        per_token = shape.kv_bytes_per_token()
        kept = int((have - need) // per_token) if per_token else LONGEST_TOKENS
        longest = min(longest or kept, kept)
        notes.append(f"the longest context of {shape.name} is not known: the memory bounds it, {longest:,} tokens")
    fits = partial(_batch_that_fits, setup=setup, shape=shape, gpu=gpu, given=options.max_num_seqs)
    return StaticConfig(
        max_num_seqs=options.max_num_seqs or STATIC_BATCH,
        max_model_len=longest,
        tensor_parallel_size=setup.tensor_parallel,
        has_graphs=setup.compiled,
        notes=tuple(notes),
        fits=fits,
    )


def _batch_that_fits(
    size: int,
    input_tokens: int,
    output_tokens: int,
    *,
    setup: EngineSetup,
    shape: ModelShape,
    gpu: Gpu,
    given: int | None,
) -> int:
    """How many of `size` requests fit at once: transformers may use all of the memory, of which plans leave a tenth.

    Raises:
        UsageError: Fewer than were `given` as the size of a batch.
    """
    from infergy.catalog.memory import largest_batch

    limit = largest_batch(
        shape,
        gpu,
        input_tokens,
        output_tokens,
        engine=setup.engine,
        dtype=setup.dtype,
        tensor_parallel=setup.tensor_parallel,
        memory_fraction=1.0,
    )
    if given is not None and limit.batch < size > 1:
        message = (
            f"--max-num-seqs {given}: not a static batch fits {gpu.title}: {limit.reason}, and {size} of up to "
            f"{input_tokens:,} input and {output_tokens:,} output tokens are served at once. Give at most "
            f"{max(1, limit.batch)}, or leave it out to serve as many as fit"
        )
        raise UsageError(message, code="does-not-fit", option="--max-num-seqs", value=given, gpu=gpu.name)
    return min(size, limit.batch)
