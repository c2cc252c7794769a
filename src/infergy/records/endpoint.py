"""A server that runs already: where it answers, and what its client saw of a run. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from infergy.errors import UsageError

SCHEMES = ("http", "https")


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """An OpenAI-compatible server that runs already.

    Attributes:
        url: Before ``/v1``, without user, password or key.
        model: Its own name of the model.
        software: Who owns its models, as it reports: ``vllm``, ``sglang``; None if it does not.
        version: What it answers at ``/version``; None if nothing.
        key_variable: The environment variable that holds its key; None if it needs none. The key is kept nowhere.
        concurrency: Requests that its client keeps open at once, at most; None for all that have arrived.
        retries: How often a request is sent again that was answered by 429 or 503, or found no connection.
        timeout_s: Longest time without a piece of an answer.
    """

    url: str
    model: str
    software: str | None = None
    version: str | None = None
    key_variable: str | None = None
    concurrency: int | None = None
    retries: int = 3
    timeout_s: float = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What the client of such a server saw of a run.

    Attributes:
        lengths: Input and output tokens of each request: the server's own counts.
        uncounted: Requests that the server gave no counts of; they count as asked, since each ended at its length.
        inconsistent: Requests whose counts contradict what was sent or received: other input tokens than the token ids
            that were sent, more output tokens than asked, fewer than pieces of text came.
        retries: Requests sent again.
        late_s: How long the client was held up at most, so that requests were sent or pieces stamped late; waiting for
            a place is not among it.
        cached_tokens: Input tokens that the server's prefix cache had, over all requests; None if it does not report.
    """

    lengths: tuple[tuple[int, int], ...]
    uncounted: int = 0
    inconsistent: int = 0
    retries: int = 0
    late_s: float = 0.0
    cached_tokens: int | None = None


def base_url(option: str, url: str) -> str:
    """The URL of a server as it may be kept in files: scheme, host, port and path.

    Raises:
        UsageError: It is no URL of HTTP, or holds a user, a password or parameters, which may be secret.
    """
    try:
        parts = urlsplit(url)
        is_plain = bool(parts.hostname) and parts.port != 0 and parts.scheme in SCHEMES
    except ValueError:
        is_plain = False
    if not is_plain:
        raise UsageError.bad_value(option, url, "the URL of a server, as http://localhost:8000")
    if "@" in parts.netloc or parts.query or parts.fragment:
        expected = "a URL without user, password or parameters: a key comes from the environment (--api-key-env)"
        raise UsageError.bad_value(option, f"{parts.scheme}://{parts.hostname}", expected)
    return f"{parts.scheme}://{parts.netloc}{parts.path}".rstrip("/").removesuffix("/v1")
