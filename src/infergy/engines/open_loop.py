"""Requests that come at their own times, whether or not the server keeps up: the client's side of an online run."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable

from infergy.engines.engine import Work


async def serve_arrivals(work: Work, ask: Callable[[int, float], Awaitable[float]]) -> float:
    """Let each request come at its time, or after the answer that it follows, until all are answered.

    Args:
        work: The requests.
        ask: Serves the request of an index, which came at an instant, and returns the instant of its last token. All
            instants are by `time.monotonic`.

    Returns:
        When the run began.
    """
    followers: dict[int, list[int]] = {}
    for index, before in enumerate(work.after or (-1,) * len(work.prompts)):
        followers.setdefault(before, []).append(index)
    order = sorted(followers.pop(-1), key=lambda index: work.arrival_s[index])

    async def serve(index: int, arrived: float) -> None:
        await until(arrived)
        ended = await ask(index, arrived)
        for follower in followers.get(index, ()):
            tasks.create_task(serve(follower, ended + work.gap_s[follower]))

    # As a server does after loading; else Python traverses all prompts again and again.
    gc.collect()
    gc.freeze()
    begun_s = time.monotonic()
    try:
        async with asyncio.TaskGroup() as tasks:
            for index in order:
                await until(begun_s + work.arrival_s[index])
                tasks.create_task(serve(index, begun_s + work.arrival_s[index]))
    except ExceptionGroup as group:
        # Once an engine has failed all requests fail alike.
        raise group.exceptions[0] from group
    finally:
        gc.unfreeze()
    return begun_s


async def until(instant: float) -> None:
    """Sleep until an instant of `time.monotonic`."""
    # uvloop counts in whole milliseconds, and may wake up to one early.
    while (wait_s := instant - time.monotonic()) > 0:
        await asyncio.sleep(wait_s)
