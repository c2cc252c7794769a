"""Parquet in an object store or behind a URL: polars reads what it needs of it, where it lies.

Credentials and endpoints come from the environment, as each cloud's own tools take them.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit

from infergy.errors import DataError, UsageError

HINTS = {
    "s3": "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL for a store of your own",
    "gs": "GOOGLE_SERVICE_ACCOUNT or GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME, AZURE_STORAGE_ACCOUNT_KEY",
    "hf": "HF_TOKEN, where the dataset is private",
    "http": "none is needed, or it stands in the URL",
}
SCHEMES = {
    **dict.fromkeys(("s3", "s3a"), "s3"),
    **dict.fromkeys(("gs", "gcs"), "gs"),
    **dict.fromkeys(("az", "azure", "abfs", "abfss", "adl"), "az"),
    "hf": "hf",
    **dict.fromkeys(("http", "https"), "http"),
}
_URL = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*)://")
_TOLD = 240
_TEXT = (".csv", ".csv.gz", ".json", ".jsonl", ".jsonl.gz", ".ndjson")


def is_url(name: str) -> bool:
    """Whether a name begins with a scheme, as ``s3://``."""
    return _URL.match(name) is not None


def scan_url(url: str) -> Any:
    """A lazy polars frame of the Parquet at a URL; ``*`` stands for several files. Only its schema is read.

    Raises:
        UsageError: The scheme is none that is read, or the file is not Parquet by its name.
        DataError: Nothing can be read there.
    """
    found = _URL.match(url)
    scheme = found[1].lower() if found else ""
    if scheme not in SCHEMES:
        message = f"{url}: nothing reads {scheme}://. Parquet is read from {', '.join(f'{s}://' for s in SCHEMES)}"
        raise UsageError(message, code="not-supported", path=url, schemes=list(SCHEMES))
    if urlsplit(url).path.lower().endswith(_TEXT):
        message = f"{url}: of what lies behind a URL only Parquet is read. Fetch the file first, then name it"
        raise UsageError(message, code="not-supported", path=url)
    import polars as pl

    try:
        frame = pl.scan_parquet(url)
        frame.collect_schema()
    except (pl.exceptions.PolarsError, OSError) as error:
        told = " ".join(str(error).split())
        told = told if len(told) <= _TOLD else f"{told[:_TOLD]} …"
        message = f"{url}: cannot be opened: {told}. Credentials come from the environment: {HINTS[SCHEMES[scheme]]}"
        raise DataError(message, code="file-not-readable", path=url, reason=told) from error
    return frame
