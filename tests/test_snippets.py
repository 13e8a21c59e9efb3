"""What README and docs/ tell people to type: commands parse, configs load, Python runs; metrics are explained."""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import typer
import yaml
from typer._click.exceptions import BadOptionUsage, MissingParameter, NoSuchOption

from flows.cli import main as cli
from flows.reports.audit.metrics import definition_of
from opid_core.config import build_config
from opid_core.config.loading import read_config_file
from tests.test_docs import REPOSITORY

TO_TYPE = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs" / "tutorials").glob("*.md"))]
"""Pages that are typed from top to bottom: their programs run here. Those of other pages, which look at a campaign or
have a test of their own, are compiled."""
PAGES = [*TO_TYPE, *sorted({*(REPOSITORY / "docs").rglob("*.md")} - {*TO_TYPE})]
OWN = {
    "corridor": "tests.envs.corridor",
    "shortest": "tests.opid_core.skills.analyzers.shortest",
    "self_imitation": "tests.opid_core.learning.methods.self_imitation",
}
"""Modules that pages show whole, and where they lie here."""
GPU = 'title="needs a GPU"'
"""In the fence of a block that was never run here."""
FENCE = re.compile(r"^```(\w*)(?: ([^\n]*))?\n(.*?)^```$", re.DOTALL | re.MULTILINE)
COMMANDS = typer.main.get_command(cli.app).commands  # pyright: ignore[reportAttributeAccessIssue]
METRIC_PREFIXES = (
    *("rollout", "skills", "routes", "analyses", "cost", "tokens", "signal", "rescore"),
    *("advantage_share", "advantage_magnitude", "update", "learner", "evaluation", "seconds"),
)


def name_of(page: Path) -> str:
    """The page's path in the repository."""
    return str(page.relative_to(REPOSITORY))


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
    """Every `opid ...` line of the page's blocks, with the lines that continue it, and of its tables' code."""
    texts = [text.replace("\\\n", " ") for language, text in blocks(page) if language in ("", "bash")]
    return [line.split("#")[0].strip() for text in texts for line in text.splitlines() if line.startswith("opid ")] + (
        mentions(page) if page in TO_TYPE else []
    )


def mentions(page: Path) -> list[str]:
    """Every command that the page's text has as code, those with a word in capitals for something aside."""
    in_text = re.findall(r"`(opid [a-z][^`]*)`", FENCE.sub("", page.read_text(encoding="utf-8")))
    return [line for line in in_text if not re.search(r"\b[A-Z]{3,}\b|\.\.\.", line)]


def configs(text: str) -> list[str]:
    """A block's configs: each line of one that gives a key again and again is another one."""
    lines = text.splitlines()
    return lines if len(lines) > 1 and len({line.split(":")[0] for line in lines}) == 1 else [text]


def parse(line: str) -> None:
    """Raises a usage error for a command that cannot be called so."""
    _, name, *arguments = shlex.split(line)
    assert name in COMMANDS, line
    if arguments:
        COMMANDS[name].make_context(name, arguments)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_on_a_page_parses(page):
    for line in command_lines(page):
        parse(line)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_and_options_that_a_page_mentions_exist(page):
    for line in mentions(page):
        with contextlib.suppress(MissingParameter, BadOptionUsage):  # a mention may leave a value out
            parse(line)


def test_an_option_that_is_not_there_is_found():
    with pytest.raises(NoSuchOption):
        parse("opid train --no-such-option")
    with pytest.raises(AssertionError):
        parse("opid no-such-command")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_config_on_a_page_loads_and_every_program_compiles(page, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    shutil.copytree(REPOSITORY / "flows" / "templates", tmp_path / "my_project")  # as `opid init` writes it
    for language, text in blocks(page):
        if language == "python":
            program = compile(text, page.name, "exec")
            if page in TO_TYPE:
                (tmp_path / "half.py").write_text(text, encoding="utf-8")
                exec(program, {"__name__": "half"})
        for config in configs(text) if language == "yaml" else ():
            own = re.sub(rf"\b({'|'.join(OWN)})(?=:\w)", lambda name: OWN[name[0]], config)
            (tmp_path / "config.yaml").write_text(own, encoding="utf-8")
            assert isinstance(yaml.safe_load(config), dict)
            values = read_config_file(tmp_path / "config.yaml")
            build_config(values if page in TO_TYPE else {"campaign": "any", **values}, page.name)
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
    return {name for name in names if not definition_of(name).what}


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
