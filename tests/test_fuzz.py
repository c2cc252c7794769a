"""Files, options and commands damaged at random: an answer that can be or an error of infergy, never otherwise.

``FUZZ_SEED=7 python -m pytest tests/test_fuzz.py -m ""`` tries others than those of CI.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import fuzzing
from fuzzing import ENDS, KINDS, WORDS, NonsenseError, command_line, damaged, kind_of, try_command, try_file, try_word

FILES = (*KINDS, "logs")
KINDS_AND_WORDS = (*FILES, *WORDS)
FEW, MANY, COMMANDS, TYPED = 10, 430, 12, 14
"""Inputs of each kind in any case and in the slow part, commands in any case, and inputs typed of each kind of file."""


def try_each(kind: str, numbers: range, folder: Path) -> None:
    for number in numbers:
        try:
            if kind in FILES:
                try_file(kind, number, folder)
            else:
                try_word(kind, number)
        except Exception as error:
            error.add_note(f"input {number} of {kind!r}, seed {fuzzing.SEED}: tests/fuzzing.py makes it again")
            raise


@pytest.mark.parametrize("kind", KINDS_AND_WORDS)
def test_a_damaged_input_is_read_or_rejected(kind: str, tmp_path: Path) -> None:
    try_each(kind, range(FEW), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS_AND_WORDS)
def test_many_damaged_inputs_are_read_or_rejected(kind: str, tmp_path: Path) -> None:
    try_each(kind, range(FEW, MANY), tmp_path)


@pytest.mark.parametrize("number", range(COMMANDS))
def test_a_command_with_nonsense_ends_with_a_status_that_says_so(number: int, tmp_path: Path) -> None:
    try_command(command_line(number, tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("number", range(COMMANDS, 20 * COMMANDS))
def test_many_commands_with_nonsense_end_with_a_status_that_says_so(number: int, tmp_path: Path) -> None:
    try_command(command_line(number, tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("kind", FILES)
def test_a_verb_ends_with_a_sentence_on_a_damaged_file(kind: str, tmp_path: Path) -> None:
    for number in range(TYPED):
        made = kind_of(kind, number)
        path = tmp_path / made.name
        path.write_bytes(damaged(kind, number))
        words = [str(path) if word == "FILE" else word for word in made.verb.split()]
        done = subprocess.run([sys.executable, "-m", "infergy", *words], capture_output=True, timeout=120, check=False)
        shown = (done.stdout + done.stderr).decode("utf-8", "replace")
        if done.returncode not in ENDS or "Traceback" in shown or "panicked" in shown:
            raise NonsenseError(f"input {number} of {kind!r} ends with {done.returncode}: {shown[-2000:]}")
