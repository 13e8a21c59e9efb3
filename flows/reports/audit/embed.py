"""Data in a page: never markup, whatever it holds, and exactly what it was when it is read again."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from typing import Any


def packed(value: Any) -> str:
    """`value` as JSON, gzipped, in base64: letters, digits, `+`, `/` and `=` only. The same for the same value."""
    return base64.b64encode(gzip.compress(_json(value), 9, mtime=0)).decode()


def unpacked(text: str) -> Any:
    """What `packed` was given: what the page's script reads."""
    return json.loads(gzip.decompress(base64.b64decode(text)))


def content_hash(text: str) -> str:
    """The source expression that lets a Content-Security-Policy run exactly this inline script or style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def visible(value: Any) -> str:
    """`value` as one line of ASCII: JSON, in which control characters and line ends can be seen."""
    return json.dumps(value, default=str)


def _json(value: Any) -> bytes:
    # ASCII: a lone surrogate, which UTF-8 cannot hold, stays what it is as an escape
    return json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode("ascii")
