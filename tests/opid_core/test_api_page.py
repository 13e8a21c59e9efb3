"""docs/api.md: every public name with its signature, and programs that run."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import opid_core
from infra import store
from tests.factories import commit_rows, make_chain, valid_rows

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "api.md").read_text(encoding="utf-8")
EXTENDING = re.findall(
    r"^\* `([\w.]+)`: (.*(?:\n  .*)*)", PAGE.split("## Extending")[1].split("\n## ")[0], re.MULTILINE
)
STABLE = [(module, name) for module, names in EXTENDING for name in re.findall(r"`([A-Z]\w+|register)`", names)]
ENTRIES = dict(re.findall(r"^\* `(\w+)(\([^`]*\))?`: [A-Z`\"(\[]", PAGE, re.MULTILINE))


def shown(function: Any) -> str:
    """A signature as the page writes it: without types, a default that is no number, text or None as `...`."""
    parameters = []
    for parameter in inspect.signature(function).parameters.values():
        parameter = parameter.replace(annotation=inspect.Parameter.empty)
        if isinstance(parameter.default, int | float | str | None | type):
            parameters.append(parameter)
        else:
            parameters.append(parameter.replace(default=...))
    return str(inspect.Signature(parameters)).replace("Ellipsis", "...")


@pytest.mark.parametrize("name", opid_core.__all__)
def test_each_public_name_is_on_the_page_typed_and_explained(name):
    found = getattr(opid_core, name)
    assert inspect.getdoc(found)
    if inspect.isclass(found):
        assert ENTRIES[name] == ""
        return
    assert ENTRIES[name] == shown(found)
    signature = inspect.signature(found)
    assert all(parameter.annotation != inspect.Parameter.empty for parameter in signature.parameters.values())
    assert signature.return_annotation != inspect.Signature.empty


def test_the_page_has_no_other_name():
    assert {name for name in ENTRIES if not hasattr(opid_core, name)} <= set(store.__all__)
    assert {name for name in ENTRIES if hasattr(opid_core, name)} == set(opid_core.__all__)
    for name in ENTRIES.keys() - set(opid_core.__all__):
        assert ENTRIES[name] == shown(getattr(store, name))


@pytest.mark.parametrize(("module", "name"), STABLE)
def test_what_extensions_rest_on_is_importable_and_explained(module, name):
    found = getattr(importlib.import_module(module), name)
    assert isinstance(found, str) or inspect.getdoc(found)


@pytest.mark.parametrize(
    "page",
    [
        "methods",
        "environments",
        "analyzer",
        "tutorials/own_method",
        "tutorials/own_environment",
        "tutorials/own_analyzer",
    ],
)
def test_extensions_import_nothing_that_the_page_leaves_out(page):
    programs = re.findall(r"```python[^\n]*\n(.*?)```\n", (DOCS / f"{page}.md").read_text(encoding="utf-8"), re.DOTALL)
    imported = {
        (node.module, alias.name)
        for program in programs
        for node in ast.walk(ast.parse(program))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in ("opid_core", "envs")
        for alias in node.names
    }
    assert imported <= {*STABLE, *(("opid_core", name) for name in opid_core.__all__)}


def test_a_campaign_is_read_as_the_page_says(tmp_path, monkeypatch, capsys):
    made = store.open_campaign(tmp_path / "runs", "quickstart", {"campaign": "quickstart"})
    (start,) = make_chain(made, tmp_path / "work", 1)
    commit_rows(made, tmp_path / "work", start, valid_rows())
    (program,) = (text for text in re.findall(r"```python\n(.*?)```\n", PAGE, re.DOTALL) if "find_campaign" in text)
    monkeypatch.chdir(tmp_path)
    exec(compile(program, "api.md", "exec"), {})
    assert capsys.readouterr().out.startswith("3 samples, of won episodes 2\na ")
