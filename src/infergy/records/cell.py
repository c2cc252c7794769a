"""A cell is an engine config under a load: lengths, decoding, and when requests arrive. Standard library only.

offline     all at once (no `Arrivals`)
poisson     exponential gaps
gamma       gamma gaps, shape = burstiness, scale = 1 / (rate × burstiness): mean 1 / rate, coefficient
            of variation 1 / √burstiness; as `vllm bench serve --request-rate --burstiness` draws them
trace       the times of a log, as they were or scaled to a rate
replay      requests of a log, each with its own lengths: consecutive ones, or those of a window of time; all at once,
            or at their own times (`timed`), which a speed compresses
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise

from infergy.errors import UsageError
from infergy.records.engine_setup import EngineSetup, digest, without_defaults
from infergy.records.shared import once_each

OFFLINE = "offline"
POISSON, GAMMA, TRACE, REPLAY = "poisson", "gamma", "trace", "replay"

NUMBER = r"(\d{0,18}\.?\d{1,18})"
ARRIVALS_LABEL = re.compile(
    rf"poisson{NUMBER}|gamma{NUMBER}-b{NUMBER}|trace:(.+?)(?:@{NUMBER})?|"
    rf"replay:(.+?)(?:@{NUMBER}x)?(?:\+(\d{{1,18}})|\+{NUMBER}s/{NUMBER}s)?(?:#(\d{{1,9}})/(\d{{1,9}}))?"
)
EXPECTED = (
    "offline, poisson4, gamma4-b0.5, trace:azure-conv-2023, trace:azure-conv-2023@4, replay:azure-conv-2023 or "
    "replay:azure-conv-2023@1x+600s/75s, rates and burstiness above 0"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrivals:
    """How requests arrive one after the other.

    Attributes:
        law: ``poisson``, ``gamma``, ``trace`` or ``replay``.
        rate_per_s: Requests per second, above 0; None for a trace at its own times, and for a replay.
        burstiness: Shape of the gamma distribution, above 0; 1 is Poisson's, below 1 more bursty, above 1 more even.
        trace: Name of the trace; None for Poisson and gamma.
        digest: Hash of the trace's times, of a replay of its lengths (and times, if it is timed), so that two logs of
            one name are two loads; None for the other laws, and until the log is read.
        first: Of a replay without a window, how many requests of the log come before it.
        timed: Whether the requests of a replay arrive at their own times; else they are there all at once.
        speed: By what the times of a timed replay are divided, above 0.
        from_s: Where the window of a replay begins, in seconds after the first request of the log.
        for_s: Seconds of serving over which the requests of the window arrive, above 0: `speed` times as many of the
            log; None for a replay of so many consecutive requests.
        rejected: Requests of that part of the log that are left out of a replay, because the engine rejects them: they
            are longer than its context or its cache.
        replica: Of several replicas that serve a replay in turn, which one serves these requests, from 1 on.
        replicas: How many there are.
    """

    law: str
    rate_per_s: float | None = None
    burstiness: float = 1.0
    trace: str | None = None
    digest: str | None = None
    first: int = 0
    timed: bool = False
    speed: float = 1.0
    from_s: float = 0.0
    for_s: float | None = None
    rejected: int = 0
    replica: int = 1
    replicas: int = 1

    def __post_init__(self) -> None:
        if self.law not in (POISSON, GAMMA, TRACE, REPLAY):
            raise UsageError.unknown("law of arrivals", self.law, (POISSON, GAMMA, TRACE, REPLAY), code="unknown-name")
        if (self.trace is None) == (self.law in (TRACE, REPLAY)):
            raise UsageError.conflict(
                {"law": self.law, "trace": self.trace}, "a trace goes with the laws trace and replay only"
            )
        for name in ("first", "rejected"):
            if (count := getattr(self, name)) < 0 or (self.law != REPLAY and count):
                raise UsageError.bad_value(name, count, "0, or in a replay more", law=self.law)
        if not 1 <= self.replica <= self.replicas or (self.law != REPLAY and self.replicas > 1):
            raise UsageError.bad_value("replica", self.replica, f"1 to {self.replicas}, in a replay", law=self.law)
        self._check_window()
        self._check_rate()
        if self.law == GAMMA and self.burstiness == 1:
            # One process has one id: gamma of shape 1 is Poisson's.
            object.__setattr__(self, "law", POISSON)

    def _check_rate(self) -> None:
        if self.law == REPLAY and self.rate_per_s is not None:
            raise UsageError.conflict(
                {"law": self.law, "rate_per_s": self.rate_per_s},
                "a replay has its requests at once or at the times of its log; a rate: trace:NAME@4",
            )
        if self.rate_per_s is None and self.law not in (TRACE, REPLAY):
            message = f"{self.law} arrivals need a rate in requests per second: {self.law}4 for four"
            raise UsageError(message, code="option-missing", option="rate_per_s", law=self.law)
        if self.rate_per_s is not None and not 0 < self.rate_per_s < math.inf:
            raise UsageError.bad_value("rate_per_s", self.rate_per_s, "more than 0 per second, or offline")
        if not 0 < self.burstiness < math.inf or (self.burstiness != 1 and self.law != GAMMA):
            raise UsageError.bad_value(
                "burstiness", self.burstiness, "more than 0, and 1 unless arrivals are gamma", law=self.law
            )

    def _check_window(self) -> None:
        if self.law != REPLAY and (self.timed or self.speed != 1 or self.from_s or self.for_s is not None):
            raise UsageError.conflict(
                {"law": self.law, "speed": self.speed, "for_s": self.for_s}, "only a replay has a window or a speed"
            )
        if not (0 < self.speed < math.inf and (self.timed or self.speed == 1)):
            raise UsageError.bad_value("speed", self.speed, "more than 0, and 1 where all requests arrive at once")
        if self.for_s is None:
            if self.from_s:
                message = f"a replay from {self.from_s:g} s on has no end: replay:NAME@1x+{self.from_s:g}s/75s"
                raise UsageError(message, code="option-missing", option="for_s", from_s=self.from_s)
            return
        if self.first or not (0 <= self.from_s < math.inf and 0 < self.for_s < math.inf):
            raise UsageError.bad_value(
                "window",
                [self.from_s, self.for_s],
                "0 s or later, more than 0 s, and no first request: replay:NAME@1x+600s/75s",
                first=self.first,
            )

    @property
    def label(self) -> str:
        """As `parse_label` reads it."""
        if self.law == REPLAY:
            speed = f"@{self.speed:g}x" if self.timed else ""
            first = f"+{self.first}" if self.first else ""
            window = "" if self.for_s is None else f"+{self.from_s:.12g}s/{self.for_s:.12g}s"
            replica = f"#{self.replica}/{self.replicas}" if self.replicas > 1 else ""
            return f"{REPLAY}:{self.trace}{speed}{first}{window}{replica}"
        rate = "" if self.rate_per_s is None else f"{self.rate_per_s:g}"
        if self.law == TRACE:
            return f"{TRACE}:{self.trace}{rate and f'@{rate}'}"
        return f"{self.law}{rate}" + ("" if self.law == POISSON else f"-b{self.burstiness:g}")

    @classmethod
    def parse_label(cls, label: str) -> Arrivals | None:
        """What a `label` stands for; None for ``offline``.

        Raises:
            UsageError: It means nothing, or a rate or burstiness is not above 0.
        """
        if label == OFFLINE:
            return None
        match = ARRIVALS_LABEL.fullmatch(label)
        if match is None:
            raise UsageError.bad_value("arrivals", label, EXPECTED)
        poisson, gamma, burstiness, trace, rate, replay, speed, first, from_s, for_s, *replica = match.groups()
        if replay is not None:
            return cls(
                law=REPLAY,
                trace=replay,
                first=int(first or 0),
                timed=speed is not None,
                speed=float(speed or 1),
                from_s=float(from_s or 0),
                for_s=None if for_s is None else float(for_s),
                replica=int(replica[0] or 1),
                replicas=int(replica[1] or 1),
            )
        if poisson is not None:
            return cls(law=POISSON, rate_per_s=float(poisson))
        if gamma is not None:
            return cls(law=GAMMA, rate_per_s=float(gamma), burstiness=float(burstiness))
        return cls(law=TRACE, trace=trace, rate_per_s=None if rate is None else float(rate))


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    """How the next token is chosen; greedy by default.

    Attributes:
        beams: Beams of beam search, at least 1; 1 for none.
        temperature: Of sampling, above 0; None where nothing is sampled.
        top_p: Sample from the likeliest tokens whose probabilities add up to this; above 0, at most 1.
        top_k: Sample from so many of the likeliest tokens; None for all.
    """

    beams: int = 1
    temperature: float | None = None
    top_p: float = 1.0
    top_k: int | None = None

    def __post_init__(self) -> None:
        if self.beams < 1:
            raise UsageError.bad_value("beams", self.beams, "at least 1")
        if self.temperature is None:
            if self.top_p != 1.0 or self.top_k is not None:
                message = "top_p and top_k choose among sampled tokens: give a temperature too, 1.0 for none"
                raise UsageError(message, code="option-missing", option="temperature", needed_by=["top_p", "top_k"])
            return
        if self.beams > 1:
            raise UsageError.conflict(
                {"beams": self.beams, "temperature": self.temperature}, "a beam search samples nothing"
            )
        if not (self.temperature > 0 and 0 < self.top_p <= 1 and (self.top_k is None or self.top_k >= 1)):
            raise UsageError.bad_value(
                "sampling",
                [self.temperature, self.top_p, self.top_k],
                "temperature above 0, top_p above 0 and at most 1, top_k at least 1",
            )

    @property
    def label(self) -> str:
        """What is not at its default: ``greedy``, ``beam4``, ``t0.8``, ``t0.8-p0.95-k50``."""
        if self.beams > 1:
            return f"beam{self.beams}"
        if self.temperature is None:
            return "greedy"
        top_p = "" if self.top_p == 1 else f"-p{self.top_p:g}"
        return f"t{self.temperature:g}{top_p}{'' if self.top_k is None else f'-k{self.top_k}'}"

    @classmethod
    def parse_label(cls, label: str) -> Decoding:
        """What a `label` stands for.

        Raises:
            UsageError: It means nothing.
        """
        match = DECODING_LABEL.fullmatch(label)
        if match is None:
            raise UsageError.bad_value("decoding", label, "greedy, beam4, t0.8 or t0.8-p0.95-k50")
        beams, temperature, top_p, top_k = match.groups()
        return cls(
            beams=int(beams or 1),
            temperature=None if temperature is None else float(temperature),
            top_p=float(top_p or 1),
            top_k=None if top_k is None else int(top_k),
        )


GREEDY = Decoding()
MOST_TOKENS, MOST_REQUESTS = 2**32 - 1, 10_000_000
"""Of a request and of a load: more is a slip of the pen, and would not fit the memory of the host either."""
FEWEST_ARRIVALS = 2
"""Requests of an online run: one alone has no gap."""

DECODING_LABEL = re.compile(rf"greedy|beam(\d{{1,9}})|t{NUMBER}(?:-p{NUMBER})?(?:-k(\d{{1,9}}))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Fixed lengths: `batch` requests, each of `input_tokens` in and exactly `output_tokens` out.

    Of a replay, whose requests have lengths of their own, the tokens are the longest prompt's and the longest answer's.

    Attributes:
        batch: Requests at once; with `arrivals` those of one run.
        arrivals: How they arrive; None for all at once, offline.
    """

    input_tokens: int
    output_tokens: int
    batch: int
    decoding: Decoding = GREEDY
    arrivals: Arrivals | None = None

    def __post_init__(self) -> None:
        for name, most in (("input_tokens", MOST_TOKENS), ("output_tokens", MOST_TOKENS), ("batch", MOST_REQUESTS)):
            if not 1 <= (value := getattr(self, name)) <= most:
                raise UsageError.bad_value(name, value, "at least 1" if value < 1 else f"at most {most:,}")
        if self.arrivals is not None and self.batch < FEWEST_ARRIVALS:
            raise UsageError.bad_value("batch", self.batch, f"at least {FEWEST_ARRIVALS}", arrivals=self.arrivals.label)

    @property
    def lengths(self) -> tuple[int, int]:
        """Input and output tokens."""
        return self.input_tokens, self.output_tokens

    @property
    def replica(self) -> tuple[int, int]:
        """Which of how many replicas serves it: 1 of 1 where nothing else is said."""
        return (1, 1) if self.arrivals is None else (self.arrivals.replica, self.arrivals.replicas)

    @property
    def is_replay(self) -> bool:
        """Whether each of its requests has lengths of its own, as in a log."""
        return self.arrivals is not None and self.arrivals.law == REPLAY

    @property
    def is_online(self) -> bool:
        """Whether it is a run of requests that arrive one after the other, or are replayed: no batch of equal ones."""
        return self.arrivals is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Links:
    """How the requests of a replay depend on each other: columns of an entry per request, or none.

    Attributes:
        block_tokens: Tokens of a block of `prefixes`, at least 1; None without.
        prefixes: The beginning that a prompt shares with others, in stretches: the number of each, and how many blocks
            it has. Equal numbers are equal tokens; what follows them is shared with no other request.
        after: Index of the earlier request whose answer this one follows, whatever its arrival time; -1 without.
        gap_s: Seconds from that answer's last token until it arrives.
    """

    block_tokens: int | None = None
    prefixes: tuple[tuple[tuple[int, int], ...], ...] = ()
    after: tuple[int, ...] = ()
    gap_s: tuple[float, ...] = ()


