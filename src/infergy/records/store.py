"""The store: a JSONL file of measurements, one row a line, each on disk before the next cell begins.

Rows stand alone: any JSON tool reads them, and `infergy table merge` puts several stores together.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from types import TracebackType

from infergy.errors import DataError, InfergyError, UsageError
from infergy.files import parse_json, read_bytes
from infergy.records.measurement import Measurement

DEFAULT_GPU = "h200"
SHIPPED_ROWS = Path(str(resources.files("infergy"))) / "data" / "tables"


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
    content = read_bytes(path, f"Measure one with: infergy measure GRID.toml -o {path}")
    rows: list[Measurement] = []
    end = 0
    lines = content.split(b"\n")
    for number, line in enumerate(lines, start=1):
        is_last = number == len(lines)
        if line.strip():
            try:
                data = parse_json(line, path, "A store holds one measurement a line; remove the line", number)
            except DataError as error:
                if is_last and error.code == "bad-syntax":
                    return StoreContents(rows=tuple(rows), torn=line, end_bytes=end)
                raise
            rows.append(Measurement.from_json(data, f"{path} line {number}"))
        end += len(line) + (0 if is_last else 1)
    return StoreContents(rows=tuple(rows), end_bytes=end)


def create_store(path: Path, rows: Iterable[Measurement], *, replace: bool = False) -> None:
    """Write a store whole: killed at any moment, it is there with all its rows, or as it was before.

    Raises:
        UsageError: There is such a file already and it is not to be replaced, or it cannot be written.
    """
    draft = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        with draft.open("xb") as file:
            file.write(b"".join(encode_row(row) for row in rows))
            file.flush()
            os.fsync(file.fileno())
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
    finally:
        draft.unlink(missing_ok=True)


def encode_row(row: Measurement) -> bytes:
    """The line of a row, its newline included."""
    return json.dumps(row.to_json(), separators=(",", ":"), allow_nan=False).encode() + b"\n"


class StoreWriter:
    """Appends rows to one store; only one sweep at a time may hold it.

    A half-written last line is moved to ``FILE.torn`` when the store is opened, or appended to.
    """

    def __init__(self, path: Path, *, lock: bool = True) -> None:
        if path.suffix == ".gz":
            message = f"{path}: rows are appended one by one, which gzip does not allow. Write to a .jsonl file"
            raise UsageError(message, code="file-not-writable", path=str(path), reason="gzip")
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab+")
        except OSError as error:
            raise UsageError.not_writable(path, error) from error
        try:
            if lock:
                self._lock()
            contents = read_store(path)
        except InfergyError:
            self._file.close()
            raise
        self.rows = contents.rows
        self.torn = self._set_aside(contents)

    def append(self, row: Measurement) -> None:
        """Write one row and wait until it is on disk.

        Raises:
            DataError: The file was damaged since it was opened, anywhere but in its last line.
        """
        # A child that shares this store may have died in mid-line: what is appended to half a line is lost with it.
        if not self._ends_well():
            self.torn = self._set_aside(read_store(self.path)) or self.torn
        self._file.write(encode_row(row))
        self._sync()

    def fileno(self) -> int:
        """The locked descriptor: a child that inherits it keeps the lock alive."""
        return self._file.fileno()

    def close(self) -> None:
        """Release the store."""
        self._file.close()

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            message = f"{self.path}: another sweep is writing to this store. Wait for it, or write to another with -o"
            raise UsageError(message, code="file-locked", path=str(self.path)) from error

    def _ends_well(self) -> bool:
        size = os.fstat(self._file.fileno()).st_size
        return size == 0 or os.pread(self._file.fileno(), 1, size - 1) == b"\n"

    def _set_aside(self, contents: StoreContents) -> Path | None:
        """Move a half-written last line out of the store, and end a whole one that lacks its newline."""
        if contents.torn is None:
            if not self._ends_well():
                self._file.write(b"\n")
                self._sync()
            return None
        torn = self.path.with_name(self.path.name + ".torn")
        with torn.open("ab") as aside:
            aside.write(contents.torn + b"\n")
            aside.flush()
            os.fsync(aside.fileno())
        self._file.truncate(contents.end_bytes)
        self._sync()
        return torn

    def _sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())


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
