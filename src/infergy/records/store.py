"""The store: a JSONL file of measurements, one row a line, each on disk before the next cell begins.

Rows stand alone: any JSON tool reads them, and `infergy table merge` puts several stores together.
"""

from __future__ import annotations

import fcntl
import io
import itertools
import json
import os
import stat
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from types import TracebackType

from infergy.errors import DataError, InfergyError, UsageError
from infergy.files import drafted, open_beside, parse_json, read_lines, write_all
from infergy.records.codec import line_reader
from infergy.records.measurement import SCHEMA, Measurement
from infergy.records.row_checks import reject_impossible

DEFAULT_GPU = "h200"
SHIPPED_ROWS = Path(str(resources.files("infergy"))) / "data" / "tables"
READ_BYTES = 1 << 20
SHARED = ("cell", "environment", "loaded_idle", "bare_idle", "loading")
"""Parts of a row that others of its engine config have too."""
_START = b'{"cell_id"'
"""What each row begins with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreContents:
    """What a store holds.

    Attributes:
        rows: All measurements, in the file's order.
        torn: The half-written last line of a sweep that was killed; None if the file ends well.
        end_bytes: Where the last whole row ends.
    """

    rows: tuple[Measurement, ...]
    torn: bytes | None = None
    end_bytes: int = 0


def read_store(path: Path) -> StoreContents:
    """Read all rows of a store (``.jsonl``, or ``.jsonl.gz``).

    Raises:
        DataError: The file is missing, foreign, or damaged anywhere but in its last line.
    """
    return _parse(read_lines(path, f"Measure one with: infergy measure GRID.toml -o {path}"), path)


def _parse(lines: Iterable[bytes], path: Path) -> StoreContents:
    rows: list[Measurement] = []
    end = 0
    read_line = line_reader(Measurement, SHARED)
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                rows.append(_read_row(line, path, number, read_line))
            except DataError as error:
                # The last line alone has no end. What no row begins with is no half of one: the file is another's.
                is_half = error.code == "bad-syntax" and not line.endswith(b"\n")
                if is_half and (rows or line.startswith(_START[: len(line)])):
                    return StoreContents(rows=tuple(rows), torn=line, end_bytes=end)
                raise
        end += len(line)
    return StoreContents(rows=tuple(rows), end_bytes=end)


def _read_row(line: bytes, path: Path, number: int, read_line: Callable[[bytes], Measurement] | None) -> Measurement:
    place = f"{path} line {number}"
    # What is wrong, and rows of another schema, are found again below.
    with suppress(ValueError, InfergyError):
        if read_line is not None and SCHEMA.encode() in line:
            row = read_line(line)
            reject_impossible(row, place)
            return row
    data = parse_json(line, path, "A store holds one measurement a line; remove the line", number)
    return Measurement.from_json(data, place)


def create_store(path: Path, rows: Iterable[Measurement], *, replace: bool = False) -> None:
    """Write a store whole: killed at any moment, it is there with all its rows, or as it was before.

    Raises:
        UsageError: There is such a file already and it is not to be replaced, or it cannot be written.
    """
    try:
        with drafted(path, b"".join(map(encode_row, rows))) as draft:
            if replace:
                draft.replace(path)
            else:
                # Unlike a rename, a link never replaces a file that was created meanwhile.
                os.link(draft, path)
    except FileExistsError as error:
        message = f"{path}: there is such a file already. Name a new one"
        raise UsageError(message, code="file-exists", path=str(path)) from error
    except OSError as error:
        raise UsageError.not_writable(path, error) from error


def encode_row(row: Measurement) -> bytes:
    """The line of a row, its newline included."""
    return json.dumps(row.to_json(), separators=(",", ":"), allow_nan=False).encode() + b"\n"


class StoreWriter:
    """Appends rows to one store; only one sweep at a time may hold it.

    A half-written last line is moved to ``FILE.torn`` when the store is opened, or appended to.

    Args:
        path: The store; made, with its folder, where it is not there.
        inherited: The descriptor of a parent that holds the store. It leads to the parent's file, whatever has its
            name by now.
    """

    def __init__(self, path: Path, *, inherited: int | None = None) -> None:
        if path.suffix == ".gz":
            message = f"{path}: rows are appended one by one, which gzip does not allow. Write to a .jsonl file"
            raise UsageError(message, code="file-not-writable", path=str(path), reason="gzip")
        self.path = path
        self._descriptor = _open(path) if inherited is None else inherited
        try:
            if inherited is None:
                self._lock()
            contents = self.read()
            self.rows = contents.rows
            self.torn = self._set_aside(contents)
        except InfergyError:
            self.close()
            raise

    def append(self, row: Measurement) -> None:
        """Write one row and wait until it is on disk.

        Raises:
            DataError: The file was damaged since it was opened, anywhere but in its last line.
            UsageError: It cannot be written: it ends as before, then.
        """
        # A child that shares this store may have died in mid-line: what is appended to half a line is lost with it.
        if not self._ends_well():
            self.torn = self._set_aside(self.read()) or self.torn
        self._write(encode_row(row))

    def read(self, start_bytes: int = 0) -> StoreContents:
        """What it holds from there on, also if another file has its name by now.

        Raises:
            DataError: It is foreign, or damaged anywhere but in its last line.
        """
        return _parse(io.BytesIO(self._content(start_bytes)), self.path)

    @property
    def size_bytes(self) -> int:
        """Its length now."""
        return os.fstat(self._descriptor).st_size

    def demand_in_place(self) -> None:
        """Notice that the store was removed, or replaced by another file, and keep its rows beside it.

        Raises:
            DataError: It was; the message names the file that holds the rows.
            UsageError: It was, and that file cannot be written.
        """
        try:
            if os.path.samestat(self.path.stat(), os.fstat(self._descriptor)):
                return
        except OSError:
            # What cannot be found is not there.
            pass
        kept = next(
            path
            for number in itertools.count(1)
            if not (path := self.path.with_name(f"{self.path.stem}.kept-{number}{self.path.suffix}")).exists()
        )
        try:
            kept.parent.mkdir(parents=True, exist_ok=True)
            with drafted(kept, self._content(0)) as draft:
                os.link(draft, kept)
        except OSError as error:
            raise UsageError.not_writable(kept, error) from error
        message = (
            f"{self.path} was removed or replaced while it was measured into; its rows are in {kept}. To go on: "
            f"mv {kept} {self.path}, or name it with -o"
        )
        raise DataError(message, code="store-replaced", path=str(self.path), kept=str(kept))

    def fileno(self) -> int:
        """The locked descriptor: a child that inherits it keeps the lock alive."""
        return self._descriptor

    def close(self) -> None:
        """Release the store."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            message = f"{self.path}: another sweep is writing to this store. Wait for it, or write to another with -o"
            raise UsageError(message, code="file-locked", path=str(self.path)) from error

    def _content(self, start_bytes: int) -> bytes:
        chunks = []
        try:
            while chunk := os.pread(self._descriptor, READ_BYTES, start_bytes):
                chunks.append(chunk)
                start_bytes += len(chunk)
        except OSError as error:
            raise DataError.not_readable(self.path, error) from error
        return b"".join(chunks)

    def _ends_well(self) -> bool:
        size = self.size_bytes
        return size == 0 or os.pread(self._descriptor, 1, size - 1) == b"\n"

    def _set_aside(self, contents: StoreContents) -> Path | None:
        """Move a half-written last line out of the store, and end a whole one that lacks its newline."""
        if contents.torn is None:
            if not self._ends_well():
                self._write(b"\n")
            return None
        torn = self.path.with_name(self.path.name + ".torn")
        aside = open_beside(torn)
        try:
            write_all(aside, contents.torn + b"\n")
            os.fsync(aside)
            os.ftruncate(self._descriptor, contents.end_bytes)
            os.fsync(self._descriptor)
        except OSError as error:
            raise UsageError.not_writable(torn, error) from error
        finally:
            os.close(aside)
        return torn

    def _write(self, content: bytes) -> None:
        """Append and wait until it is on disk; all of it, or nothing."""
        size = self.size_bytes
        try:
            write_all(self._descriptor, content)
            os.fsync(self._descriptor)
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self._descriptor, size)
            raise UsageError.not_writable(self.path, error) from error


def _open(path: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return descriptor
        os.close(descriptor)
        raise OSError(None, "it is no regular file, and rows are read again")
    except OSError as error:
        raise UsageError.not_writable(path, error) from error


def shipped_rows() -> tuple[Path, ...]:
    """All of them: the default GPU's first, and after them replicates from other GPUs of the same kinds."""
    own, others = (SHIPPED_ROWS.glob(pattern) for pattern in ("*.jsonl", "replicates/*.jsonl"))
    return (*sorted(own, key=_order), *sorted(others, key=_order))


def shipped_store(gpu: str | None = None) -> Path:
    """The first file of rows of a GPU of the catalog, or of the default GPU where there is none."""
    rows = shipped_rows()
    return next((path for path in rows if gpu is not None and path.name.startswith(f"{gpu}-")), rows[0])


def _order(path: Path) -> tuple[bool, str]:
    return not path.name.startswith(f"{DEFAULT_GPU}-"), path.name
