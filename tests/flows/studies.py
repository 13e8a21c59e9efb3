"""The config files of a small study."""

from __future__ import annotations

from pathlib import Path

BASE = """
campaign: {label}
root: {root}
seed: 5
iterations: 1
policy: somewhere
rollout: {{tasks_per_iteration: 2, group_size: 2}}
evaluation: {{tasks: 2}}
method: {method}
"""


def config_file(folder: Path, label: str, method: str, more: str = "") -> Path:
    path = folder / f"{label}.yaml"
    path.write_text(BASE.format(label=label, root=folder / "runs", method=method) + more, encoding="utf-8")
    return path
