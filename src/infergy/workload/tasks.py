"""Tasks: requests whose lengths come from a data set, or from what is published of it.

    task:translation ─┬─ with a tokenizer named, `datasets` and a network ─▶ the real texts, counted
                      └─ else ─▶ a log-normal fitted to the published moments, drawn from with a seed

Which of the two it was, and why, goes with the lengths wherever they go (`TaskLengths.origin`).
"""

from __future__ import annotations

import itertools
import math
import random
import tomllib
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, reduce
from importlib import resources
from typing import TYPE_CHECKING, Any

from infergy.errors import UsageError
from infergy.units import count_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

PREFIX = "task:"
DEFAULT_REQUESTS = 1024
"""As many examples of each task as the study ran."""

MOST_REQUESTS = 1_000_000
SHUFFLE_BUFFER = 10_000
"""Examples among which a streamed data set is shuffled."""

_FIT_ERROR = 1e-9
_TOLERANCE = 1e-15


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskOptions:
    """How many requests of a task, and where their lengths come from.

    Attributes:
        requests: How many, at least 1.
        seed: Of random lengths, or of the shuffled examples of a data set.
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
        mean: Of input tokens; `std` and `longest` the same, of the study's 1,024 examples.
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
        input_tokens: Of each request, in order; each answer has `output_tokens`.
        origin: Where the lengths come from, in words.
    """

    task: str
    input_tokens: tuple[int, ...]
    output_tokens: int
    origin: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthLaw:
    """A log-normal rounded to whole tokens and truncated to 1 … `longest`; that texts are so is an assumption.

        P(n) ∝ Φ((ln(n + ½) − µ) / σ) − Φ((ln(n − ½) − µ) / σ)        n = 1 … longest

    Attributes:
        mu: Mean of the logarithm before it is cut.
        sigma: Standard deviation of the logarithm before it is cut.
        longest: Tokens.
    """

    mu: float
    sigma: float
    longest: int

    def shares(self) -> NDArray[Any]:
        """The probability of each length, 1 to `longest`."""
        import numpy as np
        from scipy.special import ndtr

        weights = np.diff(ndtr((np.log(np.arange(self.longest + 1) + 0.5) - self.mu) / self.sigma))
        shares: NDArray[Any] = weights / (weights.sum() or 1.0)
        return shares

    def moments(self) -> tuple[float, float]:
        """Mean and standard deviation, in tokens, after rounding and cutting."""
        import numpy as np

        shares, lengths = self.shares(), np.arange(1, self.longest + 1)
        mean = float(lengths @ shares)
        return mean, math.sqrt((lengths - mean) ** 2 @ shares)

    def draw(self, count: int, seed: int | str) -> list[int]:
        """`count` lengths in random order, one from each of `count` equal shares of the probability.

        Such a stratified sample has nearly the moments of the distribution, however small it is.
        """
        rng = random.Random(seed)
        cumulative = self.shares().cumsum().tolist()
        heights = ((stratum + rng.random()) / count * cumulative[-1] for stratum in range(count))
        lengths = [min(self.longest, 1 + bisect_left(cumulative, height)) for height in heights]
        rng.shuffle(lengths)
        return lengths


@cache
def fit_lengths(mean: float, std: float, longest: int) -> LengthLaw:
    """The log-normal whose mean and standard deviation after the cut, in tokens, are those given.

    Raises:
        UsageError: None has these moments.
    """
    from scipy.optimize import least_squares

    if not (1 < mean < longest and std > 0):
        raise UsageError.bad_value("moments", [mean, std], f"those of lengths of 1 to {longest} tokens")

    def law(place: Sequence[float]) -> LengthLaw:
        # Further out a distribution is a point or flat to the last digit, and the exponential overflows.
        return LengthLaw(mu=float(place[0]), sigma=math.exp(min(20.0, max(-20.0, place[1]))), longest=longest)

    def errors(place: Sequence[float]) -> tuple[float, float]:
        moments = law(place).moments()
        return moments[0] / mean - 1, moments[1] / std - 1

    # Start at the moments of the log-normal that is not cut; the unknowns are µ and ln σ.
    variance = math.log1p((std / mean) ** 2)
    start = (math.log(mean) - variance / 2, math.log(variance) / 2)
    solution = least_squares(errors, start, ftol=_TOLERANCE, xtol=_TOLERANCE, gtol=_TOLERANCE)
    if math.hypot(*solution.fun) > _FIT_ERROR:
        raise UsageError.bad_value("moments", [mean, std], f"those of a log-normal cut to 1 to {longest} tokens")
    return law(solution.x)


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
        UsageError: The data set has fewer examples than requests were asked for.
    """
    reason = "no tokenizer named; real texts: --tokenizer NAME"
    answers = f"{count_of(task.output_tokens, 'output token')} each, as in the study"
    lengths: Sequence[int] | None = None
    if options.tokenizer is not None:
        lengths, reason = _real_lengths(task, options, options.tokenizer)
    if lengths is not None:
        place = " ".join(part for part in (task.dataset, task.config, task.split) if part)
        origin = (
            f"input lengths counted: {options.requests:,} texts ({task.field}) of {place}, shuffled with seed "
            f"{options.seed}, as the tokenizer {options.tokenizer} counts them, no instructions around them; the "
            f"study's own were {task.published}; {answers}"
        )
    else:
        law = fit_lengths(task.mean, task.std, task.longest)
        mean, std = law.moments()
        lengths = law.draw(options.requests, f"{options.seed} {task.name}")
        origin = (
            f"input lengths drawn with seed {options.seed} from a log-normal (µ {law.mu:.4f}, σ {law.sigma:.4f}) "
            f"rounded to whole tokens and truncated to 1 to {law.longest:,}, whose moments {mean:.2f} ± {std:.2f} are "
            f"fitted to the published {task.published}: assumed, not counted ({reason}); {answers}"
        )
    return TaskLengths(task=task.name, input_tokens=tuple(lengths), output_tokens=task.output_tokens, origin=origin)


def _real_lengths(task: Task, options: TaskOptions, tokenizer: str) -> tuple[Sequence[int] | None, str]:
    """The lengths of texts of the data set; None with the reason where they cannot be had here."""
    try:
        import datasets
        import transformers
    except ImportError as error:
        return None, f"real texts need {error.name}: pip install datasets transformers"
    try:
        count = transformers.AutoTokenizer.from_pretrained(tokenizer)
        stream = datasets.load_dataset(task.dataset, task.config or None, split=task.split, streaming=True)
        texts = _texts(stream.shuffle(seed=options.seed, buffer_size=SHUFFLE_BUFFER), task.field)
        lengths = tuple(len(count(text)["input_ids"]) for text in itertools.islice(texts, options.requests))
    except Exception as error:  # noqa: BLE001 - hub, network and tokenizer each raise errors of their own
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        return None, f"the real texts of {task.dataset} could not be read: {reason}"
    if len(lengths) < options.requests:
        found, expected = len(lengths), options.requests
        message = f"{task.dataset} {task.split} has {found:,} texts, not {expected:,}: fewer --requests"
        raise UsageError(message, code="too-few-requests", trace=task.dataset, found=found, expected=expected)
    return lengths, ""


def _texts(examples: Any, field: str) -> Iterator[str]:
    """The texts of examples; blank ones, as between the articles of Wikitext, left out."""
    for example in examples:
        text: Any = reduce(lambda value, name: value[name], field.split("."), example)
        if text.strip():
            yield text
