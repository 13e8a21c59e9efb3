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


class WebshopExpert:
    """Plays one episode: it knows the goal and sees what the player sees.

    It searches for the instruction without its options and price limit; where no page of the results has the goal's
    product, for the product's name; after that it takes the first product that the last page has.
    """

    def __init__(self, goal: Goal, observation: str) -> None:
        self._wanted = tuple(goal.options.values() if isinstance(goal.options, Mapping) else goal.options)
        self._target = f"click[{goal.asin.lower()}]"
        self._queries = (_query(goal), _searchable(goal.name))
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
            if before == "results" and now == "search":
                self._attempt = min(self._attempt + 1, len(self._queries) - 1)
        self._observation = observation

    def decide(self, admissible_actions: Sequence[str]) -> Decision:
        """The next action, and why in a few words."""
        page = _page(self._observation)
        if page == "search":
            query = self._queries[self._attempt]
            return Decision(f"search[{query}]", f"search page. look for {query}.")
        if page == "results":
            return self._decide_on_results(admissible_actions)
        if page == "item":
            return self._decide_on_item(admissible_actions)
        return Decision("click[< prev]", "details. go back to the item.")

    def clumsy_actions(self, admissible_actions: Sequence[str]) -> Sequence[str]:
        """Any click, and searches for the beginning or the end of what is wanted."""
        words = self._queries[0].split()
        searches = [f"search[{' '.join(part)}]" for part in (words[:2], words[-2:])]
        clicks = [action for action in admissible_actions if _CLICK.fullmatch(action)]
        return clicks + searches if len(clicks) < len(admissible_actions) else clicks

    def _decide_on_results(self, admissible_actions: Sequence[str]) -> Decision:
        number, total = (int(group) for group in _RESULTS.search(self._observation).groups())  # pyright: ignore
        seen = f"results page {number}."
        if self._target in admissible_actions:
            return Decision(self._target, f"{seen} {self._target[6:-1]} fits. open it.")
        if number * RESULTS_PER_PAGE < total:
            return Decision("click[next >]", f"{seen} it is not here. next page.")
        products = [action for action in admissible_actions if action not in (_BACK, "click[< prev]", "click[next >]")]
        if self._last_attempt and products:
            return Decision(products[0], f"{seen} take {products[0][6:-1]}.")
        return Decision(_BACK, f"{seen} it is not here. search again.")

    def _decide_on_item(self, admissible_actions: Sequence[str]) -> Decision:
        if self._opened != self._target and not self._last_attempt:
            return Decision("click[< prev]", "another item. go back to the results.")
        for value in self._wanted:
            if value not in self._chosen and f"click[{value}]" in admissible_actions:
                return Decision(f"click[{value}]", f"the item. choose {value}.")
        return Decision("click[buy now]", "the item. all is chosen. buy it.")

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
