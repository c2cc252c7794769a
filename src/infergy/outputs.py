"""Files that infergy writes: whole or not at all, and never over a file of another kind.

A file is written beside its name, synced, and renamed: killed at any moment, or with a full disk, the old one is there.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from infergy.errors import UsageError

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
