"""HTTP to one OpenAI-compatible server: its models, its streams, and its failures as our errors.

Nothing is sent anywhere but to the URL that was given: no redirect is followed, and no proxy of the environment is
used. The key stands in a header alone.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack
from typing import Any

from infergy.errors import EngineError, InfergyError, MissingError, UsageError
from infergy.records.endpoint import Endpoint

KEPT = 32
"""Connections that are kept open for later requests: the pool visits all of them each time."""
LONGEST_NAME = 100
MOST_BYTES = 2**20
"""Of an answer that is not streamed, and of one line of a stream."""


def import_httpx() -> Any:
    """The client library.

    Raises:
        MissingError: It is not installed.
    """
    try:
        import httpx
    except ImportError as error:
        raise MissingError.package("a server that runs already", "httpx", 'pip install "infergy[server]"') from error
    return httpx


def find_endpoint(url: str, model: str | None, key_variable: str | None, **limits: Any) -> Endpoint:
    """The server at a URL, asked for its models and its version.

    Args:
        url: As of `infergy.records.endpoint.base_url`.
        model: Its name of the model; None if it serves one alone.
        key_variable: The environment variable with its key.
        limits: `concurrency`, `retries` and `timeout_s` of `Endpoint`.

    Raises:
        MissingError: Nothing answers there, or httpx is missing.
        EngineError: It is no OpenAI-compatible server.
        UsageError: It serves no such model, or several and none is named; or the variable is not set.
    """
    endpoint = Endpoint(url=url, model=model or "", key_variable=key_variable, **limits)
    models, version = asyncio.run(_look(endpoint))
    owners = {one["id"]: one.get("owned_by") for one in models if isinstance(one.get("id"), str)}
    if model is None and len(owners) != 1:
        names = ", ".join(owners) or "none"
        message = f"{url} serves {names}: name the model with --served-model"
        raise UsageError(message, code="option-missing", option="--served-model", known=list(owners))
    name = model or next(iter(owners))
    if owners and name not in owners:
        raise UsageError.unknown("model of the server", name, owners, code="unknown-name", option="--served-model")
    owner = owners.get(name)
    software = owner[:LONGEST_NAME] if isinstance(owner, str) else None
    return Endpoint(url=url, model=name, software=software, version=version, key_variable=key_variable, **limits)


async def _look(endpoint: Endpoint) -> tuple[list[dict[str, Any]], str | None]:
    async with Client(endpoint) as client:
        found = await client.get("/v1/models")
        models = found.get("data") if isinstance(found, Mapping) else None
        if not isinstance(models, list) or not all(isinstance(one, Mapping) for one in models):
            raise client.failed("/v1/models is no list of models", "no models")
        try:
            version = await client.get("/version")
        except InfergyError:
            version = None
    version = version.get("version") if isinstance(version, Mapping) else None
    return models, version[:LONGEST_NAME] if isinstance(version, str) else None


class Client:
    """Requests to one server, whose errors are ours."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._httpx = import_httpx()
        self._endpoint = endpoint
        self._key = key_of(endpoint.key_variable)
        timeout = self._httpx.Timeout(endpoint.timeout_s, pool=None)
        limits = self._httpx.Limits(max_connections=None, max_keepalive_connections=KEPT)
        headers = {"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        self._client = self._httpx.AsyncClient(
            base_url=endpoint.url, headers=headers, timeout=timeout, limits=limits, trust_env=False
        )

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def get(self, path: str) -> Any:
        """What is answered at a path, as JSON."""
        try:
            async with AsyncExitStack() as stack, asyncio.timeout(self._endpoint.timeout_s):
                response = await self.open(stack, "GET", path)
                if response.status_code != self._httpx.codes.OK:
                    raise await self.rejected(response)
                text = await self._text(response)
        except TimeoutError as error:
            raise self.broken(error) from error
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            raise self.failed(f"{path} is no JSON: {self.quote(text)}", "no JSON") from None

    async def open(self, stack: AsyncExitStack, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The response to a request, unread."""
        try:
            return await stack.enter_async_context(self._client.stream(method, path, json=body))
        except (self._httpx.ConnectError, self._httpx.ConnectTimeout) as error:
            url = self._endpoint.url
            message = f"{url} does not answer: {self.quote(str(error))}. See whether the server runs there"
            raise MissingError(message, code="server-unreachable", url=url) from error
        except self._httpx.HTTPError as error:
            raise self.broken(error) from error

    async def _text(self, response: Any) -> str:
        data = b""
        try:
            async for part in response.aiter_bytes():
                data += part
                if len(data) > MOST_BYTES:
                    break
        except self._httpx.HTTPError as error:
            raise self.broken(error) from error
        return data.decode("utf-8", errors="replace")

    async def lines(self, response: Any) -> AsyncGenerator[bytes, None]:
        """Lines of a stream of events."""
        rest = b""
        try:
            async for part in response.aiter_bytes():
                *lines, rest = (rest + part).split(b"\n")
                for line in lines:
                    yield line
                if len(rest) > MOST_BYTES:
                    raise self.failed("a line of its stream is longer than 1 MiB", "endless line")
        except self._httpx.HTTPError as error:
            raise self.broken(error) from error
        yield rest

    async def rejected(self, response: Any) -> EngineError:
        """The error of a response with another status or content than was asked for."""
        status, kind = response.status_code, response.headers.get("content-type", "no content type")
        if response.is_redirect:
            where = self.quote(response.headers["location"].partition("?")[0])
            return self.failed(f"it redirects to {where}, which is not followed: give that URL to --server", "redirect")
        if status in (401, 403):
            variable = self._endpoint.key_variable
            advice = f"the key in {variable} is not accepted" if variable else "it needs a key: --api-key-env NAME"
            return self.failed(f"status {status}: {advice}", "key", status=status)
        text = self.quote(await self._text(response))
        return self.failed(f"status {status} ({self.quote(kind)}): {text}", "status", status=status)

    def broken(self, error: Exception) -> EngineError:
        """The error of an answer that broke off or took too long."""
        kind = type(error).__name__
        if "Timeout" in kind:
            return self.failed(f"no answer in {self._endpoint.timeout_s:g} s: --timeout", "timeout")
        return self.failed(f"{kind} {self.quote(str(error))}".strip(), kind)

    def failed(self, what: str, reason: str, **fields: Any) -> EngineError:
        """An error of the server."""
        url = self._endpoint.url
        return EngineError(f"{url}: {what}", code="server-failed", url=url, reason=reason, **fields)

    def quote(self, text: str) -> str:
        """The begin of what a server says, without the key, which it may repeat."""
        return " ".join((text.replace(self._key, "***") if self._key else text).split())[:200]


def key_of(variable: str | None) -> str | None:
    """The key of a server in a variable of the environment, without space around it; None if it needs none.

    Raises:
        UsageError: The environment lacks it, or it cannot stand in a header.
    """
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key or not (key.isascii() and key.isprintable()):
        state = "no key" if key else "not set"
        message = f"{variable} is {state}: export {variable}=KEY, or name another variable: --api-key-env"
        raise UsageError(message, code="key-missing", option="--api-key-env", variable=variable)
    return key
