"""What the texts of skills are compared with: each other, what the policy was shown, what they must not tell.

All comparisons are of words (runs of letters, digits and `_`), whatever their case and what stands between them.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence

NEAR_DUPLICATE = 0.8
"""Least Jaccard similarity of two texts' pairs of neighbouring words, at which they are nearly the same."""

_WORD = re.compile(r"\w+")
_BETWEEN = str.maketrans({code: " " for code in range(128) if not _WORD.match(chr(code))})


def words(text: str) -> list[str]:
    """The words of `text`, in their order and in lower case."""
    if text.isascii():
        return text.lower().translate(_BETWEEN).split()  # the same, in a fifth of the time
    return _WORD.findall(text.casefold())


def duplicate_of(texts: Sequence[str], names: Sequence[str]) -> list[str]:
    """For each text the name of the first one that is the same, "" for the first itself."""
    first: dict[str, str] = {}
    found = [first.setdefault(text, name) for text, name in zip(texts, names, strict=True)]
    return ["" if name == earlier else earlier for name, earlier in zip(names, found, strict=True)]


def near_duplicate_of(texts: Sequence[str], names: Sequence[str]) -> list[str]:
    """For each text the name of an earlier, different one that is nearly the same, else "".

    Each text is compared with the earlier ones that were no near-duplicates themselves, and of these only with those
    that share one of its rarest pairs of words: two sets of similarity s or more always share one of the first
    n - ceil(s n) + 1 of their n elements, in any common order (prefix filtering: Chaudhuri et al. 2006).
    """
    first = dict(zip(reversed(texts), reversed(names), strict=True))
    unique = list(dict.fromkeys(texts))
    sets = [_pairs(text) for text in unique]
    frequency = Counter(pair for pairs in sets for pair in pairs)
    kept_with: dict[tuple[str, ...], list[int]] = {}
    near: dict[str, str] = {}
    for number, pairs in enumerate(sets):
        rarest = sorted(pairs, key=lambda pair: (frequency[pair], pair))
        prefix = rarest[: len(pairs) - math.ceil(NEAR_DUPLICATE * len(pairs)) + 1]
        candidates = sorted({earlier for pair in prefix for earlier in kept_with.get(pair, ())})
        similar = next((earlier for earlier in candidates if _jaccard(pairs, sets[earlier]) >= NEAR_DUPLICATE), None)
        if similar is not None:
            near[unique[number]] = first[unique[similar]]
            continue
        for pair in prefix:
            kept_with.setdefault(pair, []).append(number)
    return [near.get(text, "") for text in texts]


def searchable(texts: Iterable[str]) -> str:
    """The words of `texts` as one text to find runs of words in; no run goes from one text into the next."""
    return " | ".join(["", *(" ".join(words(text)) for text in texts), ""])


def without(source: str, texts: Iterable[str]) -> str:
    """`source` (made by `searchable`) in which each of `texts`, as words in a row, ends a run as a text's end does; the
    longest where several begin at a word."""
    runs = {run for text in texts if (run := tuple(words(text)))}
    lengths: dict[str, list[int]] = {}
    for first, length in sorted({(run[0], len(run)) for run in runs}, reverse=True):
        lengths.setdefault(first, []).append(length)  # by the first word, which most words of a source are not
    found, kept, done = source.split(" "), [], 0
    for at in [at for at, word in enumerate(found) if word in lengths]:
        length = next((n for n in lengths[found[at]] if tuple(found[at : at + n]) in runs), 0)
        if at >= done and length:
            kept += [*found[done:at], "|"]
            done = at + length
    return " ".join([*kept, *found[done:]])


def longest_copied_run(text: str, source: str, known: str = "") -> int:
    """Most words in a row of `text` that stand so in `source` but not in `known` (both made by `searchable`)."""
    found, longest = words(text), 0

    def run(start: int, length: int) -> str:
        return f" {' '.join(found[start : start + length])} "

    for start in range(len(found)):
        length = longest
        while start + length < len(found) and run(start, length + 1) in source:
            length += 1
        if length > longest and run(start, length) not in known:
            longest = length
    return longest


def forbidden_in(text: str, forbidden: Iterable[str]) -> str:
    """The first of the `forbidden` texts whose words stand in `text`, "" for none."""
    source = searchable([text])
    return next((one for one in forbidden if words(one) and f" {' '.join(words(one))} " in source), "")


def _pairs(text: str) -> frozenset[tuple[str, ...]]:
    """Pairs of neighbouring words; of a text of one word, that word."""
    found = words(text)
    return frozenset(itertools.pairwise(found)) if len(found) > 1 else frozenset([tuple(found)])


def _jaccard(one: frozenset, other: frozenset) -> float:
    shared = len(one & other)
    return shared / (len(one) + len(other) - shared)
