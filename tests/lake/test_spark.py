"""Traces that a real Spark holds: counted there, by one aggregation over one scan, as polars counts the same rows."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
import pytest

pytest.importorskip("pyspark")

from infergy.errors import DataError
from infergy.workload import Bins, Histogram, open_trace
from infergy.workload.remote import spark_frame
from infergy.workload.table import Table
from raising import raises
from waiting import PATIENCE_S, wait_until

TABLE = "requests"
ROWS = {
    "input_tokens": [1, 5, 100, 4096, 8000, 12, None, 300, 7, 64, 100_000, 17],
    "output_tokens": [1, 2, 0, 512, 100, 33, None, 0, 8, 64, 3000, None],
    "cached_tokens": [0, None, 50, 4000, 8000, 0, None, None, 7, 0, 1, None],
}


def messy(with_nulls: bool) -> pl.DataFrame:
    """Failed requests, cached prompts, long ones; optionally rows without any usage, which are failed ones too."""
    frame = pl.DataFrame(ROWS, schema=dict.fromkeys(ROWS, pl.Int64))
    keep = (
        frame
        if with_nulls
        else frame.filter(pl.col("input_tokens").is_not_null(), pl.col("output_tokens").is_not_null())
    )
    return keep.sample(fraction=40.0, with_replacement=True, seed=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("lake")
    for with_nulls in (False, True):
        messy(with_nulls).write_parquet(place / f"{'nulls' if with_nulls else 'whole'}.parquet")
    return place


@pytest.fixture(scope="module")
def session() -> Iterator[Any]:
    from pyspark.sql import SparkSession

    options = {
        "spark.driver.memory": "1g",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.host": "127.0.0.1",
        "spark.ui.enabled": "false",
    }
    made = SparkSession.builder.master("local[2]").config(map=options).getOrCreate()
    yield made
    made.stop()


def without_source(histogram: Histogram) -> Histogram:
    from dataclasses import replace

    return replace(histogram, source="")


@pytest.mark.parametrize("bins", [None, Bins.paper()])
@pytest.mark.parametrize("name", ["whole", "nulls"])
@pytest.mark.parametrize("cached", [True, False])
def test_spark_counts_as_polars_does(session: Any, folder: Path, bins: Bins | None, name: str, cached: bool) -> None:
    path = folder / f"{name}.parquet"
    wanted = ["input_tokens", "output_tokens", *(["cached_tokens"] if cached else [])]
    here = open_trace(pl.read_parquet(path).select(wanted))
    there = open_trace(spark_frame("local[2]", str(path)).select(wanted))
    if name == "nulls":
        told = []
        for trace in (here, there):
            with pytest.raises(DataError) as caught:
                trace.histogram(bins)
            told.append(str(caught.value).partition(": ")[2].partition(" (")[0])
        assert told[0] == told[1]
        return
    assert without_source(there.histogram(bins)) == without_source(here.histogram(bins))


def test_requests_without_usage_are_set_aside_in_both(session: Any, tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {"prompt_tokens": [10, None, 20, None], "completion_tokens": [5, None, 6, None]},
        schema={"prompt_tokens": pl.Int64, "completion_tokens": pl.Int64},
    )
    frame.write_parquet(tmp_path / "usage.parquet")
    here, there = (
        open_trace(frame, format="openai"),
        open_trace(spark_frame("local[2]", str(tmp_path / "usage.parquet")), format="openai"),
    )
    assert without_source(there.histogram()) == without_source(here.histogram())
    assert there.histogram().failed_requests == 2


def test_the_plan_is_one_scan_and_one_aggregation_and_only_groups_leave_spark(
    session: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    left: list[int] = []
    collect = Table.collect

    def watched(self: Table, *queries: Any) -> Any:
        asked.extend(queries)
        found = collect(self, *queries)
        left.extend(len(rows) for rows in found)
        return found

    monkeypatch.setattr(Table, "collect", watched)
    histogram = open_trace(spark_frame("local[2]", str(folder / "whole.parquet"))).histogram()
    (query,) = asked
    plan = query.to_native()._jdf.queryExecution().sparkPlan().toString()
    assert plan.count("FileScan") == 1
    # Partial sums where the rows are, then their sum.
    assert plan.count("HashAggregate(keys=[key") == 2
    assert plan.count("HashAggregate") == 2
    assert not {"Join", "Sort ", "Window"} & set(plan.split())
    assert left[0] <= len(histogram.counts) + 12
    assert left[0] < len(pl.read_parquet(folder / "whole.parquet")) / 10


def test_what_is_not_there_is_told_with_what_is(session: Any, folder: Path) -> None:
    session.read.parquet(str(folder / "whole.parquet")).createOrReplaceTempView(TABLE)
    assert open_trace(spark_frame("local[2]", TABLE)).histogram().requests > 0
    with raises("spark-failed", table="request"):
        spark_frame("local[2]", "request")
    session.table(TABLE).withColumnRenamed("input_tokens", "a").withColumnRenamed(
        "output_tokens", "b"
    ).createOrReplaceTempView("other")
    with raises("unknown-format"):
        open_trace(spark_frame("local[2]", "other"))


def test_files_that_break_off_are_told_without_a_traceback(session: Any, folder: Path, tmp_path: Path) -> None:
    whole = (folder / "whole.parquet").read_bytes()
    (tmp_path / "no-end.parquet").write_bytes(whole[:200])
    with raises("spark-failed") as caught:
        spark_frame("local[2]", str(tmp_path / "no-end.parquet"))
    assert "tables" not in str(caught.value)
    (tmp_path / "torn.parquet").write_bytes(whole[:10] + b"\xff" * 50 + whole[60:])
    torn = open_trace(spark_frame("local[2]", str(tmp_path / "torn.parquet")), name="torn")
    with raises("spark-failed", trace="torn") as caught:
        torn.histogram()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ending", ["csv", "csv.gz", "jsonl", "jsonl.gz"])
def test_text_files_packed_too_are_counted_as_polars_counts_them(session: Any, tmp_path: Path, ending: str) -> None:
    import gzip

    frame = pl.DataFrame({"input_tokens": [10, 5, 300], "output_tokens": [1, 2, 0]})
    text = frame.write_csv() if ending.startswith("csv") else frame.write_ndjson()
    path = tmp_path / f"log.{ending}"
    path.write_bytes(gzip.compress(text.encode()) if ending.endswith("gz") else text.encode())
    there = open_trace(spark_frame("local[2]", str(path))).histogram()
    assert without_source(there) == without_source(open_trace(frame).histogram())


@pytest.mark.parametrize(
    ("column", "words"), [("a", "no known columns of input and output tokens"), (None, "input tokens in column")]
)
def test_what_is_wrong_with_a_table_is_told_by_its_name(
    session: Any, tmp_path: Path, column: str | None, words: str
) -> None:
    frame = pl.DataFrame({column or "input_tokens": [1, None], "output_tokens": [2, 3]})
    frame.write_parquet(tmp_path / "log.parquet")
    with pytest.raises(DataError, match=f"^lake.log: .*{words}"):
        open_trace(spark_frame("local[2]", str(tmp_path / "log.parquet")), name="lake.log").histogram()


def test_nobody_at_the_address_is_told_within_seconds() -> None:
    with socket.socket() as silent:
        # Bound, and nobody listens: nobody else can come to listen there meanwhile.
        silent.bind(("127.0.0.1", 0))
        port = silent.getsockname()[1]
        for where in (f"sc://127.0.0.1:{port}", f"spark://127.0.0.1:{port}"):
            with raises("spark-unavailable", server=where):
                spark_frame(where, TABLE)
    with raises("bad-value", option="--spark", value="http://127.0.0.1"):
        spark_frame("http://127.0.0.1", TABLE)


@contextmanager
def connect_server(folder: Path) -> Iterator[int]:
    """The port of a Spark Connect server, which takes a free one and tells it in its log."""
    import pyspark

    home = Path(pyspark.__file__).parent
    options = {
        "spark.connect.grpc.binding.port": "0",
        "spark.connect.grpc.binding.address": "127.0.0.1",
        "spark.ui.enabled": "false",
    }
    server = [home / "bin" / "spark-submit", "--class", "org.apache.spark.sql.connect.service.SparkConnectServer"]
    server += ["--master", "local[2]", "--driver-memory", "1g"]
    server += [word for name, value in options.items() for word in ("--conf", f"{name}={value}")]
    where = os.environ | {"SPARK_HOME": str(home), "SPARK_LOCAL_IP": "127.0.0.1"}
    log = folder / "server.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*map(str, server), "spark-internal"], stdout=file, stderr=file, env=where, cwd=folder
        )

    def told() -> re.Match[str] | None:
        assert process.poll() is None, log.read_text()[-2000:]
        return re.search(r"Spark Connect server started at: \S+?:(\d+)\s", log.read_text())

    try:
        wait_until(told)
        found = told()
        assert found is not None
        yield int(found[1])
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


def run_infergy(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "infergy", *words], capture_output=True, text=True, check=False)


def test_a_spark_connect_server_counts_and_an_estimate_goes_on_from_its_histogram(folder: Path, tmp_path: Path) -> None:
    whole, nulls = str(folder / "whole.parquet"), str(folder / "nulls.parquet")
    with connect_server(tmp_path) as port:
        spark = ("--spark", f"sc://127.0.0.1:{port}", "--bins", "powers-of-two", "--json")
        counted, refused = run_infergy("trace", whole, *spark), run_infergy("trace", nulls, *spark)
    assert counted.returncode == 0, counted.stderr
    here = open_trace(whole).histogram()
    assert json.loads(counted.stdout)["requests"] == here.requests
    # A table with rows that cannot be meant is told by its name, not by that of the library that holds it.
    assert (refused.returncode, refused.stdout) == (2, "")
    error = json.loads(refused.stderr.splitlines()[-1])["error"]
    assert (error["code"], error["fields"]["trace"]) == ("bad-trace", nulls)
    (tmp_path / "lake.json").write_text(counted.stdout)
    told = run_infergy("estimate", str(tmp_path / "lake.json"), "--json")
    assert told.returncode == 0, told.stderr
    # A histogram keeps no cached tokens by bin: those that are left are at least 1 a request.
    assert json.loads(told.stdout)["trace"]["input_tokens"] == pytest.approx(here.input_tokens, rel=1e-3)
