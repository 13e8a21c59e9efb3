"""The shop's search engines behind one interface: Lucene's BM25 (the original's), and tantivy.

Each index is built once a machine from the products' search texts and read from the cache from then on.

Terms are made as Lucene's English analyzer makes them: standard tokenizer (Unicode word breaks, UAX 29), possessive 's
off, lower case, Lucene's stop words, Porter stemmer. BM25 is Lucene's on NumPy: the same numbers to the last bit of its
32-bit floats, up to the order of sums. k1 and b are those of Anserini, which the original searches with. Field lengths
are kept in one byte (lossy above 40), as Lucene's `SmallFloat.intToByte4` has them. Equal scores are ordered by ASIN,
as Anserini does.
"""

from __future__ import annotations

import bisect
import functools
import importlib.util
import math
import re
from array import array
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import regex

from envs.cache import cached_folder, load_array
from envs.webshop.catalog import Catalog
from opid_core.errors import ConfigError

_STOP_WORDS = """a an and are as at be but by for if in into is it no not of on or such that the their then there these
they this to was will with"""
STOP_WORDS = frozenset(_STOP_WORDS.split())
_LONGEST_TOKEN = 255  # Lucene's tokenizer splits what is longer
_REMEMBERED_TOKENS = 1 << 18
_POSSESSIVE = re.compile(r"['\u2019\uff07][sS]$")

_ASCII_TOKEN = re.compile(
    r"""_*[A-Za-z0-9]+
        (?: (?: _+ | (?<=[A-Za-z])['.:](?=[A-Za-z]) | (?<=[0-9])['.,;](?=[0-9]) ) [A-Za-z0-9]+ )*
        _*""",
    re.VERBOSE,
)
_EXTENDED = r"[\p{WB=Extend}\p{WB=Format}\p{WB=ZWJ}]*"
_EXTENDED_EMOJI = r"[\p{WB=Extend}\p{WB=Format}--[\ufe0e\ufe0f]]*"
_LETTER = r"[\p{WB=ALetter}\p{WB=Hebrew_Letter}]"
# Lucene's pictographs are those of Unicode 11, which counted symbols that later versions do not.
_PICTOGRAPH = r"\p{Extended_Pictographic}\u2600-\u2605\u2607-\u2612\u2614-\u2685\u2690-\u2705\u2708-\u2712\u2763-\u2767"
_EMOJI = (
    rf"(?:[{_PICTOGRAPH}[\p{{Emoji}}--[0-9#*\p{{WB=Regional_Indicator}}\p{{Emoji_Modifier}}]]]"
    rf"\p{{Emoji_Modifier}}?{_EXTENDED_EMOJI}\ufe0f?)"
)
_TOKEN = regex.compile(
    rf"""{_EMOJI}(?:\u200d{_EMOJI})*
        | \p{{WB=Regional_Indicator}}{{2}}
        | [0-9#*]\ufe0f\u20e3
        | (?:\p{{WB=ExtendNumLet}}{_EXTENDED})*
          (?:(?:{_LETTER}|\p{{WB=Numeric}}|\p{{WB=Katakana}}){_EXTENDED})
          (?:
              (?: (?:\p{{WB=ExtendNumLet}}{_EXTENDED})+
                | (?<={_LETTER}{_EXTENDED})[\p{{WB=MidLetter}}\p{{WB=MidNumLet}}']{_EXTENDED}(?={_LETTER})
                | (?<=\p{{WB=Numeric}}{_EXTENDED})[\p{{WB=MidNum}}\p{{WB=MidNumLet}}']{_EXTENDED}(?=\p{{WB=Numeric}})
                | (?<=\p{{WB=Katakana}}{_EXTENDED})(?=\p{{WB=Katakana}})
                | (?<!\p{{WB=Katakana}}{_EXTENDED})(?!\p{{WB=Katakana}})
              )
              (?:{_LETTER}|\p{{WB=Numeric}}|\p{{WB=Katakana}}){_EXTENDED}
          )*
          (?:\p{{WB=ExtendNumLet}}{_EXTENDED})*
        | [\p{{Script=Han}}\p{{Script=Hiragana}}]{_EXTENDED}
        | \p{{Line_Break=Complex_Context}}+
    """,
    regex.VERBOSE | regex.VERSION1,
)
_NO_WORD = regex.compile(
    rf"""[^\x00-\x7f\p{{WB=ALetter}}\p{{WB=Hebrew_Letter}}\p{{WB=Numeric}}\p{{WB=Katakana}}\p{{WB=ExtendNumLet}}\p{{WB=MidLetter}}
    \p{{WB=MidNum}}\p{{WB=MidNumLet}}\p{{WB=Extend}}\p{{WB=Format}}\p{{WB=ZWJ}}\p{{WB=Regional_Indicator}}\p{{Emoji}}
    {_PICTOGRAPH}\p{{Script=Han}}\p{{Script=Hiragana}}\p{{Line_Break=Complex_Context}}]""",
    regex.VERBOSE | regex.VERSION1,
)
"""Characters beyond ASCII that are part of no token, like a space; without them most texts are ASCII."""


