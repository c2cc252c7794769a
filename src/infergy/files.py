"""Files: JSON and TOML that people or other programs wrote, read and checked once; and those that infergy writes.

Numbers that are read must be finite, and whole ones fit 64 bits: past these a computation ends in an error far from the
file, or goes on with an infinity.

A file is written whole or not at all, and never over a file of another kind: beside its name, synced, and renamed.
Killed at any moment, or with a full disk, the old one is there.
"""

from __future__ import annotations

import errno
import gzip
import json
import math
import os
import secrets
import stat
import sys
import tomllib
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from infergy.errors import DataError, UsageError

MOST_BYTES = 2**32
"""Of a file: larger ones are pipes without end. A store of 100,000 rows has a sixth of it."""
MOST_OF_LINE = 2**28
"""Bytes of a line: a row of a replay has some hundred a request."""
SMALL_BYTES, MOST_EXPANDED = 2**26, 100
"""What a packed file may hold in any case, and over its size: rows are packed to a tenth."""
LARGEST_INTEGER = 2**63 - 1
LONGEST_INTEGER = len(str(LARGEST_INTEGER))
DEEPEST = 100
"""Levels of nesting; files of infergy and configurations of models have a dozen."""


def read_text(path: Path, hint: str) -> str:
    """The text of a file; `hint` says where one comes from.

    Raises:
        DataError: The file is missing, cannot be read, is larger than any of its kind, or is not UTF-8.
    """
    try:
        return read_bytes(path, hint).decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise DataError.not_readable(path, error, hint) from error


def read_bytes(path: Path, hint: str) -> bytes:
    """The content of a file, unpacked if its name ends in ``.gz``; `hint` says where one comes from.

    Raises:
        DataError: The file is missing or damaged, cannot be read, is a device, or has no end in sight.
    """
    with _open_input(path, hint) as (file, most):
        content = file.read(most + 1)
        if len(content) > most:
            raise OSError(errno.EFBIG, f"more than {most:,} bytes")
    return content


def read_lines(path: Path, hint: str) -> Iterator[bytes]:
    """The lines of a file as of `read_bytes`, each with its end.

    Raises:
        DataError: As of `read_bytes`; or a line has no end in sight.
    """
    with _open_input(path, hint) as (file, most):
        while line := file.readline(MOST_OF_LINE + 1):
            most -= len(line)
            if most < 0 or len(line) > MOST_OF_LINE:
                raise OSError(errno.EFBIG, "its lines have no end")
            yield line


@contextmanager
def _open_input(path: Path, hint: str) -> Iterator[tuple[IO[bytes] | gzip.GzipFile, int]]:
    """A file, unpacked, and how many bytes it may have."""
    try:
        with path.open("rb") as file:
            facts = os.fstat(file.fileno())
            if stat.S_ISCHR(facts.st_mode) or stat.S_ISBLK(facts.st_mode):
                raise OSError(errno.EINVAL, "a device, not a file")
            if path.suffix != ".gz":
                yield file, MOST_BYTES
            else:
                with gzip.open(file) as unpacked:
                    yield unpacked, max(SMALL_BYTES, MOST_EXPANDED * facts.st_size)
    except FileNotFoundError as error:
        raise DataError.not_found(path, hint) from error
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError.not_readable(path, error, hint) from error


def parse_json(text: str | bytes, path: Path, hint: str, line: int | None = None, *, finite: bool = True) -> Any:
    """The value of a JSON file, or of a line of one; `hint` says what is expected, or what to do about it.

    Args:
        text: JSON.
        path: The file, for messages.
        hint: For messages.
        line: Its number in the file.
        finite: Whether infinite numbers are rejected, as ``NaN`` is in any case. False where the keys that count are
            checked later, as in a model's configuration, which may have ``Infinity`` under a key that is not read;
            large integers become infinite then.

    Raises:
        DataError: It is no JSON, is nested too deep, or has a number out of range; the message names its key.
    """
    out_of_range = False

    def note(value: float) -> float:
        nonlocal out_of_range
        out_of_range = out_of_range or math.isnan(value) or (finite and math.isinf(value))
        return value

    def integer(digits: str) -> float:
        if len(digits) < LONGEST_INTEGER:
            return int(digits)
        value = int(digits) if len(digits) <= LONGEST_INTEGER + 1 else math.inf
        return value if abs(value) <= LARGEST_INTEGER else note(math.inf)

    try:
        data = json.loads(
            text,
            parse_float=lambda digits: note(float(digits)),
            parse_int=integer,
            parse_constant=lambda name: note(float(name)),
        )
    except (ValueError, RecursionError) as error:
        raise DataError.bad_syntax(path, "JSON", error, hint, line) from error
    if out_of_range:
        demand_finite(data, path if line is None else f"{path} line {line}")
    return data


def read_toml(path: Path, hint: str) -> dict[str, Any]:
    """The tables of a TOML file; `hint` says what is expected.

    Raises:
        DataError: The file cannot be read, is no TOML, is nested too deep, or has a number out of range.
    """
    text = read_text(path, hint)
    try:
        data = tomllib.loads(text)
    # An integer of thousands of digits is a ValueError, of which that of TOML is a kind.
    except (ValueError, RecursionError) as error:
        raise DataError.bad_syntax(path, "TOML", error, hint) from error
    demand_finite(data, path)
    return data


