"""The shop that all sessions share, and one session in it: the page that is open, what was chosen, and what an action
does to it."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping

from envs.webshop import pages
from envs.webshop.catalog import Catalog, Product, find_files
from envs.webshop.goals import Goal, GoalKind, Goals
from envs.webshop.pages import Clickable
from envs.webshop.reward import Nouns, OptionMatching, score
from envs.webshop.search import SearchEngine, SearchIndex, open_index
from opid_core.errors import ConfigError, DataError

_PRODUCTS_IN_MEMORY = 2048
_SEARCHES_IN_MEMORY = 4096


class Shop:
    """One catalog with its goals and its search engine. Safe to share between threads."""

    def __init__(self, catalog: Catalog, goals: Goals, nouns: Nouns, index: SearchIndex) -> None:
        self.catalog, self.goals, self.nouns, self.index = catalog, goals, nouns, index
        self.product = functools.lru_cache(_PRODUCTS_IN_MEMORY)(self._product)
        self.search = functools.lru_cache(_SEARCHES_IN_MEMORY)(self._search)

    def _product(self, number: int) -> Product:
        return self.catalog[number]

    def _search(self, query: str, count: int) -> tuple[int, ...]:
        """The numbers of at most `count` products, best first."""
        return tuple(self.index.search(query, count))

    def score(self, number: int, goal: Goal, options: Mapping[str, str], option_matching: OptionMatching) -> float:
        """What buying product `number` with `options` is worth for `goal`."""
        price = float(self.goals.prices[number])
        nouns, goal_nouns = self.nouns[number], self.nouns[goal.product]
        return score(self.product(number), nouns, price, options, goal, goal_nouns, option_matching)


@functools.lru_cache(maxsize=4)
def open_shop(data: str, goal_kind: GoalKind, goal_seed: int, engine: SearchEngine) -> Shop:
    """The shop of a data folder; the first call on a machine builds what the cache lacks.

    Raises ConfigError for a folder that cannot be used, DataError for a malformed file.
    """
    files = find_files(data)
    if goal_kind == "human" and files.human is None:
        raise ConfigError(f"environment.options.goals: {files.products.parent} holds no items_human_ins.json")
    catalog = Catalog(files)
    goals = Goals(catalog, goal_kind, goal_seed)
    if not len(goals):
        source = files.instructions if goal_kind == "synthetic" else files.human
        raise DataError(f"{source}: holds no {goal_kind} goal for a product of {files.products.name}")
    return Shop(catalog, goals, Nouns(catalog), open_index(engine, catalog))


RESULTS = 50
"""A search finds so many products at most."""
_ACTION = re.compile(r"(.+)\[(.+)\]")


class Session:
    """A session with a goal. `clickables` are the texts that can be clicked, `has_search_bar` whether the page shows a
    search bar, `score` what the purchase was worth (None before)."""

    def __init__(self, shop: Shop, goal: Goal, *, option_matching: OptionMatching, show_attributes: bool) -> None:
        self.shop, self.goal = shop, goal
        self._option_matching: OptionMatching = option_matching
        self._show_attributes = show_attributes
        self.score: float | None = None
        self._open_search_page()

    def step(self, action: str) -> str:
        """Do `search[keywords]` or `click[text]`; anything else, and a click on what the page does not show, changes
        nothing. As in the original a search is done on any page, not only where there is a search bar."""
        match = _ACTION.match(action)
        if match and self.score is None:
            name, argument = match.group(1), match.group(2).lower()
            if name == "search":
                self._open_results(argument, 1)
            elif name == "click" and argument in self.clickables and argument != "search":
                self._click(argument, self.clickables[argument])
        return self.observation

    def state_key(self) -> str:
        """The page with the products on it, or with the product and the options chosen of it."""
        if self.page in ("search", "done"):
            return self.page
        if self.page == "results":
            products = sorted(str(link.product) for link in self.clickables.values() if link.product is not None)
            return f"results {'first' if self.page_number == 1 else 'later'}: {' '.join(products)}"
        chosen = "; ".join(f"{name}={value}" for name, value in sorted(self.options.items()))
        return f"{self.page} {self.product}: {chosen}"

    def _click(self, text: str, clickable: Clickable) -> None:
        """The text decides first, as in the original: an option called `description` opens the sub-page."""
        if text == "buy now":
            self._buy()
        elif text == "back to search":
            self._open_search_page()
        elif text == "next >" and self.page == "results":
            self._open_results(self.query, self.page_number + 1)
        elif text == "< prev" and self.page == "results":
            self._open_results(self.query, self.page_number - 1)
        elif text == "< prev" and self.page == "item":
            self._open_results(self.query, self.page_number)
        elif sub_page := next((name for name in pages.SUB_PAGES if name.lower() == text), None):
            self._open_sub_page(sub_page)
        else:
            if clickable.product is not None:
                self.product = clickable.product
            elif clickable.option is not None:
                self.options[clickable.option] = text
            self._open_item_page()

    def _open_search_page(self) -> None:
        self.page, self.has_search_bar = "search", True
        self.options: dict[str, str] = {}
        self.clickables = pages.search_clickables()
        self.observation = pages.observation(pages.search_page(self.goal.instruction))

    def _open_results(self, query: str, page_number: int) -> None:
        self.page, self.has_search_bar = "results", False
        self.query, self.page_number, self.options = query, page_number, {}
        results = self.shop.search(query, RESULTS)
        start = (page_number - 1) * pages.RESULTS_PER_PAGE
        on_page = {n: self.shop.product(n) for n in results[start : start + pages.RESULTS_PER_PAGE]}
        self.clickables = pages.results_clickables(on_page, page_number)
        texts = pages.results_page(self.goal.instruction, list(on_page.values()), page_number, len(results))
        self.observation = pages.observation(texts)

    def _open_item_page(self) -> None:
        self.page, self.has_search_bar = "item", False
        product = self.shop.product(self.product)
        self.clickables = pages.item_clickables(product, self._show_attributes)
        self.observation = pages.observation(pages.item_page(self.goal.instruction, product, self._show_attributes))

    def _open_sub_page(self, name: str) -> None:
        self.page, self.has_search_bar = "sub-page", False
        self.clickables = pages.sub_page_clickables()
        texts = pages.sub_page(self.goal.instruction, self.shop.product(self.product), name)
        self.observation = pages.observation(texts)

    def _buy(self) -> None:
        self.score = self.shop.score(self.product, self.goal, self.options, self._option_matching)
        self.page, self.has_search_bar, self.clickables = "done", False, {}
        product = self.shop.product(self.product)
        self.observation = pages.observation(pages.done_page(product, self.options, self.score))
