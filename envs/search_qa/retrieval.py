"""The search engine that an environment asks: from the options, opened once a process; and the one at an address."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal

import httpx
from pydantic import Field, model_validator
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt, wait_exponential

from envs.base import result_of
from envs.search_qa.data import existing_file, file_digest, read_corpus
from envs.search_qa.engines import Bm25Engine, Corpus, DenseEngine, Engine, Passage
from envs.search_qa.generator import GeneratorOptions, make_world
from opid_core import proxies
from opid_core.errors import ConfigError, DataError, InfrastructureError
from opid_core.reading import ACCEPTED, body_of, parse_json
from opid_core.sections import Section

FIRST_PAUSE_S = 0.5
"""Pause before the first retry; each next one is twice as long."""
TOKEN_VARIABLE = "OPID_SEARCH_TOKEN"
"""The environment variable with the secret of a retrieval server of ours; its client sends it as a bearer token."""


class RetrievalOptions(Section):
    """How passages are found."""

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
    query_prefix: str = Field(default="", min_length=0)
    """Put before a query when it is encoded; E5 models want `query: ` (engine `dense`)."""
    passage_prefix: str = Field(default="", min_length=0)
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


class _NoAnswer(Exception):
    """What may pass: no connection, a time-out, a status of 429 or 5xx."""


class SearchClient:
    """Asks a search engine that speaks Search-R1's retrieval API (docs/search_qa.md) at `url`, the full
    address of its `retrieve` endpoint.

    Retries what may pass (no connection, time-outs, 429 and 5xx) `max_retries` times with doubling pauses, then raises
    InfrastructureError; raises DataError for a request that the server refuses and a reply of another shape. Both name
    the address. `single_query` sends `{"query": ...}` a query at a time, for servers without the batch form. All
    coroutines of a client must run on one event loop.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float = 60.0,
        max_retries: int = 3,
        single_query: bool = False,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        proxies.check(url)
        self._url = url
        self._shown = proxies.masked(url)
        self._max_retries = max_retries
        self._single_query = single_query
        self._sleep = sleep
        token = os.environ.get(TOKEN_VARIABLE)
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        # As many connections as there are episodes that search: none waits for another's.
        self._client = httpx.AsyncClient(
            headers={**ACCEPTED, **headers}, timeout=None, limits=httpx.Limits(max_connections=None)
        )
        self._timeout_s = timeout_s

    async def search(self, queries: Sequence[str], top_k: int) -> list[list[Passage]]:
        """At most `top_k` passages for each query, best first."""
        if not queries:
            return []
        asked = {"topk": top_k, "return_scores": True}
        if self._single_query:
            return [self._passages(await self._post({"query": query, **asked}), 1)[0] for query in queries]
        return self._passages(await self._post({"queries": list(queries), **asked}), len(queries))

    async def _post(self, request: dict[str, Any]) -> object:
        """The JSON of the reply to `request`."""
        retrying = AsyncRetrying(
            stop=stop_after_attempt(self._max_retries + 1),
            wait=wait_exponential(FIRST_PAUSE_S),
            retry=retry_if_exception_type(_NoAnswer),
            sleep=self._sleep,
            retry_error_callback=self._gave_no_answer,
        )
        return await retrying(self._post_once, request)

    def _gave_no_answer(self, state: RetryCallState) -> None:
        problem = state.outcome.exception() if state.outcome else None
        raise InfrastructureError(f"{self._shown}: no answer in {state.attempt_number} attempts; {problem}") from None

    async def _post_once(self, request: dict[str, Any]) -> object:
        try:
            async with (
                asyncio.timeout(self._timeout_s),
                self._client.stream("POST", self._url, json=request) as response,
            ):
                body = await body_of(response)
        except TimeoutError:
            raise _NoAnswer(f"ReadTimeout{proxies.through(self._url)}: {self._timeout_s:g} s") from None
        except httpx.RequestError as error:
            raise _NoAnswer(f"{type(error).__name__}{proxies.through(self._url)}: {error}") from None
        except OSError as error:
            raise DataError(f"{self._shown}: the reply cannot be used: {error.strerror}") from None
        start = body[:200].decode("utf-8", "replace")
        status = f"status {response.status_code}: {start}"
        if response.status_code == 429 or response.status_code >= 500:
            raise _NoAnswer(status)
        if response.status_code != 200:
            raise DataError(f"{self._shown}: the server refuses the request, {status}")
        try:
            return parse_json(body)
        except json.JSONDecodeError as error:
            raise DataError(f"{self._shown}: the reply is not JSON: {error.msg}: {start!r}") from None

    def _passages(self, reply: object, expected: int) -> list[list[Passage]]:
        """The passages of a reply to `expected` queries, with scores (document and score) or without."""
        result = reply.get("result") if isinstance(reply, dict) else None
        if not isinstance(result, list) or len(result) != expected or not all(isinstance(row, list) for row in result):
            raise self._wrong("result", f"a list of {expected} lists of passages", reply)
        return [[self._passage(entry, f"result[{i}][{j}]") for j, entry in enumerate(r)] for i, r in enumerate(result)]

    def _passage(self, entry: object, field: str) -> Passage:
        if not isinstance(entry, dict):
            raise self._wrong(field, "an object", entry)
        document = entry.get("document", entry)
        contents = document.get("contents") if isinstance(document, dict) else None
        score = entry.get("score", 0.0)
        if not isinstance(document, dict) or not isinstance(contents, str):
            raise self._wrong(f"{field}: contents", "a text", entry)
        if isinstance(score, bool) or not isinstance(score, int | float):
            raise self._wrong(f"{field}: score", "a number", entry)
        # Without an id its text names a passage: what was found tells one state of a question from another.
        name = document.get("id")
        passage_id = str(name) if name not in (None, "") else hashlib.sha256(contents.encode()).hexdigest()[:16]
        return Passage(passage_id, contents, float(score))

    def _wrong(self, field: str, expected: str, got: object) -> DataError:
        return DataError(f"{self._shown}: reply, field {field}: expected {expected}, got {str(got)[:200]}")


def stored_corpus(path: str, field: str = "environment.options.corpus") -> Corpus:
    """The corpus in a JSON-lines file. Raises ConfigError that names the config field for a missing file."""
    file = existing_file(path, field)
    return Corpus(str(file), file_digest(file), lambda: read_corpus(file))


def generated_corpus(options: GeneratorOptions) -> Corpus:
    """The passages about the generated world."""
    world = make_world(options)  # pyright: ignore[reportArgumentType] -- frozen, hence hashable
    return Corpus("generated world", world.digest, lambda: world.passages)


@functools.lru_cache(maxsize=4)
def open_engine(options: RetrievalOptions, corpus: str, generator: GeneratorOptions) -> Engine | SearchClient:
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
            result_of(client.search(["anything"], 1))
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
