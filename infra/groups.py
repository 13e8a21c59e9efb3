"""What callers know of hosted objects, wherever their processes run: on this machine (`infra.hosting`), or on the nodes
of a cluster (`infra.ray_hosting`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from infra.campaigns import CampaignStore, location
from infra.folders import shared_folder_path
from infra.manifest import FolderRecord


class Group(Protocol):
    """One object in each of several processes; every call runs on all of them. Once a call has failed it is gone."""

    name: str

    def create(self) -> None:
        """Let the processes make their objects, and return while they do: the next call waits for them."""
        ...

    def call(self, method: str, *arguments: Any, on_progress: Callable[..., None] | None = None, **named: Any) -> Any:
        """Call `method` on every rank; the first rank's result. See `HostedGroup.call` for progress and errors."""
        ...

    def begin(self, method: str, *arguments: Any, **named: Any) -> None:
        """Start what `call` would do, and return while the processes work."""
        ...

    def finish(self) -> Any:
        """Wait for what was begun: the first rank's result. Raises as `call` does."""
        ...

    def kill(self) -> None:
        """End the processes, and return when they and their memory are gone; safe to call twice."""
        ...


@dataclass(frozen=True)
class StoredFolder:
    """A folder of a store, or the folder `part` in it, as an argument for objects on other machines: each gets the path
    of a copy on its own."""

    store: CampaignStore
    folder: FolderRecord
    part: str = ""

    def path(self) -> Path:
        """The copy on this machine, fetched and hashed. Raises as `folder_path` does."""
        return shared_folder_path(self.store, self.folder) / self.part

    def remove(self, path: Path) -> None:
        """Remove what `path` has made for its caller alone: nothing, for the cache is everybody's."""

    def __str__(self) -> str:
        return location(self.store, f"{self.folder.uri}/{self.part}".rstrip("/"))


Folder = Path | StoredFolder
"""A folder as an argument of hosted objects: a path where they share this machine's disk."""


def folder_in(folder: Folder, part: str) -> Folder:
    """The folder `part` in `folder`."""
    return folder / part if isinstance(folder, Path) else replace(folder, part=part)


def is_same_folder(given: Folder, path: Path) -> bool:
    """Whether `path`, of the machine of a hosted object, is what it got for `given`."""
    if isinstance(given, Path):
        return path == given
    wanted = Path(given.folder.uri, given.part).parts
    return path.parts[-len(wanted) :] == wanted