def demand_finite(data: Any, place: object) -> None:
    """Reject a number out of range by its key.

    Raises:
        DataError: There is one, or the value is nested too deep.
    """
    for key, value in _leaves(data, place):
        largest = LARGEST_INTEGER if isinstance(value, int) else sys.float_info.max
        if isinstance(value, (int, float)) and not abs(value) <= largest:
            raise DataError.bad_field(place, key, value, "a finite number, a whole one of at most 64 bits")


def demand_shallow(data: Any, place: object) -> None:
    """Reject a value nested too deep to be walked through.

    Raises:
        DataError: It is.
    """
    for _ in _leaves(data, place):
        pass


def _leaves(data: Any, place: object) -> Iterator[tuple[str, Any]]:
    """The scalars of a value, and the key of each, as ``windows[0].batches[1].start_s``; without recursion."""
    rest: list[tuple[str, Any, int]] = [("", data, 0)]
    while rest:
        key, value, depth = rest.pop()
        if depth > DEEPEST:
            raise DataError.bad_field(place, f"{key[:40]}…", "nested", f"at most {DEEPEST} levels")
        if isinstance(value, dict):
            rest += [(f"{key}.{name}" if key else name, inner, depth + 1) for name, inner in value.items()]
        elif isinstance(value, list):
            rest += [(f"{key}[{number}]", inner, depth + 1) for number, inner in enumerate(value)]
        else:
            yield key, value


SIGN_BYTES = 4096
"""At each end of a file, in which the sign of its kind stands."""


def write_file(path: Path, content: str | bytes, kind: str, sign: str) -> None:
    """Write a file whole; what is no regular file, as a pipe, is written as it is.

    Args:
        path: Of a link, the file that it leads to is replaced.
        content: Of text as UTF-8.
        kind: What is written, for messages: ``plan``.
        sign: Text near an end of each file of this kind, by which one that may be replaced is known.

    Raises:
        UsageError: The file cannot be written, or holds something of another kind, which would be lost.
    """
    check_output(path, kind, sign)
    data = content.encode() if isinstance(content, str) else content
    try:
        # A cycle of links is a RuntimeError before Python 3.13.
        path = path.resolve()
        if path.exists() and not path.is_file():
            path.write_bytes(data)
            return
        with drafted(path, data) as draft:
            if path.exists():
                draft.chmod(path.stat().st_mode & 0o777)
            draft.replace(path)
    except (OSError, RuntimeError) as error:
        raise UsageError.not_writable(path, error) from error


def check_output(path: Path, kind: str, sign: str) -> None:
    """Reject a file before its content is computed; one that is not there is not made.

    Raises:
        UsageError: It, or its folder, cannot be written, or it holds something of another kind.
    """
    try:
        folder = path.resolve().parent
        if path.is_dir():
            raise IsADirectoryError(None, "it is a folder")
        if not folder.is_dir():
            raise NotADirectoryError(None, f"there is no folder {folder}")
        if not os.access(path if path.exists() else folder, os.W_OK):
            raise PermissionError(None, os.strerror(errno.EACCES))
        is_foreign = path.is_file() and path.stat().st_size > 0 and sign.encode() not in _ends(path)
    except (OSError, RuntimeError) as error:
        raise UsageError.not_writable(path, error) from error
    if is_foreign:
        message = f"{path}: there is a file already, and it is no {kind}. Name another one"
        raise UsageError(message, code="file-exists", path=str(path), expected=kind)


def append_line(path: Path, line: str) -> None:
    """Append a line to a file of lines, on a line of its own whatever was cut off before it.

    Raises:
        UsageError: It cannot be written.
    """
    try:
        with path.open("ab+", buffering=0) as file:
            size = file.seek(0, os.SEEK_END) if file.seekable() else 0
            is_cut = size > 0 and os.pread(file.fileno(), 1, size - 1) != b"\n"
            write_all(file.fileno(), b"\n" * is_cut + line.encode() + b"\n")
    except OSError as error:
        raise UsageError.not_writable(path, error) from error


@contextmanager
def drafted(path: Path, content: bytes) -> Iterator[Path]:
    """A new file beside `path` with its content, on disk; gone at the end of the block unless it was renamed."""
    draft = path.with_name(f".infergy-{secrets.token_hex(8)}.new")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        try:
            write_all(descriptor, content)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        yield draft
    finally:
        draft.unlink(missing_ok=True)


def write_all(descriptor: int, content: bytes) -> None:
    """Write all of it: a call may write a part."""
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def open_beside(path: Path) -> int:
    """A descriptor that appends to a file which infergy itself names, beside one that a person named.

    In a folder that others may write to, a link of that name would lead elsewhere: it is not followed.

    Raises:
        UsageError: It cannot be written, or is a link.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        return os.open(path, flags, 0o666)
    except OSError as error:
        raise UsageError.not_writable(path, error) from error


def _ends(path: Path) -> bytes:
    with path.open("rb") as file:
        head = file.read(SIGN_BYTES)
        file.seek(max(file.tell(), path.stat().st_size - SIGN_BYTES))
        return head + file.read()
