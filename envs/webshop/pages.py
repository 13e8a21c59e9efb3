"""WebShop's pages as texts, and what can be clicked on each (docs/webshop.md).

The original renders HTML and reads its text nodes back. Two things of that round trip are visible and kept: text is
stripped, and a node of nothing but white space vanishes if it holds a line break, else leaves an empty text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from envs.webshop.catalog import Product

SEPARATOR = " [SEP] "
RESULTS_PER_PAGE = 10
SUB_PAGES = ("Description", "Features", "Reviews", "Attributes")
_ASCII_WHITE_SPACE = " \t\n\f\r"


@dataclass(frozen=True)
class Clickable:
    """What a click leads to beyond its text: the product behind a link (its number), or the option it chooses."""

    product: int | None = None
    option: str | None = None


_BUTTON = Clickable()


def observation(texts: Iterable[str]) -> str:
    """The visible texts of a page as the player reads them."""
    return SEPARATOR.join(visible for text in texts for visible in _visible(text))


def _visible(text: str) -> list[str]:
    if text.strip(_ASCII_WHITE_SPACE):
        return [text.strip()]
    return [] if not text or "\n" in text else [""]


def search_page(instruction: str) -> list[str]:
    """The page of a new session, without the shop's name above the instruction."""
    return ["Instruction:", instruction, "Search"]


def results_page(instruction: str, products: Sequence[Product], page: int, total: int) -> list[str]:
    """Page `page` (from 1) of `total` results. There always is a next page, even after the last result."""
    texts = ["Instruction:", instruction, "Back to Search", f"Page {page} (Total results: {total})"]
    texts += ["< Prev", "Next >"] if page > 1 else ["Next >"]
    for product in products:
        texts += [product.asin, product.name, product.price_text]
    return texts


def item_page(instruction: str, product: Product, show_attributes: bool) -> list[str]:
    """A product. What was chosen of its options cannot be seen."""
    texts = ["Instruction:", instruction, "Back to Search", "< Prev"]
    for name, values in product.options.items():
        texts += [name, *values]
    texts += [product.name, f"Price: {product.price_text}", f"Rating: {product.rating}"]
    return [*texts, *sub_pages(show_attributes), "Buy Now"]


def sub_pages(show_attributes: bool) -> tuple[str, ...]:
    return SUB_PAGES if show_attributes else SUB_PAGES[:-1]


def sub_page(instruction: str, product: Product, name: str) -> list[str]:
    """One of `SUB_PAGES` of a product."""
    texts = ["Instruction:", instruction, "Back to Search", "< Prev"]
    if name == "Description":
        return [*texts, product.description]
    if name == "Features":
        return [*texts, *(f" {point}" for point in product.bullet_points)]
    if name == "Reviews":
        return [*texts, *(text for r in product.reviews for text in (f'"{r.title}"', r.score, r.body))]
    attributes = [f" {attribute}" for attribute in product.attributes]
    return [*texts, *attributes, product.category, product.query, product.product_category]


def done_page(product: Product, options: Mapping[str, str], score: float) -> list[str]:
    """The page after the purchase: a form that the original leaves mostly unfilled."""
    chosen = json.dumps(dict(options), sort_keys=True)
    for character in "<>&'":
        chosen = chosen.replace(character, f"\\u{ord(character):04x}")
    bought = ["Purchased", "asin", product.asin, "options", chosen, "attrs", "None", "category", "None"]
    target = ["Target", "asin", "options", "attrs", "price upper", "instuction text", "category", "product category"]
    return [
        "Thank you for shopping with us!",
        *("Your code:", "None", "(Paste it in your MTurk interface.)"),
        *(*bought, "query", "None", "product category", "None"),
        *(*target, "query", "Goal", "None"),
        *("Reward", "Your score (min 0.0, max 1.0)", str(score), "Reward Details", "None"),
    ]


def search_clickables() -> dict[str, Clickable]:
    """The search button: it is listed, but only `search[...]` searches."""
    return {"search": _BUTTON}


def results_clickables(products: Mapping[int, Product], page: int) -> dict[str, Clickable]:
    """Clickable text -> what it is. `products`: those on the page, by number, in order."""
    names = ["back to search", *(["< prev"] if page > 1 else []), "next >"]
    links = {product.asin.lower(): Clickable(product=number) for number, product in products.items()}
    return {**dict.fromkeys(names, _BUTTON), **links}


def item_clickables(product: Product, show_attributes: bool) -> dict[str, Clickable]:
    """Of two options with the same value, a click chooses the later one, as in the original."""
    names = ["back to search", "< prev", *(name.lower() for name in sub_pages(show_attributes)), "buy now"]
    values = {value: Clickable(option=name) for name, values in product.options.items() for value in values}
    return {**dict.fromkeys(names, _BUTTON), **values}


def sub_page_clickables() -> dict[str, Clickable]:
    return {"back to search": _BUTTON, "< prev": _BUTTON}
