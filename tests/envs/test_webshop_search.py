"""Text analysis and BM25 as Lucene has them, by hand; the engines side by side."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.webshop.catalog import Catalog, find_files
from envs.webshop.search import (
    _ASCII_TOKEN,
    _TOKEN,
    LuceneIndex,
    best,
    build_index,
    coded_length,
    length_code,
    open_index,
    terms,
)
from opid_core.errors import ConfigError
from tests.envs.test_webshop_catalog import raw_product, small_data


@pytest.mark.parametrize(
    ("word", "stemmed"),
    [
        # The examples of the paper, step by step, carried through all steps.
        ("caresses", "caress"),
        ("ponies", "poni"),
        ("cats", "cat"),
        ("feed", "feed"),
        ("agreed", "agre"),
        ("plastered", "plaster"),
        ("motoring", "motor"),
        ("sing", "sing"),
        ("conflated", "conflat"),
        ("troubled", "troubl"),
        ("sized", "size"),
        ("hopping", "hop"),
        ("falling", "fall"),
        ("hissing", "hiss"),
        ("filing", "file"),
        ("happy", "happi"),
        ("sky", "sky"),
        ("relational", "relat"),
        ("vietnamization", "vietnam"),
        ("electriciti", "electr"),
        ("goodness", "good"),
        ("adjustment", "adjust"),
        ("adoption", "adopt"),
        ("effective", "effect"),
        ("probate", "probat"),
        ("rate", "rate"),
        ("controll", "control"),
        # Where Porter's program departs from the paper.
        ("us", "us"),
        ("possibly", "possibl"),
        ("psychology", "psycholog"),
        ("12", "12"),
    ],
)
def test_porter_stemmer(word, stemmed):
    assert terms(word) == [stemmed]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The dog's 3.5 oz. bowl, it is 10,000 cm", ["dog", "3.5", "oz", "bowl", "10,000", "cm"]),
        ("can't U.S.A. foo:bar", ["can't", "u.s.a", "foo:bar"]),
        ("a_b __x__ 3.x x.3 it's", ["a_b", "__x__", "3", "x", "x", "3"]),
        ("women\u2019s shoes\u3010new\u3011", ["women", "shoe", "new"]),
        ("caf\u00e9\u00a0au-lait", ["caf\u00e9", "au", "lait"]),
        (
            "\u6f22\u5b57 \u30ab\u30bf\u30ab\u30ca \ud55c\uae00",
            ["\u6f22", "\u5b57", "\u30ab\u30bf\u30ab\u30ca", "\ud55c\uae00"],
        ),
        ("gift \u2764\ufe0f\U0001f338 5 \u2605", ["gift", "\u2764\ufe0f", "\U0001f338", "5", "\u2605"]),
        ("- ... \u201c \u201d", []),
        ("THE and Of", []),
        ("x" * 300, ["x" * 255, "x" * 45]),
    ],
)
def test_terms(text, expected):
    assert terms(text) == expected


@given(st.text(alphabet="ab1_.,:;'- \n", max_size=30))
def test_the_pattern_for_plain_text_is_the_general_one(text):
    assert _ASCII_TOKEN.findall(text) == _TOKEN.findall(text)


@pytest.mark.parametrize(
    ("length", "stored"),
    [(0, 0), (23, 23), (24, 24), (39, 39), (40, 40), (41, 40), (42, 42), (55, 54), (56, 56), (59, 56), (1000, 984)],
)
def test_field_lengths_are_lossy_above_40(length, stored):
    """24 exact values, then 24 + a number of 4 bits and a shift: 1000 = 24 + 976, 976 = 15 << 6 + 16, 24 + 960."""
    assert coded_length(length_code(length)) == stored


@given(st.integers(0, 2**31 - 1))
def test_a_stored_length_is_the_smallest_of_its_code(length):
    code = length_code(length)
    assert 0 <= code <= 255
    assert coded_length(code) <= length
    assert length_code(coded_length(code)) == code


def built(folder, texts, tie_order=None) -> LuceneIndex:
    folder.mkdir()
    build_index(texts, np.arange(len(texts)) if tie_order is None else np.array(tie_order), folder)
    return LuceneIndex(folder)


def test_scores_by_hand(tmp_path):
    """Three documents of 2, 4 and 3 terms (average 3). `red`: 2 of 3 documents, `lamp`: 1."""
    index = built(tmp_path / "i", ["red mugs", "red red lamp shade", "blue mug set"])
    assert index.search("red", 10) == [1, 0]
    assert index.search("lamp", 10) == [1]
    assert index.search("red lamp of the blue", 1) == [1]
    assert index.search("nothing", 10) == index.search("the", 10) == index.search("", 10) == []
    idf = math.log(1 + (3 - 2 + 0.5) / (2 + 0.5))
    first = idf * (1 - 1 / (1 + 1 / (0.9 * (1 - 0.4 + 0.4 * 2 / 3))))
    second = idf * (1 - 1 / (1 + 2 / (0.9 * (1 - 0.4 + 0.4 * 4 / 3))))
    number = index._find(b"red")
    assert number is not None
    start, end = index._starts[number : number + 2]
    weight = index._idf(2)
    scores = dict(zip(index._documents[start:end], weight - weight / index._denominators[start:end], strict=True))
    assert scores == pytest.approx({0: first, 1: second}, rel=1e-6)


def test_a_repeated_word_weighs_twice(tmp_path):
    index = built(tmp_path / "i", ["red mug", "blue cup", "blue bowl", "red jar"])
    assert index.search("red blue", 4) == [0, 1, 2, 3]
    assert index.search("blue blue red", 4) == [1, 2, 0, 3]


def test_equal_scores_are_ordered_by_asin(tmp_path):
    index = built(tmp_path / "i", ["red mug"] * 5, tie_order=[4, 0, 3, 1, 2])
    assert index.search("mug", 3) == [1, 3, 4]
    assert index.search("mug", 10) == [1, 3, 4, 2, 0]


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=30), st.integers(1, 40))
def test_best_is_the_sorted_list_cut(scores, count):
    values = np.array(scores, np.float32)
    expected = sorted((i for i in range(len(scores)) if values[i] > 0), key=lambda i: (-values[i], i))[:count]
    assert best(values, np.arange(len(scores)), count) == expected


@pytest.mark.parametrize("engine", ["bm25", "tantivy"])
def test_every_engine_finds_the_product(tmp_path, monkeypatch, engine):
    pytest.importorskip("numpy" if engine == "bm25" else engine, reason=f"the optional package {engine} is missing")
    monkeypatch.setenv("OPID_CACHE", str(tmp_path / "cache"))
    names = ["red lamp", "blue mug", "green towel", "red towel"]
    products = [raw_product(f"B{n}", name=name, small_description=[]) for n, name in enumerate(names)]
    catalog = Catalog(find_files(str(small_data(tmp_path / "data", products))))
    for _ in range(2):  # built, then read
        index = open_index(engine, catalog)
        assert index.search("towels, red", 2) == [3, 0] or engine == "tantivy"
        assert index.search("towels, red", 1) == [3]
        assert index.search("mugs", 10) == [1]
        assert index.search('no "such" (thing:', 10) == []
        assert index.search("the", 10) == []


def test_a_missing_engine_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("OPID_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, "tantivy", None)
    catalog = Catalog(find_files(str(small_data(tmp_path / "data"))))
    with pytest.raises(ConfigError, match=r"environment\.options\.search: .*tantivy"):
        open_index("tantivy", catalog)
