"""Options of every verb that estimates: which servers, which measurements."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, fields
from itertools import product
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from infergy.cli.options import OPTION, AllowSimulatedOption, flag, option
from infergy.errors import DataError, UsageError
from infergy.files import read_toml

if TYPE_CHECKING:
    from infergy.cost.table import Table
    from infergy.estimates.servers import ServerSpec

ROUTERS = ("round_robin", "least_loaded")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerKind:
    """What a server is, and how many there are; repeated options give one server for each combination."""

    engine: list[str] | None = option(
        "vllm, transformers, vllm-eager, vllm-fp8-tp2; repeatable [default: vllm]", "--engine", "-e"
    )
    model: list[str] | None = option("Name or config.json; repeatable [default: llama-3.1-8b]", "--model", "-m")
    gpu: list[str] | None = option("Name or .toml file; repeatable [default: h200]", "--gpu", "-g")
    precision: list[str] | None = option(
        "bfloat16, float16, fp8, int8, int4, nvfp4, mxfp4; repeatable [default: the checkpoint's own]"
    )
    tensor_parallel_size: int | None = option(
        "GPUs that share the model [default: 1]", "--tensor-parallel-size", "-tp", min=1
    )
    replicas: int = option("Servers of this kind", default=1, min=1, max=10_000)
    router: str = option("round_robin or least_loaded", default="round_robin")
    usage_context: str | None = option("Whose defaults: server (vllm serve) or llm (the LLM class) [default: server]")
    vllm_version: str | None = option("Whose scheduler: 0.25 or 0.33 [default: 0.25]")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSelection(ServerKind):
    """Which servers, in vLLM's words."""

    max_num_seqs: int | None = option("Requests at once; of transformers, of a batch [default: 32]", min=1)
    max_num_batched_tokens: int | None = option("Tokens of a step", min=1)
    enforce_eager: bool = flag("No CUDA graphs, as -e vllm-eager", "--enforce-eager")
    max_model_len: int | None = option("Longest request, prompt and answer", min=1)
    gpu_memory_utilization: float | None = option("Share of the GPU's memory [default: 0.92]")
    enable_prefix_caching: bool | None = option(
        "Keep blocks of finished requests [default: keep]", "--enable-prefix-caching/--no-enable-prefix-caching"
    )
    long_prefill_token_threshold: int | None = option(
        "Most prompt tokens of a request in a step [default: no limit]", min=0
    )
    num_gpu_blocks: int | None = option("Blocks of the KV cache, if you know vLLM's", min=2, max=2**31)
    compare: Path | None = option("Servers as [[server]] tables of these options' names", metavar="FILE.toml")

    def specs(self) -> list[ServerSpec]:
        """The servers, each once.

        Raises:
            UsageError: A value is unknown, or the file names an option that is none.
            DataError: The file cannot be read.
        """
        own = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "compare"}
        if self.compare is not None:
            return list(dict.fromkeys(spec for one in _servers_of(self.compare) for spec in _specs({**own, **one})))
        return list(dict.fromkeys(_specs(own)))


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredSelection:
    """Whose measurements."""

    table: list[str] | None = option(
        "Your own rows or table, which sharpen the shipped one; repeatable", "--table", "-t"
    )
    allow_simulated: AllowSimulatedOption = False

    def load(self) -> Table:
        """The shipped table, with these.

        Raises:
            DataError: A file is neither rows nor a table.
        """
        from infergy.estimates.servers import load_tables

        return load_tables(self.table or (), allow_simulated=self.allow_simulated)


TABLES = "[[server]] tables with engine, model, gpu, …"
KINDS_OF_VALUE = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text in quotes",
    list[str]: "text in quotes, or a list of such",
}


def _servers_of(path: Path) -> list[dict[str, Any]]:
    content = read_toml(path, f"--compare takes a file of {TABLES}")
    servers: Any = content.get("server")
    is_list = isinstance(servers, list) and servers and all(isinstance(one, dict) for one in servers)
    if not is_list or set(content) != {"server"}:
        raise DataError.missing_field(path, ["server"], f"expected are {TABLES}, alone")
    for number, server in enumerate(servers, start=1):
        for name, value in server.items():
            _check_value(path, number, name, value)
    return [{name.replace("-", "_"): value for name, value in server.items()} for server in servers]


def _check_value(path: Path, number: int, name: str, value: Any) -> None:
    """Reject a key that is no option, and a value that the option could not have."""
    hints, place = get_type_hints(ServerSelection), f"{path}: server {number}"
    known = {field.name: field for field in fields(ServerSelection) if field.name != "compare"}
    if name.replace("-", "_") not in known:
        raise UsageError.unknown(f"option in {path}", name, known, code="unknown-field", place=str(path), key=name)
    hint = hints[name.replace("-", "_")]
    kind = next((one for one in get_args(hint) if one is not NoneType), hint)
    if not _is_of(kind, value):
        raise DataError.bad_field(place, name, value, KINDS_OF_VALUE[kind])
    limits = known[name.replace("-", "_")].metadata[OPTION]
    for limit, words, is_past in ((limits.min, "at least", operator.lt), (limits.max, "at most", operator.gt)):
        if limit is not None and is_past(value, limit):
            raise DataError.bad_field(place, name, value, f"{words} {limit}")


def _is_of(kind: Any, value: Any) -> bool:
    if kind == list[str]:
        return isinstance(value, str) or (isinstance(value, list) and all(isinstance(one, str) for one in value))
    return type(value) in ((int, float) if kind is float else (kind,))


def _specs(values: Mapping[str, Any]) -> list[ServerSpec]:
    from infergy.estimates.servers import DEFAULT_GPU, DEFAULT_MODEL, ServerSpec, reject_vllm_options
    from infergy.records.engine_setup import OPTIONS, parse_label_beside
    from infergy.serving.config import EngineOptions

    if values["router"] not in ROUTERS:
        raise UsageError.unknown("router", values["router"], ROUTERS, code="unknown-name", option="--router")
    known = {name: value for name, value in values.items() if value is not None}
    names = [field.name for field in fields(EngineOptions)]
    options = EngineOptions(**{name: known[name] for name in names if name in known})
    of_vllm = ("usage_context", "vllm_version", *names)
    given = {part: known.get(name) for part, name in OPTIONS.items()}

    def listed(name: str, default: Any) -> list[Any]:
        value = values[name]
        names = value if isinstance(value, list) else [value]
        if name == "gpu":
            names = [gpu for one in names if one for gpu in one.split(",")]
        return [default] if value in (None, []) else names

    choices = product(
        listed("model", DEFAULT_MODEL), listed("gpu", DEFAULT_GPU), listed("engine", "vllm"), listed("precision", None)
    )
    specs = []
    for model, gpu, engine, precision in choices:
        reject_vllm_options(engine, (name for name in of_vllm if name in known))
        parse_label_beside(engine, given | {"dtype": precision})
        specs.append(
            ServerSpec(
                engine=engine,
                model=model,
                gpu=gpu,
                precision=precision,
                replicas=values["replicas"],
                router=values["router"],
                usage_context=known.get("usage_context", "server"),
                version=known.get("vllm_version", "0.25"),
                options=options,
            )
        )
    return specs
