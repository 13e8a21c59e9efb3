"""TensorBoard: event files in the campaign's local folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from infra import local_objects
from infra.store import local_folder
from tasks.markdown import as_code, markdown_table
from tasks.trackers.commits import Committed

SKILLS_SHOWN = 20
NEWEST = "newest"
"""The file that names the run and the iteration that was written last: event files would have to be read whole."""


def check() -> None:
    """It comes with OPID."""


def write(commits: Sequence[Committed]) -> None:
    """Add the metrics, and the skills that did most, of those commits that the files do not have. What files of earlier
    runs hold of these steps and later ones is no longer shown."""
    from torch.utils.tensorboard import SummaryWriter

    folder = local_folder(commits[-1].store, "tensorboard")
    missing = _missing(folder, commits)
    if not missing:
        return
    first = missing[0].iteration
    # before there are files, which without a note are those of a version that left none
    local_objects.put(folder / NEWEST, f"{missing[0].run} {first - 1}\n".encode())
    with local_objects.faults(folder, "written"), SummaryWriter(str(folder), purge_step=first) as writer:
        for commit in missing:
            for name, value in commit.metrics.items():
                writer.add_scalar(name, value, commit.iteration)
            if commit.skills:
                rows = [[_cell(value) for value in skill.values()] for skill in commit.skills[:SKILLS_SHOWN]]
                writer.add_text("skills", "\n".join(markdown_table([*commit.skills[0]], rows)), commit.iteration)
    local_objects.put(folder / NEWEST, f"{missing[-1].run} {missing[-1].iteration}\n".encode())


def _missing(folder: Path, commits: Sequence[Committed]) -> Sequence[Committed]:
    note = (local_objects.read(folder / NEWEST, 1000) or b"").decode(errors="replace").split()
    if len(note) == 2 and note[1].isdecimal():
        return commits[int(note[1]) if note[0] == commits[-1].run else 0 :]
    # files of a version that left no such note have all that came before
    return commits[-1:] if any(folder.glob("events.*")) else commits


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else as_code(value) if isinstance(value, str) else str(value)
