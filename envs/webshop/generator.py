"""A seeded synthetic catalog in the original's files: five categories, options, attributes, prices, reviews, goals.

A product depends on seed and index alone, so a larger catalog begins with the smaller one's products, and every machine
writes the same bytes. Every product has an instruction and can be bought so that each of its goals is worth exactly 1.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field

from envs.cache import cached_folder
from opid_core.sections import Section


class CatalogOptions(Section):
    """The made catalog. The same options make the same files on every machine."""

    seed: int = Field(default=0, ge=0)
    """Seed of all products."""
    products: int = Field(default=300, ge=20, le=1_000_000)
    """Products in the catalog; each has about six goals."""


@dataclass(frozen=True)
class _Kind:
    """A kind of product: what one is called, what a customer searches for, where it stands, its price range."""

    noun: str
    query: str
    shelf: str
    low: int
    high: int


@dataclass(frozen=True)
class _Category:
    """A part of the shop; `attributes` are separated by commas."""

    name: str
    department: str
    kinds: tuple[_Kind, ...]
    attributes: str
    uses: tuple[str, ...]
    options: tuple[tuple[str, tuple[str, ...]], ...]


_T = TypeVar("_T")

_COLOURS = ("Black", "White", "Navy Blue", "Red", "Forest Green", "Silver", "Beige", "Purple", "Light Pink", "Yellow")
_CATEGORIES = (
    _Category(
        "beauty",
        "Beauty & Personal Care",
        (
            _Kind("Face Cream", "face creams", "Skin Care", 8, 45),
            _Kind("Hair Brush", "hair brushes", "Hair Care", 5, 25),
            _Kind("Body Lotion", "body lotions", "Skin Care", 6, 30),
            _Kind("Lip Balm", "lip balms", "Makeup", 2, 12),
        ),
        "cruelty free, fragrance free, long lasting, easy carry, paraben free, sensitive skin, "
        "natural ingredients, dry skin, tea tree, coconut oil, travel size, dermatologist tested",
        ("Women", "Men", "Daily Use", "Travel"),
        (("Scent", ("Vanilla", "Lavender", "Citrus", "Eucalyptus")), ("Size", ("2 Ounce", "4 Ounce", "8 Ounce"))),
    ),
    _Category(
        "electronics",
        "Electronics",
        (
            _Kind("Phone Charger", "phone chargers", "Accessories", 9, 40),
            _Kind("Bluetooth Speaker", "bluetooth speakers", "Audio", 20, 150),
            _Kind("Headphones", "headphones", "Audio", 15, 240),
            _Kind("Camera Tripod", "camera tripods", "Camera & Photo", 18, 120),
        ),
        "fast charging, water resistant, high speed, heavy duty, carrying case, noise cancelling, "
        "easy install, hands free, aluminum alloy, light weight, stereo sound, quick release",
        ("Home", "Office", "Travel", "Outdoor Sports"),
        (("Color", _COLOURS), ("Length", ("3 Feet", "6 Feet", "10 Feet"))),
    ),
    _Category(
        "fashion",
        "Clothing, Shoes & Jewelry",
        (
            _Kind("Running Shoes", "running shoes", "Shoes", 25, 130),
            _Kind("T-Shirt", "t-shirts", "Shirts", 8, 35),
            _Kind("Rain Jacket", "rain jackets", "Coats", 30, 160),
            _Kind("Wool Socks", "wool socks", "Socks", 6, 28),
        ),
        "machine wash, slim fit, arch support, moisture wicking, quick drying, relaxed fit, "
        "rubber sole, polyester spandex, tumble dry, hand wash, loose fit, non slip",
        ("Women", "Men", "Teens", "Everyday Wear"),
        (("Color", _COLOURS), ("Size", ("Small", "Medium", "Large", "X-Large"))),
    ),
    _Category(
        "garden",
        "Home & Kitchen",
        (
            _Kind("Table Lamp", "table lamps", "Lighting", 15, 120),
            _Kind("Throw Pillow", "throw pillows", "Bedding", 9, 45),
            _Kind("Storage Basket", "storage baskets", "Storage & Organization", 10, 60),
            _Kind("Wall Shelf", "wall shelves", "Furniture", 14, 110),
        ),
        "easy clean, eco friendly, solid wood, machine washable, space saving, easy assemble, "
        "double sided, mid century, hand made, rust proof, energy efficient, wall mounted",
        ("Living Room", "Bedroom", "Kitchen", "Office"),
        (("Color", _COLOURS), ("Size", ("10 Inch", "14 Inch", "20 Inch"))),
    ),
    _Category(
        "grocery",
        "Grocery & Gourmet Food",
        (
            _Kind("Green Tea", "green teas", "Beverages", 4, 30),
            _Kind("Trail Mix", "trail mixes", "Snack Foods", 5, 35),
            _Kind("Dark Chocolate", "dark chocolates", "Candy & Chocolate", 3, 40),
            _Kind("Olive Oil", "olive oils", "Cooking & Baking", 9, 60),
        ),
        "gluten free, non gmo, low sugar, dairy free, plant based, individually wrapped, "
        "fat free, high protein, keto friendly, soy free, artificial flavors, ready eat",
        ("Families", "Gifts", "Hikers", "Home Cooks"),
        (
            ("Flavor", ("Original", "Lemon Ginger", "Sea Salt", "Hazelnut")),
            ("Size", ("1 Pound", "Pack of 6", "12 Count")),
        ),
    ),
)
_ADJECTIVES = (
    "Classic",
    "Premium",
    "Compact",
    "Modern",
    "Deluxe",
    "Essential",
    "Original",
    "Ultra",
    "Handy",
    "Elegant",
)
_SYLLABLES = ("nor", "vik", "lum", "tal", "be", "ro", "san", "mi", "kel", "du", "fen", "or", "pax", "zu", "rim", "ela")
_REVIEWS = (
    ("Great {noun}", 5, "Exactly what I was looking for. The {attribute} part is true."),
    ("Good value", 4, "Works well for the price, would buy it again."),
    ("It is fine", 3, "Does what it should, but the {option} differs a little from the picture."),
    ("Not for me", 2, "I expected more of a {noun}."),
)


def write_catalog(options: CatalogOptions, folder: Path) -> None:
    """Write the catalog's files into `folder`: items_shuffle.json, items_ins_v2.json, items_human_ins.json,
    reviews.json."""
    with (
        open(folder / "items_shuffle.json", "w", encoding="utf-8") as products,
        open(folder / "items_ins_v2.json", "w", encoding="utf-8") as instructions,
        open(folder / "items_human_ins.json", "w", encoding="utf-8") as human,
        open(folder / "reviews.json", "w", encoding="utf-8") as reviews,
    ):
        files = (products, instructions, human, reviews)
        for file, start in zip(files, "[{{[", strict=True):
            file.write(start)
        for index, entries in enumerate(_products(options)):
            for file, text in zip(files, entries, strict=True):
                file.write((",\n" if index and text else "") + text)
        for file, end in zip(files, "]}}]", strict=True):
            file.write(end + "\n")


def generated_folder(options: CatalogOptions) -> str:
    """The cached folder of the made catalog."""
    name = f"generated-{options.seed}-{options.products}"
    return str(cached_folder("webshop", name, lambda folder: write_catalog(options, folder)))


def wording() -> list[str]:
    """What the made products and their goals are worded with, as pages, actions and instructions write it."""
    kinds = [text for category in _CATEGORIES for kind in category.kinds for text in (kind.noun, kind.query)]
    attributes = [text for category in _CATEGORIES for text in category.attributes.split(", ")]
    values = [value.lower() for category in _CATEGORIES for _, values in category.options for value in values]
    # With the space behind it, as instructions write it: else "size: 4 ounce" would be read as "size:", " 4", " ounce".
    named = [f"{name.lower()}: " for category in _CATEGORIES for name, _ in category.options]
    uses = [use for category in _CATEGORIES for use in category.uses]
    titles = [text.title() for text in attributes]
    return list(dict.fromkeys([*kinds, *attributes, *titles, *values, *named, *uses, *_ADJECTIVES]))


def _products(options: CatalogOptions) -> Iterator[tuple[str, str, str, str]]:
    """Each product's entry in the four files (people wrote goals for every tenth, beginning with the first)."""
    first = random.Random(f"webshop/{options.seed}").randrange(10**9)
    for index in range(options.products):
        rng = random.Random(f"webshop/{options.seed}/{index}")
        # The step has no factor in common with 10**9, so that no two of so many ids are equal.
        asin = f"B{(first + index * 618_034_003) % 10**9:09d}"
        product, instruction, human, review = _product(asin, index, rng)
        yield (
            json.dumps(product),
            f"{json.dumps(asin)}: {json.dumps(instruction)}",
            f"{json.dumps(asin)}: {json.dumps([human])}" if index % 10 == 0 else "",
            json.dumps(review),
        )


