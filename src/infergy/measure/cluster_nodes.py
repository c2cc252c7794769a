"""A Ray cluster and its nodes: connected to, and checked before anything is measured."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from infergy import VERSION
from infergy.catalog import get_gpu
from infergy.errors import MissingError, UsageError
from infergy.records import EngineSetup

AUTO = "auto"

REACH_S = 5.0
PROBE_S = 600.0
"""Longest wait for all nodes to report what is installed there: a first task starts Python and imports Ray."""

SETTLE_S, AGAIN_S = 30.0, 0.5
"""How long a node of the cluster may fail tasks, and after how long it is asked again."""

PATIENCE_S = 15.0
"""How often the nodes that are waited for are reported."""

TYPE = "accelerator_type:"
A_LITTLE = 0.001
"""Ray's own convention: a type of accelerator is a resource, and each task takes a thousandth of it."""

BRAND = "NVIDIA "
MODEL = re.compile(r"((?:[A-Z]+\s+)*[A-Z0-9]*\d[A-Z0-9]*)")
"""Ray's name of a GPU in the driver's, after the brand: `A100-SXM4-80GB` is `A100`; what has none of that form, such as
`GeForce RTX 4090`, is called by all its words (ray/_private/accelerators/nvidia_gpu.py)."""

START = "Start one: ray start --head; on each further node: ray start --address=HEAD:6379"


def gpu_type(name: str) -> str | None:
    """What Ray calls a GPU of the catalog; None where its name gives none."""
    for known in (*get_gpu(name).aliases, get_gpu(name).title):
        if known.startswith(BRAND):
            words = known.removeprefix(BRAND)
            found = MODEL.match(words)
            return (found[1] if found else words).replace(" ", "-")
    return None


def needs_of(setup: EngineSetup, gpu: str, *, simulate: bool) -> dict[str, float]:
    """What an engine config asks of a node, by Ray's names of resources; one CPU, and no GPU if it is simulated.

    A cluster that has a resource of the GPU's catalog name (``ray start --resources='{"h200": 8}'``) is asked for it,
    as many as GPUs; any other for Ray's own type.
    """
    import ray

    if simulate:
        return {"CPU": 1.0}
    count = float(setup.tensor_parallel)
    if any(gpu in node["Resources"] for node in ray.nodes() if node["Alive"]):
        return {"CPU": 1.0, "GPU": count, gpu: count}
    return {"CPU": 1.0, "GPU": count, f"{TYPE}{gpu_type(gpu) or gpu}": A_LITTLE}


@contextmanager
def connect(address: str) -> Iterator[None]:
    """Join a running cluster, and leave it.

    Raises:
        MissingError: Ray is not installed, no cluster answers, or it is of another Ray or Python.
        UsageError: The address is none of a cluster.
    """
    try:
        import ray
    except ImportError as error:
        raise MissingError.package("--ray", "ray", "pip install 'infergy[ray]'") from error
    head = _find_head() if address == AUTO else address
    if head is not None:
        _reach(head)
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        words = " ".join(str(error).split())
        if "ersion mismatch" in words:
            message = f"the cluster at {address} is of another version: {words}"
            raise MissingError(message, code="versions-differ", address=address) from error
        message = f"no Ray cluster at {head or address}: {words:.300}. {START}"
        raise MissingError(message, code="ray-unavailable", address=head or address) from error
    try:
        yield
    finally:
        ray.shutdown()


def _find_head() -> str | None:
    """The head that ``auto`` stands for: of ``RAY_ADDRESS``, of a cluster that runs here, or of the last one that did.

    None where Ray would have to say, for it is asked by a name of its own.

    Raises:
        MissingError: There is none.
    """
    try:
        from ray._private.services import get_ray_address_from_environment
    except ImportError:
        return None
    try:
        return str(get_ray_address_from_environment(AUTO, None))
    except ConnectionError as error:
        message = f"no Ray cluster runs on this machine. {START}. Or name the head of one: --ray HOST:6379"
        raise MissingError(message, code="ray-unavailable", address=AUTO) from error


def _reach(address: str) -> None:
    """Connect to a cluster's head once, as `ray health-check` does; `ray.init` tries twenty times 40 s.

    Raises:
        MissingError: Nothing listens there, or no head of a cluster.
        UsageError: The address is none of a cluster.
    """
    from ray._raylet import GcsClient
    from ray.exceptions import RpcError

    found = re.fullmatch(r"([^:/]+|\[[0-9a-fA-F:.]+\]):(\d+)", address)
    if found is None:
        raise UsageError.bad_value("--ray", address, "auto or HOST:PORT of the cluster's head, as 10.0.0.1:6379")
    try:
        socket.create_connection((found[1].strip("[]"), int(found[2])), timeout=REACH_S).close()
        GcsClient(address=address)
    except (OSError, OverflowError, RpcError) as error:
        message = f"no Ray cluster at {address}: {error}. {START}"
        raise MissingError(message, code="ray-unavailable", address=address) from error


