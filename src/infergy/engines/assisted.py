"""A draft model in transformers: assisted generation of one request at a time, its drafted tokens counted by hooks."""

from __future__ import annotations

from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Self

from infergy.errors import UsageError
from infergy.records.cell import Speculation
from infergy.records.window import Drafts

ONE_AT_A_TIME = 1


def prepare_draft(draft: Any, speculation: Speculation) -> Any:
    """The draft model, told to draft `look_ahead` tokens a round: always as many, however sure it is of them.

    By default transformers drafts up to 20 and stops where the draft doubts itself (`assistant_confidence_threshold` in
    its ``generation/configuration_utils.py``): how far it looked ahead would be nobody's choice. What the draft's own
    configuration says of sampling and of tokens that end a sequence would fill in what the model's leaves open.
    """
    from transformers import GenerationConfig

    draft.generation_config = GenerationConfig(
        eos_token_id=None,
        pad_token_id=no_token(draft),
        max_length=None,
        num_assistant_tokens=speculation.look_ahead,
        num_assistant_tokens_schedule="constant",
        assistant_confidence_threshold=0.0,
    )
    return draft.eval()


def no_token(model: Any) -> int:
    """An id past a model's vocabulary, to pad with.

    Drafting, transformers takes whatever in a prompt equals the padding for padding, and hides it from the draft, which
    then agrees less: a random prompt may hold any token. Nothing is ever padded here.
    """
    return int(model.config.get_text_config().vocab_size)


def refuse_batch(speculation: Speculation, requests: int) -> None:
    """Refuse to assist more than one request at a time.

    Raises:
        UsageError: There are more.
    """
    if requests > ONE_AT_A_TIME:
        raise UsageError.engine_lacks(
            "transformers",
            "batch",
            requests,
            f'with {speculation.label} transformers assists one request at a time; batch = 1, or engine = "vllm"',
        )


class DraftCounter(AbstractContextManager["DraftCounter"]):
    """Counts rounds and drafted tokens while it is open, by what both models are called for.

    Each call of the draft yields a token, each call of the model looks at those drafted since the last and yields those
    accepted and one of its own. So n output tokens from m calls hold n − m accepted ones; whatever the model would have
    accepted past the last token asked for is not among them.

    Args:
        model: The model.
        draft: The draft.
    """

    def __init__(self, model: Any, draft: Any) -> None:
        self._model, self._draft = model, draft
        self._hooks: list[Any] = []
        self._calls = self._rounds = self._drafted = self._since = 0

    def __enter__(self) -> Self:
        self._hooks = [
            self._draft.register_forward_hook(lambda *_: self._count_draft()),
            self._model.register_forward_hook(lambda *_: self._count_model()),
        ]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _count_draft(self) -> None:
        self._since += 1

    def _count_model(self) -> None:
        self._calls += 1
        # Where one token is left to be made, nothing is drafted.
        self._rounds += self._since > 0
        self._drafted += self._since
        self._since = 0

    def total(self, output_tokens: int) -> Drafts:
        """What was drafted for a request of `output_tokens`."""
        return Drafts(rounds=self._rounds, drafted_tokens=self._drafted, accepted_tokens=output_tokens - self._calls)