def terms(text: str) -> list[str]:
    """The terms of a text, in order, stop words left out."""
    if not text.isascii():
        text = _NO_WORD.sub(" ", text)
    tokens = (_ASCII_TOKEN if text.isascii() else _TOKEN).findall(text)
    if max(map(len, tokens), default=0) > _LONGEST_TOKEN:
        size = _LONGEST_TOKEN
        tokens = [token[at : at + size] for token in tokens for at in range(0, len(token), size)]
    return [term for token in tokens if (term := _term(token)) is not None]


@functools.lru_cache(_REMEMBERED_TOKENS)
def _term(token: str) -> str | None:
    word = _POSSESSIVE.sub("", token).lower()
    return None if word in STOP_WORDS else _stemmer().stem(word, to_lowercase=False)


@functools.cache
def _stemmer() -> Any:
    """Lucene's PorterStemmer is Porter's own program: his paper of 1980 with the three changes that he made later."""
    from nltk.stem.porter import PorterStemmer

    return PorterStemmer(mode=PorterStemmer.MARTIN_EXTENSIONS)


K1, B = 0.9, 0.4
_FREE_VALUES = 24
"""Lengths below are exact: 255 minus the code of the largest 32-bit integer."""


def length_code(length: int) -> int:
    """The byte that stands for a field length (SmallFloat.intToByte4)."""
    if length < _FREE_VALUES:
        return length
    rest = length - _FREE_VALUES
    shift = rest.bit_length() - 4
    return _FREE_VALUES + (rest if shift < 0 else (rest >> shift & 0x07) | (shift + 1) << 3)


def coded_length(code: int) -> int:
    """The length that a byte stands for (SmallFloat.byte4ToInt): the smallest of those that share it."""
    if code < _FREE_VALUES:
        return code
    bits, shift = (code - _FREE_VALUES) & 0x07, (code - _FREE_VALUES >> 3) - 1
    return _FREE_VALUES + (bits if shift < 0 else (bits | 0x08) << shift)


def build_index(texts: Iterable[str], tie_order: np.ndarray, folder: Path) -> None:
    """Write the index of `texts` into `folder`. `tie_order` [texts]: the rank among equal scores.

    Postings of a term stand together (`starts` [terms + 1]), by document: its number, and for its frequency f and
    length the term's `1 + f / (k1 * (1 - b + b * length / average length))`.
    """
    numbers: dict[str, int] = {}
    term_column, document_column, frequency_column = array("i"), array("i"), array("i")
    lengths = array("i")
    for document, text in enumerate(texts):
        text_terms = terms(text)
        lengths.append(len(text_terms))
        for term, frequency in Counter(text_terms).items():
            term_column.append(numbers.setdefault(term, len(numbers)))
            document_column.append(document)
            frequency_column.append(frequency)
    vocabulary = sorted(numbers, key=str.encode)
    rank = np.empty(len(vocabulary), np.int32)
    rank[[numbers[term] for term in vocabulary]] = np.arange(len(vocabulary), dtype=np.int32)
    term_of_posting = rank[np.frombuffer(term_column, np.int32)]
    order = np.argsort(term_of_posting, kind="stable")
    documents = np.frombuffer(document_column, np.int32)[order]
    frequencies = np.frombuffer(frequency_column, np.int32)[order].astype(np.float32)
    starts = np.concatenate([[0], np.cumsum(np.bincount(term_of_posting, minlength=len(vocabulary)))])

    cache = _length_factors(sum(lengths) / max(sum(length > 0 for length in lengths), 1))
    factors = cache[np.array([length_code(length) for length in lengths], np.uint8)]
    denominators = np.float32(1) + frequencies * factors[documents]

    encoded = [term.encode() for term in vocabulary]
    np.save(folder / "terms.npy", np.frombuffer(b"".join(encoded), np.uint8))
    np.save(folder / "term_offsets.npy", np.concatenate([[0], np.cumsum([len(e) for e in encoded])]).astype(np.int64))
    np.save(folder / "starts.npy", starts.astype(np.int64))
    np.save(folder / "documents.npy", documents)
    np.save(folder / "denominators.npy", denominators)
    np.save(folder / "tie_order.npy", tie_order.astype(np.int32))
    np.save(folder / "document_count.npy", np.int64(sum(length > 0 for length in lengths)))


