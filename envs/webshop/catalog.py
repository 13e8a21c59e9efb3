"""WebShop's products: the original's data files, its cleaning rules, and the cleaned catalog on disk."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from envs.cache import Records, cached_folder, load_array, write_records
from opid_core.errors import ConfigError, DataError
from opid_core.local_paths import local_path
from opid_core.reading import MAX_BYTES, json_of_file, whole_characters

DEFAULT_PRICE = 100.0
"""A product without a price costs this, in dollars."""
_PRODUCTS, _INSTRUCTIONS = "items_shuffle", "items_ins_v2"
_HUMAN, _REVIEWS = "items_human_ins.json", "reviews.json"
_ASIN_LENGTH = 10  # the original leaves out what is longer
_MOST_COMBINATIONS = 1_000_000  # each is a goal, and all goals are drawn before the first is played
_COLUMNS = ("asins", "categories", "price_ranges", "synthetic_goals", "human_goals")
_CHUNK_CHARACTERS = 1 << 20
_LONGEST_LITERAL = 10  # a `-Infinity` that a piece cuts in two is reported where it begins, not at the piece's end
_MAX_FILE_BYTES = 1 << 30
"""Of a file that is read whole: the instructions of 1.2 million products."""
_WHITE_SPACE = re.compile(r"[ \t\r\n]*")


@dataclass(frozen=True, slots=True)
class Review:
    """One review; `score` as the page shows it."""

    title: str
    score: str
    body: str


@dataclass(frozen=True, slots=True)
class HumanGoal:
    """A goal that a person wrote for a product, its price limit not yet drawn."""

    instruction: str
    attributes: tuple[str, ...]
    options: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Product:
    """A cleaned product. `prices`: one number, or the two ends of a range, in dollars; `options`: name -> its values;
    `instruction` and `instruction_attributes`: what synthetic goals are made of (None and empty: it has none)."""

    asin: str
    category: str
    query: str
    product_category: str
    name: str
    description: str
    bullet_points: tuple[str, ...]
    prices: tuple[float, ...]
    price_text: str
    options: Mapping[str, tuple[str, ...]]
    attributes: tuple[str, ...]
    rating: str
    reviews: tuple[Review, ...]
    instruction: str | None
    instruction_attributes: tuple[str, ...]
    human_goals: tuple[HumanGoal, ...]

    def search_text(self) -> str:
        """What the search engine indexes: name, description, first bullet point and options, in lower case."""
        options = ", and ".join(f"{name}: {', '.join(values)}" for name, values in self.options.items())
        first_point = self.bullet_points[0] if self.bullet_points else ""
        return " ".join([self.name, self.description, first_point, options]).lower()


@dataclass(frozen=True)
class DataFiles:
    """The files of a data folder, by the original's names; `human` and `reviews` may be missing."""

    products: Path
    instructions: Path
    human: Path | None
    reviews: Path | None

    def content_hash(self) -> str:
        digest = hashlib.sha256()
        for path in (self.products, self.instructions, self.human, self.reviews):
            if path is None:
                digest.update(b"-")
                continue
            with open(path, "rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()[:24]


def find_files(data: str) -> DataFiles:
    """The data files in folder `data`, or beside the products file that `data` names.

    Raises ConfigError for a folder that is missing, lacks a file, or holds several sets.
    """
    where = "environment.options.data"
    expanded = local_path(data, where)
    if expanded.is_file():
        folder, files = expanded.parent, [expanded]
    elif expanded.is_dir():
        folder, files = expanded, sorted(expanded.glob(f"{_PRODUCTS}*.json"))
    else:
        raise ConfigError(f"{where}: {expanded} is no folder (use 'generated' for the generated catalog)")
    if len(files) != 1 or not files[0].name.startswith(_PRODUCTS):
        names = ", ".join(path.name for path in files) or "none"
        raise ConfigError(f"{where}: {folder} must hold one {_PRODUCTS}*.json (or name one of several); found: {names}")
    instructions = folder / files[0].name.replace(_PRODUCTS, _INSTRUCTIONS)
    if not instructions.is_file():
        raise ConfigError(f"{where}: {instructions} is missing; it belongs to {files[0].name}")
    human, reviews = (path if path.is_file() else None for path in (folder / _HUMAN, folder / _REVIEWS))
    return DataFiles(files[0], instructions, human, reviews)


class Catalog:
    """The cleaned products of one set of data files, numbered in their order; all processes share the same memory.

    Columns [products]: `asins`, `categories`, `price_ranges` [products, 2] (dollars; the second is no number where the
    price is one), `synthetic_goals` (how many, -1 without an instruction), `human_goals` (how many).
    """

    def __init__(self, files: DataFiles) -> None:
        self.key = files.content_hash()
        self.folder = cached_folder("webshop", f"catalog-{self.key}", lambda folder: _build(files, folder))
        self._records = Records(self.folder, "products")
        self.asins, self.categories, self.price_ranges, self.synthetic_goals, self.human_goals = (
            load_array(self.folder, name) for name in _COLUMNS
        )

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, number: int) -> Product:
        return _product_of_record(self._records[number])

    def __iter__(self) -> Iterator[Product]:
        return (self[number] for number in range(len(self)))


