"""What a recommendation says of draft models: what to type for one, and what its joules hold for."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from infergy.records import EngineSetup


def drafting_options(setup: EngineSetup) -> Iterator[str]:
    """VLLM's option for the draft model of a set-up; nothing without one. ``DRAFT`` stands for the user's own."""
    if setup.speculation is not None:
        asked = {"method": "draft_model", "model": setup.speculation.weights or "DRAFT"}
        asked_json = json.dumps(asked | {"num_speculative_tokens": setup.speculation.look_ahead})
        yield f"--speculative-config '{asked_json}'"


def assisted_options(setup: EngineSetup) -> Iterator[str]:
    """What transformers' `generate` is given for the draft model of a set-up; nothing without one."""
    if setup.speculation is not None:
        yield "assistant_model=DRAFT"
        yield f"num_assistant_tokens={setup.speculation.look_ahead}, num_assistant_tokens_schedule='constant'"


def drafting_notes(setups: Iterable[EngineSetup]) -> Iterator[str]:
    """A note if the acceptance of a draft model was set, not measured."""
    if any(one.speculation is not None and one.speculation.acceptance is not None for one in setups):
        yield (
            "labels with spec hold a draft model whose acceptance was set, their last figure: "
            "their joules are those of your models only if yours is the same (docs/studies.md)"
        )
