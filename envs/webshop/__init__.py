"""WebShop: buying what an instruction asks for in an online shop of text pages (docs/webshop.md)."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from envs.base import ActionWords, StepResult, Task, register
from envs.manifest import pick, pick_splits
from envs.webshop.expert import THOUGHTS, WebshopExpert
from envs.webshop.generator import CatalogOptions, generated_folder, wording
from envs.webshop.goals import SPLITS, Goal, GoalKind, split_tasks
from envs.webshop.reward import OptionMatching, require_extra
from envs.webshop.search import SearchEngine
from envs.webshop.text import FIXED_PHRASES, SEARCH_ACTION, TASK_LINE, parse_action, prompt_parts, response_text
from envs.webshop.world import Session, Shop, open_shop
from opid_core.sections import Section

__all__ = ["Goal", "Session", "Shop", "WebshopEnvironment", "WebshopOptions", "parse_action", "prompt_parts"]


class WebshopOptions(Section):
    """Which shop, which goals, in which order."""

    data: str = "generated"
    """`generated`, or a folder with the original's files (`items_shuffle_1000.json`, `items_ins_v2_1000.json` ...), or
    the products file to use of several in a folder."""
    goals: GoalKind = "synthetic"
    """Goals made of attributes and option combinations, or those that people wrote (`items_human_ins.json`)."""
    goal_seed: int = Field(default=233, ge=0)
    """Seed of prices, price limits and the order of the goals."""
    validation: int = Field(default=500, ge=1)
    """So many goals, the first in that order, are the split `validation`; the others are `train`."""
    manifest: str | None = None
    """File of task ids a split, in task order: JSON `{"train": [id, ...]}`, or text with a `split id` pair a line."""
    option_matching: OptionMatching = "parity"
    """`parity`: as the original, where some goals cannot be won; `fixed`: chosen and wanted colours compared alike."""
    search: SearchEngine = "bm25"
    """`bm25`: Lucene's, as the original; `tantivy`: that package (other results, faster at a million)."""
    show_attributes: bool = False
    """Whether item pages have the sub-page Attributes."""
    generator: CatalogOptions = CatalogOptions()
    """The generated catalog."""


_IDS = 1000
"""A tiny tokenizer gets tokens for so many products' ids at most."""


class WebshopEnvironment:
    """One running session in the shop. Raises ConfigError for options that cannot be used (a missing folder, package or
    extra), DataError for a malformed data file.

    The observation is the page's text from the instruction on. The score is what the purchase was worth, 0 before it;
    the reward is 1 for a purchase worth exactly 1, else 0.
    """

    # From a product it leads to the results it was opened from, which the state key leaves out: siblings find a product
    # by queries of their own, and its options are the same to all of them.
    action_words = ActionWords(leading_back=("click[< prev]",))
    parse_action = staticmethod(parse_action)
    prompt_parts = staticmethod(prompt_parts)
    response_text = staticmethod(response_text)

    def __init__(self, options: WebshopOptions) -> None:
        require_extra()
        self.options = options
        self.admissible_actions: Sequence[str] = ()
        self.task_text = ""
        data = generated_folder(options.generator) if options.data == "generated" else options.data
        self.shop = open_shop(data, options.goals, options.goal_seed, options.search)

    @property
    def fixed_phrases(self) -> Sequence[str]:
        """The wording of all prompts and thoughts, and of a generated catalog that of its products and their ids, as
        pages and as actions write them."""
        phrases = (*FIXED_PHRASES, *THOUGHTS.values())
        if self.options.data != "generated":
            return phrases
        ids = [str(asin) for asin in self.shop.catalog.asins[:_IDS]]
        return (*phrases, *wording(), *ids, *map(str.lower, ids))

    def splits(self) -> Sequence[str]:
        """The splits of the goals (those that the manifest names, if there is one)."""
        return pick_splits(SPLITS, self.options.manifest)

    def tasks(self, split: str) -> Sequence[Task]:
        """The tasks of `split`, in the manifest's order if there is one."""
        tasks = split_tasks(self.shop.goals, split, self.options.validation)
        return pick(tasks, self.options.manifest, split) if self.options.manifest else tasks

    def reset(self, task: Task) -> str:
        """Open the shop's search page with the goal of `task`."""
        options = self.options
        self.world = Session(
            self.shop,
            self.shop.goals[task.payload],
            option_matching=options.option_matching,
            show_attributes=options.show_attributes,
        )
        self.task_text = f"{TASK_LINE}{self.world.goal.instruction}"
        self._update()
        return self.world.observation

    def step(self, action: str) -> StepResult:
        """Do `search[...]` or `click[...]`; a purchase ends the episode."""
        observation = self.world.step(action)
        self._update()
        score = self.world.score
        won = score == 1.0
        return StepResult(observation, reward=float(won), done=score is not None, won=won, score=score or 0.0)

    def state_key(self) -> str:
        """The page, and what was chosen, which no page shows."""
        return self.world.state_key()

    def expert(self, observation: str) -> WebshopExpert:
        """An expert for the episode that `reset` just started with `observation`."""
        return WebshopExpert(self.world.goal, observation)

    def _update(self) -> None:
        search = [SEARCH_ACTION] if self.world.has_search_bar else []
        self.admissible_actions = [*search, *(f"click[{text}]" for text in self.world.clickables)]


register("webshop", WebshopOptions, WebshopEnvironment)
