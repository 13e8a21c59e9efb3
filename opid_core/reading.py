"""Reading what others wrote, a file or a reply, in bounded time and memory: it may be endless, huge or nested deeply.

All but `json_of_file` and `whole_characters`, which raise DataError, end in the errors of ordinary damage (OSError,
UnicodeDecodeError, json.JSONDecodeError), so that whoever reads says what for.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any, TextIO

from opid_core.errors import DataError

MAX_BYTES = 1 << 24
"""Of a text or JSON text that is read whole (16 MiB), where the caller knows no better."""
MAX_DEPTH = 100
"""Of nested lists and objects; what follows them by recursion, Python's own writer included, ends at some 1,000."""


ACCEPTED = {"Accept-Encoding": "gzip"}
"""Header of requests: a piece of gzip grows a thousand times at most, one of zstd or brotli without any such limit."""


class NotRegular(OSError):
    """A pipe, a device or a folder in place of a file: some of them never end."""


def well_formed(text: str) -> str:
    """`text` with U+FFFD for each lone surrogate: JSON can spell them, UTF-8, Parquet and tokenizers cannot."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def open_regular(path: str | Path) -> BufferedReader:
    """Open a file for reading bytes. Raises OSError, NotRegular for what is no regular file."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe is not waited for
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    raise NotRegular(errno.EINVAL, "not a regular file", str(path))


def read_text(path: str | Path, max_bytes: int = MAX_BYTES) -> str:
    """The UTF-8 text of a file. Raises OSError (for more than `max_bytes` too), UnicodeDecodeError."""
    with open_regular(path) as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise OSError(errno.EFBIG, f"longer than {max_bytes} bytes", str(path))
    return data.decode("utf-8")


def lines_of(file: TextIO, max_characters: int = MAX_BYTES) -> Iterator[str]:
    """The lines of an open text file. Raises OSError for one longer than `max_characters`."""
    while line := file.readline(max_characters + 1):
        if len(line) > max_characters:
            raise OSError(errno.EFBIG, f"a line longer than {max_characters} characters")
        yield line


async def body_of(response: Any) -> bytes:
    """The body of a streamed response (httpx), decoded; the response is closed. Raises OSError for more than
    `MAX_BYTES`, and for an encoding other than `ACCEPTED`."""
    try:
        if response.headers.get("Content-Encoding", "identity").lower() not in ("identity", "gzip"):
            raise OSError(errno.EINVAL, "an encoding that was not asked for")
        body = bytearray()
        async for piece in response.aiter_bytes():
            body += piece
            if len(body) > MAX_BYTES:
                raise OSError(errno.EFBIG, f"longer than {MAX_BYTES} bytes")
        return bytes(body)
    finally:
        await response.aclose()


def parse_json(text: str | bytes, max_bytes: int = MAX_BYTES, **options: Any) -> Any:
    """The value of a JSON text; `options` are those of `json.loads`. Raises json.JSONDecodeError for text that is
    none, longer than `max_bytes` (characters of a str), or nested deeper than `MAX_DEPTH`."""
    if len(text) > max_bytes:
        raise json.JSONDecodeError(f"longer than {max_bytes} bytes", "", 0)
    try:
        value = json.loads(text, **options)
    except RecursionError:
        value = _TOO_DEEP
    except json.JSONDecodeError:
        raise
    except ValueError as error:  # bytes that are no UTF-8, a number of thousands of digits
        raise json.JSONDecodeError(str(error), "", 0) from None
    if value is _TOO_DEEP or not _is_flat(text, value):
        raise json.JSONDecodeError(f"nested deeper than {MAX_DEPTH}", "", 0)
    return value


def json_of_file(path: Path, max_bytes: int = MAX_BYTES) -> Any:
    """The value in a JSON file. Raises DataError that names it where it cannot be read, or is no JSON."""
    try:
        return parse_json(read_text(path, max_bytes), max_bytes)
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON: {error}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def whole_characters(text: str, where: str) -> str:
    """`text`. Raises DataError, which begins with `where`, if JSON escapes in it stand for half a character
    (`\\ud83d`), which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: half a character (surrogate) at position {error.start}") from None
    return text


_TOO_DEEP = object()


def _is_flat(text: str | bytes, value: Any) -> bool:
    opening = ("[", "{") if isinstance(text, str) else (b"[", b"{")
    if sum(map(text.count, opening)) <= MAX_DEPTH:  # pyright: ignore[reportArgumentType]
        return True
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            if isinstance(outer, list | dict)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return not any(isinstance(outer, list | dict) for outer in level)
