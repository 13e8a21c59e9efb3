"""ALFWorld: text games in a household, played on a native simulator (docs/alfworld.md)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial

from pydantic import Field, field_validator

from envs.alfworld import generator as generated
from envs.alfworld.expert import AlfworldExpert
from envs.alfworld.games import TASK_LINE, TASK_TYPES, Game, TaskType
from envs.alfworld.tasks import game_of, stored_splits, stored_tasks
from envs.alfworld.world import BANNER, NOTHING_HAPPENS, World
from envs.base import ActionWords, StepResult, Task, register
from envs.manifest import pick, pick_splits
from envs.wording import (
    NUMBERED_PHRASES,
    TAGGED_PHRASES,
    TAGGED_TURN,
    numbered_prompt_parts,
    parse_tagged_action,
    tagged_response,
)
from opid_core.sections import Section

_ROLE = "You are an agent in a household, the text world ALFWorld."
FIXED_PHRASES = (
    _ROLE,
    TAGGED_TURN,
    "Your task is to:",
    *NUMBERED_PHRASES,
    *TAGGED_PHRASES,
    "You are in the middle of a room. Looking quickly around you, you see",
    "You arrive at",
    ", you see",
    "is open. In it",
    "is closed.",
    "Nothing happens.",
)
"""Wording that never changes, of the prompt's parts below, of the responses and of the world."""

parse_action = parse_tagged_action
response_text = tagged_response
prompt_parts = partial(numbered_prompt_parts, _ROLE, TAGGED_TURN)


__all__ = ["AlfworldEnvironment", "AlfworldOptions", "Game", "World", "parse_action", "prompt_parts"]


class AlfworldOptions(Section):
    """Which games, in which order."""

    data: str = "generated"
    """`generated`, or a folder: of packs (`train.jsonl.xz` ...) or as alfworld-download makes it (`$ALFWORLD_DATA`)."""
    task_types: tuple[TaskType, ...] = Field(default=TASK_TYPES, min_length=1)
    """The task types to use."""
    manifest: str | None = None
    """File of task ids a split, in task order: JSON `{"train": [id, ...]}`, or text with a `split id` pair a line."""
    skip_malformed: bool = False
    """Leave out stored games that cannot be read or played, with one warning that names them; otherwise the first one
    is an error."""
    check_solvable: bool = False
    """Let the planner win every stored game before it is used: the first one that it cannot is an error, or left out
    with `skip_malformed`."""
    forbid_goal_words: bool = False
    """Whether a skill may not name the objects and places of its game's goal: such a skill is found by the gates."""
    generator: generated.GameOptions = generated.GameOptions()
    """The generated games."""

    @field_validator("task_types")
    @classmethod
    def _distinct(cls, task_types: tuple[TaskType, ...]) -> tuple[TaskType, ...]:
        if len(set(task_types)) < len(task_types):
            raise ValueError("a task type is named twice")
        return task_types


class AlfworldEnvironment:
    """One running episode of ALFWorld. Raises ConfigError for a data folder that cannot be used.

    `reset` returns the game's first observation without its banner and its task sentence (the prompt shows that on its
    own); `world` plays the game.
    """

    parse_action = staticmethod(parse_action)
    prompt_parts = staticmethod(prompt_parts)
    response_text = staticmethod(response_text)
    fixed_phrases = FIXED_PHRASES
    action_words = ActionWords(
        passive_verbs=("look", "inventory", "examine", "help"),
        moving_verbs=("go", "open", "close"),
        failed_observations=(NOTHING_HAPPENS,),
        # where and with what it was done is seen in the steps around it
        cut_before={"take": " from ", "clean": " with ", "heat": " with ", "cool": " with ", "slice": " with "},
    )

    def __init__(self, options: AlfworldOptions) -> None:
        self.options = options
        self.admissible_actions: Sequence[str] = ()
        self.task_text = ""
        if options.data != "generated":
            stored_splits(options.data)

    def splits(self) -> Sequence[str]:
        """The splits of the data (those that the manifest names, if there is one)."""
        generates = self.options.data == "generated"
        known = generated.SPLITS if generates else sorted(stored_splits(self.options.data))
        return pick_splits(known, self.options.manifest)

    def tasks(self, split: str) -> Sequence[Task]:
        """The tasks of `split`: of the chosen types, in the manifest's order if there is one."""
        options = self.options
        if options.data == "generated":
            tasks = generated.tasks(split, options.generator, options.task_types)
        else:
            tasks = stored_tasks(
                options.data,
                split,
                options.task_types,
                skip_malformed=options.skip_malformed,
                check_solvable=options.check_solvable,
            )
        return pick(tasks, options.manifest, split) if options.manifest else tasks

    def reset(self, task: Task) -> str:
        """Start `task`. Raises DataError for a game that cannot be used."""
        self.world = World(game_of(task, self.options.generator))
        observation = self.world.reset()
        self.task_text = f"{TASK_LINE}{self.world.game.task_desc}."
        self._update()
        return observation.removeprefix(BANNER).removesuffix(self.task_text).rstrip()

    def step(self, action: str) -> StepResult:
        """Do `action`; the reward is 1 the moment the game is won, else 0."""
        observation = self.world.step(action)
        self._update()
        won = self.world.won
        return StepResult(observation, reward=1.0 if won else 0.0, done=won, won=won)

    def state_key(self) -> str:
        """See `World.state_key`: closed drawers and what was cleaned elsewhere cannot be seen from everywhere."""
        return self.world.state_key()

    def forbidden_texts(self, task: Task) -> Sequence[str]:
        """The objects and places of the game's goal in lower case, as the game names them, if they are forbidden."""
        if not self.options.forbid_goal_words:
            return []
        goal = game_of(task, self.options.generator).pddl_problem.partition("(:goal")[2]
        types = re.findall(r"\((?:objectType|receptacleType) \S+ (\w+)Type\)", goal)
        return list(dict.fromkeys(name.lower() for name in types))

    def expert(self, observation: str) -> AlfworldExpert:
        """An expert for the episode that `reset` just started with `observation`."""
        return AlfworldExpert(self.task_text, observation)

    def _update(self) -> None:
        self.admissible_actions = [command for command in self.world.admissible_commands if command != "help"]


register("alfworld", AlfworldOptions, AlfworldEnvironment)
