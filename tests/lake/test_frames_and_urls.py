"""Traces that Ibis, Dask or DuckDB hold, and Parquet in an object store: counted as polars counts the same rows."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from infergy.workload import Bins, Histogram, open_trace
from infergy.workload.table import Table
from raising import raises

ibis = pytest.importorskip("ibis")
dask = pytest.importorskip("dask.dataframe")
boto3 = pytest.importorskip("boto3")
moto = pytest.importorskip("moto.server")

# narwhals will take Dask from a package of its own one day; boto's and Dask's own warnings are theirs.
pytestmark = pytest.mark.filterwarnings("default")

ROWS = {
    "input_tokens": [1, 5, 100, 4096, 8000, 12, 300, 7, 64, 100_000],
    "output_tokens": [1, 2, 0, 512, 100, 33, 0, 8, 64, 3000],
    "cached_tokens": [0, None, 50, 4000, 8000, 0, None, 7, 0, 1],
}
USAGE = {"prompt_tokens": [10, None, 20, None], "completion_tokens": [5, None, 6, None]}


@pytest.fixture(scope="module")
def whole() -> pl.DataFrame:
    """Failed requests, cached prompts, long ones."""
    frame = pl.DataFrame(ROWS, schema=dict.fromkeys(ROWS, pl.Int64))
    return frame.sample(fraction=40.0, with_replacement=True, seed=3)


@pytest.fixture(scope="module")
def path(whole: pl.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("lake") / "requests.parquet"
    whole.write_parquet(place)
    return place


def held(library: str, path: Path) -> Any:
    if library == "ibis":
        return ibis.duckdb.connect().read_parquet(str(path))
    if library == "duckdb":
        import duckdb

        return duckdb.connect().read_parquet(str(path))
    return dask.read_parquet(path)


LIBRARIES = ("ibis", "dask", "duckdb")


def same(one: Histogram, other: Histogram) -> bool:
    return replace(one, source="") == replace(other, source="")


@pytest.mark.parametrize("bins", [None, Bins.paper()])
@pytest.mark.parametrize("library", LIBRARIES)
def test_a_library_counts_as_polars_does(library: str, path: Path, whole: pl.DataFrame, bins: Bins | None) -> None:
    here, there = open_trace(whole), open_trace(held(library, path))
    assert same(there.histogram(bins), here.histogram(bins))
    assert there.histogram(bins).cached_input_tokens > 0
    assert there.histogram(bins).failed_requests > 0


@pytest.mark.parametrize("library", LIBRARIES)
def test_requests_without_usage_are_set_aside(library: str, tmp_path: Path) -> None:
    frame = pl.DataFrame(USAGE, schema=dict.fromkeys(USAGE, pl.Int64))
    frame.write_parquet(tmp_path / "usage.parquet")
    there = open_trace(held(library, tmp_path / "usage.parquet"), format="openai")
    assert same(there.histogram(), open_trace(frame, format="openai").histogram())
    assert there.histogram().failed_requests == 2


@pytest.mark.parametrize("library", LIBRARIES)
def test_only_groups_leave_the_library(library: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[int] = []
    collect = Table.collect

    def watched(self: Table, *queries: Any) -> Any:
        found = collect(self, *queries)
        left.extend(len(rows) for rows in found)
        return found

    monkeypatch.setattr(Table, "collect", watched)
    histogram = open_trace(held(library, path)).histogram()
    assert len(left) == 1
    # Of each bin those with and those without an answer; the frame has 400 rows.
    assert left[0] <= 2 * len(histogram.counts)


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_frame_without_the_columns_says_which_it_has(library: str, tmp_path: Path) -> None:
    pl.DataFrame({"a": [1], "b": [2]}).write_parquet(tmp_path / "other.parquet")
    with raises("unknown-format"):
        open_trace(held(library, tmp_path / "other.parquet"))


@pytest.fixture(scope="module")
def bucket(path: Path) -> Iterator[str]:
    """Two files in a bucket of a store on this machine."""
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    names = {"aws_access_key_id": "x", "aws_secret_access_key": "y", "region_name": "us-east-1"}
    client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", **names)
    client.create_bucket(Bucket="logs")
    for name in ("one", "two"):
        client.upload_file(str(path), "logs", f"day/{name}.parquet")
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def store(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("AWS_ENDPOINT_URL", bucket),
        ("AWS_ALLOW_HTTP", "true"),
        ("AWS_ACCESS_KEY_ID", "x"),
        ("AWS_SECRET_ACCESS_KEY", "y"),
        ("AWS_REGION", "us-east-1"),
    ):
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("store")
def test_parquet_in_an_object_store_is_counted_where_it_lies(whole: pl.DataFrame) -> None:
    one, both = (open_trace(f"s3://logs/day/{name}.parquet").histogram() for name in ("one", "*"))
    assert one.source == "s3://logs/day/one.parquet"
    assert same(one, open_trace(whole).histogram())
    assert same(both, open_trace(pl.concat([whole, whole])).histogram())


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("name", ["s3://logs/day/three.parquet", "s3://nobody/day/one.parquet"])
def test_what_is_not_in_the_store_is_told_with_where_credentials_come_from(name: str) -> None:
    with raises("file-not-readable", path=name):
        open_trace(name)


class _Served(http.server.SimpleHTTPRequestHandler):
    """Files, and parts of files, which Parquet is read by."""

    def log_message(self, *_: Any) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        body = Path(self.translate_path(self.path)).read_bytes()
        begin, _, end = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        first, last = (
            (int(begin), int(end or len(body) - 1)) if begin else (max(0, len(body) - int(end)), len(body) - 1)
        )
        part = body[first : last + 1]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)


def test_parquet_behind_a_plain_url_is_counted(path: Path, whole: pl.DataFrame) -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Served, directory=str(path.parent)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        there = open_trace(f"http://127.0.0.1:{server.server_port}/{path.name}").histogram()
    finally:
        server.shutdown()
        server.server_close()
    assert same(there, open_trace(whole).histogram())


@pytest.mark.parametrize("url", ["ftp://host/x.parquet", "s3://logs/day.csv"])
def test_what_no_url_can_be_is_refused(url: str) -> None:
    with raises("not-supported", path=url):
        open_trace(url)
