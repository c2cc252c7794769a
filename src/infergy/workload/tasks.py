"""Tasks: requests whose lengths come from a data set, or from what is published of it.

    task:translation ─┬─ with a tokenizer named, `datasets` and a network ─▶ the real texts, counted
                      └─ else ─▶ a law fitted to the published moments, drawn from with a seed (length_law.py)

Which of the two it was, and why, goes with the lengths wherever they go (`TaskLengths.origin`).
"""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, reduce
from importlib import resources
from typing import Any

from infergy.errors import UsageError
from infergy.workload.length_law import fit_lengths

PREFIX = "task:"
DEFAULT_REQUESTS = 1024
"""As many examples of each task as the study ran."""

MOST_REQUESTS = 1_000_000
SHUFFLE_BUFFER = 10_000
"""Examples among which a streamed data set is shuffled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskOptions:
    """How many requests of a task, and where their lengths come from.

    Attributes:
        requests: How many, at least 1.
        seed: Of what is drawn: lengths from a law, examples from a data set.
        tokenizer: Name or folder of a Hugging Face tokenizer, with which real texts are counted; None takes the
            published moments.
    """

    requests: int = DEFAULT_REQUESTS
    seed: int = 0
    tokenizer: str | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.requests <= MOST_REQUESTS:
            raise UsageError.bad_value("--requests", self.requests, f"1 to {MOST_REQUESTS:,}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A task of the study, as `data/tasks.toml` has it.

    Attributes:
        aliases: Other names.
        mean: Of input tokens; `std` and `longest` likewise, of the study's 1,024 examples.
        output_tokens: Of every answer.
        dataset: Name on the Hugging Face hub, with `config` (empty for none) and `split`.
        field: Which text of an example; dotted within nested ones.
    """

    name: str
    title: str
    aliases: tuple[str, ...]
    mean: float
    std: float
    longest: int
    output_tokens: int
    dataset: str
    config: str
    split: str
    field: str

    @property
    def published(self) -> str:
        """The published moments, in words."""
        return f"{self.mean:g} ± {self.std:g} tokens, longest {self.longest:,} (arXiv 2504.17674)"


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskLengths:
    """The requests of a task.

    Attributes:
        task: Its name.
        input_tokens: Of each request, in the order in which they come; each answer has `output_tokens`.
        origin: Where the lengths come from, in words.
    """

    task: str
    input_tokens: tuple[int, ...]
    output_tokens: int
    origin: str


@cache
def tasks() -> Mapping[str, Task]:
    """All tasks, by name."""
    text = (resources.files("infergy") / "data" / "tasks.toml").read_text(encoding="utf-8")
    return {
        name: Task(name=name, **{**facts, "aliases": tuple(facts["aliases"])})
        for name, facts in tomllib.loads(text).items()
    }


def is_task(source: Any) -> bool:
    """Whether `source` names a task: ``task:translation``."""
    return isinstance(source, str) and source.startswith(PREFIX)


def find_task(source: str) -> Task:
    """The task called ``task:NAME``, by its name or that of its data set, in any case.

    Raises:
        UsageError: There is none; the message gives the nearest.
    """
    wanted = source.removeprefix(PREFIX).lower()
    for task in tasks().values():
        if wanted in (task.name, *task.aliases):
            return task
    names = [name for task in tasks().values() for name in (task.name, *task.aliases)]
    raise UsageError.unknown(
        "task", wanted, names, f"Such as: infergy estimate {PREFIX}{next(iter(tasks()))}", code="unknown-name"
    )


def task_lengths(task: Task, options: TaskOptions) -> TaskLengths:
    """The lengths of a task's requests, from its data set where that can be had, else from the published moments.

    Raises:
        UsageError: The data set holds fewer examples than requests are wanted.
    """
    reason = "no tokenizer named; real texts: --tokenizer NAME"
    if options.tokenizer is not None:
        try:
            return _real_lengths(task, options, options.tokenizer)
        except _OutOfReachError as error:
            reason = str(error)
    law = fit_lengths(task.mean, task.std, task.longest)
    mean, std = law.moments()
    return TaskLengths(
        task=task.name,
        input_tokens=tuple(law.draw(options.requests, f"{options.seed} {task.name}")),
        output_tokens=task.output_tokens,
        origin=(
            f"input lengths drawn with seed {options.seed} from a log-normal (µ {law.mu:.4f}, σ {law.sigma:.4f}) "
            f"rounded to whole tokens and truncated to 1 to {law.longest:,}, whose moments {mean:.2f} ± {std:.2f} are "
            f"fitted to the published {task.published}: assumed, not counted ({reason}); {_answers(task)}"
        ),
    )


def _answers(task: Task) -> str:
    return f"{task.output_tokens} output token{'' if task.output_tokens == 1 else 's'} each, as in the study"


class _OutOfReachError(Exception):
    """The real lengths cannot be had here; says why."""


def _real_lengths(task: Task, options: TaskOptions, tokenizer: str) -> TaskLengths:
    try:
        import datasets
        import transformers
    except ImportError as error:
        raise _OutOfReachError(f"real texts need {error.name}: pip install datasets transformers") from error
    try:
        count = transformers.AutoTokenizer.from_pretrained(tokenizer)
        stream = datasets.load_dataset(task.dataset, task.config or None, split=task.split, streaming=True)
        texts = _texts(stream.shuffle(seed=options.seed, buffer_size=SHUFFLE_BUFFER), task.field)
        lengths = tuple(len(count(text)["input_ids"]) for text in itertools.islice(texts, options.requests))
    except Exception as error:
        # Hub, network and tokenizer raise what they like, each of another kind.
        told = str(error).strip().split("\n")[0] or type(error).__name__
        raise _OutOfReachError(f"the real texts of {task.dataset} could not be read: {told}") from error
    if len(lengths) < options.requests:
        message = (
            f"{task.dataset} {task.split} holds {len(lengths):,} texts, not {options.requests:,}: fewer --requests"
        )
        raise UsageError(
            message, code="too-few-requests", trace=task.dataset, found=len(lengths), expected=options.requests
        )
    place = " ".join(part for part in (task.dataset, task.config, task.split) if part)
    return TaskLengths(
        task=task.name,
        input_tokens=lengths,
        output_tokens=task.output_tokens,
        origin=(
            f"input lengths counted: {options.requests:,} texts ({task.field}) of {place}, shuffled with seed "
            f"{options.seed}, as the tokenizer {tokenizer} counts them, no instructions around them; the study's own "
            f"were {task.published}; {_answers(task)}"
        ),
    )


def _texts(examples: Any, field: str) -> Iterator[str]:
    """The texts of examples; blank ones, as between the articles of Wikitext, left out."""
    for example in examples:
        text: Any = reduce(lambda value, name: value[name], field.split("."), example)
        if text.strip():
            yield text
