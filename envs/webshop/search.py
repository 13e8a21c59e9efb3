"""The shop's search engines behind one interface: Lucene's BM25 (the original's) and tantivy.

Each index is built once a machine from the products' search texts and read from the cache from then on.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from envs.webshop import bm25
from envs.webshop.cache import cached_folder
from envs.webshop.catalog import Catalog
from opid_core.errors import ConfigError

SearchEngine = Literal["bm25", "tantivy"]


class SearchIndex(Protocol):
    """Finds products by words."""

    def search(self, query: str, count: int) -> list[int]:
        """The numbers of at most `count` products, best first."""
        ...


def open_index(engine: SearchEngine, catalog: Catalog) -> SearchIndex:
    """The search index of `catalog`. Raises ConfigError where the engine's package is not installed."""
    build, index = {
        "bm25": (_build_bm25, bm25.LuceneIndex),
        "tantivy": (_build_tantivy, TantivyIndex),
    }[engine]
    if engine != "bm25" and importlib.util.find_spec(engine) is None:
        raise ConfigError(f"environment.options.search: the package {engine} is not installed: pip install {engine}")
    return index(cached_folder(f"{engine}-{catalog.key}", lambda folder: build(catalog, folder)))


def _build_bm25(catalog: Catalog, folder: Path) -> None:
    bm25.build((product.search_text() for product in catalog), _tie_order(catalog), folder)


def _tie_order(catalog: Catalog) -> np.ndarray:
    """The rank of each product among the sorted ASINs. [products]"""
    ranks = np.empty(len(catalog), np.int32)
    ranks[np.argsort(catalog.asins)] = np.arange(len(catalog), dtype=np.int32)
    return ranks


def _build_tantivy(catalog: Catalog, folder: Path) -> None:
    import tantivy  # pyright: ignore[reportMissingImports]

    builder = tantivy.SchemaBuilder()
    builder.add_unsigned_field("number", stored=True)
    builder.add_text_field("contents", stored=False, tokenizer_name="en_stem")
    index = tantivy.Index(builder.build(), path=str(folder))
    writer = index.writer(num_threads=1)
    for number, product in enumerate(catalog):
        writer.add_document(tantivy.Document(number=number, contents=product.search_text()))
    writer.commit()
    writer.wait_merging_threads()


class TantivyIndex:
    """tantivy with its own English tokenizer and its fixed k1 and b (1.2, 0.75): other lists, but fast at any size."""

    def __init__(self, folder: Path) -> None:
        import tantivy  # pyright: ignore[reportMissingImports]

        self._index = tantivy.Index.open(str(folder))
        self._searcher = self._index.searcher()

    def search(self, query: str, count: int) -> list[int]:
        words = " ".join(word for word in re.findall(r"\w+", query.lower()) if not word.isspace())
        if not words:
            return []
        parsed, _ = self._index.parse_query_lenient(words, ["contents"])
        hits = self._searcher.search(parsed, limit=count).hits
        return [self._searcher.doc(address)["number"][0] for _, address in hits]
