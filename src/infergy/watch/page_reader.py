"""The page of metrics of a running server, over HTTP: in a bounded time, of a bounded size, from its own host alone."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from typing import Any, Self

from infergy.errors import DataError, InfergyError, MissingError, UsageError
from infergy.units import without_secrets
from infergy.watch.metrics import NO_METRICS, Page, read_page

MOST_BYTES = 4 << 20
OLLAMA = (
    "Ollama publishes no metrics. Each of its answers has counts (prompt_eval_count, eval_count): keep them as JSONL, "
    "and give the file to infergy estimate"
)


class PageReader:
    """Reads a server's page of metrics.

    Args:
        url: Of the server, ``http://localhost:8000``, or of its page.
        key: Sent as a bearer token; None sends none.
        timeout_s: For the whole answer.

    Raises:
        UsageError: It is no URL of HTTP.
        MissingError: The extra ``server`` is not installed.
    """

    def __init__(self, url: str, *, key: str | None = None, timeout_s: float = 2.0) -> None:
        try:
            import httpx
            import prometheus_client.parser  # noqa: F401 - reads the page
        except ImportError as error:
            packages, install = "httpx and prometheus-client", "pip install 'infergy[server]'"
            raise MissingError.package("infergy watch", packages, install, str(error)) from error
        try:
            parsed = httpx.URL(url if "://" in url else f"http://{url}")
        except httpx.InvalidURL as error:
            raise UsageError.bad_value("URL", url, f"a server, as http://localhost:8000 ({error})") from error
        if parsed.scheme not in ("http", "https") or not parsed.host or not 0 <= (parsed.port or 0) < 65536:
            raise UsageError.bad_value("URL", url, "a server, as http://localhost:8000")
        self._url = parsed if parsed.path.strip("/") not in ("", "v1") else parsed.copy_with(path="/metrics")
        self.place, self._timeout_s = without_secrets(str(self._url)), timeout_s
        self.is_local = _is_local(parsed.host)
        self._runner = asyncio.Runner()
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        # A proxy of the environment knows no loopback of this machine.
        self._client = httpx.AsyncClient(headers=headers, timeout=timeout_s, trust_env=not self.is_local)

    def read(self) -> Page:
        """The page as it is now.

        Raises:
            MissingError: The server does not answer, or not in time.
            DataError: What it answers is no page of metrics.
        """
        import httpx

        try:
            return read_page(self._runner.run(asyncio.wait_for(self._text(), self._timeout_s)), self.place)
        except TimeoutError as error:
            raise self._silent(f"no whole answer in {self._timeout_s:g} s", is_up=True) from error
        except httpx.TimeoutException as error:
            raise self._silent(f"no answer in {self._timeout_s:g} s", is_up=True) from error
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
            raise self._silent(f"{type(error).__name__}: {error}", is_up=False) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.run(self._client.aclose())
        self._runner.close()

    async def _text(self) -> str:
        """The text of the page; a redirect is followed once, on the same host."""
        url, body = self._url, bytearray()
        for _ in range(2):
            async with self._client.stream("GET", url) as answer:
                if answer.next_request is not None:
                    url = answer.next_request.url
                    if (url.scheme, url.host, url.port) != (self._url.scheme, self._url.host, self._url.port):
                        raise self._wrong(f"a redirect to another host, {without_secrets(str(url))}")
                    continue
                if answer.status_code != 200:
                    raise await self._explain(answer.status_code)
                async for part in answer.aiter_bytes():
                    body += part
                    if len(body) > MOST_BYTES:
                        raise self._wrong(f"a page of more than {MOST_BYTES >> 20} MiB")
                return body.decode()
        raise self._wrong("redirects without end")

    async def _explain(self, status: int) -> InfergyError:
        if status == 404:
            async with self._client.stream("GET", self._url.copy_with(path="/")) as front:
                async for part in front.aiter_bytes(64):
                    if part.startswith(b"Ollama is running"):
                        return self._wrong(OLLAMA)
                    break
            return self._wrong(f"there is no such page (404): {NO_METRICS}. transformers serve publishes none")
        return self._wrong(
            f"status {status}" + (": it needs a key: --api-key-env NAME" if status in (401, 403) else "")
        )

    def _wrong(self, reason: str) -> DataError:
        return DataError(f"{self.place}: {reason}", code="bad-metrics", place=self.place, reason=reason)

    def _silent(self, reason: str, *, is_up: bool) -> MissingError:
        message = f"{self.place} does not answer: {reason}"
        return MissingError(message, code="server-unreachable", url=self.place, reason=reason, may_run_on=is_up)


def _is_local(host: str) -> bool:
    """Whether an address of a host is one of this machine: a socket can be bound to it."""
    try:
        found: list[Any] = socket.getaddrinfo(host, 0, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError):
        return False
    for family, kind, protocol, _, address in found:
        if ipaddress.ip_address(address[0].partition("%")[0]).is_loopback:
            return True
        with socket.socket(family, kind, protocol) as probe:
            try:
                probe.bind((address[0], 0))
            except OSError:
                continue
            return True
    return False
