"""A classic environment of verifiers without tools, of one turn or several: an adapter in one file."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from typing import Any

import verifiers as vf  # pyright: ignore[reportMissingImports]
from pydantic import BaseModel, ConfigDict
from verifiers.types import AssistantMessage, ClientConfig  # pyright: ignore[reportMissingImports]

from envs.base import TURN_LINE, PromptParts, StepResult, Task, register
from opid_core.errors import ConfigError

NOBODY = ClientConfig(api_base_url="http://127.0.0.1:9")  # the policy answers here; an environment that asks fails


@functools.cache
def load(name: str, arguments: str) -> Any:
    """The environment, which all episodes share: what is an episode's own is in its state."""
    return vf.load_environment(name, **json.loads(arguments))


class VerifiersOptions(BaseModel):
    """Which environment: `environment.options` of a config."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    id: str
    """A module with `load_environment`."""
    arguments: dict[str, Any] = {}
    """Of `load_environment`."""
    success_from: float = 1.0
    """A reward of at least this is a win."""


class FromVerifiers:
    """One running episode."""

    def __init__(self, options: VerifiersOptions) -> None:
        self.options = options
        self.world = load(options.id, json.dumps(options.arguments))
        self.task_text = ""
        self.admissible_actions: Sequence[str] = ()

    def tasks(self, split: str) -> Sequence[Task]:
        """The rows of its data sets, in their order."""
        known = {"train": self.world.get_dataset, "valid_unseen": self.world.get_eval_dataset}
        if split not in known:
            raise ConfigError(f"split: unknown split {split!r}; known: {', '.join(known)}")
        return [Task(f"{split}-{number}", self.options.id, row) for number, row in enumerate(known[split]())]

    async def reset(self, task: Task) -> str:
        state = await self.world.init_state(task.payload, NOBODY, "policy")
        self.state = await self.world.setup_state(state) or state
        self.messages = await self.world.get_prompt_messages(self.state)
        before, last = self.messages[:-1], self.messages[-1]
        self.task_text = "\n".join(message.content for message in before) or "Answer what you are asked."
        return last.content

    async def step(self, action: str) -> StepResult:
        turn = {"prompt": self.messages, "completion": [AssistantMessage(content=action)], "response": None}
        self.state["trajectory"].append(turn)
        before = len(self.messages) + 1
        if not await self.world.is_completed(self.state):
            self.messages = await self.world.get_prompt_messages(self.state)  # calls env_response
        said = "\n".join(message.content for message in self.messages[before:])
        if not await self.world.is_completed(self.state):
            return StepResult(said, reward=0.0, done=False, won=False)
        await self.world.cleanup(self.state)
        await self.world.rubric.score_rollout(self.state)
        reward = self.state["reward"]
        won = reward >= self.options.success_from
        return StepResult(said, reward=float(won), done=True, won=won, score=min(max(reward, 0.0), 1.0))

    @staticmethod
    def parse_action(response_text: str) -> tuple[str, bool]:
        """The whole response: what counts in it is for the environment's own parser to find."""
        return response_text, bool(response_text.strip())

    @staticmethod
    def prompt_parts(
        task_text: str,
        history: Sequence[tuple[str, str]],
        observation: str,
        admissible_actions: Sequence[str],
        history_length: int,
    ) -> PromptParts:
        shown = history[max(len(history) - history_length, 0) :]
        return PromptParts(
            role="",
            task=task_text,
            history_header="What was said before:" if shown else "",
            history=tuple(f"{asked}\nYour answer: {answer}" for asked, answer in shown),
            current=observation,
            actions="",
            turn=f"{TURN_LINE}.",
        )


register("verifiers", VerifiersOptions, FromVerifiers)