def _product(asin: str, index: int, rng: random.Random) -> tuple[dict[str, Any], ...]:
    category = _CATEGORIES[index % len(_CATEGORIES)]
    kind = rng.choice(category.kinds)
    attributes = rng.sample(category.attributes.split(", "), rng.randint(3, 5))
    wanted = rng.sample(attributes, rng.randint(2, 3))
    chosen = rng.sample(category.options, rng.choice((0, 1, 1, 2, 2, 2)))
    options = {name: _sample_in_order(values, rng.randint(2, min(4, len(values))), rng) for name, values in chosen}
    brand = "".join(rng.sample(_SYLLABLES, 2)).capitalize()
    head = f"{brand} {rng.choice(_ADJECTIVES)} {kind.noun}"
    use = rng.choice(category.uses)
    features = ", ".join(attribute.title() for attribute in attributes[:2])
    points = [f"{attribute.capitalize()}: {kind.noun.lower()} by {brand}." for attribute in attributes]
    product = {
        "name": f"{head}, {features}, for {use}",
        "full_description": f"The {head} is made for {use.lower()}. It is {', '.join(attributes)}.",
        "images": [f"https://example.com/{asin}.jpg"],
        "product_category": f"{category.department} › {kind.shelf} › {kind.noun}",
        "average_rating": "",
        "small_description": points,
        "customization_options": {
            name: [
                {"is_selected": False, "url": "", "value": v, "price_string": "", "price": 0, "image": None} for v in vs
            ]
            for name, vs in options.items()
        }
        or "",
        "asin": asin,
        "category": category.name,
        "query": kind.query,
        "page": 1,
        "pricing": _pricing(kind, rng),
    }
    before, last = wanted[:-1], wanted[-1]
    instruction = {
        "attributes": attributes,
        "instruction": f"Find me {', '.join(before)} {kind.query} with {last}",
        "instruction_attributes": wanted,
    }
    picked = {name.lower(): rng.choice(values).lower() for name, values in options.items()}
    human = {
        "asin": asin,
        "instruction": " ".join(["i need a", *picked.values(), kind.noun.lower(), "that is", wanted[0]]) + ".",
        "attributes": attributes,
        "options": [f"{name}: {value}" for name, value in picked.items()],
        "instruction_attributes": wanted[:1],
        "instruction_options": list(picked.values()),
    }
    return product, instruction, human, _reviews(asin, kind, attributes, options, rng)


def _sample_in_order(values: Sequence[_T], count: int, rng: random.Random) -> list[_T]:
    return [values[index] for index in sorted(rng.sample(range(len(values)), count))]


def _pricing(kind: _Kind, rng: random.Random) -> str:
    """Mostly one price, sometimes a range, now and then none."""
    draw, price = rng.random(), rng.randint(kind.low, kind.high) + 0.99
    if draw < 0.05:
        return ""
    return f"${price:.2f}" if draw < 0.85 else f"${price:.2f} - ${price + rng.randint(2, 20):.2f}"


def _reviews(asin: str, kind: _Kind, attributes: list[str], options: dict[str, list[str]], rng: random.Random) -> dict:
    words = {"noun": kind.noun.lower(), "attribute": attributes[0], "option": next(iter(options), "color").lower()}
    reviews = [
        {"title": title.format(**words), "stars": stars, "review": body.format(**words)}
        for title, stars, body in _sample_in_order(_REVIEWS, rng.randint(0, 3), rng)
    ]
    stars = [review["stars"] for review in reviews]
    rating = round(sum(stars) / len(stars), 1) if stars else "N.A."
    return {"asin": asin, "average_rating": rating, "reviews": reviews}
