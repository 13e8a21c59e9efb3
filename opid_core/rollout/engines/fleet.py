"""Several engines behind the interface of one: the episodes of a group stay on one of them, whose prefix cache has the
beginning of their prompts.

Determinism: who plays a group follows from the batch alone, and what a replica is given from its own answers alone: it
sees the same submissions in the same order in every run, whichever of the replicas is faster.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar

from opid_core.errors import InfrastructureError
from opid_core.rollout.engines.protocols import TokenCompletion


class Replica(Protocol):
    """One engine of a fleet, in a process of its own."""

    @property
    def name(self) -> str: ...

    @property
    def tokens_generated(self) -> int: ...

    @property
    def policy_dir(self) -> Any:
        """The HF folder of the weights that its last answer was sampled with, as it was given."""
        ...

    @property
    def is_idle(self) -> bool: ...

    def submit(
        self, request_id: str, prompt_ids: Sequence[int], *, max_tokens: int, temperature: float, seed: int
    ) -> None: ...

    def begin(self, max_steps: int | None = 1) -> None:
        """Sample until a response ends, `max_steps` at most, without waiting for it; nothing where nothing runs or this
        was begun before."""
        ...

    def step(self) -> Sequence[TokenCompletion]:
        """Wait for what was begun."""
        ...

    def begin_load(self, policy_dir: Any) -> None:
        """Put the weights of another HF folder into the engine, without waiting for it."""
        ...

    def begin_sleep(self) -> None:
        """Leave the GPUs to the learner, without waiting for it."""
        ...

    def begin_wake(self) -> None:
        """Take the GPUs back, without waiting for it."""
        ...

    def finish(self) -> None:
        """Wait for the load, the sleep or the wake that was begun."""
        ...

    def kill(self) -> None: ...


R = TypeVar("R", bound=Replica)


class EngineFleet(Generic[R]):
    """A `TokenEngine` that is made of `replicas`, all with the weights of the HF folder `policy_dir`."""

    def __init__(self, replicas: Sequence[R], policy_dir: Any, first_done: Callable[[Sequence[R]], R]) -> None:
        """`first_done` waits until one of the replicas given to it has done what it began."""
        self.replicas = tuple(replicas)
        self.first_done = first_done
        self._policy_dir = policy_dir
        self._waiting_longest = list(self.replicas)
        self._home: dict[str, R] = {}

    @property
    def tokens_generated(self) -> int:
        """All tokens that the replicas have sampled so far."""
        return sum(replica.tokens_generated for replica in self.replicas)

    @property
    def is_idle(self) -> bool:
        """Whether no request waits or runs."""
        return all(replica.is_idle for replica in self.replicas)

    def deal(self, groups: Sequence[tuple[str, str]]) -> None:
        """Choose who plays the episodes to come: their request ids, each with the id of its group."""
        homes = dealt([group for _, group in groups], len(self.replicas))
        self._home = {request_id: self.replicas[homes[group]] for request_id, group in groups}

    def submit(
        self, request_id: str, prompt_ids: Sequence[int], *, max_tokens: int, temperature: float, seed: int
    ) -> None:
        """Let the replica that the request was dealt to answer."""
        self._home[request_id].submit(request_id, prompt_ids, max_tokens=max_tokens, temperature=temperature, seed=seed)

    def begin(self) -> None:
        """Let each replica that does nothing sample one more token for all that runs on it."""
        for replica in self.replicas:
            replica.begin()

    def step(self) -> Sequence[TokenCompletion]:
        """What ended on the replica that is done first, maybe nothing; the others work on.

        Raises InfrastructureError where it sampled with other weights than the fleet holds.
        """
        for replica in self.replicas:
            replica.begin(max_steps=None)
        replica = self.first_done([replica for replica in self._waiting_longest if not replica.is_idle])
        completions = replica.step()
        self.check_weights(replica)
        self._waiting_longest.remove(replica)
        self._waiting_longest.append(replica)
        return completions

    def check_weights(self, replica: R) -> None:
        """Raise InfrastructureError where the last answer of `replica` was sampled with other weights than the fleet
        holds."""
        if replica.policy_dir != self._policy_dir:
            raise InfrastructureError(
                f"{replica.name} sampled with the weights of {replica.policy_dir}, the others hold {self._policy_dir}"
            )

    def load_policy(self, policy_dir: Any) -> None:
        """Put the weights of another HF folder into all replicas, side by side."""
        for replica in self.replicas:
            replica.begin_load(policy_dir)
        self._finish()
        self._policy_dir = policy_dir

    def sleep(self) -> None:
        """Let all replicas leave their GPUs to the learner, side by side; nothing where they sleep already."""
        for replica in self.replicas:
            replica.begin_sleep()
        self._finish()

    def wake(self) -> None:
        """Let all replicas take their GPUs back, side by side, with the weights that they had; nothing where they are
        awake."""
        for replica in self.replicas:
            replica.begin_wake()
        self._finish()

    def _finish(self) -> None:
        for replica in self.replicas:
            replica.finish()

    def kill(self) -> None:
        """End all replicas."""
        for replica in self.replicas:
            replica.kill()


def dealt(groups: Sequence[str], replicas: int) -> dict[str, int]:
    """The replica, from 0, of each group: `groups` names the group of each episode, and each group goes, in the order
    in which they come, to the replica with the fewest episodes so far."""
    sizes: dict[str, int] = {}
    for group in groups:
        sizes[group] = sizes.get(group, 0) + 1
    episodes, homes = [0] * replicas, {}
    for group, size in sizes.items():
        homes[group] = min(range(replicas), key=lambda replica: (episodes[replica], replica))
        episodes[homes[group]] += size
    return homes
