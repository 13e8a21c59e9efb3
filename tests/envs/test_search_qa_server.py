"""The retrieval server and its client, over real sockets."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from envs.base import make, result_of
from envs.search_qa.engines import Bm25Engine, Corpus, Passage
from envs.search_qa.retrieval import SearchClient
from envs.search_qa.server import create_app, main
from opid_core.errors import ConfigError, DataError, InfrastructureError
from opid_core.reading import MAX_BYTES

PASSAGES = [("a", '"Cats"\ncats drink milk'), ("b", '"Dogs"\ndogs chase cats'), ("c", '"Rain"\nwater falls')]
FOUND = {"result": [[{"document": {"id": "a", "contents": "one"}, "score": 2}]]}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("OPID_CACHE", str(tmp_path / "cache"))


@contextmanager
def running(app: Any) -> Iterator[str]:
    """Address of the app, in a thread of this process."""
    import uvicorn

    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture
def server() -> Iterator[str]:
    """Address of our server."""
    with running(create_app(Bm25Engine(Corpus("test", "test_server", lambda: PASSAGES)), "test")) as url:
        yield url


@contextmanager
def scripted(*replies: tuple[int, object]) -> Iterator[tuple[str, list[dict]]]:
    """A server that gives these (status, body) one after the other, the last for ever; and what it was asked."""
    asked: list[dict] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            status, body = replies[min(len(asked), len(replies)) - 1]
            data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            pass

    http_server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http_server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{http_server.server_port}/retrieve", asked
    finally:
        http_server.shutdown()
        thread.join()
        http_server.server_close()


def noted(pauses: list[float]) -> Callable[[float], Coroutine[Any, Any, None]]:
    """Instead of a pause, a note of it."""

    async def note(seconds: float) -> None:
        pauses.append(seconds)

    return note


def closed_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}/retrieve"


def test_client_and_server_agree_with_the_engine(server):
    engine = Bm25Engine(Corpus("test", "test_server", lambda: PASSAGES))
    queries = ["cats", "unheard", "water", ""]
    expected = engine.search(queries, 2)
    assert [[p.passage_id for p in found] for found in expected] == [["a", "b"], [], ["c"], []]
    assert result_of(SearchClient(f"{server}/retrieve").search(queries, 2)) == expected
    assert result_of(SearchClient(f"{server}/retrieve", single_query=True).search(queries, 2)) == expected
    assert result_of(SearchClient(f"{server}/retrieve").search([], 2)) == []


def test_the_forms_of_the_api(server):
    with httpx.Client(base_url=server) as http:
        assert http.get("/health").json() == {"status": "ok", "corpus": "test"}
        document = {"id": "c", "contents": '"Rain"\nwater falls'}
        assert http.post("/retrieve", json={"queries": ["water", "x"]}).json() == {"result": [[document], []]}
        assert http.post("/retrieve", json={"query": "water"}).json() == {"result": [[document]]}
        scored = http.post("/retrieve", json={"query": "water", "topk": 1, "return_scores": True}).json()
        assert scored["result"][0][0]["document"] == document
        assert scored["result"][0][0]["score"] > 0
        for refused in ({}, {"queries": ["x"], "query": "x"}, {"queries": "x"}, {"query": "x", "topk": 0}):
            assert http.post("/retrieve", json=refused).status_code == 422


def test_what_the_client_sends():
    with scripted((200, FOUND)) as (url, asked):
        assert result_of(SearchClient(url).search(["x"], 3)) == [[Passage("a", "one", 2.0)]]
        result_of(SearchClient(url, single_query=True).search(["x"], 5))
    assert asked == [
        {"queries": ["x"], "topk": 3, "return_scores": True},
        {"query": "x", "topk": 5, "return_scores": True},
    ]


def test_beyond_this_machine_a_secret_is_needed_and_on_it_the_name_of_this_machine(server, monkeypatch, capsys):
    monkeypatch.delenv("OPID_SEARCH_TOKEN", raising=False)
    assert main(["--corpus", "any", "--host", "0.0.0.0"]) == 2
    assert capsys.readouterr().err.startswith("error: --host 0.0.0.0: others could ask this server; set OPID_SEARCH")
    assert httpx.post(f"{server}/retrieve", json={"query": "x"}, headers={"Host": "evil.example"}).status_code == 400

    app = create_app(Bm25Engine(Corpus("test", "test_server", lambda: PASSAGES)), "test", "secret")
    with running(app) as url:
        for headers in ({}, {"Authorization": "Bearer guessed"}, {"Authorization": "secret"}):
            assert httpx.post(f"{url}/retrieve", json={"query": "x"}, headers=headers).status_code == 401
        with pytest.raises(DataError, match=r"refuses the request, status 401: .*set OPID_SEARCH_TOKEN"):
            result_of(SearchClient(f"{url}/retrieve").search(["water"], 1))
        monkeypatch.setenv("OPID_SEARCH_TOKEN", "secret")
        assert result_of(SearchClient(f"{url}/retrieve").search(["water"], 1))[0][0].passage_id == "c"


def test_replies_without_scores_are_understood():
    with scripted((200, {"result": [[{"id": 7, "contents": "one"}], []]})) as (url, _):
        assert result_of(SearchClient(url).search(["x", "y"], 3)) == [[Passage("7", "one", 0.0)], []]


def test_without_an_id_its_text_names_a_passage():
    with scripted((200, {"result": [[{"contents": "one"}, {"id": "", "contents": "two"}, {"contents": "one"}]]})) as (
        url,
        _,
    ):
        one, two, again = (passage.passage_id for passage in result_of(SearchClient(url).search(["x"], 3))[0])
    assert one == again
    assert len({"", one, two}) == 3


def test_an_outage_is_retried_then_an_infrastructure_error():
    pauses: list[float] = []
    with scripted((503, "warming up")) as (url, asked):
        client = SearchClient(url, max_retries=3, sleep=noted(pauses))
        with pytest.raises(
            InfrastructureError, match=f"{re.escape(url)}: no answer in 4 attempts; status 503: warming"
        ):
            result_of(client.search(["x"], 3))
    assert len(asked) == 4
    assert pauses == [0.5, 1.0, 2.0]


def test_a_recovered_outage_is_an_answer():
    pauses: list[float] = []
    with scripted((500, "x"), (429, "slowly"), (200, FOUND)) as (url, asked):
        found = result_of(SearchClient(url, max_retries=2, sleep=noted(pauses)).search(["x"], 3))
    assert found == [[Passage("a", "one", 2.0)]]
    assert (len(asked), pauses) == (3, [0.5, 1.0])


def test_nobody_there_and_a_time_out_are_outages():
    url, pauses = closed_address(), []
    with pytest.raises(InfrastructureError, match="no answer in 2 attempts; ConnectError"):
        result_of(SearchClient(url, max_retries=1, sleep=noted(pauses)).search(["x"], 3))
    assert pauses == [0.5]
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts and never answers
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/retrieve"
        with pytest.raises(InfrastructureError, match="no answer in 1 attempts; ReadTimeout"):
            result_of(SearchClient(url, timeout_s=0.05, max_retries=0).search(["x"], 3))


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (404, "not here", "the server refuses the request, status 404: not here"),
        (200, "<html>", "the reply is not JSON: Expecting value: '<html>'"),
        (200, "[" * 1000, "the reply is not JSON: nested deeper than 100"),
        (200, " " * (MAX_BYTES + 1), "the reply cannot be used: longer than"),
        (200, [], "field result: expected a list of 1 lists of passages"),
        (200, {"result": []}, "field result: expected a list of 1 lists of passages"),
        (200, {"result": [[], []]}, "field result: expected a list of 1 lists of passages"),
        (200, {"result": ["x"]}, "field result: expected a list of 1 lists of passages"),
        (200, {"result": [["x"]]}, "field result[0][0]: expected an object, got x"),
        (200, {"result": [[{"document": "x"}]]}, "field result[0][0]: contents: expected a text"),
        (200, {"result": [[{"document": {"contents": 3}}]]}, "field result[0][0]: contents: expected a text"),
        (200, {"result": [[{"contents": "x", "score": "y"}]]}, "field result[0][0]: score: expected a number"),
    ],
)
def test_an_answer_of_another_form_is_no_result(status, body, message):
    with scripted((status, body)) as (url, asked), pytest.raises(DataError) as caught:
        result_of(SearchClient(url, sleep=noted([])).search(["x"], 3))
    assert url in str(caught.value)
    assert message in str(caught.value)
    assert len(asked) == 1


def test_a_password_in_the_address_stays_unseen():
    url = closed_address().replace("//", "//user:secret@") + "?key=secret"
    with pytest.raises(InfrastructureError) as caught:
        result_of(SearchClient(url, max_retries=0).search(["x"], 3))
    assert "secret" not in str(caught.value)
    assert "//***@127.0.0.1" in str(caught.value)


def questions_file(folder: Path) -> str:
    entry = {"id": 1, "question": "who drinks milk?", "golden_answers": ["Cats"], "data_source": "nq", "split": "train"}
    (folder / "q.jsonl").write_text(json.dumps(entry))
    return str(folder / "q.jsonl")


def test_an_episode_over_the_server(server, tmp_path):
    retrieval = {"engine": "server", "url": f"{server}/retrieve", "top_k": 1}
    environment = make("search_qa", {"questions": questions_file(tmp_path), "retrieval": retrieval})
    environment.reset(environment.tasks("train")[0])
    searched = result_of(environment.step("<search>milk</search>"))
    assert searched.observation == '<information>\nDoc 1: "Cats"\ncats drink milk\n</information>'
    assert result_of(environment.step("<answer>the cats</answer>")).won


def test_an_address_that_does_not_answer_is_refused_at_the_first_reset(tmp_path):
    retrieval = {"engine": "server", "url": closed_address(), "max_retries": 0}
    environment = make("search_qa", {"questions": questions_file(tmp_path), "retrieval": retrieval})
    with pytest.raises(
        ConfigError, match=r"environment\.options\.retrieval\.url: http://127.*: no answer in 1 attempts"
    ):
        environment.reset(environment.tasks("train")[0])


def test_an_outage_in_an_episode_is_never_an_observation(tmp_path):
    reply = {"result": [[{"contents": "x"}]]}
    with scripted((200, reply), (500, "down")) as (url, _):
        retrieval = {"engine": "server", "url": url, "max_retries": 0}
        environment = make("search_qa", {"questions": questions_file(tmp_path), "retrieval": retrieval})
        environment.reset(environment.tasks("train")[0])
        with pytest.raises(InfrastructureError, match="status 500: down"):
            result_of(environment.step("<search>milk</search>"))


def test_the_server_as_a_program(tmp_path):
    file = tmp_path / "corpus.jsonl"
    file.write_text("\n".join(json.dumps({"id": i, "contents": text}) for i, text in PASSAGES))
    command = [sys.executable, "-m", "envs.search_qa.server", "--corpus", str(file), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()  # printed when it listens
        found = result_of(SearchClient(url, max_retries=0).search(["water"], 3))
        assert [[passage.passage_id for passage in passages] for passages in found] == [["c"]]
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)


def test_the_program_names_what_it_cannot_use(tmp_path, capsys):
    (tmp_path / "empty.jsonl").write_text("")
    assert main(["--corpus", str(tmp_path / "none")]) == 2
    assert main(["--corpus", str(tmp_path / "empty.jsonl")]) == 2
    (tmp_path / "empty.jsonl").write_text('{"id": 1, "contents": "word"}')
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["--corpus", str(tmp_path / "empty.jsonl"), "--port", str(taken.getsockname()[1])]) == 2
    printed = capsys.readouterr().err.splitlines()  # a library's log may be there too
    first, second, third = (line for line in printed if line.startswith("error: "))
    assert "Address already in use" in third
    assert first == f"error: --corpus: {tmp_path / 'none'} is no file"
    assert second == f"error: {tmp_path / 'empty.jsonl'}: no passages"