def _build(files: DataFiles, folder: Path) -> None:
    columns: dict[str, list] = {name: [] for name in _COLUMNS}

    def records() -> Iterator[list]:
        for product in read_products(files):
            combinations = math.prod(len(values) for values in product.options.values())
            columns["asins"].append(product.asin)
            columns["categories"].append(product.category)
            columns["price_ranges"].append((product.prices[0], product.prices[-1] if product.prices[1:] else math.nan))
            columns["synthetic_goals"].append(combinations if product.instruction is not None else -1)
            columns["human_goals"].append(len(product.human_goals))
            yield _record(product)

    if not write_records(folder, "products", records()):
        raise DataError(f"{files.products}: holds no product")
    for name, values in columns.items():
        np.save(folder / f"{name}.npy", np.array(values))


_FIELDS = tuple(field.name for field in dataclasses.fields(Product))


def _record(product: Product) -> list:
    values = {name: getattr(product, name) for name in _FIELDS}
    values["reviews"] = [(review.title, review.score, review.body) for review in product.reviews]
    values["human_goals"] = [(goal.instruction, goal.attributes, goal.options) for goal in product.human_goals]
    return list(values.values())


def _product_of_record(record: list) -> Product:
    values = dict(zip(_FIELDS, record, strict=True))
    for name in ("bullet_points", "prices", "attributes", "instruction_attributes"):
        values[name] = tuple(values[name])
    values["options"] = {name: tuple(options) for name, options in values["options"].items()}
    values["reviews"] = tuple(Review(*review) for review in values["reviews"])
    values["human_goals"] = tuple(HumanGoal(g[0], tuple(g[1]), tuple(g[2])) for g in values["human_goals"])
    return Product(**values)


def read_products(files: DataFiles) -> Iterator[Product]:
    """The cleaned products, in order. As in the original, a product whose ASIN is `nan`, longer than 10 characters or
    taken by an earlier product is left out.

    Raises DataError that names file, index and field of what cannot be used.
    """
    instructions = _json_file(files.instructions, dict)
    human = _json_file(files.human, dict) if files.human else {}
    reviews = _reviews_by_asin(files.reviews) if files.reviews else {}
    seen: set[str] = set()
    for index, entry in enumerate(_array_entries(files.products)):
        where = f"{files.products}, product {index}"
        if not isinstance(entry, dict):
            raise DataError(f"{where}: expected a JSON object, got {type(entry).__name__}")
        asin = _text(entry, "asin", where)
        if asin == "nan" or len(asin) > _ASIN_LENGTH or asin in seen:
            continue
        if not asin:
            raise DataError(f"{where}, field asin: empty")
        seen.add(asin)
        rating, its_reviews = reviews.get(asin, ("N.A.", ()))
        yield Product(
            asin=asin,
            category=_text(entry, "category", where),
            query=_text(entry, "query", where).lower().strip(),
            product_category=_text(entry, "product_category", where),
            name=_text(entry, "name", where),
            description=_text(entry, "full_description", where),
            bullet_points=_texts(entry, "small_description", where),
            rating=rating,
            reviews=its_reviews,
            human_goals=_human_goals(human.get(asin, []), f"{files.human}, {asin}"),
            **_prices(entry.get("pricing"), where),
            options=_options(entry.get("customization_options"), where),
            **_instruction(instructions.get(asin, {}), f"{files.instructions}, {asin}"),
        )


