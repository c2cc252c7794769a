"""Panics of polars, which is written in Rust: on a damaged file they are errors of it as others are."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_panics() -> Iterator[None]:
    """The block, in which a panic of polars is an error of polars; the main thread drops what Rust writes of it."""
    import polars as pl

    try:
        with _stderr_until_panic(pl.exceptions.PanicException):
            yield
    except pl.exceptions.PanicException as error:
        raise pl.exceptions.ComputeError(str(error)) from error


@contextmanager
def _stderr_until_panic(panic: type[BaseException]) -> Iterator[None]:
    # Descriptors are shared by threads: two that change one would leave it changed.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    import tempfile

    with tempfile.TemporaryFile() as aside:
        kept = os.dup(2)
        os.dup2(aside.fileno(), 2)
        try:
            yield
        except panic:
            aside.truncate(0)
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            aside.seek(0)
            os.write(2, aside.read())
