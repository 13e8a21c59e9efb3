"""A scripted server that speaks the chat-completions protocol over real HTTP, for tests of what asks an endpoint."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-0123456789-never-to-be-seen"


@dataclass(frozen=True)
class Answer:
    """`content` is the model's text of a completion, or an error's message, `reasoning` what is kept apart of it;
    `body` is sent instead of either; `hang` keeps the connection open and says nothing until the server stops; `drip_s`
    is the pause before each byte."""

    status: int = 200
    content: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    finish_reason: str = "stop"
    reasoning: str | None = None
    hang: bool = False
    drip_s: float = 0.0


@dataclass
class ChatServer:
    """`answers` are given in turn, the last one for good; or `answer` makes each from its request's body."""

    answers: list[Answer] = field(default_factory=list)
    answer: Callable[[dict[str, Any]], Answer] | None = None
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    url: str = ""
    most_at_once: int = 0

    def next_answer(self, body: dict[str, Any]) -> Answer:
        if self.answer is not None:
            return self.answer(body)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@contextmanager
def chat_server() -> Iterator[ChatServer]:
    """A server on a free loopback port, for the time of the block."""
    state, lock, stopped = ChatServer(), threading.Lock(), threading.Event()
    at_once = 0

    class Handler(BaseHTTPRequestHandler):
        def handle(self) -> None:
            with suppress(ConnectionError):  # who asked may give up at any moment
                super().handle()

        def do_POST(self) -> None:
            nonlocal at_once
            content = self.rfile.read(int(self.headers["Content-Length"]))
            if len(content) < int(self.headers["Content-Length"]):  # who asked gave up before the end
                self.close_connection = True
                return
            request = json.loads(content)
            with lock:
                at_once += 1
                state.most_at_once = max(state.most_at_once, at_once)
                state.requests.append(request)
                state.keys.append(self.headers["Authorization"])
                answer = state.next_answer(request)
            if answer.hang:
                stopped.wait()
                self.close_connection = True
                return
            data = answer.body if answer.body is not None else _body(request, answer)
            with lock:
                at_once -= 1
            self.send_response(answer.status)
            # whoever tries again waits a millisecond, unless a test says otherwise
            headers = {"Content-Type": "application/json", "Retry-After-Ms": "1", **answer.headers}
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            for part in [data[i : i + 1] for i in range(len(data))] if answer.drip_s else [data]:
                stopped.wait(answer.drip_s)
                self.wfile.write(part)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield state
    finally:
        stopped.set()
        server.shutdown()
        thread.join()
        server.server_close()


def _body(request: dict[str, Any], answer: Answer) -> bytes:
    if answer.status != 200:
        return json.dumps({"error": {"message": answer.content}}).encode()
    message = {"role": "assistant", "content": answer.content}
    message |= {} if answer.reasoning is None else {"reasoning_content": answer.reasoning}
    reply = {
        "id": "1",
        "object": "chat.completion",
        "model": request["model"],
        "choices": [{"index": 0, "message": message, "finish_reason": answer.finish_reason}],
        "usage": {"prompt_tokens": 30, "completion_tokens": 12, "total_tokens": 42},
    }
    return json.dumps(reply).encode()
