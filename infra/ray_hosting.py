"""Hosted objects on the nodes of a Ray cluster: the second implementation of `infra.groups.Group`.

Ray places one actor (`infra.node_actor.NodeActor`) on each share of the nodes, carries calls and tells of losses. It
repeats nothing: no actor is restarted and no call is made again. Every loss is an InfrastructureError.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn

from infra.groups import StoredFolder
from infra.node_actor import NodeActor
from infra.processes import killed_when_left
from infra.ray_nodes import SLICE_S, answers, one_line, those_ready, title
from opid_core import errors
from opid_core.errors import InfrastructureError

if TYPE_CHECKING:
    from ray import ObjectRef

_PATIENCE_S = 5.0
_KILL_S = 30.0
_ANSWER_S = 60.0
"""For what a live place answers at once."""
_CALLS_AT_ONCE = 16


class RayPlaces:
    """A reserved share of the cluster: one actor for each bundle of it, with all GPUs of the bundle."""

    def __init__(self, bundles: Sequence[Mapping[str, float]], start_timeout_s: float) -> None:
        """Wait for room for all bundles (CPU and GPU; each on one node, all on as few as can be), then for the actors.

        Raises InfrastructureError that says what is free when there is none within `start_timeout_s` seconds.
        """
        import ray
        from ray.util.placement_group import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        self._start_timeout_s = start_timeout_s
        self._placement = placement_group([dict(bundle) for bundle in bundles], strategy="PACK")
        never = {"max_restarts": 0, "max_task_retries": 0}
        make: Any = ray.remote(NodeActor)
        self.actors: list[Any] = []
        self.nodes: list[str] = []
        """Of each place: the node's name, and its process there."""
        try:
            self._wait_for_room(bundles)
            for number, bundle in enumerate(bundles):
                where = PlacementGroupSchedulingStrategy(self._placement, number)
                amounts = {"num_cpus": bundle.get("CPU", 0), "num_gpus": bundle.get("GPU", 0)}
                self.actors.append(
                    make.options(scheduling_strategy=where, max_concurrency=_CALLS_AT_ONCE, **amounts, **never).remote()
                )
            about = answers([actor.about.remote() for actor in self.actors], start_timeout_s)
            table = ray.util.placement_group_table(self._placement)["bundles_to_node_id"]
            titles = {node["NodeID"]: title(node) for node in ray.nodes()}
            self.addresses = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
            self.node_ids: list[str] = [table[number] for number in range(len(bundles))]
            self.nodes = [f"node {titles[node]}" for node in self.node_ids]
            self.gpus: list[list[str]] = [gpus for _, _, gpus in about]
            self.process_ids: list[int] = [process_id for _, process_id, _ in about]
        except BaseException:
            self.close()
            raise

    def _wait_for_room(self, bundles: Sequence[Mapping[str, float]]) -> None:
        import ray

        deadline_s = time.monotonic() + self._start_timeout_s
        while not self._placement.wait(SLICE_S):
            if time.monotonic() > deadline_s:
                asked = ", ".join(_amounts(bundle) for bundle in bundles)
                free = [_amounts(_free(node["NodeID"])) for node in ray.nodes() if node["Alive"]]
                raise InfrastructureError(
                    f"the cluster had no room within {self._start_timeout_s:g} s (cluster.start_timeout_s): asked for "
                    f"{asked}; free, by node: {', '.join(free) or 'no node is alive'}"
                )

    def group(
        self,
        name: str,
        factory: str,
        *arguments: Any,
        seats: Sequence[int],
        envs: Sequence[Mapping[str, str]],
        **named: Any,
    ) -> RayGroup:
        """A group with a rank in each place of `seats`, whose processes get `envs`; see `HostedGroup`. Where ranks are
        several they find each other as under torchrun."""
        together: list[dict[str, str]] = [{} for _ in seats]
        if len(seats) > 1:
            first = seats[0]
            (port,) = answers([self.actors[first].free_port.remote()], _ANSWER_S)
            order = list(dict.fromkeys(self.node_ids[seat] for seat in seats))
            together = [
                {
                    "RANK": str(rank),
                    "WORLD_SIZE": str(len(seats)),
                    "LOCAL_RANK": "0",  # a process sees its own GPU alone
                    "GROUP_RANK": str(order.index(self.node_ids[seat])),
                    "MASTER_ADDR": self.addresses[self.node_ids[first]],
                    "MASTER_PORT": str(port),
                }
                for rank, seat in enumerate(seats)
            ]
        both = [{**env, **rendezvous} for env, rendezvous in zip(envs, together, strict=True)]
        return RayGroup(self, name, seats, factory, arguments, named, both, self._start_timeout_s)

    def forget(self, folder: StoredFolder) -> None:
        """Let all places do without `folder`: see `NodeActor.forget`."""
        for actor in self.actors:
            actor.forget.remote(folder)

    def close(self) -> None:
        """Give the share back; what still runs there ends."""
        import ray
        from ray.util.placement_group import remove_placement_group

        for actor in self.actors:
            with suppress(Exception):  # the cluster may be gone
                ray.kill(actor, no_restart=True)
        self.actors = []
        with suppress(Exception):
            remove_placement_group(self._placement)


