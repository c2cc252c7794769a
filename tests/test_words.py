"""Words that docs, messages and docstrings do without: each has a plain, standard replacement."""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WORDS = {
    r"tells?|told|telling|fore(?:tells?|told)|untold": "report, show, know, estimate, predict",
    r"refus(?:e|es|ed|al|ing)": "reject",
    r"chips?": "GPU",
    r"set-ups?": "engine config",
    r"anchors?": "control cell",
    r"cur(?:e|es|ed)|mend(?:s|ed)?": "fix",
    r"held against": "compared with",
    r"doubt\w*": "uncertainty",
    r"distrust\w*": "flag, warn",
    r"certain to": "known to, interval",
    r"joules of": "energy of",
    r"(?:J|joules|tokens) an? (?:request|token|batch|second|step|run|cell|TFLOP|round)": "per",
    r"likewise": "the same, too",
    r"nobody|whoever": "the subject itself",
    r"witness\w*": "source",
    r"sittings?": "session",
    r"octaves?": "doubling",
    r"what stands|so often|as it were|hangs? on|at hand|anew": "plain words",
    r"matrix products?": "matmul",
    r"law of(?: the)? (?:random )?weights|laws? of random": "weight initialisation",
    r"(?:gamma|exponential) law|the law": "distribution, regression",
    r"pretended": "simulated",
    r"(?:is|are|not|be) priced": "estimated",
}
"""Patterns, whole words in any case, and what to write instead."""

ALLOWED = {
    r"(?i)system on a chip|superchip|on-chip": "names of hardware",
    r"(?i)[`\"']+refused?[`\"']+|^refused?$": "a value of --mixed; an event between processes",
    r"or refuse (?=rows|$)|\[default: refuse; paper: split\]": "the help of --mixed",
    r"\b(?:START_|END_)?anchors?\b(?=:)|^anchors?$": "an attribute; a keyword of Vega-Lite; a key of stored plans",
    r"(?i)^chips$|\bchips:": "a field of rescaled rows",
    r"\{[^{}]*\}": "a name in a template",
    r"weights-law": "the name of a study",
}
"""What a line may contain all the same, and why."""

PATTERN = re.compile("|".join(f"(?P<w{i}>\\b(?:{word})\\b)" for i, word in enumerate(WORDS)), re.IGNORECASE)
TEXT = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), *(ROOT / f"{name}.md" for name in ("README", "CHANGELOG"))]
PAGES += [ROOT / "ARCHITECTURE.md", ROOT / "CONTRIBUTING.md"]


def find_words(lines: Iterator[tuple[int, str]]) -> Iterator[tuple[int, str, str]]:
    """Number of the line, word and replacement."""
    for number, line in lines:
        text = line
        for allowed in ALLOWED:
            text = re.sub(allowed, " ", text)
        for match in PATTERN.finditer(text):
            yield number, match.group(), WORDS[list(WORDS)[int((match.lastgroup or "w0")[1:])]]


def prose_of(source: str) -> Iterator[tuple[int, str]]:
    """Lines of comments, docstrings and other strings of Python source."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in TEXT:
            for offset, line in enumerate(token.string.splitlines()):
                quoted = token.type != tokenize.COMMENT
                yield token.start[0] + offset, re.sub(r'^[rbfRBF]*["\']|["\']$', "", line) if quoted else line


def in_words(path: Path, hits: Iterator[tuple[int, str, str]]) -> list[str]:
    return [f"{path.relative_to(ROOT)}:{number}: {word!r}; write: {better}" for number, word, better in hits]


def test_source_has_plain_words() -> None:
    sources = sorted((ROOT / "src" / "infergy").rglob("*.py"))
    hits = [hit for path in sources for hit in in_words(path, find_words(prose_of(path.read_text(encoding="utf-8"))))]
    assert not hits, "\n".join(hits)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_have_plain_words(page: Path) -> None:
    hits = in_words(page, find_words(iter(enumerate(page.read_text(encoding="utf-8").splitlines(), 1))))
    assert not hits, "\n".join(hits)


def test_a_word_is_named_with_its_line_and_replacement() -> None:
    source = 'x = told  # a name\n"""What the chip\ntells, on a superchip."""\n'
    assert list(find_words(prose_of(source))) == [(2, "chip", "GPU"), (3, "tells", WORDS[next(iter(WORDS))])]
