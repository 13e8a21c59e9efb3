"""What the adapters to other people's worlds share: a task is the seed of a reset, a prompt has one form."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from envs.base import PromptParts, Task, check_split
from envs.wording import listed_or_free_turn, numbered_prompt_parts, parse_written_action
from opid_core.sections import Section

SPLITS = ("train", "valid_unseen")
ROLE = "You act in a small world that is told in text."
NOT_OFFERED = "Nothing happens."
"""The answer to what is no action, or none that is on offer; the world never sees it."""


class SeededOptions(Section):
    """How many tasks there are."""

    train: int = Field(default=10_000, ge=1)
    """Tasks of the split `train`: the seeds after those of `valid_unseen`."""
    valid_unseen: int = Field(default=300, ge=1)
    """Tasks of the held-out split: the seeds from 0 on."""


class SeededWorld:
    """Of an environment whose task is the seed of its reset: tasks, actions and prompts."""

    parse_action = staticmethod(parse_written_action)
    options: SeededOptions
    task_type: str

    def splits(self) -> Sequence[str]:
        """`train` and `valid_unseen`."""
        return SPLITS

    def tasks(self, split: str) -> Sequence[Task]:
        """The seeds of `split`, in their order: held out are 0 to `valid_unseen` - 1, and the `train` after them train.
        Raises ConfigError for another split."""
        check_split(split, SPLITS)
        held_out = self.options.valid_unseen
        seeds = range(held_out) if split == "valid_unseen" else range(held_out, held_out + self.options.train)
        return [Task(f"seed-{seed}", self.task_type, seed) for seed in seeds]


def seeded_prompt_parts(
    role: str,
    task_text: str,
    history: Sequence[tuple[str, str]],
    observation: str,
    admissible_actions: Sequence[str],
    history_length: int,
) -> PromptParts:
    """See `envs.wording.numbered_prompt_parts`; the last paragraph says whether actions are listed."""
    turn = listed_or_free_turn(admissible_actions)
    return numbered_prompt_parts(role, turn, task_text, history, observation, admissible_actions, history_length)