def _prices(pricing: object, where: str) -> dict[str, Any]:
    """`$1,299.00` is one price, `$9.99 - $19.99` a range, nothing 100 dollars."""
    if not pricing:
        return {"prices": (DEFAULT_PRICE,), "price_text": f"${DEFAULT_PRICE}"}
    parts = re.sub(r"[^\d.$]", "", pricing).split("$")[1:] if isinstance(pricing, str) else []
    try:
        prices = tuple(float(part) for part in parts[:2])
    except ValueError:
        prices = ()
    if not prices or not all(map(math.isfinite, prices)):
        raise DataError(f"{where}, field pricing: expected prices such as '$9.99 - $19.99', got {pricing!r}")
    return {"prices": prices, "price_text": " to ".join(f"${price}" for price in prices)}


def _options(options: object, where: str) -> dict[str, tuple[str, ...]]:
    """Names and values in lower case; a name without values (null) is left out, and `a/b` reads `a | b`."""
    if not options:
        return {}
    where = f"{where}, field customization_options"
    if not isinstance(options, dict):
        raise DataError(f"{where}: expected a JSON object, got {type(options).__name__}")
    cleaned = {}
    for name, values in options.items():
        if values is None:
            continue
        if not isinstance(values, list) or not all(isinstance(v, dict) for v in values):
            raise DataError(f"{where}.{name}: expected a list of objects")
        texts = [_text(value, "value", f"{where}.{name}") for value in values]
        cleaned[whole_characters(name, where).lower()] = tuple(t.strip().replace("/", " | ").lower() for t in texts)
    if (combinations := math.prod(map(len, cleaned.values()))) > _MOST_COMBINATIONS:
        raise DataError(
            f"{where}: {combinations:,} combinations, a goal each; at most {_MOST_COMBINATIONS:,} are allowed"
        )
    return cleaned


def _instruction(entry: object, where: str) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise DataError(f"{where}: expected a JSON object, got {type(entry).__name__}")
    # The original's own placeholder: it takes part in the matching like any attribute.
    attributes = _texts(entry, "attributes", where) if "attributes" in entry else ("DUMMY_ATTR",)
    if entry.get("instruction") is None:
        return {"attributes": attributes, "instruction": None, "instruction_attributes": ()}
    wanted = _texts(entry, "instruction_attributes", where)
    if not wanted:
        raise DataError(f"{where}, field instruction_attributes: empty, but there is an instruction")
    text = _text(entry, "instruction", where)
    return {"attributes": attributes, "instruction": text, "instruction_attributes": wanted}


def _human_goals(entries: object, where: str) -> tuple[HumanGoal, ...]:
    """Those with attributes: the original skips the others."""
    if not isinstance(entries, list):
        raise DataError(f"{where}: expected a list, got {type(entries).__name__}")
    goals = []
    for number, entry in enumerate(entries):
        entry_where = f"{where}, entry {number}"
        if not isinstance(entry, dict):
            raise DataError(f"{entry_where}: expected a JSON object, got {type(entry).__name__}")
        attributes = _texts(entry, "instruction_attributes", entry_where)
        if attributes:
            options = _texts(entry, "instruction_options", entry_where)
            goals.append(HumanGoal(_text(entry, "instruction", entry_where).strip("."), attributes, options))
    return tuple(goals)


