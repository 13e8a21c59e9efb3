"""A corridor of rooms with a key in one and a locked door in another: an environment in one file."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field

from envs.base import TURN_LINE, Decision, PromptParts, StepResult, Task, register
from opid_core.errors import ConfigError

ROLE = "You are in a corridor of rooms and see only the room that you are in."
TASK = "Your task is to: find the key and open the door with it."
TURN = f"{TURN_LINE}. Reason inside <think> </think>, then write one admissible action inside <action> </action>."
RESPONSE = re.compile(r"<think>.*</think>.*?<action>(.*?)</action>", re.DOTALL)


class CorridorOptions(BaseModel):
    """Which corridors: `environment.options` of a config."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    rooms: int = Field(default=6, ge=3, le=40)
    """Length of the corridor."""
    seed: int = Field(default=0, ge=0)
    """Seed of the tasks' order."""


class Corridor:
    """One running episode."""

    fixed_phrases = (ROLE, TASK, TURN, "Admissible actions:", "<think>", "</think>", "<action>", "</action>")

    def __init__(self, options: CorridorOptions) -> None:
        self.options = options
        self.task_text = ""
        self.admissible_actions: Sequence[str] = ()

    def tasks(self, split: str) -> Sequence[Task]:
        """Every (start, key, door) of three rooms, in a seeded order: the first third is held out from training."""
        places = list(itertools.permutations(range(1, self.options.rooms + 1), 3))
        random.Random(self.options.seed).shuffle(places)
        tasks = [Task("start{}-key{}-door{}".format(*place), "corridor", place) for place in places]
        held_out = len(tasks) // 3
        splits = {"valid_unseen": tasks[:held_out], "train": tasks[held_out:]}
        if split not in splits:
            raise ConfigError(f"split: unknown split {split!r}; known: {', '.join(splits)}")
        return splits[split]

    def splits(self) -> Sequence[str]:
        """Optional: for listing them."""
        return ("train", "valid_unseen")

    def reset(self, task: Task) -> str:
        self.room, self.key, self.door = task.payload
        self.has_key = False
        self.task_text = TASK
        return self._look()

    def step(self, action: str) -> StepResult:
        if action not in self.admissible_actions:
            return StepResult("Nothing happens.", reward=0.0, done=False, won=False)
        if action == "open door":
            return StepResult("The door is open.", reward=1.0, done=True, won=True)
        self.room += {"go left": -1, "go right": 1, "take key": 0}[action]
        self.has_key = self.has_key or action == "take key"
        return StepResult(self._look(), reward=0.0, done=False, won=False)

    def _look(self) -> str:
        """What the player sees; also sets the admissible actions."""
        key_is_here = self.room == self.key and not self.has_key
        offers = {
            "go left": self.room > 1,
            "go right": self.room < self.options.rooms,
            "take key": key_is_here,
            "open door": self.room == self.door and self.has_key,
        }
        self.admissible_actions = [action for action, offered in offers.items() if offered]
        seen = "a key" if key_is_here else "a locked door" if self.room == self.door else "nothing"
        return f"You are in room {self.room} of {self.options.rooms}{' with the key' * self.has_key}. You see {seen}."

    @staticmethod
    def parse_action(response_text: str) -> tuple[str, bool]:
        found = RESPONSE.search(response_text)
        return (found[1].strip(), True) if found else ("", False)

    @staticmethod
    def prompt_parts(
        task_text: str,
        history: Sequence[tuple[str, str]],
        observation: str,
        admissible_actions: Sequence[str],
        history_length: int,
    ) -> PromptParts:
        past = [f"Step {number}: {seen} You did: {action}" for number, (seen, action) in enumerate(history, start=1)]
        shown = past[max(len(past) - history_length, 0) :]
        return PromptParts(
            role=ROLE,
            task=task_text,
            history_header=f"Steps taken so far: {len(history)}. The latest:" if shown else "",
            history=tuple(shown),
            current=f"Step {len(history) + 1}: {observation}",
            actions=f"Admissible actions: {', '.join(admissible_actions)}",
            turn=TURN,
        )

    # Optional: an expert, so that a tiny policy can be made by imitation where the config names no base policy.

    def expert(self, observation: str) -> Walker:
        return Walker()

    @staticmethod
    def response_text(decision: Decision) -> str:
        return f"<think>{decision.thought}</think><action>{decision.action}</action>"


class Walker:
    """Takes the key and opens the door where it can; else goes on until the corridor ends, then the other way."""

    def __init__(self) -> None:
        self.direction = "go right"

    def observe(self, action: str, observation: str) -> None:
        if action in ("go left", "go right"):
            self.direction = action

    def decide(self, admissible_actions: Sequence[str]) -> Decision:
        for action in ("open door", "take key"):
            if action in admissible_actions:
                return Decision(action, f"I can {action}.")
        if self.direction not in admissible_actions:
            self.direction = "go left" if self.direction == "go right" else "go right"
        return Decision(self.direction, "Look further.")


register("corridor", CorridorOptions, Corridor)
