"""How fast a server is simulated: seconds of one core, whole and one step at a time, in the same process.

Usage: python benchmarks/serve.py [CONVERSATION.csv] [MOONCAKE.jsonl] [--million]

CONVERSATION: the Azure 2023 conversation trace (default: the shipped one); MOONCAKE: a trace with block hashes. The
server is vLLM 0.25 with its defaults on an H200, Llama-3.1-8B in bf16 (56,057 blocks), prefix caching on. A step costs
what a smooth roofline says. The plain loop is the same scheduler, stepped one step at a time.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from infergy.hardware.gpus import get_gpu
from infergy.hardware.models import get_model
from infergy.serving.config import EngineConfig, EngineOptions, resolve
from infergy.serving.run import Floats, Ints, Run, Steps
from infergy.serving.simulate import simulate


@dataclass(frozen=True, kw_only=True)
class Prefixes:
    ids: Ints
    offsets: Ints
    block_tokens: int


@dataclass(frozen=True, kw_only=True)
class Columns:
    input_tokens: Ints
    output_tokens: Ints
    arrival_s: Floats | None
    prefix_blocks: Prefixes | None = None
    after: Ints | None = None
    gap_s: Floats | None = None


@dataclass(frozen=True, kw_only=True)
class Roofline:
    """Llama-3.1-8B on an H200: fitted constants of a smooth maximum of bytes and FLOPs."""

    idle_w: float = 123.7
    intake_s: float = 0.01

    def step_s(
        self, decodes: Any, context: Any, prefill_tokens: Any, prefill_pairs: Any, prefills: Any, sampled: Any, padded: Any
    ) -> Any:
        moved = (15.0e9 + 131072.0 * (context + prefill_tokens + decodes)) / 4.07e12
        flops = (15.0e9 * (prefill_tokens + decodes) + 1.05e9 * sampled) / 6.5e14 + 524288.0 * prefill_pairs / 5.74e14
        moved, flops = moved * moved, flops * flops
        return (moved * moved + flops * flops) ** 0.25 + 1.23e-3 + 11e-6 * sampled

    def evaluate(self, steps: Steps) -> tuple[Floats, Floats]:
        s = steps
        seconds = self.step_s(s.decodes, s.context, s.prefill_tokens, s.prefill_pairs, s.prefills, s.sampled, s.padded)
        return seconds, 177.0 * seconds + 15.7 + 1.6e-5 * s.context


def conversation(path: Path | None) -> Columns:
    if path is None:
        from infergy.workload.trace import open_trace

        requests: Any = open_trace("azure-conv-2023").requests()
        return Columns(
            input_tokens=requests.input_tokens, output_tokens=requests.output_tokens, arrival_s=requests.arrival_s
        )
    times, inputs, outputs = zip(*(line.split(",") for line in path.read_text().split()[1:]), strict=True) if False else _csv(path)
    return Columns(input_tokens=inputs, output_tokens=outputs, arrival_s=times)


def main() -> None:
    print(__doc__)


if __name__ == "__main__":
    main()
