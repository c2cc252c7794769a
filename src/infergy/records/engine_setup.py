"""What serves: an engine config, with its label and its id."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from infergy.errors import UsageError

RANDOM_WEIGHTS = "random"
UNIFORM_WEIGHTS = "random-uniform"
"""Names of the laws by which infergy draws weights itself; see `infergy.engines.weights.LAWS`."""

GRAPHS_BY_DEFAULT = {"transformers": False, "vllm": True}
"""Whether an engine replays CUDA graphs by default."""

ENGINES = tuple(GRAPHS_BY_DEFAULT)
"""All engines that serve a model; the simulated one plays them."""

DEFAULT_DTYPE = "bfloat16"
FP8 = "fp8"
LLM_CLASS, SERVER = "llm", "server"
"""How vLLM is used: its `LLM` class, or the engine of ``vllm serve``; each has defaults of its own."""

WEIGHT_ONLY = ("mxfp4", "nvfp4", "int4", "int8")
"""Formats of stored weights that are estimated, not measured: they are widened to 16 bits to be multiplied."""
DTYPES = (DEFAULT_DTYPE, "float16", FP8, *WEIGHT_ONLY)


PLAIN_PARTS: dict[str, tuple[str, Any]] = {
    SERVER: ("usage_context", SERVER),
    "eager": ("cuda_graphs", False),
    "compiled": ("compiled", True),
    "pc": ("prefix_caching", True),
}
NUMBERED_PARTS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "tp": ("tensor_parallel", int),
    "s": ("max_sequences", int),
    "bt": ("max_batched_tokens", int),
    "len": ("max_model_len", int),
    "mem": ("gpu_memory_utilization", float),
    "pl": ("power_limit_w", float),
    "clk": ("sm_clock_mhz", int),
}
EXAMPLES = ("tp2", "s16", "bt2048", "mem0.9", "len16384", "pl400", "clk1200", "spec4:llama-3.2-1b:0.8")
NUMBERED_PART = re.compile(r"((?:tp|s|bt|len|clk)(?=\d+$)|mem|pl)(\d*\.?\d+)")
"""Parts of an engine's label, and the fields for which they stand."""

OPTIONS: Mapping[str, str] = {
    "dtype": "precision",
    "tensor_parallel": "tensor_parallel_size",
    "max_sequences": "max_num_seqs",
    "max_batched_tokens": "max_num_batched_tokens",
    "max_model_len": "max_model_len",
    "gpu_memory_utilization": "gpu_memory_utilization",
    "prefix_caching": "enable_prefix_caching",
    "usage_context": "usage_context",
}
"""Fields of an engine config, and the options of the command line that give them beside a label."""

MEASURED_ACCEPTANCE = "measured"
"""In a label, where the acceptance is not set: real weights decide it."""

