"""An expert for imitation: it searches for the instruction's words, opens the goal's product, chooses, buys."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from envs.base import Decision
from envs.webshop.goals import Goal, limit_text, options_text
from envs.webshop.pages import RESULTS_PER_PAGE, SEPARATOR

_CLICK = re.compile(r"click\[(.+)\]")
_RESULTS = re.compile(r"\[SEP\] Page (\d+) \(Total results: (\d+)\)")
_BACK = "click[back to search]"
THOUGHTS = {
    "search": "search page. search.",
    "fits": "results page. one fits. open it.",
    "next": "results page. it is not here. next page.",
    "first": "results page. take the first.",
    "again": "results page. it is not here. search again.",
    "other": "another item. go back to the results.",
    "choose": "the item. choose an option.",
    "buy": "the item. all is chosen. buy it.",
    "details": "details. go back to the item.",
}
"""All that the expert ever thinks: what is to be done, not with what; that only the action says."""


class WebshopExpert:
    """Plays one episode: it knows the goal and sees what the player sees.

    It searches for the kind of product; where no page of the results has the goal's product, for the instruction
    without its options and price limit, then for the product's name; after that it takes the first product that the
    last page has.
    """

    def __init__(self, goal: Goal, observation: str) -> None:
        self._wanted = tuple(goal.options.values() if isinstance(goal.options, Mapping) else goal.options)
        self._target = f"click[{goal.asin.lower()}]"
        self._instruction = _query(goal)
        self._queries = [q for q in (_searchable(goal.query), self._instruction, _searchable(goal.name)) if q]
        self._attempt = 0
        self._opened = ""
        self._chosen: set[str] = set()
        self._observation = observation

    def observe(self, action: str, observation: str) -> None:
        """Take in what an action (anybody's) led to."""
        before, now = _page(self._observation), _page(observation)
        if before == "results" and now == "item":
            self._opened = action
        elif before == "item" and now == "item":
            clicked = _CLICK.match(action)
            if clicked and clicked.group(1) in self._wanted:
                self._chosen.add(clicked.group(1))
            else:  # perhaps another value of an option that was chosen already: choose all again
                self._chosen.clear()
        elif now in ("results", "search"):
            self._chosen.clear()
            if before == "results" and now == "search" and self._gave_up():
                self._attempt = min(self._attempt + 1, len(self._queries) - 1)
        self._observation = observation

    def decide(self, admissible_actions: Sequence[str]) -> Decision:
        """The next action, and why in a few words."""
        page = _page(self._observation)
        if page == "search":
            query = self._queries[self._attempt]
            return Decision(f"search[{query}]", THOUGHTS["search"])
        if page == "results":
            return self._decide_on_results(admissible_actions)
        if page == "item":
            return self._decide_on_item(admissible_actions)
        return Decision("click[< prev]", THOUGHTS["details"])

    def clumsy_actions(self, admissible_actions: Sequence[str]) -> Sequence[str]:
        """Any click, and searches for the beginning or the end of what is wanted."""
        words = self._instruction.split()
        searches = [f"search[{' '.join(part)}]" for part in (words[:2], words[-2:])]
        clicks = [action for action in admissible_actions if _CLICK.fullmatch(action)]
        return clicks + searches if len(clicks) < len(admissible_actions) else clicks

    def _decide_on_results(self, admissible_actions: Sequence[str]) -> Decision:
        number, total = (int(group) for group in _RESULTS.search(self._observation).groups())  # pyright: ignore
        if self._target in admissible_actions:
            return Decision(self._target, THOUGHTS["fits"])
        if number * RESULTS_PER_PAGE < total:
            return Decision("click[next >]", THOUGHTS["next"])
        products = [action for action in admissible_actions if action not in (_BACK, "click[< prev]", "click[next >]")]
        if self._last_attempt and products:
            return Decision(products[0], THOUGHTS["first"])
        return Decision(_BACK, THOUGHTS["again"])

    def _decide_on_item(self, admissible_actions: Sequence[str]) -> Decision:
        if self._opened != self._target and not self._last_attempt:
            return Decision("click[< prev]", THOUGHTS["other"])
        for value in self._wanted:
            if value not in self._chosen and f"click[{value}]" in admissible_actions:
                return Decision(f"click[{value}]", THOUGHTS["choose"])
        return Decision("click[buy now]", THOUGHTS["buy"])

    def _gave_up(self) -> bool:
        """Whether the results that were left had been read to their end without the goal's product."""
        number, total = (int(group) for group in _RESULTS.search(self._observation).groups())  # pyright: ignore
        return number * RESULTS_PER_PAGE >= total and self._target[6:-1].upper() not in self._observation

    @property
    def _last_attempt(self) -> bool:
        return self._attempt == len(self._queries) - 1


def _page(observation: str) -> str:
    last = observation.rpartition(SEPARATOR)[2]
    if last in ("Search", "Buy Now"):
        return {"Search": "search", "Buy Now": "item"}[last]
    return "results" if _RESULTS.search(observation) else "sub-page"


def _query(goal: Goal) -> str:
    """The instruction without its options and its price limit: words that lead to the product."""
    words = goal.instruction.removesuffix(limit_text(goal.price_upper))
    if isinstance(goal.options, Mapping):
        words = words.removesuffix(options_text(goal.options))
    return _searchable(words.removeprefix("Find me "))


def _searchable(text: str) -> str:
    """`text` as the words of a search: brackets would end the action."""
    return re.sub(r"[\[\]\s]+", " ", text.lower()).strip()
