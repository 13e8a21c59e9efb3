"""Seeds: every random draw's seed is a hash of the campaign's seed and the names of what is drawn."""

from __future__ import annotations

import hashlib


def derive(seed: int, *names: int | str) -> int:
    """A 63-bit seed for `names` under `seed`: same arguments, same seed, on every machine."""
    text = "/".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1  # tables hold signed 64-bit integers
