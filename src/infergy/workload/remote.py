"""Tables that stay where they are: Parquet behind a URL, which polars scans, and tables of Spark, which Spark counts.

Credentials and endpoints of stores come from the environment, as each cloud's own tools take them.
Spark needs the extra ``spark``; its tables are queried through narwhals (`infergy.workload.table`).
"""

from __future__ import annotations

import socket
from typing import Any
from urllib.parse import urlsplit

from infergy.errors import DataError, MissingError, UsageError

HINTS = {
    "s3": "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL for a store of your own",
    "gs": "GOOGLE_SERVICE_ACCOUNT or GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME, AZURE_STORAGE_ACCOUNT_KEY",
    "hf": "HF_TOKEN, where the dataset is private",
    "http": "none is needed, or it stands in the URL",
}
_SCHEMES = {"s3": "s3 s3a", "gs": "gs gcs", "az": "az azure abfs abfss adl", "hf": "hf", "http": "http https"}
SCHEMES = {scheme: store for store, schemes in _SCHEMES.items() for scheme in schemes.split()}
CONNECT, STANDALONE = "sc://", "spark://"
CONNECT_PORT, STANDALONE_PORT = 15002, 7077
CONNECT_TIMEOUT_S = 5.0
FILES = {".parquet": "parquet", ".csv": "csv", ".json": "json", ".jsonl": "json", ".orc": "orc"}
MASTERS = ("local", "local[", STANDALONE, "yarn", "k8s://", CONNECT)
_CLASSIC_OPTIONS = {
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    # Logs keep instants in nanoseconds, which Spark does not read as such; arrivals are not asked of it.
    "spark.sql.legacy.parquet.nanosAsLong": "true",
}
_TEXT = (".csv", ".csv.gz", ".json", ".jsonl", ".jsonl.gz", ".ndjson")
_SHOWN_TABLES = 8
_SHOWN_CHARACTERS = 300
_PY4J, _CAUSE = "An error occurred while calling", "Caused by: "


def scan_url(url: str) -> Any:
    """A lazy polars frame of the Parquet at a URL; ``*`` stands for several files. Only its schema is read.

    Raises:
        UsageError: The scheme is none that is read, or the file is not Parquet by its name.
        DataError: Nothing can be read there.
    """
    scheme = url.partition("://")[0].lower()
    if scheme not in SCHEMES:
        message = f"{url}: {scheme}:// is not supported. Parquet is read from {', '.join(f'{s}://' for s in SCHEMES)}"
        raise UsageError(message, code="not-supported", path=url, schemes=list(SCHEMES))
    if urlsplit(url).path.lower().endswith(_TEXT):
        message = f"{url}: behind a URL only Parquet is read. Download the file first, then name it"
        raise UsageError(message, code="not-supported", path=url)
    import polars as pl

    try:
        frame = pl.scan_parquet(url)
        frame.collect_schema()
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = " ".join(str(error).split())
        reason = reason if len(reason) <= _SHOWN_CHARACTERS else f"{reason[:_SHOWN_CHARACTERS]} …"
        message = f"{url}: cannot be opened: {reason}. Credentials come from the environment: {HINTS[SCHEMES[scheme]]}"
        raise DataError(message, code="file-not-readable", path=url, reason=reason) from error
    return frame


def spark_frame(where: str, table: str) -> Any:
    """A table as a Spark frame, for `open_trace`.

    Args:
        where: ``sc://host:15002`` (Spark Connect), or a master of a classic session: ``local[2]``,
            ``spark://host:7077``, ``yarn``, ``k8s://…``.
        table: Name of a table or view, ``catalog.schema.table`` too, or the path of Parquet, CSV, JSON or ORC files.

    Raises:
        UsageError: `where` is neither.
        MissingError: Spark or Java is not installed, or no server listens at `where`.
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
        message = f"{table}: {spark_reason(error)}{_tables(session) if kind is None else ''}"
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


def spark_reason(error: Exception) -> str:
    """The first line of an error of Spark; of its Java the innermost cause."""
    lines = str(error).strip().split("\n")
    if lines[0].startswith(_PY4J):
        lines = lines[1:] or lines
        lines = [line for line in lines if line.startswith(_CAUSE)][-1:] or lines
    return lines[0].removeprefix(_CAUSE).removeprefix(": ").rstrip(".")[:_SHOWN_CHARACTERS]


def _session(where: str) -> Any:
    try:
        from pyspark.errors import PySparkException
        from pyspark.sql import SparkSession
    except ImportError as error:
        raise MissingError.package("--spark", "pyspark", "pip install 'infergy[spark]'") from error
    if where.startswith((CONNECT, STANDALONE)):
        _check_server(where)
    builder = SparkSession.builder.appName("infergy")
    try:
        if where.startswith(CONNECT):
            return builder.remote(where).getOrCreate()
        session = builder.master(where).config(map=_CLASSIC_OPTIONS).getOrCreate()
        session.sparkContext.setLogLevel("ERROR")
    except (PySparkException, RuntimeError, ImportError) as error:
        reason = spark_reason(error)
        message = f"no Spark session at {where}: {reason}"
        if "JAVA_GATEWAY" in str(error) or "Java" in reason or "UnsupportedClassVersion" in str(error):
            message = (
                f"Spark could not start Java ({reason}). It needs Java 17 or 21: "
                "apt-get install openjdk-17-jre-headless, or set JAVA_HOME"
            )
        raise MissingError(message, code="spark-unavailable", server=where) from error
    return session


def _check_server(where: str) -> None:
    """Fail at once if no server listens: Spark itself would try for minutes."""
    port = CONNECT_PORT if where.startswith(CONNECT) else STANDALONE_PORT
    try:
        parts = urlsplit(where.partition(";")[0].split(",")[0])
        host, port = parts.hostname or "", parts.port or port
    except ValueError as error:
        raise UsageError.bad_value("--spark", where, f"{CONNECT}host:{CONNECT_PORT}") from error
    try:
        socket.create_connection((host, port), CONNECT_TIMEOUT_S).close()
    except OSError as error:
        start = "start-connect-server.sh" if where.startswith(CONNECT) else "start-master.sh"
        message = f"--spark {where}: no server listens at {host}:{port} ({error}). Is it running ({start})?"
        raise MissingError(message, code="spark-unavailable", server=where) from error


def _tables(session: Any) -> str:
    """The tables there are, if Spark can list them."""
    try:
        names = [table.name for table in session.catalog.listTables()]
    except Exception:  # noqa: BLE001 - whatever a catalog cannot do, the first error is the one to report
        return ""
    more = ", …" if len(names) > _SHOWN_TABLES else ""
    return f". Tables here: {', '.join(names[:_SHOWN_TABLES])}{more}" if names else ". There are no tables here"
