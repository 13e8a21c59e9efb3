"""What others wrote is read in bounded time and memory, and ends in one error."""

from __future__ import annotations

import errno
import io
import json
import os

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from envs.alfworld.games import read_pack
from envs.manifest import manifest_splits
from envs.search_qa.data import read_corpus
from envs.webshop import catalog
from opid_core.config.loading import load_config
from opid_core.config.strict_yaml import parse_yaml
from opid_core.errors import ConfigError, DataError
from opid_core.reading import MAX_DEPTH, NotRegular, lines_of, open_regular, parse_json, read_text

VALUES = st.recursive(
    st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
)


@given(VALUES)
def test_json_is_read_as_ever(value):
    assert parse_json(json.dumps(value)) == value
    assert parse_json(json.dumps(value).encode()) == value


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_json_may_be_nested_so_deeply_and_no_deeper(opening):
    closing = {"[": "]", '{"a":': "}"}[opening]

    def nested(depth: int) -> str:
        return opening * (depth - 1) + "[]" + closing * (depth - 1)

    parse_json(nested(MAX_DEPTH))
    for depth in (MAX_DEPTH + 1, 500, 100_000):
        with pytest.raises(json.JSONDecodeError, match="nested deeper than 100"):
            parse_json(nested(depth))
    wide = [[]] * (3 * MAX_DEPTH)
    assert parse_json(json.dumps(wide)) == wide


@pytest.mark.parametrize("text", [b"\xff", "1" * 5000, b"[1, 2]" + b" " * 20])
def test_json_of_another_kind_of_trouble_is_the_same_error(text):
    with pytest.raises(json.JSONDecodeError):
        parse_json(text, 5000 if isinstance(text, str) else 20)


def test_a_text_is_read_up_to_its_limit(tmp_path):
    (tmp_path / "file").write_text("äbc")
    assert read_text(tmp_path / "file", 4) == "äbc"
    with pytest.raises(OSError, match="longer than 3 bytes") as caught:
        read_text(tmp_path / "file", 3)
    assert caught.value.errno == errno.EFBIG
    assert list(lines_of(io.StringIO("ab\ncd"), 3)) == ["ab\n", "cd"]
    with pytest.raises(OSError, match="a line longer than 2 characters"):
        list(lines_of(io.StringIO("ab\ncd"), 2))


@pytest.fixture
def pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


def test_only_regular_files_are_opened(tmp_path, pipe):
    for path in ("/dev/zero", pipe, tmp_path):
        with pytest.raises(NotRegular):
            open_regular(path)


def test_a_config_that_extends_a_device_is_refused(tmp_path, pipe):
    for base in ("/dev/zero", pipe):
        (tmp_path / "config.yaml").write_text(f"extends: {base}\ncampaign: c\n")
        with pytest.raises(ConfigError, match=f"{base}: cannot read the config: not a regular file"):
            load_config(tmp_path / "config.yaml")


BOMB = "\n".join(["a0: &a0 [x, x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12))])
MERGED = "\n".join(
    ["a0: &a0 {x: 1}", *(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}" for n in range(1, 12))]
)


@pytest.mark.parametrize("text", [BOMB, MERGED, "a: &a [*a]", "[" * 5000, "a: " + "[" * 50 + ",".join("x" * 20_000)])
def test_yaml_that_stands_for_too_much_is_refused(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"config\.yaml: not valid YAML"):
        load_config(tmp_path / "config.yaml")


def test_yaml_may_use_aliases():
    text = "a: &a {x: 1, y: [2]}\nb: *a\nc: {<<: *a, x: 3}"
    assert parse_yaml(text) == yaml.safe_load(text)
    assert parse_yaml("") is None


DEEP = "[" * 100_000


def test_data_that_is_nested_deeply_or_endless_is_refused_by_name(tmp_path, pipe):
    games, corpus, products = (tmp_path / name for name in ("games.jsonl", "corpus.jsonl", "products.json"))
    games.write_text(DEEP)
    corpus.write_text(f'{{"id": "1", "contents": {DEEP}')
    with pytest.raises(DataError, match=f"{games}, line 1: not valid JSON"):
        list(read_pack(games))
    with pytest.raises(DataError, match=f"{corpus}, line 1, .*nested deeper"):
        list(read_corpus(corpus))
    products.write_text(DEEP)
    with pytest.raises(DataError, match=rf"{products}, entry 0: not valid JSON: nested"):
        list(catalog._array_entries(products))
    (tmp_path / "manifest.json").write_text('{"train": ' + DEEP)
    with pytest.raises(DataError, match=r"manifest\.json, line 1: not valid JSON: nested"):
        manifest_splits(str(tmp_path / "manifest.json"))
    with pytest.raises(ConfigError, match=r"pipe cannot be read: .*not a regular file"):
        manifest_splits(str(pipe))
