"""What code, configs and pages refer to exists: pages, and the headings in them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).parents[1]
FOLDERS = ("flows", "tasks", "opid_core", "envs", "infra", "tests", "benchmarks", "configs", "docs")
FILES = [
    *(path for path in REPOSITORY.iterdir() if path.is_file()),
    *(path for folder in FOLDERS for path in (REPOSITORY / folder).rglob("*")),
]
PAGES = [path for path in FILES if path.suffix == ".md"]
TEXTS = [path for path in FILES if path.suffix in (".py", ".yaml", ".toml", ".md") or path.name == "Makefile"]


def headings(page: Path) -> set[str]:
    """The anchors that a renderer of Markdown gives to the page's headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    found = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_lead_to_pages_and_headings_that_exist(page):
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        address, _, anchor = link.partition("#")
        if ":" in address:
            continue
        target = (page.parent / address) if address else page
        if not target.exists() or (anchor and anchor not in headings(target)):
            broken.append(link)
    assert not broken


def test_the_site_has_every_page_once():
    def pages(entry: Any) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        return [page for part in (entry.values() if isinstance(entry, dict) else entry) for page in pages(part)]

    nav = pages(yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    assert sorted(nav) == sorted(
        str(path.relative_to(REPOSITORY / "docs")) for path in (REPOSITORY / "docs").rglob("*.md")
    )


def test_the_site_is_built_without_a_warning_and_every_link_in_it_leads_somewhere(tmp_path):
    # Not with --quiet, which keeps mkdocs from counting its warnings.
    mkdocs = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}  # which tells of the end of mkdocs, on each build
    built = subprocess.run(mkdocs, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    told = built.stdout + built.stderr
    assert "WARNING" not in told
    assert built.returncode == 0, told
    assert (tmp_path / "tutorials" / "first_campaign" / "index.html").is_file()


def test_pages_that_code_and_configs_name_exist():
    named = {
        (str(path.relative_to(REPOSITORY)), page)
        for path in TEXTS
        for page in re.findall(r"\bdocs/[\w/]+\.(?:md|png|json)\b", path.read_text(encoding="utf-8"))
    }
    assert len(named) > 20
    assert not {(where, page) for where, page in named if not (REPOSITORY / page).exists()}


def test_sections_of_the_algorithm_that_docstrings_cite_exist():
    sections = set(re.findall(r"^## (\d+)\.", (REPOSITORY / "docs/algorithm.md").read_text(encoding="utf-8"), re.M))
    cited = {
        (str(path.relative_to(REPOSITORY)), section)
        for path in FILES
        if path.suffix == ".py"
        for numbers in re.findall(r"ALGORITHM, sections? ([\d, and]+)", path.read_text(encoding="utf-8"))
        for section in re.findall(r"\d+", numbers)
    }
    assert len(cited) > 20
    assert not {(where, section) for where, section in cited if section not in sections}


# Commits ------------------------------------------------------------------------------------------------------------

QUOTED = re.compile(r"\b[Cc]ommits?\s+`?([0-9a-f]{7,40})\b|\b(?=\d*[a-f])(?=[a-f]*\d)([0-9a-f]{7})\b")
"""A commit: what follows the word, and any seven digits of a hash, letters among them."""
OF_OTHERS = {"03c8cca", "0f6e5e4", "12ec101", "203e31c", "37a15a5", "873d52c", "9520fca", "e5c0b0f"}
"""Commits of other repositories, which docs/paper.md names."""


def git(*arguments: str) -> str:
    """What git says of this clone. Skips the test where there is no git, or it refuses."""
    try:
        told = subprocess.run(["git", "-C", REPOSITORY, *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no history of this repository: {error}")
    return told.stdout


def test_commits_that_pages_quote_are_in_the_history():
    if not (REPOSITORY / ".git").exists() or git("rev-parse", "--is-shallow-repository").strip() != "false":
        pytest.skip("no history of this repository")
    quoted = {
        commit: str(page.relative_to(REPOSITORY))
        for page in PAGES
        for found in QUOTED.finditer(page.read_text(encoding="utf-8"))
        if (commit := found[1] or found[2]) not in OF_OTHERS
    }
    assert len(quoted) > 40
    kept = git("log", "--format=%H", "HEAD").splitlines()
    assert not {commit: page for commit, page in quoted.items() if not any(name.startswith(commit) for name in kept)}
