"""A Ray cluster that this process joins, and what it asks its nodes. Ray is imported here and in `infra.ray_hosting`
alone."""

from __future__ import annotations

import importlib
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from opid_core.errors import ConfigError, InfrastructureError

if TYPE_CHECKING:
    from ray import ObjectRef

SLICE_S = 0.5
"""Waits are short: a time-out that another thread raises in this one is seen between them only."""
WATCH_S = 5.0
"""Between two looks at whether the head answers. A lost one is told after two, long before Ray ends the process."""
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Tries to connect, of 20: where nothing answers they take a quarter of an hour. One is too few for a busy head.
    "RAY_gcs_server_port_wait_time_s": "3",
}


def connect(address: str, tell: Callable[[str], None] = print) -> None:
    """Join the cluster at `address` (HOST:PORT, or `auto` for the one that runs on this machine) as its driver, once.
    `tell` gets a line when the head stops answering, from a thread.

    Raises ConfigError where ray is missing, no head answers, the cluster has another version of Ray or Python, or no
    node of it is on this machine.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as error:
        raise ConfigError(f"cluster.address: a cluster needs Ray: pip install 'opid[ray]' ({error})") from None
    if ray.is_initialized():
        return
    if address != "auto":
        _check_answers(address)
    try:
        with _own_signals():
            ray.init(
                address=address,
                namespace="opid",
                log_to_driver=False,
                logging_level=logging.ERROR,
                configure_logging=False,
            )
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        if "AuthenticationError" in str(error.__cause__):  # Ray says it there alone
            raise ConfigError(
                f"cluster.address: {address}: its head does not take this process's token: set RAY_AUTH_MODE=token and "
                "the RAY_AUTH_TOKEN that the head was started with"
            ) from None
        why = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(
            f"cluster.address: {address}: {why} (the cluster must be up, with this Python and Ray, and this machine "
            "one of its nodes: docs/cluster.md)"
        ) from None
    head = ray.get_runtime_context().gcs_address
    threading.Thread(
        target=watch_head, args=(head, tell, ray.is_initialized), name="head of the cluster", daemon=True
    ).start()


def watch_head(
    address: str, tell: Callable[[str], None], goes_on: Callable[[], bool], every_s: float = WATCH_S
) -> None:
    """Look whether the head at `address` answers, every `every_s` seconds for as long as `goes_on`, and `tell` when it
    stops and when it does again. Without its head Ray ends this process itself, past every `except` and with a
    message that names none of what is ours."""
    missed = 0
    while goes_on():
        try:
            _reach(address)
        except OSError as error:
            missed += 1
            if missed == 2:  # one may be a moment's
                tell(
                    f"the head of the cluster at {address} does not answer ({error.strerror or error}). Unless it does "
                    "again Ray ends this process about a minute after the loss, with exit code 1. Nothing committed is "
                    "lost: start the cluster, then the same command again"
                )
        else:
            if missed > 1:
                tell(f"the head of the cluster at {address} answers again")
            missed = 0
        time.sleep(every_s)


def _reach(address: str) -> None:
    """Raise OSError where nobody listens at HOST:PORT."""
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), timeout=5.0).close()


def _check_answers(address: str) -> None:
    """Raise ConfigError where nobody listens: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    addresses = [host]
    if host in ("localhost", "127.0.0.1", "[::1]"):
        from ray.util import get_node_ip_address

        addresses.append(get_node_ip_address())  # what Ray takes it for
    for tried in addresses:
        try:
            _reach(f"{tried}:{port}")
        except OSError as error:
            hint = f" (Ray takes {host} for {tried})" if tried != host else ""
            raise ConfigError(
                f"cluster.address: no Ray cluster at {address}{hint}: {error.strerror or error}; start its head with "
                "`ray start --head`, or correct the address"
            ) from None


@contextmanager
def _own_signals() -> Iterator[None]:
    """In the block signal handlers may be replaced; afterwards those from before are back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def disconnect() -> None:
    """Leave the cluster; its actors of this driver end."""
    import ray

    ray.shutdown()


def nodes() -> list[dict[str, float]]:
    """What each live node has: CPU, GPU and whatever else, also in use."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def on_every_node(function: str, *arguments: Any, timeout_s: float) -> dict[str, Any]:
    """Results of `function` (`package.module:function`) by the name of each live node.

    Raises InfrastructureError where a node does not answer in time, ConfigError where the function fails there: the
    program or a package of it is another one there, or missing.
    """
    import ray
    from ray.exceptions import RayError, RayTaskError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ask = ray.remote(max_retries=0, num_cpus=0)(_called)
    asked = {}
    for node in ray.nodes():
        if node["Alive"]:
            here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            asked[ask.options(scheduling_strategy=here).remote(function, arguments)] = title(node)
    results, deadline_s = {}, time.monotonic() + timeout_s
    for reference, node in asked.items():
        try:
            while not those_ready([reference]):
                if time.monotonic() > deadline_s:
                    raise InfrastructureError(f"cluster: node {node} did not answer within {timeout_s:g} s")
            results[node] = ray.get(reference)
        except RayTaskError as error:
            why = str(error).strip().splitlines()[-1]
            raise ConfigError(f"cluster: node {node} cannot run this version of the program: {why}") from None
        except RayError as error:
            raise InfrastructureError(f"cluster: node {node} was lost: {one_line(error)}") from error
    return results


def _called(function: str, arguments: Sequence[Any]) -> Any:
    """On a node."""
    module, _, name = function.partition(":")
    return getattr(importlib.import_module(module), name)(*arguments)


def title(node: Mapping[str, Any]) -> str:
    """A node as messages name it: host, address and the beginning of its id."""
    return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']}, {node['NodeID'][:8]})"


def answers(references: Sequence[ObjectRef], timeout_s: float) -> list[Any]:
    """What actors answer. Raises InfrastructureError for one that is lost or silent for `timeout_s` seconds."""
    import ray
    from ray.exceptions import RayError

    deadline_s = time.monotonic() + timeout_s
    try:
        for reference in references:
            while not those_ready([reference]):
                if time.monotonic() > deadline_s:
                    raise InfrastructureError(f"cluster: an actor did not answer within {timeout_s:g} s")
        return ray.get([*references])
    except RayError as error:
        raise InfrastructureError(f"cluster: an actor was lost: {one_line(error)}") from error


def those_ready(references: Sequence[ObjectRef]) -> list[ObjectRef]:
    """Those of `references` that are there, in their order, after a short wait for one of them."""
    import ray

    try:
        ray.wait([*references], num_returns=1, timeout=SLICE_S)
        return ray.wait([*references], num_returns=len(references), timeout=0)[0]
    except SystemError as error:  # what a signal's handler raised inside Ray's extension module
        raise (error.__cause__ or error) from None


def one_line(error: Exception) -> str:
    """Class and text of an error of Ray's, whose own texts are pages."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