def _reviews_by_asin(path: Path) -> dict[str, tuple[str, tuple[Review, ...]]]:
    """ASIN -> (average rating, reviews)."""
    by_asin = {}
    for index, entry in enumerate(_array_entries(path)):
        where = f"{path}, entry {index}"
        if not isinstance(entry, dict) or not isinstance(entry.get("reviews"), list):
            raise DataError(f"{where}, field reviews: expected an object with a list of reviews")
        reviews = []
        for review in entry["reviews"]:
            if not isinstance(review, dict) or not {"score", "stars"} & review.keys():
                raise DataError(f"{where}, field reviews: expected objects with title, stars and review")
            shown = (review.get("title", ""), review.get("score", review.get("stars")), review.get("review", ""))
            reviews.append(Review(*(whole_characters(str(text), f"{where}, field reviews") for text in shown)))
        by_asin[_text(entry, "asin", where)] = (str(entry.get("average_rating")), tuple(reviews))
    return by_asin


def _text(entry: Mapping, field: str, where: str) -> str:
    value = entry.get(field)
    if not isinstance(value, str):
        raise DataError(f"{where}, field {field}: expected a text, got {value!r:.80}")
    return whole_characters(value, f"{where}, field {field}")


def _texts(entry: Mapping, field: str, where: str) -> tuple[str, ...]:
    """A list of texts; a single text stands for a list of one."""
    value = entry.get(field)
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not all(isinstance(one, str) for one in values):
        raise DataError(f"{where}, field {field}: expected a list of texts, got {value!r:.80}")
    return tuple(whole_characters(one, f"{where}, field {field}") for one in values)


def _json_file(path: Path, expected: type) -> Any:
    data = json_of_file(path, _MAX_FILE_BYTES)
    if not isinstance(data, expected):
        raise DataError(f"{path}: expected a JSON {expected.__name__}, got {type(data).__name__}")
    return data


def _array_entries(path: Path) -> Iterator[Any]:
    """The entries of a file that holds one JSON array, read piece by piece: the full catalog is larger than memory."""
    decoder, position, index = json.JSONDecoder(), 0, -1
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(_CHUNK_CHARACTERS)
            opened = _after_white_space(text, 0)
            if not text.startswith("[", opened):
                raise DataError(f"{path}: expected a JSON array")
            position = opened + 1
            while True:
                start = _after_white_space(text, position)
                if text.startswith("]", start):
                    if text[start + 1 :].strip() or any(
                        map(str.strip, iter(partial(file.read, _CHUNK_CHARACTERS), ""))
                    ):
                        raise DataError(f"{path}: more follows the end of its JSON array")
                    return
                if index >= 0 and text.startswith(",", start):
                    start = _after_white_space(text, start + 1)
                elif index >= 0 and start < len(text):
                    raise DataError(f"{path}, entry {index + 1}: not valid JSON: expected ',' or ']' before it")
                try:
                    entry, position = decoder.raw_decode(text, start)
                except RecursionError:
                    raise DataError(f"{path}, entry {index + 1}: not valid JSON: nested too deeply") from None
                except json.JSONDecodeError as error:
                    cut_off = error.msg.startswith("Unterminated") or error.pos > len(text) - _LONGEST_LITERAL
                    more = file.read(_CHUNK_CHARACTERS) if cut_off else ""
                    if not more or len(text) > MAX_BYTES:
                        raise DataError(f"{path}, entry {index + 1}: not valid JSON: {error.msg}") from None
                    text, position = text[position:] + more, 0
                    continue
                index += 1
                yield entry
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read after entry {index}: {error}") from None


def _after_white_space(text: str, position: int) -> int:
    return _WHITE_SPACE.match(text, position).end()  # pyright: ignore[reportOptionalMemberAccess] -- always matches
