"""What to type for a server, and the server that a typed command means.

    OpenServer ──▶ label, command          "vllm serve MODEL --max-num-seqs 64" ──▶ TypedServer

Flags are those of vLLM 0.25.
"""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from itertools import starmap, takewhile
from typing import Any, NamedTuple

from infergy.catalog import get_model
from infergy.catalog.models import shape_of_id
from infergy.catalog.shape import ModelShape
from infergy.errors import UsageError
from infergy.estimates.candidates import MOST_GPUS
from infergy.estimates.servers import DEFAULT_GPU, UNQUANTISED, OpenServer, ServerSpec, loaded_setup
from infergy.records.engine_setup import FP8, WEIGHT_ONLY
from infergy.serving.config import EngineOptions

TO_FP8 = "--quantization fp8_per_tensor"
VLLM_OPTIONS = (
    *("max_num_batched_tokens", "long_prefill_token_threshold", "gpu_memory_utilization", "num_gpu_blocks"),
    *("block_size", "async_scheduling", "cudagraph_capture_sizes"),
)
EXAMPLE = '"vllm serve meta-llama/Llama-3.1-8B-Instruct --max-num-seqs 256"'
BEGINNING = re.compile(r"serve|vllm\.entrypoints\.openai\.api_server|(.*/)?vllm-openai(:.*)?")
"""The word after which flags follow; the last one is an image."""
ENDING = re.compile(r"[|&;]+|\d*[<>].*")
"""A word with which a shell ends a command, or sends its output elsewhere."""
FP8_METHODS = ("fp8", "fp8_per_tensor", "fp8_per_block", "fbgemm_fp8", "ptpc_fp8")
STORED = ("compressed-tensors", "modelopt", "mxfp4", "gpt_oss_mxfp4")
"""Methods of checkpoints in several formats."""
INT4_METHODS = ("awq", "awq_marlin", "gptq", "gptq_marlin", "bitsandbytes")
DTYPES = {"auto": None, "half": "float16", "float16": "float16", "bfloat16": "bfloat16"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TypedServer:
    """A server that is started by a command.

    Attributes:
        spec: What is simulated.
        model: As typed; a recommended command has it again.
        others: Flags that nothing simulated depends on, as typed; a recommended command has them again.
        notes: What of the command is not simulated.
        is_stored_fp8: Whether the weights of MODEL are in fp8 already.
    """

    spec: ServerSpec
    model: str
    others: tuple[str, ...]
    notes: tuple[str, ...]
    is_stored_fp8: bool = False

    def again(self, command: Sequence[str]) -> list[str]:
        """A command of `command_of` for the model that was typed, with the flags that were typed."""
        # vLLM rejects another method than that of the checkpoint.
        own = [word for word in command if not (self.is_stored_fp8 and word == TO_FP8)]
        return [own[0].replace("MODEL", shlex.quote(self.model)), *own[1:], *self.others]


def label_of(server: OpenServer) -> str:
    """The engine, and the options that are not at its default: ``vllm-fp8 max-num-seqs=16``."""
    options, plain = server.spec.options, EngineOptions()
    label = loaded_setup(server.setup).label
    given = {"max_num_seqs": options.max_num_seqs}
    if server.setup.engine == "vllm":
        given |= {name: getattr(options, name) for name in VLLM_OPTIONS}
    given |= {"max_model_len": options.max_model_len}
    words = [f"{name.replace('_', '-')}={value}" for name, value in given.items() if value != getattr(plain, name)]
    if not options.enable_prefix_caching and server.setup.engine == "vllm":
        words.append("no-prefix-caching")
    if server.spec.replicas > 1:
        words.append(f"replicas={server.spec.replicas}")
    standard = ServerSpec()
    words += [
        f"{name.replace('_', '-')}={getattr(server.spec, name)}"
        for name in ("router", "usage_context", "version")
        if getattr(server.spec, name) != getattr(standard, name)
    ]
    return " ".join([label, *words])


def command_of(server: OpenServer) -> tuple[str, ...]:
    """What to type to serve so: vLLM's own options; of transformers, what to write."""
    setup, options, plain = server.setup, server.spec.options, EngineOptions()
    if setup.engine != "vllm":
        static = ', cache_implementation="static"' * setup.compiled
        size = server.config.options()["max_num_seqs"]
        return (f"model.generate(batches of up to {size}{static})", f"dtype=torch.{setup.dtype}")
    published = get_model(server.spec.model).checkpoint.dtype
    given: dict[str, Any] = {
        "quantization": "fp8_per_tensor" if setup.dtype == FP8 != published else None,
        "dtype": {"float16": "float16"}.get(setup.dtype),
        "max_num_seqs": options.max_num_seqs,
        "tensor_parallel_size": setup.tensor_parallel,
        "enforce_eager": setup.cuda_graphs is False,
        "max_num_batched_tokens": options.max_num_batched_tokens,
        "max_model_len": options.max_model_len,
        "gpu_memory_utilization": options.gpu_memory_utilization,
        "long_prefill_token_threshold": options.long_prefill_token_threshold,
        "no_enable_prefix_caching": not options.enable_prefix_caching or None,
        "block_size": options.block_size,
        "num_gpu_blocks_override": options.num_gpu_blocks,
        "no_async_scheduling": not options.async_scheduling or None,
        "cudagraph_capture_sizes": options.cudagraph_capture_sizes,
    }
    given = {name: value for name, value in given.items() if value != getattr(plain, name, None)}
    if server.spec.usage_context == "llm":
        words = [f"LLM({', '.join(['MODEL', *starmap(_argument, given.items())])})"]
    else:
        words = ["vllm serve MODEL", *starmap(_spelled, given.items())]
    if setup.dtype in WEIGHT_ONLY and setup.dtype != published:
        words.append(f"# MODEL: a checkpoint in {setup.dtype}")
    if server.spec.replicas > 1:
        words.append(_spelled_replicas(server))
    return tuple(words)


def _spelled_replicas(server: OpenServer) -> str:
    # vLLM's docs, serving/data_parallel_deployment: ranks of a dense model are independent and the front end gives each
    # request to the one with the least load; those of a mixture of experts compute in step, which is not simulated.
    count, router = server.spec.replicas, server.spec.router
    if router == "least_loaded" and server.cost.server.work.experts is None:
        return f"--data-parallel-size {count}"
    return f"# {count} such servers behind a router, {router}"


def _spelled(name: str, value: Any) -> str:
    """A flag with its value or values; True has none."""
    values = [] if value is True else value if isinstance(value, tuple) else [value]
    return " ".join([f"--{name.replace('_', '-')}", *map(str, values)])


def _argument(name: str, value: Any) -> str:
    """An option as the `LLM` class takes it."""
    return f"{name.removeprefix('no_')}={False if name.startswith('no_') else value!r}"


def parse_command(command: str, *, gpu: str = DEFAULT_GPU, model: str | None = None) -> TypedServer:
    """The server that a command line of vLLM 0.25 starts.

    Args:
        command: ``vllm serve MODEL --flags``; variables before it are left out.
        gpu: Kind of its GPUs.
        model: What MODEL is: a shipped name or a config.json; None: what is known of MODEL.

    Raises:
        UsageError: It is no such command, a flag is unknown, or a value is none of the flag.
    """
    name, flags = _read(command)
    options: dict[str, Any] = {}
    notes, others = [], []
    for flag, typed, values in flags:
        if flag in SIMULATED:
            options[SIMULATED[flag].option] = _value(flag, values)
            continue
        if flag == "pipeline-parallel-size" and values != ["1"]:
            message = "--pipeline-parallel-size of --present is not simulated: give --tensor-parallel-size in its place"
            raise UsageError(message, code="not-supported", option="--present", reason="pipeline parallelism")
        others.append(shlex.join(typed))
        if flag not in known_flags()["no_effect"]:
            notes.append(f"--{flag} of the present command is not simulated")
    # The narrowest counts: weights in 8 bits have a dtype of 16 beside them.
    is_quantised, dtype = "quantization" in options, options.pop("dtype", None)
    precision = options.pop("quantization", None) or dtype
    shape = _shape(name) if model is None else get_model(model)
    is_stored_fp8 = model is None and shape.checkpoint.dtype == FP8
    if model is None and shape.precision not in UNQUANTISED:
        precision = shape.precision
    if is_quantised and precision not in (FP8, *WEIGHT_ONLY) and shape.checkpoint.dtype in UNQUANTISED:
        notes.append(f"--quantization of {name}: the format of its weights is not known, and is taken as 16 bits")
    replicas = options.pop("replicas", 1)
    spec = ServerSpec(
        engine="vllm",
        model=model or shape.name,
        gpu=gpu,
        precision=precision,
        replicas=replicas,
        router="least_loaded" if replicas > 1 else "round_robin",
        options=EngineOptions(**options),
    )
    return TypedServer(spec=spec, model=name, others=tuple(others), notes=tuple(notes), is_stored_fp8=is_stored_fp8)


def _shape(name: str) -> ModelShape:
    """The shape of MODEL: a name of Hugging Face, or what `--model` takes."""
    try:
        return shape_of_id(name) or get_model(name)
    except UsageError as error:
        if error.code != "unknown-model":
            raise
        message = f"{error}. Beside --present, --model says what it is: --model llama-3.1-8b"
        raise UsageError(message, code="unknown-model", name=name, nearest=error.fields.get("nearest", [])) from error


@cache
def known_flags() -> Mapping[str, Any]:
    """The content of data/vllm_flags.toml."""
    return tomllib.loads((resources.files("infergy") / "data" / "vllm_flags.toml").read_text(encoding="utf-8"))


def _read(command: str) -> tuple[str, list[Typed]]:
    """MODEL and the flags."""
    try:
        words = shlex.split(command.replace("\\\n", " "))
    except ValueError as error:
        raise UsageError.bad_value("--present", command, f"a command with closed quotes, as {EXAMPLE}") from error
    starts = [k for k, word in enumerate(words) if BEGINNING.fullmatch(word) and words[max(0, k - 1)] != "bench"]
    if not starts:
        raise UsageError.bad_value("--present", command, f"the command that starts the server, as {EXAMPLE}")
    flags = [Typed("model", [], [])]
    for word in takewhile(lambda word: not ENDING.fullmatch(word), words[starts[0] + 1 :]):
        if word.startswith("-") and not word[1:2].isdigit():
            typed, _, value = word.partition("=")
            name, implied = _flag(typed)
            flags.append(Typed(name, [word], [value] if value else implied))
        else:
            flags[-1].words.append(word)
            flags[-1].values.append(word)
    names = [name for flag in flags if flag.name == "model" for name in flag.values]
    if len(names) != 1:
        raise UsageError.bad_value("--present", command, f"one MODEL after serve, as {EXAMPLE}")
    return names[0], [flag for flag in flags if flag.name != "model"]


def _flag(typed: str) -> tuple[str, list[str]]:
    """The name of a flag, as vLLM reads it, and the value that its spelling implies."""
    known = known_flags()
    names = [*SIMULATED, "model", *known["no_effect"], *known["not_simulated"]]
    # A dotted one sets a key of its JSON; -O3 is one word, and -O.mode=3 of another flag than -O.
    head = re.sub(r"^-O\d$", "-O", typed.replace("-O.", "-cc.").partition(".")[0])
    name = known["short"].get(head, head.removeprefix("--").replace("_", "-"))
    if name in names:
        return name, []
    if name.startswith("no-") and name[3:] in names:
        return name[3:], ["false"]
    spelled = [f"--{name}" for name in names]
    hint = "Flags are those of vLLM 0.25"
    raise UsageError.unknown("flag of vllm serve", typed, spelled, hint, code="unknown-name", option="--present")


def _value(flag: str, values: Sequence[str]) -> Any:
    known = SIMULATED[flag]
    try:
        (text,) = [",".join(values)] if known.read is _sizes else values or (["true"] if known.read is _switch else [])
        return known.read(text)
    except (ValueError, KeyError, OverflowError) as error:
        shown = " ".join(values) or "nothing"
        raise UsageError.bad_value(f"--{flag} of --present", shown, f"a value such as {known.example}") from error


def _switch(text: str) -> bool:
    return {"true": True, "false": False}[text.lower()]


def _count(text: str) -> int:
    """A number as vLLM reads it: 16k is 16,000 and 16K is 16,384 (`human_readable_int`)."""
    factors = {"k": 10**3, "m": 10**6, "g": 10**9, "K": 2**10, "M": 2**20, "G": 2**30}
    factor = factors.get(text[-1:], 1)
    return int(float(text[:-1]) * factor) if factor > 1 else int(text)


def _replicas(text: str) -> int:
    count = _count(text)
    if not 1 <= count <= MOST_GPUS:
        raise ValueError
    return count


def _quantization(text: str) -> str | None:
    """The format that a method makes, or of whose checkpoints it is; None where the checkpoint says."""
    formats = dict.fromkeys(FP8_METHODS, FP8) | dict.fromkeys(INT4_METHODS, "int4") | {"modelopt_fp4": "nvfp4"}
    return (formats | dict.fromkeys(STORED))[text]


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.strip("[]").split(",")))


