"""What README and tutorials tell people to type: commands parse, configs load, Python runs; metrics are explained."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import typer
import yaml

from flows.cli import main as cli
from opid_core.config import build_config
from opid_core.config.loading import read_config_file
from tests.test_docs import REPOSITORY

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs" / "tutorials").glob("*.md"))]
GPU = 'title="needs a GPU"'
"""In the fence of a block that was never run here."""
FENCE = re.compile(r"^```(\w*)(?: ([^\n]*))?\n(.*?)^```$", re.DOTALL | re.MULTILINE)
COMMANDS = typer.main.get_command(cli.app).commands  # pyright: ignore[reportAttributeAccessIssue]
METRIC_PREFIXES = (
    *("rollout", "skills", "routes", "analyses", "cost", "tokens", "signal", "rescore"),
    *("advantage_share", "advantage_magnitude", "update", "learner", "evaluation", "seconds"),
)


def fences(page: Path) -> list[tuple[str, str, str]]:
    """Language, options and text of the page's code blocks."""
    return FENCE.findall(page.read_text(encoding="utf-8"))


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and text of the page's code blocks."""
    found = []
    for language, options, text in fences(page):
        known = options in ("", GPU) or re.fullmatch(r'title="[\w.]+"', options)  # a file's name
        assert known, f"{page.name}: unknown option of a fence: {options}"
        found.append((language, text))
    return found


def command_lines(page: Path) -> list[str]:
    """Every `opid ...` line of the page's blocks, and of its tables' code."""
    in_blocks = [line for language, text in blocks(page) if language in ("", "bash") for line in text.splitlines()]
    in_text = re.findall(r"`(opid [a-z][^`]*)`", FENCE.sub("", page.read_text(encoding="utf-8")))
    return [line.split("#")[0].strip() for line in in_blocks if line.startswith("opid ")] + [
        line for line in in_text if not re.search(r"\b[A-Z]{3,}\b|\.\.\.", line)
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_on_a_page_parses(page):
    for line in command_lines(page):
        _, name, *arguments = shlex.split(line)
        assert name in COMMANDS, f"{page.name}: {line}"
        if arguments:
            COMMANDS[name].make_context(name, arguments)  # raises a usage error


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_config_on_a_page_loads_and_every_program_compiles(page, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    shutil.copytree(REPOSITORY / "flows" / "templates", tmp_path / "my_project")  # as `opid init` writes it
    for language, text in blocks(page):
        if language == "python":
            (tmp_path / "half.py").write_text(text, encoding="utf-8")
            exec(compile(text, page.name, "exec"), {"__name__": "half"})
        if language == "yaml":
            own = text.replace("corridor:corridor", "tests.envs.corridor:corridor")  # which docs/environments.md shows
            (tmp_path / "config.yaml").write_text(own, encoding="utf-8")
            assert isinstance(yaml.safe_load(text), dict)
            build_config(read_config_file(tmp_path / "config.yaml"), page.name)
    sys.modules.pop("half", None)


def test_the_readme_is_short():
    assert len((REPOSITORY / "README.md").read_text(encoding="utf-8").splitlines()) < 150


# Metrics ------------------------------------------------------------------------------------------------------------


def explained() -> list[str]:
    """The names on docs/metrics.md, with their placeholders."""
    page = (REPOSITORY / "docs" / "metrics.md").read_text(encoding="utf-8")
    return re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)


def unexplained(names: set[str]) -> set[str]:
    """Those of `names` that are not on the page."""
    forms = [re.sub(r"TYPE|KIND|STAGE", r"[^/]+", re.sub(r"\btT\b", r"[^/]+", name)) for name in explained()]
    return {name for name in names if not any(re.fullmatch(form, name) for form in forms)}


def test_metrics_on_the_page_and_in_the_code_are_the_same():
    """As far as the code writes their names out; the campaign of the integration tests checks those that it made."""
    sources = [*(REPOSITORY / "tasks").rglob("*.py"), *(REPOSITORY / "opid_core").rglob("*.py")]
    code = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    written = set(re.findall(rf'"((?:{"|".join(METRIC_PREFIXES)})/[a-z_0-9/]+)"', code))
    names = explained()
    assert len(written) > 40
    assert len(names) == len(set(names))
    assert {name for name in unexplained(written) if not any(known.startswith(name) for known in names)} == set()
    parts = {re.sub(r"_(low|high)$", "", name.split("/")[-1]).removesuffix("_s") for name in names}
    placeholders = {"TYPE", "STAGE"}
    assert {part for part in parts - placeholders if not re.search(rf"\b_?{part}(_s)?\b|_{part}\b", code)} == set()
