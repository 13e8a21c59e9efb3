"""From the options to the search engine that an environment asks; opened once a process."""

from __future__ import annotations

import functools
from typing import Literal

import httpx
from pydantic import BaseModel, ConfigDict, Field, model_validator

from envs.search_qa.client import SearchClient
from envs.search_qa.data import existing_file, file_digest, read_corpus
from envs.search_qa.engines import Bm25Engine, Corpus, DenseEngine, Engine
from envs.search_qa.generator import GeneratorOptions, make_world
from opid_core.errors import ConfigError, InfrastructureError


class RetrievalOptions(BaseModel):
    """How passages are found."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    engine: Literal["bm25s", "dense", "server"] = "bm25s"
    """`bm25s`: words, in process; `dense`: sentence vectors, in process (extra `dense`); `server`: by address."""
    url: str | None = Field(default=None, pattern=r"^https?://[^\s/]+/\S*$")
    """Full address of a server's endpoint, such as `http://127.0.0.1:8000/retrieve` (engine `server`)."""
    top_k: int = Field(default=3, ge=1, le=100)
    """Passages a search shows."""
    timeout_s: float = Field(default=60.0, gt=0)
    """Time limit of one request (engine `server`)."""
    max_retries: int = Field(default=3, ge=0)
    """Retries of a request without an answer, after 0.5 s, 1 s, 2 s ... (engine `server`)."""
    single_query: bool = False
    """Send `{"query": ...}` instead of `{"queries": [...]}` (engine `server`)."""
    encoder: str | None = None
    """Folder of a sentence-transformers model; null: the packaged all-MiniLM-L6-v2 (engine `dense`)."""
    query_prefix: str = ""
    """Put before a query when it is encoded; E5 models want `query: ` (engine `dense`)."""
    passage_prefix: str = ""
    """Put before a passage when it is encoded; E5 models want `passage: ` (engine `dense`)."""

    @model_validator(mode="after")
    def _address(self) -> RetrievalOptions:
        if (self.engine == "server") != (self.url is not None):
            raise ValueError("url: give it with engine `server`, and only then")
        try:
            httpx.URL(self.url or "")
        except httpx.InvalidURL as error:
            raise ValueError(f"url: {error}") from None
        return self


def stored_corpus(path: str, field: str = "environment.options.corpus") -> Corpus:
    """The corpus in a JSON-lines file. Raises ConfigError that names the config field for a missing file."""
    file = existing_file(path, field)
    return Corpus(str(file), file_digest(file), lambda: read_corpus(file))


def generated_corpus(options: GeneratorOptions) -> Corpus:
    """The passages about the generated world."""
    made = make_world(options)  # pyright: ignore[reportArgumentType] -- frozen, hence hashable
    return Corpus("generated world", made.digest, lambda: made.passages)


@functools.lru_cache(maxsize=4)
def open_engine(options: RetrievalOptions, corpus: str, generator: GeneratorOptions) -> Engine:
    """The engine over `corpus` (a path, or `generated`), ready to search; its index is built if it is not stored yet.

    A server is asked once here. Raises ConfigError for an address that does not answer, a missing file and a missing
    extra, DataError for a corpus that cannot be used and a server that answers in another form.
    """
    if options.engine == "server":
        assert options.url is not None
        client = SearchClient(
            options.url,
            timeout_s=options.timeout_s,
            max_retries=options.max_retries,
            single_query=options.single_query,
        )
        try:
            client.search(["anything"], 1)
        except InfrastructureError as error:
            raise ConfigError(f"environment.options.retrieval.url: {error}") from None
        return client
    passages = generated_corpus(generator) if corpus == "generated" else stored_corpus(corpus)
    return local_engine(options.engine, passages, options)


def local_engine(name: str, corpus: Corpus, options: RetrievalOptions) -> Engine:
    """The in-process engine `name` (bm25s or dense) over `corpus`."""
    if name == "dense":
        return DenseEngine(corpus, options.encoder, options.query_prefix, options.passage_prefix)
    return Bm25Engine(corpus)
