"""The driver's handle on an engine in another process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from infra.groups import Folder, Group, is_same_folder
from opid_core.rollout.engines.vllm import Completion


class RemoteEngine:
    """A `VllmEngine` behind a group: what is submitted crosses with the next `begin` or `step`, in one call."""

    tokens_generated: int
    policy_dir: Any
    """As it was given; a path where the engine holds another."""

    def __init__(self, name: str, group: Group, policy_dir: Folder) -> None:
        """`group` makes a `VllmEngine` with the weights of `policy_dir`; its errors come with the first answer."""
        self.name = name
        self.group = group
        self.tokens_generated = 0
        self.policy_dir = self._given = policy_dir
        self._waiting: list[dict[str, Any]] = []
        self._running = 0
        self._begun = False

    @property
    def is_idle(self) -> bool:
        """Whether no request waits or runs."""
        return self._running == 0

    def submit(
        self, request_id: str, prompt_ids: Sequence[int], *, max_tokens: int, temperature: float, seed: int
    ) -> None:
        """See `VllmEngine.submit`, whose errors come with the next `step`."""
        self._waiting.append(
            {
                "request_id": request_id,
                "prompt_ids": list(prompt_ids),
                "max_tokens": max_tokens,
                "temperature": temperature,
                "seed": seed,
            }
        )
        self._running += 1

    def begin(self, max_steps: int | None = 1) -> None:
        """Sample while the caller works, until a response ends or after `max_steps` tokens of all that runs; the next
        `step` returns what ended, if anything. Counted, whatever the caller takes for its work, never timed."""
        if self._running and not self._begun:
            submissions, self._waiting = self._waiting, []
            self.group.begin("advance", submissions, max_steps)
            self._begun = True

    def step(self) -> Sequence[Completion]:
        """Sample until at least one response ends, or finish what was begun; returns the ended ones."""
        self.begin(max_steps=None)
        self._begun = False
        completions, sampled, loaded = self.group.finish()
        self.policy_dir = self._given if is_same_folder(self._given, loaded) else loaded
        self.tokens_generated += sampled
        self._running -= len(completions)
        return completions

    def begin_load(self, policy_dir: Folder) -> None:
        """Put the weights of another HF folder into the live engine, without waiting for it."""
        self._given = policy_dir
        self.group.begin("load_policy", policy_dir)

    def begin_sleep(self) -> None:
        """See `VllmEngine.sleep`, without waiting for it."""
        self.group.begin("sleep")

    def begin_wake(self) -> None:
        """See `VllmEngine.wake`, without waiting for it."""
        self.group.begin("wake")

    def finish(self) -> None:
        """Wait for the load, the sleep or the wake that was begun."""
        self.group.finish()

    def kill(self) -> None:
        """End the process."""
        self.group.kill()