def find_nodes(needs: Sequence[Mapping[str, float]]) -> list[Mapping[str, Any]]:
    """The nodes that can run any of what is asked.

    Raises:
        MissingError: No node has all that is asked.
    """
    import ray

    alive = [node for node in ray.nodes() if node["Alive"]]
    useful: dict[str, dict[str, Any]] = {}
    for one in needs:
        able = [node for node in alive if all(node["Resources"].get(name, 0.0) >= one[name] for name in one)]
        if not able:
            raise MissingError(_lacking(one, alive), code="gpu-missing", wanted=dict(one))
        useful |= {node["NodeID"]: node for node in able}
    return list(useful.values())


def _lacking(needs: Mapping[str, float], alive: Sequence[Mapping[str, Any]]) -> str:
    count = f"{needs.get('GPU', 0.0):g} GPU" if "GPU" in needs else f"{needs['CPU']:g} CPU"
    kinds = [name for name in needs if name not in ("CPU", "GPU")]
    there = sorted(
        f"{node['Resources'].get('GPU', 0.0):g} × {name.removeprefix(TYPE)} on {node['NodeName']}"
        for node in alive
        for name in node["Resources"]
        if name.startswith(TYPE)
    )
    kind = "".join(f" of type {name.removeprefix(TYPE)}" for name in kinds)
    return (
        f"no node of the cluster has {count}{kind}. There: {', '.join(there) or 'no GPU whose type is known'}. "
        "Plan for one that is there (--gpu), add a node, or name its GPUs: "
        """ray start --address=HEAD:6379 --resources='{"h200": 8}'"""
    )


def probe_nodes(nodes: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Ask each node what is installed there, all at once. One that is lost meanwhile is left out.

    Yields:
        The names of those that have not answered yet, every `PATIENCE_S`.

    Raises:
        MissingError: One has another infergy, Ray or Python, or none, or does not answer.
    """
    import ray

    asked = {_ask(node): node for node in nodes}
    waiting, begun_s = list(asked), time.monotonic()
    while waiting:
        ready, waiting = ray.wait(waiting, timeout=PATIENCE_S)
        for answer in ready:
            if again := _check_answer(answer, asked[answer], begun_s):
                asked[again] = asked[answer]
                waiting.append(again)
        names = ", ".join(sorted(str(asked[answer]["NodeName"]) for answer in waiting))
        if waiting and time.monotonic() > begun_s + PROBE_S:
            message = f"{names} of the cluster did not answer within {PROBE_S:.0f} s. See: ray status"
            raise MissingError(message, code="node-silent", node=names)
        if waiting and not ready:
            yield names


def _check_answer(answer: Any, node: Mapping[str, Any], begun_s: float) -> Any:
    """Check what a node answered; the question again where it may know soon, None where it is lost or done."""
    import ray
    from ray.exceptions import RayError, RayTaskError

    name = str(node["NodeName"])
    try:
        reject_versions(name, ray.get(answer))
    except RayError as error:
        if not _is_alive(node):
            return None
        # A node that has just joined is not known to all of Ray yet, and one that has just left still is.
        if isinstance(error, RayTaskError) or time.monotonic() > begun_s + SETTLE_S:
            reason = f"{name} of the cluster does not run tasks: {error!s:.300}. See: ray status"
            raise MissingError(reason, code="node-silent", node=name) from error
        time.sleep(AGAIN_S)
        return _ask(node)
    return None


def _ask(node: Mapping[str, Any]) -> Any:
    """Begin to ask a node what is installed there: infergy, None where it is missing, Python and Ray."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    def versions() -> tuple[str | None, str, str]:
        # Ray carries an inner function as it is: it runs where there is no infergy.
        import platform

        import ray

        try:
            from infergy import version
        except ImportError:
            return None, platform.python_version(), ray.__version__
        return version.VERSION, platform.python_version(), ray.__version__

    there = NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False)
    return ray.remote(num_cpus=0, max_retries=0)(versions).options(scheduling_strategy=there).remote()


def _is_alive(node: Mapping[str, Any]) -> bool:
    import ray

    return any(one["Alive"] and one["NodeID"] == node["NodeID"] for one in ray.nodes())


def reject_versions(name: str, there: tuple[str | None, str, str]) -> None:
    """Check a node by its infergy (None without), Python and Ray.

    Raises:
        MissingError: One is other than here.
    """
    import platform

    import ray

    if there[0] is None:
        raise MissingError.package(name, "infergy", f"pip install 'infergy[ray]=={VERSION}'")
    here = (VERSION, platform.python_version(), ray.__version__)
    names = ("infergy", "Python", "Ray")
    other = ", ".join(f"{n} {t} against {h}" for n, t, h in zip(names, there, here, strict=True) if t != h)
    if other:
        message = f"{name} has other versions than this machine: {other}. Install the same on both"
        raise MissingError(message, code="versions-differ", node=name, found=list(there), expected=list(here))
