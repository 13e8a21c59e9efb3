"""WebShop's data files: the original's cleaning rules, every way a file can be wrong, the cache, the generator."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from envs.webshop.catalog import Catalog, HumanGoal, Product, Review, find_files, read_products
from envs.webshop.generator import CatalogOptions, write_catalog
from envs.webshop.world import open_shop
from opid_core.errors import ConfigError, DataError


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("OPID_CACHE", str(tmp_path / "cache"))


def raw_product(asin: str, **changes) -> dict:
    return {
        "asin": asin,
        "name": f"Product {asin}",
        "full_description": "",
        "images": [""],
        "product_category": "Home › Lamps",
        "small_description": ["A lamp."],
        "customization_options": "",
        "category": "garden",
        "query": "lamps",
        "pricing": "$5.00",
        **changes,
    }


MUG = raw_product(
    "B000000MUG",
    name=" Stone Mug  ",
    full_description="Holds tea.",
    small_description="One point",
    query=" Coffee Mugs ",
    product_category="Kitchen › Cups › Mugs",
    customization_options={
        "Color": [{"value": " Navy Blue/White "}, {"value": "Red"}],
        "SIZE": [{"value": "12 oz"}, {"value": "16 oz"}, {"value": "20 oz"}],
        "Style": None,
    },
    pricing="$1,009.99 - $1,020.5",
)


def small_data(folder: Path, products: list | None = None, **files) -> Path:
    """A data folder with a mug (instruction, two options, reviews, one usable human goal) and a lamp (nothing)."""
    folder.mkdir(parents=True, exist_ok=True)
    contents = {
        "items_shuffle.json": products if products is not None else [MUG, raw_product("B00000LAMP", pricing="")],
        "items_ins_v2.json": {
            "B000000MUG": {
                "attributes": ["dishwasher safe", "hand made"],
                "instruction": "Find me hand made mugs",
                "instruction_attributes": ["hand made"],
            }
        },
        "items_human_ins.json": {
            "B000000MUG": [
                {"instruction": "a mug.", "instruction_attributes": ["hand made"], "instruction_options": ["red"]},
                {"instruction": "skipped", "instruction_attributes": [], "instruction_options": []},
            ]
        },
        "reviews.json": [
            {
                "asin": "B000000MUG",
                "average_rating": 4.5,
                "reviews": [{"title": "Fine", "stars": 5, "review": "Good."}, {"title": "So so", "score": 4}],
            }
        ],
        **{name.replace("__", "."): content for name, content in files.items()},
    }
    for name, content in contents.items():
        if content is not None:
            (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def test_cleaning_rules(tmp_path):
    mug, lamp = read_products(find_files(str(small_data(tmp_path / "data"))))
    assert mug == Product(
        asin="B000000MUG",
        category="garden",
        query="coffee mugs",
        product_category="Kitchen › Cups › Mugs",
        name=" Stone Mug  ",
        description="Holds tea.",
        bullet_points=("One point",),
        prices=(1009.99, 1020.5),
        price_text="$1009.99 to $1020.5",
        options={"color": ("navy blue | white", "red"), "size": ("12 oz", "16 oz", "20 oz")},
        attributes=("dishwasher safe", "hand made"),
        rating="4.5",
        reviews=(Review("Fine", "5", "Good."), Review("So so", "4", "")),
        instruction="Find me hand made mugs",
        instruction_attributes=("hand made",),
        human_goals=(HumanGoal("a mug", ("hand made",), ("red",)),),
    )
    # A product without price, reviews and attributes.
    assert (lamp.prices, lamp.price_text, lamp.rating) == ((100.0,), "$100.0", "N.A.")
    assert (lamp.attributes, lamp.instruction, lamp.options) == (("DUMMY_ATTR",), None, {})
    # What the search engine sees: name, description, first point, options.
    assert mug.search_text() == (
        " stone mug   holds tea. one point color: navy blue | white, red, and size: 12 oz, 16 oz, 20 oz"
    )


@pytest.mark.parametrize(
    ("pricing", "prices", "text"),
    [
        ("$877.8", (877.8,), "$877.8"),
        ("$2.99 - $6", (2.99, 6.0), "$2.99 to $6.0"),
        ("$1 - $2 - $3", (1.0, 2.0), "$1.0 to $2.0"),
        ("$1,299.00", (1299.0,), "$1299.0"),
        ("", (100.0,), "$100.0"),
        (None, (100.0,), "$100.0"),
    ],
)
def test_price_rule(tmp_path, pricing, prices, text):
    data = small_data(tmp_path / "data", [raw_product("B1", pricing=pricing)])
    (product,) = read_products(find_files(str(data)))
    assert (product.prices, product.price_text) == (prices, text)


def test_unusable_and_repeated_asins_are_left_out_and_the_first_is_kept(tmp_path):
    products = [
        raw_product("nan"),
        raw_product("B1", name="first"),
        raw_product("TOOLONGASIN"),
        raw_product("B1", name="second"),
        raw_product("B2"),
    ]
    catalog = Catalog(find_files(str(small_data(tmp_path / "data", products))))
    assert [(product.asin, product.name) for product in catalog] == [("B1", "first"), ("B2", "Product B2")]
    assert catalog.asins.tolist() == ["B1", "B2"]


def test_the_stored_catalog_gives_back_what_was_read(tmp_path):
    files = find_files(str(small_data(tmp_path / "data")))
    catalog = Catalog(files)
    assert list(catalog) == list(read_products(files))
    assert catalog.synthetic_goals.tolist() == [6, -1]
    assert catalog.human_goals.tolist() == [1, 0]
    again = Catalog(files)
    assert again.folder == catalog.folder
    (tmp_path / "data" / "reviews.json").write_text("[]")
    assert Catalog(files).folder != catalog.folder


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"items_shuffle__json": "{}"}, "items_shuffle.json: expected a JSON array"),
        ({"items_shuffle__json": "[]"}, "items_shuffle.json: holds no product"),
        ({"items_shuffle__json": "[1]"}, "items_shuffle.json, product 0: expected a JSON object, got int"),
        ({"items_shuffle__json": '[{"asin": "B1"'}, "items_shuffle.json, entry 0: not valid JSON: Expecting ','"),
        ({"items_shuffle__json": '[{"asin": "B1'}, "items_shuffle.json, entry 0: not valid JSON: Unterminated string"),
        ({"items_shuffle__json": "[" + "x" * 99}, "items_shuffle.json, entry 0: not valid JSON: Expecting value"),
        ({"items_shuffle__json": json.dumps([raw_product("B1")])[:-1]}, "entry 1: not valid JSON: Expecting value"),
        (
            {"items_shuffle__json": json.dumps([raw_product("B1"), raw_product("B2")]).replace("}, {", "} {")},
            "items_shuffle.json, entry 1: not valid JSON: expected ',' or ']' before it",
        ),
        ({"products": [raw_product("B1"), raw_product("")]}, "product 1, field asin: empty"),
        ({"products": [raw_product("B1", name=3)]}, "product 0, field name: expected a text, got 3"),
        ({"products": [raw_product("B1", pricing="5 dollars")]}, "product 0, field pricing: expected prices such as"),
        ({"products": [raw_product("B1", pricing="$1.2.3")]}, "product 0, field pricing: expected prices such as"),
        (
            {"products": [raw_product("B1", small_description=[1])]},
            "product 0, field small_description: expected a list of texts",
        ),
        (
            {"products": [raw_product("B1", customization_options=[1])]},
            "product 0, field customization_options: expected a JSON object",
        ),
        (
            {"products": [raw_product("B1", customization_options={"Size": ["x"]})]},
            "field customization_options.Size: expected a list of objects",
        ),
        (
            {"products": [raw_product("B1", customization_options={"Size": [{"v": "x"}]})]},
            "field customization_options.Size, field value: expected a text, got None",
        ),
        ({"items_ins_v2__json": "[]"}, "items_ins_v2.json: expected a JSON dict, got list"),
        ({"items_ins_v2__json": "{"}, "items_ins_v2.json: not valid JSON"),
        (
            {"items_ins_v2__json": {"B000000MUG": {"attributes": "x", "instruction": "y"}}},
            "items_ins_v2.json, B000000MUG, field instruction_attributes: expected a list of texts, got None",
        ),
        (
            {"items_ins_v2__json": {"B000000MUG": {"instruction": "y", "instruction_attributes": []}}},
            "B000000MUG, field instruction_attributes: empty",
        ),
        (
            {"items_human_ins__json": {"B000000MUG": [{"instruction_attributes": ["a"]}]}},
            "items_human_ins.json, B000000MUG, entry 0, field instruction_options",
        ),
        ({"reviews__json": [{"asin": "B000000MUG"}]}, "reviews.json, entry 0, field reviews"),
        (
            {"reviews__json": [{"asin": "B000000MUG", "reviews": [{"title": "\ud83d", "stars": 5}]}]},
            "reviews.json, entry 0, field reviews: half a character (surrogate) at position 0",
        ),
        (
            {"items_shuffle__json": json.dumps([raw_product("B1")]) + "\n[]"},
            "items_shuffle.json: more follows the end of its JSON array",
        ),
        (
            {"products": [raw_product("B1", pricing="$" + "9" * 400)]},
            "product 0, field pricing: expected prices such as",
        ),
        (
            {"products": [raw_product("B1", name="mug \ud83d")]},
            "product 0, field name: half a character (surrogate) at position 4",
        ),
        (
            {"products": [raw_product("B1", customization_options={"\ud83d": [{"value": "x"}]})]},
            "product 0, field customization_options: half a character",
        ),
        (
            {"products": [raw_product("B1", customization_options={n: [{"value": "x"}] * 101 for n in "abc"})]},
            "product 0, field customization_options: 1,030,301 combinations, a goal each; at most 1,000,000",
        ),
    ],
)
def test_malformed_files_are_named(tmp_path, files, message):
    data = small_data(tmp_path / "data", **files)
    with pytest.raises(DataError) as caught:
        Catalog(find_files(str(data)))
    assert message in str(caught.value)
    assert not list((tmp_path / "cache").glob("webshop/*"))  # nothing half done is left


@pytest.mark.parametrize(
    ("kind", "files", "message"),
    [
        (
            "synthetic",
            {"items_ins_v2__json": "{}"},
            r"items_ins_v2\.json: holds no synthetic goal for a product of items_sh",
        ),
        (
            "human",
            {"items_human_ins__json": "{}"},
            r"items_human_ins\.json: holds no human goal for a product of items_sh",
        ),
    ],
)
def test_data_without_goals_are_named(tmp_path, kind, files, message):
    with pytest.raises(DataError, match=message):
        open_shop(str(small_data(tmp_path / "data", **files)), kind, 233, "bm25")


def test_files_are_found_by_the_originals_names(tmp_path, monkeypatch):
    data = small_data(tmp_path / "data")
    for name in ("items_shuffle", "items_ins_v2"):
        (data / f"{name}_1000.json").write_bytes((data / f"{name}.json").read_bytes())
    with pytest.raises(ConfigError, match=r"found: items_shuffle\.json, items_shuffle_1000\.json"):
        find_files(str(data))
    monkeypatch.setenv("SHOP", str(data))
    files = find_files("$SHOP/items_shuffle_1000.json")
    assert files.instructions == data / "items_ins_v2_1000.json"
    (data / "items_ins_v2_1000.json").unlink()
    for name, message in (
        ("items_shuffle_1000.json", "items_ins_v2_1000.json is missing"),
        ("reviews.json", "must hold one"),
        ("none", "is no folder"),
    ):
        with pytest.raises(ConfigError, match=message):
            find_files(str(data / name))
    with pytest.raises(ConfigError, match=r"environment\.options\.data: \$"):
        find_files("$NOT_SET_ANYWHERE/data")


def test_large_files_are_read_piece_by_piece(tmp_path, monkeypatch):
    monkeypatch.setattr("envs.webshop.catalog._CHUNK_CHARACTERS", 7)
    products = [raw_product(f"B{number}") for number in range(5)]
    data = small_data(tmp_path / "data", items_shuffle__json=json.dumps(products, indent=2))
    assert [product.asin for product in read_products(find_files(str(data)))] == ["B0", "B1", "B2", "B3", "B4"]


def test_the_same_seed_makes_the_same_bytes(tmp_path):
    for name, options in (
        ("a", CatalogOptions(products=40)),
        ("b", CatalogOptions(products=40)),
        ("longer", CatalogOptions(products=60)),
        ("other", CatalogOptions(products=40, seed=1)),
    ):
        (tmp_path / name).mkdir()
        write_catalog(options, tmp_path / name)

    def contents(name: str) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted((tmp_path / name).iterdir())}

    assert list(contents("a")) == ["items_human_ins.json", "items_ins_v2.json", "items_shuffle.json", "reviews.json"]
    assert contents("a") == contents("b")
    assert contents("a")["items_shuffle.json"] != contents("other")["items_shuffle.json"]
    products = {name: list(read_products(find_files(str(tmp_path / name)))) for name in ("a", "longer")}
    assert products["longer"][:40] == products["a"]


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_the_bytes_are_the_same_in_every_process(tmp_path, hash_seed):
    """Whatever the process makes of the hash of a text."""
    program = (
        "import pathlib, sys; from envs.webshop.generator import CatalogOptions, write_catalog; "
        "write_catalog(CatalogOptions(products=40), pathlib.Path(sys.argv[1]))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, env=environment)
    together = b"".join(path.read_bytes() for path in sorted(tmp_path.glob("*.json")))
    assert hashlib.sha256(together).hexdigest()[:16] == "853e7d80f029254c"


def test_the_generated_catalog_is_varied(tmp_path):
    write_catalog(CatalogOptions(products=200), tmp_path)
    products = list(read_products(find_files(str(tmp_path))))
    assert len({product.asin for product in products}) == 200
    assert sorted({product.category for product in products}) == [
        "beauty",
        "electronics",
        "fashion",
        "garden",
        "grocery",
    ]
    assert all(product.instruction and product.attributes for product in products)
    assert {len(product.options) for product in products} == {0, 1, 2}
    assert {len(product.prices) for product in products} == {1, 2}
    assert any(product.price_text == "$100.0" for product in products)
    assert {len(product.reviews) for product in products} == {0, 1, 2, 3}
    assert sum(len(product.human_goals) for product in products) == 20
