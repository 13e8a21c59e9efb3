"""WebShop's goals: what to buy, how it is worded, the price limit, and the one order that splits them.

The draws follow the original's own order on one seeded stream: a price for every product whose price is a range, then a
limit for every product with an instruction (synthetic goals) or for every goal (human). A fresh stream of the same seed
shuffles the goals. So the list equals that of an original worker with that seed.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from envs.base import Task, check_split
from envs.cache import cached_folder, load_array
from envs.webshop.catalog import Catalog, Product
from opid_core.errors import ConfigError

SPLITS = ("train", "validation")
NO_LIMIT = 1_000_000.0
"""The price limit of a goal whose product costs more than the multiples of 10 dollars below 1,000 reach."""
_MULTIPLES = tuple(10.0 * n for n in range(1, 100))
_CHOICES = 4  # as the original, whose draws are followed one by one

GoalKind = Literal["synthetic", "human"]


@dataclass(frozen=True)
class Goal:
    """What to buy. `options`: name -> value (synthetic), or values (human); `price_upper` in dollars."""

    product: int
    asin: str
    query: str
    product_category: str
    name: str
    instruction: str
    attributes: tuple[str, ...]
    options: Mapping[str, str] | tuple[str, ...]
    price_upper: float


class Goals:
    """The goals of a catalog in their shuffled order, and the price drawn for each product (`prices` [products],
    dollars). Kept as arrays in the cache and made into `Goal` one by one."""

    def __init__(self, catalog: Catalog, kind: GoalKind, seed: int) -> None:
        self._catalog, self._kind = catalog, kind
        folder = cached_folder("webshop", f"goals-{kind}-{seed}-{catalog.key}", partial(_build, catalog, kind, seed))
        names = ("prices", "products", "variants", "limits")
        self.prices, self._products, self._variants, self._limits = (load_array(folder, name) for name in names)

    def __len__(self) -> int:
        return len(self._products)

    def __getitem__(self, index: int) -> Goal:
        number, variant = int(self._products[index]), int(self._variants[index])
        make = synthetic_goal if self._kind == "synthetic" else human_goal
        return make(number, self._catalog[number], variant, float(self._limits[index]))

    def task(self, index: int) -> Task:
        """Its id is the ASIN and which of the product's goals it is, whatever the shuffle; its type the category."""
        number = int(self._products[index])
        task_id = f"{self._catalog.asins[number]}/{self._variants[index]}"
        return Task(task_id, str(self._catalog.categories[number]), index)


class GoalTasks(Sequence[Task]):
    """The tasks of a range of goals, made when asked for: there may be millions."""

    def __init__(self, goals: Goals, indices: range) -> None:
        self._goals, self._indices = goals, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return GoalTasks(self._goals, self._indices[index])
        return self._goals.task(self._indices[index])


def split_tasks(goals: Goals, split: str, validation: int) -> GoalTasks:
    """The first `validation` goals are the validation split, all others the training split.

    Raises ConfigError for an unknown split and for too few goals.
    """
    check_split(split, SPLITS)
    if len(goals) <= validation:
        raise ConfigError(
            f"environment.options.validation: {validation} of {len(goals)} goals leave none to train on; lower it"
        )
    return GoalTasks(goals, range(validation) if split == "validation" else range(validation, len(goals)))


def synthetic_goal(number: int, product: Product, variant: int, price_upper: float) -> Goal:
    """Goal `variant` of a product: one combination of its options, the last name (sorted) varying fastest."""
    options: dict[str, str] = {}
    for name in sorted(product.options, reverse=True):
        variant, choice = divmod(variant, len(product.options[name]))
        options[name] = product.options[name][choice]
    options = dict(reversed(options.items()))
    instruction = f"{product.instruction}{options_text(options)}{limit_text(price_upper)}"
    return _goal(number, product, instruction, product.instruction_attributes, options, price_upper)


def human_goal(number: int, product: Product, variant: int, price_upper: float) -> Goal:
    """Goal `variant` of those that people wrote for a product."""
    written = product.human_goals[variant]
    instruction = written.instruction + limit_text(price_upper)
    return _goal(number, product, instruction, written.attributes, written.options, price_upper)


def _goal(
    number: int,
    product: Product,
    instruction: str,
    attributes: tuple[str, ...],
    options: Mapping[str, str] | tuple[str, ...],
    price_upper: float,
) -> Goal:
    kind = (product.asin, product.query, product.product_category, product.name)
    return Goal(number, *kind, instruction, attributes, options, price_upper)


def options_text(options: Mapping[str, str]) -> str:
    """How an instruction words its options."""
    return " with " * bool(options) + ", and ".join(f"{name}: {value}" for name, value in options.items())


def limit_text(price_upper: float) -> str:
    """How an instruction words its price limit."""
    return "" if price_upper == NO_LIMIT else f", and price lower than {price_upper:.2f} dollars"


def draw_limit(price: float, rng: random.Random) -> float:
    """The larger of two different ones of the next four multiples of 10 above `price`, up to 990."""
    choices = [multiple for multiple in _MULTIPLES if multiple > price][:_CHOICES]
    return max(rng.sample(choices, 2)) if len(choices) >= 2 else NO_LIMIT


def _build(catalog: Catalog, kind: GoalKind, seed: int, folder: Path) -> None:
    rng = random.Random(seed)
    prices = [low if math.isnan(high) else rng.uniform(low, high) for low, high in catalog.price_ranges.tolist()]
    columns = np.dtype([("products", np.int32), ("variants", np.int32), ("limits", np.float64)])
    counts = (catalog.synthetic_goals if kind == "synthetic" else catalog.human_goals).tolist()
    goals = np.fromiter(_draw_goals(kind, counts, prices, rng), columns)
    order = list(range(len(goals)))
    random.Random(seed).shuffle(order)
    np.save(folder / "prices.npy", np.array(prices, np.float64))
    for name in columns.names or ():
        np.save(folder / f"{name}.npy", goals[name][order])


def _draw_goals(
    kind: GoalKind, counts: Sequence[int], prices: Sequence[float], rng: random.Random
) -> Iterator[tuple[int, int, float]]:
    """(product number, variant, price limit) of every goal. `counts` [products]: its goals, -1: nothing is drawn."""
    for number, (count, price) in enumerate(zip(counts, prices, strict=True)):
        if kind == "human":
            yield from ((number, variant, draw_limit(price, rng)) for variant in range(count))
        elif count >= 0:
            limit = draw_limit(price, rng)
            yield from ((number, variant, limit) for variant in range(count))
