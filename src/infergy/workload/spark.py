"""Tables that Spark holds: opened where they lie, so that Spark counts and only a histogram leaves it.

Needs the extra ``spark``. What is asked of a table is built lazily by narwhals (`infergy.workload.table`): a histogram
is one aggregation over one scan.
"""

from __future__ import annotations

import socket
from typing import Any
from urllib.parse import urlsplit

from infergy.errors import DataError, MissingError, UsageError

CONNECT = "sc://"
STANDALONE = "spark://"
CONNECT_PORT, STANDALONE_PORT = 15002, 7077
PATIENCE_S = 5.0
FILES = {".parquet": "parquet", ".csv": "csv", ".json": "json", ".jsonl": "json", ".orc": "orc"}
MASTERS = ("local", "local[", STANDALONE, "yarn", "k8s://", CONNECT)
_SHOWN_TABLES = 8
_TOLD = 300
_PY4J, _CAUSE = "An error occurred while calling", "Caused by: "


def spark_frame(where: str, table: str) -> Any:
    """A table as a Spark frame, for `open_trace`.

    Args:
        where: ``sc://host:15002`` (Spark Connect), or a master of a classic session: ``local[2]``,
            ``spark://host:7077``, ``yarn``, ``k8s://…``.
        table: Name of a table or view, ``catalog.schema.table`` too, or the path of Parquet, CSV, JSON or ORC files.

    Raises:
        UsageError: `where` is neither.
        MissingError: Spark or Java is not installed, or nobody answers at `where`.
        DataError: There is no such table.
    """
    if not where.startswith(MASTERS):
        raise UsageError.bad_value("--spark", where, "sc://host:15002, local[2], spark://host:7077, yarn or k8s://…")
    session = _session(where)
    bare = table.rstrip("/").lower().removesuffix(".gz")
    kind = FILES.get("." + bare.rpartition(".")[2], "parquet" if "/" in table else None)
    try:
        if kind is None:
            frame = session.table(table)
        else:
            options = {"header": "true", "inferSchema": "true"} if kind == "csv" else {}
            frame = session.read.format(kind).options(**options).load(table)
        frame.schema  # noqa: B018 - Spark Connect looks a table up when its schema is asked for
    except spark_errors() as error:
        message = f"{table}: {words_of(error)}{_tables(session) if kind is None else ''}"
        raise DataError(message, code="spark-failed", table=table) from error
    return frame


def spark_errors() -> tuple[type[Exception], ...]:
    """What Spark raises: from Python, and from its Java where a session is classic."""
    from pyspark.errors import PySparkException

    try:
        from py4j.protocol import Py4JError
    except ImportError:
        return (PySparkException,)
    return PySparkException, Py4JError


def words_of(error: Exception) -> str:
    """What Spark says went wrong: its first line; of its Java the innermost cause."""
    lines = str(error).strip().split("\n")
    if lines[0].startswith(_PY4J):
        lines = lines[1:] or lines
        causes = [line for line in lines if line.startswith(_CAUSE)]
        lines = causes[-1:] or lines
    return lines[0].removeprefix(_CAUSE).removeprefix(": ").rstrip(".")[:_TOLD]


def _session(where: str) -> Any:
    try:
        from pyspark.errors import PySparkException
        from pyspark.sql import SparkSession
    except ImportError as error:
        raise MissingError.package("--spark", "pyspark", "pip install 'infergy[spark]'") from error
    if where.startswith((CONNECT, STANDALONE)):
        _answers(where)
    builder = SparkSession.builder.appName("infergy")
    try:
        if where.startswith(CONNECT):
            return builder.remote(where).getOrCreate()
        # No page of its own, and no progress bar between our lines.
        quiet = {"spark.ui.enabled": "false", "spark.ui.showConsoleProgress": "false"}
        # Logs keep instants in nanoseconds, which Spark does not read as such; arrivals are not asked of it.
        options = {**quiet, "spark.sql.legacy.parquet.nanosAsLong": "true"}
        session = builder.master(where).config(map=options).getOrCreate()
        session.sparkContext.setLogLevel("ERROR")
    except (PySparkException, RuntimeError, ImportError) as error:
        told = words_of(error)
        if "JAVA_GATEWAY" in str(error) or "Java" in told or "UnsupportedClassVersion" in str(error):
            message = (
                f"Spark could not start Java ({told}). It needs Java 17 or 21: "
                "apt-get install openjdk-17-jre-headless, or set JAVA_HOME"
            )
            raise MissingError(message, code="spark-unavailable", server=where) from error
        raise MissingError(f"no Spark session at {where}: {told}", code="spark-unavailable", server=where) from error
    return session


def _answers(where: str) -> None:
    """Whether somebody listens: Spark itself would try for minutes."""
    port = CONNECT_PORT if where.startswith(CONNECT) else STANDALONE_PORT
    try:
        parts = urlsplit(where.partition(";")[0].split(",")[0])
        host, port = parts.hostname or "", parts.port or port
    except ValueError as error:
        raise UsageError.bad_value("--spark", where, f"{CONNECT}host:{CONNECT_PORT}") from error
    try:
        socket.create_connection((host, port), PATIENCE_S).close()
    except OSError as error:
        start = "start-connect-server.sh" if where.startswith(CONNECT) else "start-master.sh"
        message = f"--spark {where}: nobody answers at {host}:{port} ({error}). Is the server running ({start})?"
        raise MissingError(message, code="spark-unavailable", server=where) from error


def _tables(session: Any) -> str:
    """What there is instead, if Spark tells."""
    try:
        names = [one.name for one in session.catalog.listTables()]
    except Exception:  # noqa: BLE001 - whatever a catalogue cannot do, the first error is the one to tell
        return ""
    more = ", …" if len(names) > _SHOWN_TABLES else ""
    return f". Tables here: {', '.join(names[:_SHOWN_TABLES])}{more}" if names else ". There are no tables here"
