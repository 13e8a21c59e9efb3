"""Imports point one way, and importing our packages stays cheap."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
HEAVY = {"torch", "vllm", "deepspeed", "transformers", "prefect", "great_expectations", "pandas", "matplotlib", "s3fs"}
_SCRIPT = """
import importlib, pkgutil, sys
package = importlib.import_module(sys.argv[1])
for info in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    if not info.name.endswith("__main__"):
        importlib.import_module(info.name)
print(*sys.modules)
"""
"""Imports every module of a package and prints all that is loaded then."""


@pytest.mark.parametrize(
    ("package", "unwanted"),
    [
        ("infra", HEAVY | {"opid_core.config", "envs", "tasks", "flows"}),
        ("envs", HEAVY | {"opid_core.config", "infra", "tasks", "flows"}),
        ("opid_core", {"prefect", "great_expectations", "matplotlib", "infra", "tasks", "flows"}),
        ("tasks", {"vllm", "deepspeed", "matplotlib", "flows"}),
    ],
)
def test_a_package_loads_nothing_that_it_must_not(package, unwanted):
    script = [sys.executable, "-c", _SCRIPT, package]
    loaded = set(subprocess.run(script, capture_output=True, text=True, check=True).stdout.split())
    assert any(name.startswith(f"{package}.") for name in loaded)
    assert unwanted & loaded == set()


def imported_by(folder: Path, without: str = "") -> set[str]:
    """Every module that those below `folder` import, in their functions too, but for those below its folder `without`;
    of `from a import b` both `a` and `a.b`."""
    found = set()
    for path in folder.rglob("*.py"):
        if without and (folder / without) in path.parents:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def test_commands_are_imported_by_commands_alone():
    assert "flows.cli.common" in imported_by(REPOSITORY / "flows")
    assert [name for name in imported_by(REPOSITORY / "flows", without="cli") if name.startswith("flows.cli")] == []


def test_the_algorithm_knows_no_world():
    of_envs = [name for name in imported_by(REPOSITORY / "opid_core") if name.split(".")[0] == "envs"]
    assert "envs.base" in of_envs
    assert [name for name in of_envs if not f"{name}.".startswith("envs.base.")] == []


def test_no_two_classes_have_one_name():
    names = [
        node.name
        for package in ("flows", "tasks", "opid_core", "envs", "infra")
        for path in (REPOSITORY / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
    ]
    assert len(names) > 100
    assert [name for name, times in Counter(names).items() if times > 1] == []
