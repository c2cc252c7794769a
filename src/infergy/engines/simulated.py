"""A stand-in for any engine on simulated GPUs: each phase takes the time and joules of its forecast, exactly."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from infergy.engines.assisted import refuse_batch
from infergy.engines.protocol import (
    Completion,
    EngineOutOfMemoryError,
    Work,
    check_speculation,
    refuse_arrivals,
    refuse_beams,
    refuse_compiled,
    refuse_drafting_server,
    refuse_fp8,
    refuse_many,
    refuse_set_acceptance,
    refuse_vllm_options,
)
from infergy.errors import UsageError
from infergy.hardware import Gpu, ModelShape, forecast, largest_batch
from infergy.hardware.draft import Draft, find_draft
from infergy.hardware.serving import play
from infergy.hardware.simulated import SimulatedGpu
from infergy.hardware.simulated_node import SimulatedNode
from infergy.records import GREEDY, Arrivals, Decoding, EngineSetup
from infergy.records.speculation import Drafts


class SimulatedEngine:
    """Plays the engine that a set-up names; needs neither it nor a GPU."""

    name = "simulated"
    packages: tuple[str, ...] = ()

    def __init__(self, device: SimulatedGpu | SimulatedNode, gpu: Gpu) -> None:
        self._device = device
        self._count = len(device.gpus) if isinstance(device, SimulatedNode) else 1
        self._gpu = gpu

    def check(self, setup: EngineSetup, decoding: Decoding = GREEDY, arrivals: Arrivals | None = None) -> None:
        """Refuse what these simulated GPUs, or the engine itself, cannot play."""
        if setup.tensor_parallel != self._count:
            raise UsageError(f"tensor_parallel = {setup.tensor_parallel}: of simulated GPUs there are {self._count}")
        if setup.engine == "transformers":
            refuse_many(setup)
            refuse_vllm_options(setup)
            refuse_fp8(setup)
            refuse_arrivals(arrivals, compiled=setup.compiled)
            refuse_set_acceptance(setup)
            check_speculation(setup, decoding)
        else:
            check_speculation(setup, decoding)
            refuse_beams(decoding)
            refuse_compiled(setup)
            refuse_drafting_server(setup)

    def open(
        self, setup: EngineSetup, config: Mapping[str, Any], seed: int, draft: Mapping[str, Any] | None = None
    ) -> SimulatedSession:
        """Nothing is loaded."""
        shape = ModelShape.from_config(config, name=setup.model)
        one = setup.speculation
        drafting = None if one is None or draft is None else find_draft(setup, {one.draft: draft})
        return SimulatedSession(self._device, self._gpu, shape, setup, drafting)


class SimulatedSession:
    """Lets virtual time pass at the forecast's power."""

    def __init__(
        self,
        device: SimulatedGpu | SimulatedNode,
        gpu: Gpu,
        shape: ModelShape,
        setup: EngineSetup,
        draft: Draft | None = None,
    ) -> None:
        self._device = device
        self._gpu = gpu
        self._shape = shape
        self._setup = setup
        self._draft = draft

    def run(self, work: Work) -> Completion:
        """Spend the forecast's time and joules on `work`.

        Raises:
            UsageError: The engine that is played serves static batches, and the requests are not alike, or arrive one
                after the other.
            EngineOutOfMemoryError: They do not fit.
        """
        is_mixed = len(set(map(len, work.prompts))) != 1 or len(set(work.output_tokens)) != 1
        is_bound = self._setup.max_sequences is not None and self._setup.max_sequences < len(work.prompts)
        if is_mixed or is_bound or any(work.arrival_s):
            return self._play(work)
        if self._setup.engine == "transformers" and self._setup.speculation is not None:
            refuse_batch(self._setup.speculation, len(work.prompts))
        batch, length, output = len(work.prompts), len(work.prompts[0]), work.output_tokens[0]
        engine, dtype, gpus = self._setup.engine, self._setup.dtype, self._setup.tensor_parallel
        limit = largest_batch(
            self._shape,
            self._gpu,
            length,
            output,
            engine=engine,
            dtype=dtype,
            tensor_parallel=gpus,
            draft=self._draft,
        )
        sequences = batch * work.decoding.beams
        if sequences > limit.batch:
            raise EngineOutOfMemoryError(f"batch {batch} does not fit: {limit.reason}", is_usable=True)
        cost = forecast(
            self._shape,
            self._gpu,
            length,
            output,
            sequences,
            engine=engine,
            cuda_graphs=self._setup.cuda_graphs,
            compiled=self._setup.compiled,
            tensor_parallel=gpus,
            dtype=dtype,
            draft=self._draft,
        )
        self._device.advance(cost.prefill_s, cost.prefill_energy_j / cost.prefill_s)
        if cost.decode_s:
            self._device.advance(cost.decode_s, cost.decode_energy_j / cost.decode_s)
        return Completion(
            input_tokens=tuple(len(prompt) for prompt in work.prompts),
            output_tokens=work.output_tokens,
            first_token_s=(cost.prefill_s,) * batch,
            finished_s=(cost.prefill_s + cost.decode_s,) * batch,
            drafts=self._play_drafts(work),
            experts_touched=self._experts_touched(work),
        )

    def _experts_touched(self, work: Work) -> float | None:
        """What transformers tells and vLLM does not, were routing uniform."""
        experts = self._shape.experts
        if not work.count_experts or experts is None or self._setup.engine != "transformers":
            return None
        return experts.expected_coverage(len(work.prompts) * work.decoding.beams)

    def _play(self, work: Work) -> Completion:
        """Requests of any lengths, as the engine batches them; between them the GPUs idle."""
        if self._setup.engine == "transformers" and any(work.arrival_s):
            raise UsageError("transformers serves static batches, which nothing can join; vllm serves later requests")
        refuse_beams(work.decoding)
        lengths = list(zip(map(len, work.prompts), work.output_tokens, strict=True))
        played = play(self._shape, self._gpu, self._setup, lengths, work.arrival_s, self._draft)
        if played is None:
            raise EngineOutOfMemoryError("not one request fits", is_usable=True)
        for stretch in played.stretches:
            if stretch.energy_j is None:
                self._device.sleep(stretch.seconds)
            else:
                self._device.advance(stretch.seconds, stretch.energy_j / stretch.seconds)
        return Completion(
            input_tokens=tuple(len(prompt) for prompt in work.prompts),
            output_tokens=work.output_tokens,
            first_token_s=played.first_token_s,
            finished_s=played.finished_s,
            drafts=self._play_drafts(work),
        )

    def _play_drafts(self, work: Work) -> Drafts | None:
        """As many rounds as are expected: each adds a token of the model to those that it accepts."""
        if self._draft is None:
            return None
        tokens = sum(count - 1 for count in work.output_tokens)
        rounds = math.ceil(tokens / self._draft.tokens_per_round)
        return Drafts(rounds=rounds, drafted_tokens=rounds * self._draft.look_ahead, accepted_tokens=tokens - rounds)

    def facts(self) -> Mapping[str, str | None]:
        """What is played."""
        return {"simulated": f"{self._setup.label} on {self._gpu.title}"}

    def close(self) -> None:
        """Nothing is held."""
