"""A retrieval server over a corpus, with Search-R1's API: `python -m envs.search_qa.server --corpus FILE`.

POST /retrieve {"queries": ["...", ...], "topk": 3, "return_scores": true}   (or {"query": "...", ...})
GET  /health

Beyond this machine it answers those alone who send the secret in OPID_SEARCH_TOKEN; on it, requests for this machine.
"""

from __future__ import annotations

import argparse
import hmac
import os
import socket
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field, model_validator

from envs.search_qa.engines import Engine
from envs.search_qa.retrieval import TOKEN_VARIABLE, RetrievalOptions, local_engine, stored_corpus
from opid_core.errors import OpidError

if TYPE_CHECKING:
    from fastapi import FastAPI


LOOPBACK = ("127.0.0.1", "localhost")


class RetrieveRequest(BaseModel):
    """Body of POST /retrieve: `queries`, or one `query`."""

    queries: list[str] | None = Field(default=None, max_length=10_000)
    query: str | None = None
    topk: int = Field(default=3, ge=1, le=1000)
    return_scores: bool = False

    @model_validator(mode="after")
    def _one_form(self) -> RetrieveRequest:
        if (self.queries is None) == (self.query is None):
            raise ValueError("give either queries (a list) or query (one text)")
        return self


def create_app(engine: Engine, corpus: str, token: str | None = None) -> FastAPI:
    """The server over `engine`; `corpus` is what /health says is searched.

    With `token` it answers whoever sends that; without it, requests that name this machine as their host: no page of
    another site, whatever its name leads to.
    """
    from fastapi import Depends, FastAPI, Header, HTTPException
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    def check(authorization: str = Header("")) -> None:
        if token and not hmac.compare_digest(authorization.encode(), f"Bearer {token}".encode()):
            raise HTTPException(401, f"set {TOKEN_VARIABLE} to what it is where this server runs")

    app = FastAPI(title="OPID retrieval server")
    if not token:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*LOOPBACK])

    @app.post("/retrieve", dependencies=[Depends(check)])
    def retrieve(request: RetrieveRequest) -> dict[str, list[list[dict[str, Any]]]]:
        """The passages for each query, best first; with `return_scores` each as `{"document", "score"}`."""
        queries = request.queries if request.queries is not None else [str(request.query)]
        result = []
        for passages in engine.search(queries, request.topk):
            documents = [{"id": passage.passage_id, "contents": passage.contents} for passage in passages]
            if request.return_scores:
                scores = [passage.score for passage in passages]
                documents = [{"document": d, "score": s} for d, s in zip(documents, scores, strict=True)]
            result.append(documents)
        return {"result": result}

    @app.get("/health")
    def health() -> dict[str, str]:
        """Answers once the index is open."""
        return {"status": "ok", "corpus": corpus}

    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Open the index, building it if need be, print the address and serve until interrupted. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m envs.search_qa.server", description=__doc__)
    parser.add_argument("--corpus", required=True, help='JSON lines {"id", "contents"}, plain, .gz or .xz')
    parser.add_argument("--engine", choices=("bm25s", "dense"), default="bm25s")
    parser.add_argument("--encoder", help="folder of a sentence-transformers model (engine dense)")
    parser.add_argument("--query-prefix", default="", help="put before a query when it is encoded (engine dense)")
    parser.add_argument("--passage-prefix", default="", help="put before a passage when it is encoded (engine dense)")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0: any free one")
    given = parser.parse_args(arguments)
    options = RetrievalOptions(
        engine=given.engine,
        encoder=given.encoder,
        query_prefix=given.query_prefix,
        passage_prefix=given.passage_prefix,
    )
    token = None if given.host in LOOPBACK else os.environ.get(TOKEN_VARIABLE)
    if not token and given.host not in LOOPBACK:
        print(
            f"error: --host {given.host}: others could ask this server; set {TOKEN_VARIABLE} to a secret here and where"
            " the campaign runs, for example to $(openssl rand -hex 32)",
            file=sys.stderr,
        )
        return 2
    try:
        engine = local_engine(given.engine, stored_corpus(given.corpus, "--corpus"), options)
        listener = socket.create_server((given.host, given.port))
    except (OpidError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    import uvicorn

    host, port = listener.getsockname()[:2]
    print(f"http://{host}:{port}/retrieve", flush=True)
    uvicorn.Server(uvicorn.Config(create_app(engine, given.corpus, token), log_level="warning")).run(sockets=[listener])
    return 0


if __name__ == "__main__":
    sys.exit(main())