def request_misfits(
    load: Load, arrival_s: Sequence[float], lengths: Sequence[tuple[int, int]], links: Links | None
) -> Iterator[tuple[str, object, str]]:
    """What the requests of a load cannot be: key, value, and what is expected.

    Online each has its arrival, in a replay its lengths and links.
    """
    links = links or Links()
    earlier = [index for index, before in enumerate(links.after) if -1 <= before < index]
    for name, found, is_needed in (
        ("lengths", len(lengths), load.is_replay),
        ("arrival_s", len(arrival_s), load.is_online),
        ("links.prefixes", len(links.prefixes), links.block_tokens is not None),
        ("links.after", len(earlier), bool(links.after)),
        ("links.gap_s", len(links.gap_s), bool(links.after)),
    ):
        if found != (wanted := load.batch * is_needed):
            yield name, found, f"{wanted}, for {load.batch} requests"
    if any(later_s < earlier_s for earlier_s, later_s in pairwise(arrival_s)):
        yield "arrival_s", arrival_s[:3], "ascending times"
    shortest, longest = min(chain.from_iterable(lengths), default=1), tuple(map(max, zip(*lengths, strict=True)))
    if shortest < 1 or longest not in ((), load.lengths):
        yield "lengths", lengths[:3], f"1 to {load.input_tokens} input and 1 to {load.output_tokens} output tokens"
    if links.block_tokens == 0 or any(blocks < 1 for own in links.prefixes for _, blocks in own):
        yield "links.prefixes", links.prefixes[:3], "at least one block, of at least one token"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One point of a grid: an engine config and a load."""

    setup: EngineSetup
    load: Load

    @property
    @once_each
    def id(self) -> str:
        """Twelve hexadecimal digits that name this cell in every file."""
        return digest({"setup": without_defaults(self.setup), "load": without_defaults(self.load)})

    @property
    def label(self) -> str:
        """Of the engine config, of decoding if it is not greedy, and of arrivals: ``vllm-t0.8``, ``vllm-poisson4``."""
        decoding, arrivals = self.load.decoding, self.load.arrivals
        chosen = "" if decoding == GREEDY else f"-{decoding.label}"
        return f"{self.setup.label}{chosen}" + ("" if arrivals is None else f"-{arrivals.label}")

    @once_each
    def __str__(self) -> str:
        load = self.load
        if load.is_replay:
            return f"{self.label} {self.setup.model} × {load.batch}"
        return f"{self.label} {self.setup.model} {load.input_tokens}→{load.output_tokens} × {load.batch}"


GRID_VISIT, START_VISIT, END_VISIT = "grid", "start", "end"
"""When a cell is measured: in the shuffled grid, or as a control cell before and after it."""


def grid_visit(number: int) -> str:
    """The name of the `number`-th visit in the grid, from 1 on: ``grid``, ``grid-2``."""
    return GRID_VISIT if number == 1 else f"{GRID_VISIT}-{number}"


def visit_key(cell_id: str, visit: str) -> str:
    """One visit of a cell: the cell's id, and the visit if it is not that of the grid."""
    return cell_id if visit == GRID_VISIT else f"{cell_id}/{visit}"