class RayGroup:
    """The driver's handle on one object in each of several places; `RayPlaces.group` makes it. See `Group`."""

    def __init__(
        self,
        places: RayPlaces,
        name: str,
        seats: Sequence[int],
        factory: str,
        arguments: tuple[Any, ...],
        named: Mapping[str, Any],
        envs: Sequence[Mapping[str, str]],
        start_timeout_s: float,
    ) -> None:
        self.name = name
        self._key = secrets.token_hex(8)
        self._places, self._seats = places, [*seats]
        self._actors = [places.actors[seat] for seat in seats]
        self._last_lines: list[tuple[float, str]] = [(0.0, "")] * len(seats)
        self._pids: list[int] | None = None
        self._running: list[ObjectRef] = []
        self._is_gone = False
        self._starting = [
            actor.start.remote(self._key, self._of_rank(rank), factory, arguments, dict(named), env, start_timeout_s)
            for rank, (actor, env) in enumerate(zip(self._actors, envs, strict=True))
        ]

    def create(self) -> None:
        """See `Group.create`."""
        with killed_when_left(self.kill):
            self._started()
            for actor in self._actors:
                actor.create.remote(self._key)

    @property
    def first_answer(self) -> ObjectRef:
        """Of the first rank to what was begun: there when it has answered, or was lost."""
        return self._running[0]

    def call(self, method: str, *arguments: Any, on_progress: Callable[..., None] | None = None, **named: Any) -> Any:
        """See `Group.call`."""
        with killed_when_left(self.kill):
            self._ask(method, arguments, named, on_progress is not None)
            return self._answers(on_progress)

    def begin(self, method: str, *arguments: Any, **named: Any) -> None:
        """See `Group.begin`."""
        with killed_when_left(self.kill):
            self._ask(method, arguments, named, False)

    def finish(self) -> Any:
        """See `Group.finish`."""
        with killed_when_left(self.kill):
            self._started()
            return self._answers()

    def kill(self) -> None:
        """End the processes and wait until they are gone; those of a node that does not answer end with it."""
        if self._is_gone:
            return
        self._is_gone, self._running = True, []
        asked = [actor.kill.remote(self._key) for actor in self._actors]
        deadline_s = time.monotonic() + _KILL_S
        while asked and time.monotonic() < deadline_s:
            asked = [reference for reference in asked if not those_ready([reference])]

    def _started(self) -> None:
        if self._is_gone:
            raise InfrastructureError(f"the {self.name} is gone")
        if self._pids is None:
            import ray
            from ray.exceptions import RayError, RayTaskError

            pids = []
            for rank, reference in enumerate(self._starting):
                while not those_ready([reference]):
                    pass  # a lost actor ends this
                try:
                    pids.append(ray.get(reference))
                except RayTaskError as error:
                    self._failed_to_start(error)
                except RayError as error:
                    self._lost(rank, error)
            self._pids = pids

    def _failed_to_start(self, error: Exception) -> NoReturn:
        """What fetching the factory's arguments raised, or starting its process."""
        cause = getattr(error, "cause", None)
        if isinstance(cause, errors.OpidError):
            raise cause
        raise RuntimeError(f"bug in the {self.name}:\n{error}")

    def _ask(self, method: str, arguments: Sequence[Any], named: Mapping[str, Any], with_progress: bool) -> None:
        self._started()
        if self._running:
            self._answers()
        self._running = [
            actor.run.remote(self._key, method, tuple(arguments), dict(named), with_progress) for actor in self._actors
        ]

    def _answers(self, on_progress: Callable[..., None] | None = None) -> Any:
        import ray
        from ray.exceptions import RayError, RayTaskError

        waiting = {reference: rank for rank, reference in enumerate(self._running)}
        self._running = []
        news: dict[Any, int] = {}
        results: dict[int, Any] = {}
        failures: dict[int, tuple[str, str]] = {}
        failed_s = 0.0
        while waiting:
            ready = those_ready([*waiting, *news])
            # A failed rank leaves the others waiting for it, or failing too: the one that died is the cause.
            if failures and not ready and time.monotonic() > failed_s + _PATIENCE_S:
                break
            for reference in ready:
                if reference in news:
                    self._heard(news.pop(reference), reference, on_progress)
                    continue
                rank = waiting.pop(reference)
                try:
                    kind, value, told = ray.get(reference)
                except RayTaskError as error:
                    raise RuntimeError(f"bug in the {self.name}:\n{error}") from None
                except RayError as error:
                    self._lost(rank, error)
                self._tell(rank, told, on_progress)
                if kind == "result":
                    results[rank] = value
                elif kind == "death":
                    _raise(*value)
                else:
                    failures[rank], failed_s = value, time.monotonic()
            if not ready:
                asked = {*news.values()}
                news |= {self._actors[r].news.remote(self._key): r for r in waiting.values() if r not in asked}
        if failures:
            _raise(*failures[min(failures)])
        return results[0]

    def _heard(self, rank: int, reference: Any, on_progress: Callable[..., None] | None) -> None:
        import ray
        from ray.exceptions import RayError

        with suppress(RayError):  # a lost actor: its answer tells
            told, lines = ray.get(reference)
            self._last_lines[rank] = time.monotonic(), lines
            self._tell(rank, told, on_progress)

    @staticmethod
    def _tell(rank: int, told: Sequence[tuple[Any, ...]], on_progress: Callable[..., None] | None) -> None:
        if rank == 0 and on_progress is not None:
            for values in told:
                on_progress(*values)

    def _of_rank(self, rank: int) -> str:
        return f"{self.name} on rank {rank} of {len(self._seats)}" if len(self._seats) > 1 else self.name

    def _lost(self, rank: int, error: Exception) -> NoReturn:
        heard_s, lines = self._last_lines[rank]
        process = f"process {self._pids[rank]}" if self._pids else "not started"
        ago = f", {time.monotonic() - heard_s:.0f} s before" if heard_s else ""
        raise InfrastructureError(
            f"the {self._of_rank(rank)} ({process} on {self._places.nodes[self._seats[rank]]}) was lost: "
            f"{one_line(error)}; its last lines{ago}:\n{lines or '(none were heard)'}"
        ) from error


def first_done(groups: Sequence[RayGroup]) -> RayGroup:
    """Wait until one of `groups`, each of which has begun something, can finish it or was lost: the first of those."""
    by_answer = {group.first_answer: group for group in groups}
    while True:
        if ready := those_ready([*by_answer]):
            return by_answer[ready[0]]


def _raise(kind: str, text: str) -> NoReturn:
    known = getattr(errors, kind, None)
    raise known(text) if isinstance(known, type) and issubclass(known, errors.OpidError) else RuntimeError(text)


def _free(node_id: str) -> dict[str, float]:
    from ray._private.state import available_resources_per_node

    return available_resources_per_node().get(node_id, {})


def _amounts(resources: Mapping[str, float]) -> str:
    return " + ".join(
        f"{resources.get(name, 0):g} {name}" for name in ("CPU", "GPU") if name == "CPU" or resources.get(name)
    )
