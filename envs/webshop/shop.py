"""The shop that all sessions share: catalog, goals, search index and nouns, read-only and memory-mapped."""

from __future__ import annotations

import functools
from collections.abc import Mapping

from envs.webshop.catalog import Catalog, Product, find_files
from envs.webshop.goals import Goal, GoalKind, Goals
from envs.webshop.nouns import Nouns
from envs.webshop.reward import OptionMatching, Score, score
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

    def score(self, number: int, goal: Goal, options: Mapping[str, str], option_matching: OptionMatching) -> Score:
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