class Typed(NamedTuple):
    """A flag of a command, its words as typed, and its values; ``no-`` before a name is the value ``false``."""

    name: str
    words: list[str]
    values: list[str]


class Flag(NamedTuple):
    """A flag that is simulated: the name here, how its value is read, and an example of one."""

    option: str
    read: Callable[[str], Any]
    example: str


SIMULATED: Mapping[str, Flag] = {
    "max-num-seqs": Flag("max_num_seqs", _count, "256"),
    "max-num-batched-tokens": Flag("max_num_batched_tokens", _count, "8192"),
    "max-model-len": Flag("max_model_len", lambda text: None if text in ("auto", "-1") else _count(text), "16384"),
    "gpu-memory-utilization": Flag("gpu_memory_utilization", float, "0.92"),
    "enable-prefix-caching": Flag("enable_prefix_caching", _switch, "true"),
    "long-prefill-token-threshold": Flag("long_prefill_token_threshold", _count, "2048"),
    "num-gpu-blocks-override": Flag("num_gpu_blocks", _count, "4096"),
    "block-size": Flag("block_size", _count, "16"),
    "async-scheduling": Flag("async_scheduling", _switch, "true"),
    "tensor-parallel-size": Flag("tensor_parallel_size", _count, "2"),
    "enforce-eager": Flag("enforce_eager", _switch, "true"),
    "cudagraph-capture-sizes": Flag("cudagraph_capture_sizes", _sizes, "1 2 4"),
    "data-parallel-size": Flag("replicas", _replicas, "2"),
    "dtype": Flag("dtype", DTYPES.__getitem__, "bfloat16"),
    "quantization": Flag("quantization", _quantization, "fp8; 4-bit and integer weights are not simulated"),
}
