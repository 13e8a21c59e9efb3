from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.search_qa.data import read_corpus
from envs.search_qa.engines import PACKAGED_ENCODER, Bm25Engine, Corpus, DenseEngine, largest_positive
from envs.search_qa.retrieval import stored_corpus
from opid_core.errors import ConfigError, DataError

PASSAGES = (
    ("a", '"Cats"\ncats drink milk'),
    ("b", '"Dogs"\ndogs chase cats'),
    ("c", '"Rain"\nwater falls'),
    ("d", '"Rain"\nwater falls'),
)
DENSE_PARTS = ("faiss", "sentence_transformers", PACKAGED_ENCODER)
NO_DENSE = not all(importlib.util.find_spec(name) for name in DENSE_PARTS)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("OPID_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "search_qa"


def corpus(passages=PASSAGES) -> Corpus:
    return Corpus(name="test", digest=repr(passages), passages=lambda: passages)


def ids(found) -> list[list[str]]:
    return [[passage.passage_id for passage in passages] for passages in found]


def test_bm25_scores_as_lucene_does():
    engine = Bm25Engine(corpus())
    (found,) = engine.search(["cats"], 3)
    assert [passage.passage_id for passage in found] == ["a", "b"]
    # Lucene: idf = ln(1 + (N - n + 0.5) / (n + 0.5)), tf part = tf / (tf + k1 (1 - b + b length / mean length)).
    # N = 4, n = 2; lengths 4, 4, 3, 3, mean 3.5; tf of cats: 2 in a, 1 in b; k1 0.9, b 0.4.
    idf = math.log(1 + 2.5 / 2.5)
    norm = 0.9 * (0.6 + 0.4 * 4 / 3.5)
    assert [passage.score for passage in found] == pytest.approx([idf * 2 / (2 + norm), idf * 1 / (1 + norm)], rel=1e-6)
    assert found[0].contents == '"Cats"\ncats drink milk'


def test_bm25_orders_ties_by_the_corpus_and_finds_nothing_where_no_word_is_shared():
    engine = Bm25Engine(corpus())
    assert ids(engine.search(["falls, water?", "RAIN", "unheard", "", "the of"], 3)) == [
        ["c", "d"],
        ["c", "d"],
        [],
        [],
        [],
    ]
    assert ids(engine.search(["rain"], 1)) == [["c"]]
    assert engine.search([], 3) == []


def test_a_corpus_without_words_is_refused(cache):
    with pytest.raises(DataError, match="test, field contents: "):
        Bm25Engine(corpus((("a", "x"), ("b", "the ?"))))
    assert list(cache.iterdir()) == []


@given(st.lists(st.integers(-2, 4), max_size=30), st.integers(1, 40))
def test_largest_positive_is_a_stable_sort_cut_short(scores, count):
    expected = sorted((i for i, score in enumerate(scores) if score > 0), key=lambda i: (-scores[i], i))[:count]
    assert largest_positive(np.array(scores, dtype=np.float32), count).tolist() == expected


def test_an_index_is_built_once_for_a_content(cache, tmp_path):
    file = tmp_path / "c.jsonl"
    file.write_text('{"id": "1", "contents": "one"}\n')
    opened = []

    def counted(path: str) -> Corpus:
        stored = stored_corpus(path)
        return Corpus(path, stored.digest, lambda: opened.append(path) or read_corpus(Path(path)))

    assert ids(Bm25Engine(counted(str(file))).search(["one"], 3)) == [["1"]]
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(file.read_bytes())
    assert ids(Bm25Engine(counted(str(copy))).search(["one"], 3)) == [["1"]]
    assert opened == [str(file)]  # the copy has the same content: its index was there
    file.write_text('{"id": "2", "contents": "one"}\n')
    assert ids(Bm25Engine(counted(str(file))).search(["one"], 3)) == [["2"]]
    assert len(list(cache.iterdir())) == 2


@pytest.mark.skipif(NO_DENSE, reason="the extra opid[dense] is not installed")
def test_dense_search_finds_by_meaning(monkeypatch, cache):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    passages = (*PASSAGES, ("e", '"Espresso"\na strong coffee'))
    engine = DenseEngine(corpus(passages), None, "", "")
    assert ids(engine.search(["a hot drink with caffeine", "puppy"], 1)) == [["e"], ["b"]]
    first, *others = engine.search(["rainy weather"], 9)[0]
    assert (first.passage_id, len(others)) == ("c", 4)  # equal vectors in the corpus' order
    assert -1 <= others[-1].score < first.score <= 1
    assert engine.search([], 3) == []
    again = DenseEngine(Corpus("test", repr(passages), lambda: pytest.fail("built twice")), None, "", "")
    assert again.search(["puppy"], 2) == engine.search(["puppy"], 2)
    assert len(list(cache.iterdir())) == 1


@pytest.mark.skipif(NO_DENSE, reason="the extra opid[dense] is not installed")
def test_an_encoder_that_is_no_model_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"environment\.options\.retrieval\.encoder: "):
        DenseEngine(corpus(), str(tmp_path), "", "")


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ConfigError, match=r"pip install 'opid\[dense\]'"):
        DenseEngine(corpus(), None, "", "")
