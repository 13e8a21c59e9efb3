"""Imports point one way, and importing our packages stays cheap."""

from __future__ import annotations

import subprocess
import sys

import pytest

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