SPECULATION_LABEL = re.compile(r"spec(\d+):([^:]+)(?::([^:]+))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Speculation:
    """A draft model and how far it looks ahead.

    Attributes:
        draft: Name of the draft's shape in the catalog or in the plan's `models`.
        look_ahead: Tokens drafted a round, at least 1.
        acceptance: Probability that a drafted token is accepted if all before it in its round were, 0 to 1; it is set
            with random weights, and None with real ones, which decide it.
        weights: Folder or hub name of the draft's real weights; None where they are random, initialised as the model's.
    """

    draft: str
    look_ahead: int
    acceptance: float | None = None
    weights: str | None = None

    def __post_init__(self) -> None:
        if not self.draft or ":" in self.draft:
            raise UsageError.bad_value("draft", self.draft, "the name of a model, without a colon: infergy list models")
        if self.look_ahead < 1:
            raise UsageError.bad_value("look_ahead", self.look_ahead, "at least 1")
        if self.acceptance is not None and not 0 <= self.acceptance <= 1:
            raise UsageError.bad_value("acceptance", self.acceptance, "0 to 1")

    @property
    def label(self) -> str:
        """As it stands in an engine config's label: ``spec4:llama-3.2-1b:0.8``, with real weights ``…:measured``."""
        acceptance = MEASURED_ACCEPTANCE if self.acceptance is None else f"{self.acceptance:g}"
        return f"spec{self.look_ahead}:{self.draft}:{acceptance}"

    @classmethod
    def parse_label(cls, label: str) -> Speculation:
        """What a `label` stands for.

        Raises:
            UsageError: It means nothing.
        """
        match = SPECULATION_LABEL.fullmatch(label)
        try:
            if match is None:
                raise ValueError
            look_ahead, draft, acceptance = match.groups()
            is_set = acceptance not in (None, MEASURED_ACCEPTANCE)
            return cls(draft=draft, look_ahead=int(look_ahead), acceptance=float(acceptance) if is_set else None)
        except ValueError:
            raise UsageError.bad_value(
                "speculation", label, "spec4:llama-3.2-1b:0.8, or with real weights spec4:llama-3.2-1b:measured"
            ) from None

    def __str__(self) -> str:
        return self.label


def tokens_per_round(acceptance: float, look_ahead: int) -> float:
    """Expected tokens of a round (Leviathan et al. 2023, equation 1): 1 + a + a² + … + a^look_ahead."""
    return sum(acceptance**place for place in range(look_ahead + 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSetup:
    """All that must be loaded before the first token: cells of one engine config share a process.

    Attributes:
        engine: Name of the engine: ``transformers``, ``vllm``, ``simulated``.
        model: Name of a model shape in the catalog or in the plan's `models`.
        dtype: Arithmetic and weights: ``bfloat16``, ``float16``, or ``fp8``: the matrices of linear layers and what
            goes into them as e4m3, a scale for each matrix and each token, all else bfloat16.
        cuda_graphs: Whether decode steps replay CUDA graphs, where that is not the engine's own default; None where
            it is (vllm: yes; transformers: has none).
        weights: ``random``, ``random-uniform``, or the folder or hub name of real weights.
        tensor_parallel: GPUs the model is sharded over, at least 1.
        compiled: Whether transformers compiles its decode step (TorchInductor) over a static KV cache.
        speculation: The draft model that is loaded beside it, and how far it looks ahead; None without.
        max_sequences: Requests that it serves at once, at most: vLLM's `max_num_seqs`, under transformers the size of
            its static batches; None for vLLM's own default, and for all that transformers is given.
        usage_context: ``llm``: vLLM's `LLM` class; ``server``: the engine that ``vllm serve`` runs, with its defaults.
            The fields below are vLLM's options too; None stands for its own default.
        max_batched_tokens: Tokens of a step, at most: `max_num_batched_tokens`.
        prefix_caching: Whether prompts that begin alike share their cache; off by default, unlike vLLM's own, so that
            repeated prompts are computed again.
        gpu_memory_utilization: Share of the GPU's memory that it takes, above 0, at most 1.
        max_model_len: Tokens of a request, at most.
        power_limit_w: Limit that is set on each GPU while it is measured, in watts; None leaves it as it is.
        sm_clock_mhz: Clock that the SMs of each GPU are locked to meanwhile; None leaves them free.
    """

    engine: str
    model: str
    dtype: str = DEFAULT_DTYPE
    cuda_graphs: bool | None = None
    weights: str = RANDOM_WEIGHTS
    tensor_parallel: int = 1
    compiled: bool = False
    speculation: Speculation | None = None
    max_sequences: int | None = None
    usage_context: str = LLM_CLASS
    max_batched_tokens: int | None = None
    prefix_caching: bool = False
    gpu_memory_utilization: float | None = None
    max_model_len: int | None = None
    power_limit_w: float | None = None
    sm_clock_mhz: int | None = None

    def __post_init__(self) -> None:
        for name in ("tensor_parallel", "max_sequences", "max_batched_tokens", "max_model_len", "sm_clock_mhz"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError.bad_value(name, value, "at least 1")
        if self.gpu_memory_utilization is not None and not 0 < self.gpu_memory_utilization <= 1:
            raise UsageError.bad_value("gpu_memory_utilization", self.gpu_memory_utilization, "above 0 and at most 1")
        if self.power_limit_w is not None and not 0 < self.power_limit_w < math.inf:
            raise UsageError.bad_value("power_limit_w", self.power_limit_w, "watts, above 0")
        if self.power_limit_w is not None:
            # One engine config has one id, whether its watts were written as 400 or as 400.0.
            object.__setattr__(self, "power_limit_w", float(self.power_limit_w))
        if self.usage_context not in (LLM_CLASS, SERVER):
            raise UsageError.unknown("usage context", self.usage_context, (LLM_CLASS, SERVER), code="unknown-name")
        if self.cuda_graphs is GRAPHS_BY_DEFAULT.get(self.engine):
            # One engine config has one id, whether its default was written out or not.
            object.__setattr__(self, "cuda_graphs", None)

    @property
    def models(self) -> tuple[str, ...]:
        """Names of all models it loads: its own, and that of its draft."""
        return (self.model,) if self.speculation is None else (self.model, self.speculation.draft)

    @property
    def gpu_settings(self) -> dict[str, float]:
        """What is set of the GPUs while it is measured, by field; empty if nothing."""
        given = {"power_limit_w": self.power_limit_w, "sm_clock_mhz": self.sm_clock_mhz}
        return {name: value for name, value in given.items() if value is not None}

    @property
    def label(self) -> str:
        """The engine and whatever is not at its default: ``vllm``, ``vllm-float16-tp2``.

        Options of vLLM follow: ``vllm-server-s16-bt2048-pc-mem0.9-len16384``, then what is set of the GPUs:
        ``vllm-pl400-clk1200``. Speculation stands last, since names of draft models hold dashes:
        ``vllm-eager-spec4:llama-3.2-1b:0.8``.
        """
        parts: list[tuple[str, Any, Any]] = [
            ("", self.usage_context, LLM_CLASS),
            ("", "eager" if self.cuda_graphs is False else "compiled" if self.compiled else "", ""),
            ("", self.dtype, DEFAULT_DTYPE),
            ("tp", self.tensor_parallel, 1),
            ("s", self.max_sequences, None),
            ("bt", self.max_batched_tokens, None),
            ("", "pc" if self.prefix_caching else "", ""),
            ("mem", None if self.gpu_memory_utilization is None else f"{self.gpu_memory_utilization:g}", None),
            ("len", self.max_model_len, None),
            ("pl", None if self.power_limit_w is None else f"{self.power_limit_w:g}", None),
            ("clk", self.sm_clock_mhz, None),
            ("", self.speculation, None),
        ]
        return self.engine + "".join(f"-{prefix}{value}" for prefix, value, default in parts if value != default)

    @classmethod
    def parse_label(cls, label: str) -> dict[str, Any]:
        """The fields that a `label` stands for, those at their default left out.

        Raises:
            UsageError: A part of it means nothing.
        """
        plain, *drafting = re.split(r"-(?=spec\d*:)", label, maxsplit=1)
        engine, *parts = plain.split("-")
        fields: dict[str, Any] = {"engine": engine}
        for part in parts:
            numbered = NUMBERED_PART.fullmatch(part)
            if part in PLAIN_PARTS:
                name, value = PLAIN_PARTS[part]
                fields[name] = value
            elif part in DTYPES:
                fields["dtype"] = part
            elif numbered is not None:
                name, read = NUMBERED_PARTS[numbered[1]]
                fields[name] = read(numbered[2])
            else:
                raise UsageError.unknown(
                    f"part of the engine label {label!r}",
                    part,
                    (*PLAIN_PARTS, *DTYPES, *EXAMPLES),
                    "A label is an engine and what is not at its default: vllm-eager-float16-tp2",
                    code="unknown-name",
                    label=label,
                )
        if drafting:
            fields["speculation"] = Speculation.parse_label(drafting[0])
        return fields

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits; fields at their default do not enter, so that new axes keep old ids."""
        return digest(without_defaults(self))


def parse_label_beside(label: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that a `label` stands for, beside options that give some too: by `OPTIONS`, None where not given.

    Raises:
        UsageError: A part of the label means nothing, or contradicts an option.
    """
    parts = EngineSetup.parse_label(label)
    for name, value in given.items():
        if value is not None and parts.get(name, value) != value:
            option = OPTIONS[name].replace("_", "-")
            typed: dict[str, object] = {f"--no-{option}": True} if value is False else {f"--{option}": value}
            raise UsageError.conflict({"--engine": label, **typed}, "they contradict: give one of them")
    return parts


def without_defaults(record: Any) -> dict[str, Any]:
    """The fields that are not at their default, as JSON."""
    from infergy.records.codec import to_json

    found = {
        field.name: getattr(record, field.name)
        for field in dataclasses.fields(record)
        if getattr(record, field.name) != field.default
    }
    return {
        name: without_defaults(value) if dataclasses.is_dataclass(value) else to_json(value)
        for name, value in found.items()
    }


def digest(content: dict[str, Any]) -> str:
    """Twelve hexadecimal digits."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]
