"""A proxy between campaigns and the S3 server that answers as networks and overloaded servers do."""

from __future__ import annotations

import asyncio
import random
import re
import socket
import struct
import threading
from collections import Counter

FAULTS = ("error 500", "error 503", "reset", "delay", "lost answer", "cut answer")
"""`lost answer`: the server has carried the request out, the client never hears of it. `cut answer`: half of it."""
SHARE = 0.6
"""Of the requests while a fault is on: so that a retry may come through."""
LONGEST_DELAY_S = 3.0
_BAD = b"HTTP/1.1 %d Bad\r\nContent-Type: application/xml\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s"
_BODY = b"<Error><Code>%s</Code><Message>chaos</Message></Error>"
_CODES = {500: b"InternalError", 503: b"SlowDown"}


class Proxy:
    """Forwards each request to the server on `target_port`, unless `fault` (one of FAULTS) is on and strikes."""

    def __init__(self, target_port: int, seed: int) -> None:
        self.fault: str | None = None
        self.struck: Counter[str] = Counter()
        """Requests that met a fault, by fault."""
        self._target_port = target_port
        self._generator = random.Random(seed)
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._run(),), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Close the proxy; requests in flight are reset."""
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join()
        self._loop.close()

    async def _run(self) -> None:
        self._ended = asyncio.Event()
        self._at_work: set[asyncio.Task[None]] = set()
        server = await asyncio.start_server(self._accepted, sock=self._socket)
        await self._ended.wait()
        server.close()
        for task in self._at_work:
            task.cancel()
        await asyncio.gather(*self._at_work, return_exceptions=True)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request a connection: no state of an earlier one can hide a fault."""
        task = asyncio.current_task()
        assert task is not None
        self._at_work.add(task)
        try:
            await self._serve(reader, writer)
        except (OSError, EOFError):  # either side went away: so does this connection
            _reset(writer)
        finally:
            self._at_work.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if b"100-continue" in head:
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        body = await reader.readexactly(int(length[1]) if length else 0)
        fault = self.fault if self._generator.random() < SHARE else None
        if fault:
            self.struck[fault] += 1
        if fault == "reset":
            _reset(writer)
            return
        if fault in ("error 500", "error 503"):
            text = _BODY % _CODES[int(fault[-3:])]
            writer.write(_BAD % (int(fault[-3:]), len(text), text))
            await writer.drain()
            return
        if fault == "delay":
            await asyncio.sleep(self._generator.uniform(0, LONGEST_DELAY_S))
        answer = await self._ask_server(head, body)
        if fault == "cut answer":
            writer.write(answer[: len(answer) // 2])
            await writer.drain()
        if fault in ("lost answer", "cut answer") or not answer:
            _reset(writer)
            return
        writer.write(answer)
        await writer.drain()

    async def _ask_server(self, head: bytes, body: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        try:
            head_to_send = re.sub(rb"(?i)\r\n(expect|connection): [^\r]*", b"", head)
            writer.write(head_to_send.removesuffix(b"\r\n\r\n") + b"\r\nConnection: close\r\n\r\n" + body)
            await writer.drain()
            return await reader.read()
        finally:
            writer.close()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with a TCP reset instead of an orderly end."""
    raw = writer.get_extra_info("socket")
    if raw is not None and raw.fileno() >= 0:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
