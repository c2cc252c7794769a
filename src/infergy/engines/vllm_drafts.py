"""A draft model in vLLM (0.25): how it is asked for, how its weights are drawn, how its tokens are counted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from infergy.engines.config_files import config_folder
from infergy.engines.weights import draw_weights
from infergy.records.cell import Speculation
from infergy.records.window import Drafts


class DraftCounts:
    """Sums what vLLM's scheduler tells of each step; it stands where vLLM has its statistics' loggers.

    `LLMEngine.step` calls `record` for each step, `LLMEngine.do_log_stats` calls `log` every 10 s.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin to count anew."""
        self._rounds = self._drafted = self._accepted = 0

    def total(self) -> Drafts:
        """What was counted since `reset`."""
        return Drafts(rounds=self._rounds, drafted_tokens=self._drafted, accepted_tokens=self._accepted)

    def record(self, scheduler_stats: Any = None, iteration_stats: Any = None, **others: Any) -> None:
        """Add a step: vLLM's `SpecDecodingStats`, None where no request of the step had drafted tokens."""
        step = getattr(scheduler_stats, "spec_decoding_stats", None)
        if step is not None:
            self._rounds += step.num_drafts
            self._drafted += step.num_draft_tokens
            self._accepted += step.num_accepted_tokens

    def log(self) -> None:
        """Print nothing."""


def speculate(speculation: Speculation, tensor_parallel: int, draft: Mapping[str, Any] | None) -> dict[str, Any]:
    """VLLM's `speculative_config`; the draft is loaded from its configuration where weights are random.

    vLLM's synthetic acceptance takes the probability that all tokens up to each place are accepted
    (``vllm/config/speculative.py``); if each is accepted with probability a, whatever came before, that is a, a², a³, …

    The load format of the model is the draft's too, and its tensor parallelism must be.
    """
    asked: dict[str, Any] = {
        "method": "draft_model",
        "model": speculation.weights,
        "num_speculative_tokens": speculation.look_ahead,
        "draft_tensor_parallel_size": tensor_parallel,
    }
    if speculation.weights is None and draft is not None:
        asked["model"] = str(config_folder(draft))
    if speculation.acceptance is not None:
        rates = [speculation.acceptance**place for place in range(1, speculation.look_ahead + 1)]
        asked |= {"rejection_sample_method": "synthetic", "synthetic_acceptance_rates": rates}
    return asked


def draw_draft_weights(worker: Any, law: str, seed: int) -> int:
    """Draw the draft's weights as the model's are drawn; runs inside vLLM's workers, on each of them.

    Its first model runner calls what drafts `drafter`, its second `speculator`.
    """
    runner = worker.model_runner
    drafter = getattr(runner, "drafter", None) or runner.speculator
    return draw_weights(drafter.model, law, seed)


def tell_speculation(config: Any) -> dict[str, str]:
    """How vLLM resolved its speculative options; empty without a draft model."""
    speculative = getattr(config, "speculative_config", None)
    if speculative is None:
        return {}
    return {
        "speculative_method": str(speculative.method),
        "speculative_tokens": str(speculative.num_speculative_tokens),
        "rejection_sampling": str(speculative.rejection_sample_method),
        "acceptance_rates": str(speculative.synthetic_acceptance_rates),
        "draft_sampling": str(speculative.draft_sample_method),
    }