def _length_factors(average_length: float) -> np.ndarray:
    """Code of a length -> 1 / (k1 * (1 - b + b * length / average length)), in Lucene's 32-bit steps. [256]"""
    single = np.float32
    lengths = np.array([coded_length(code) for code in range(256)], np.float64).astype(single)
    share = single(1) - single(B) + single(B) * lengths / single(average_length or 1)
    return single(1) / (single(K1) * share)


class LuceneIndex:
    """A built index, memory-mapped."""

    def __init__(self, folder: Path) -> None:
        names = ("terms", "term_offsets", "starts", "documents", "denominators", "tie_order")
        self._terms, self._term_offsets, self._starts, self._documents, self._denominators, self._tie_order = (
            load_array(folder, name) for name in names
        )
        self._document_count = int(np.load(folder / "document_count.npy"))

    def search(self, query: str, count: int) -> list[int]:
        """The numbers of at most `count` documents that share a term with the query, best first."""
        documents, shares = [], []
        for term, times in Counter(terms(query)).items():
            number = self._find(term.encode())
            if number is not None:
                start, end = self._starts[number : number + 2]
                weight = np.float32(times) * self._idf(int(end - start))
                documents.append(self._documents[start:end])
                shares.append(weight - weight / self._denominators[start:end])
        if not documents:
            return []
        size = len(self._tie_order)
        scores = np.bincount(np.concatenate(documents), np.concatenate(shares), size)  # sums in 64 bits, as Lucene's
        return best(scores.astype(np.float32), self._tie_order, count)

    def _idf(self, document_frequency: int) -> np.float32:
        missing = self._document_count - document_frequency
        return np.float32(math.log(1 + (missing + 0.5) / (document_frequency + 0.5)))

    def _find(self, term: bytes) -> int | None:
        """The number of a term: a binary search in the sorted terms."""

        def at(number: int) -> bytes:
            return self._terms[self._term_offsets[number] : self._term_offsets[number + 1]].tobytes()

        count = len(self._starts) - 1
        number = bisect.bisect_left(range(count), term, key=at)
        return number if number < count and at(number) == term else None


def best(scores: np.ndarray, tie_order: np.ndarray, count: int) -> list[int]:
    """The `count` highest of the positive `scores` [documents], equal ones by `tie_order` [documents]."""
    lowest = np.partition(scores, len(scores) - count)[len(scores) - count] if len(scores) > count else 0
    documents = np.flatnonzero(scores >= lowest if lowest > 0 else scores > 0)
    return documents[np.lexsort((tie_order[documents], -scores[documents]))][:count].tolist()


SearchEngine = Literal["bm25", "tantivy"]


class SearchIndex(Protocol):
    """Finds products by words."""

    def search(self, query: str, count: int) -> list[int]:
        """The numbers of at most `count` products, best first."""
        ...


def open_index(engine: SearchEngine, catalog: Catalog) -> SearchIndex:
    """The search index of `catalog`. Raises ConfigError where the engine's package is not installed."""
    build, index = {
        "bm25": (_build_bm25, LuceneIndex),
        "tantivy": (_build_tantivy, TantivyIndex),
    }[engine]
    if engine != "bm25" and importlib.util.find_spec(engine) is None:
        raise ConfigError(f"environment.options.search: the package {engine} is not installed: pip install {engine}")
    return index(cached_folder("webshop", f"{engine}-{catalog.key}", lambda folder: build(catalog, folder)))


def _build_bm25(catalog: Catalog, folder: Path) -> None:
    build_index((product.search_text() for product in catalog), _tie_order(catalog), folder)


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
