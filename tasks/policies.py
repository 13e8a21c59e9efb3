"""A stored policy as folders, whether it holds all its weights or, with LoRA, an adapter on those of policy 0."""

from __future__ import annotations

import secrets
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from infra.folders import shared_folder_path
from infra.groups import StoredFolder
from infra.hosting import HostedGroup
from infra.local_objects import faults
from infra.manifest import FolderRecord, is_adapter
from infra.scratch import make_scratch_folder, others_scratch, scratch_folder, scratch_lock
from infra.store import CampaignStore, base_of, folder_path, weights_only


@contextmanager
def whole_policy(store: CampaignStore, policy: FolderRecord) -> Iterator[Path]:
    """The HF folder of the stored `policy`, without optimizer state. That of an adapter is written to the temporary
    folder, base and adapter merged, and removed at the end of the block.

    Raises DataError for what is missing or damaged in the store.
    """
    base, adapter = base_and_adapter(store, weights_only(policy))
    if adapter is None:
        yield folder_path(store, base)
        return
    from opid_core.learning.lora import write_merged

    with scratch_folder() as scratch:
        write_merged(folder_path(store, base), folder_path(store, adapter), scratch / "policy")
        yield scratch / "policy"


def base_and_adapter(store: CampaignStore, policy: FolderRecord) -> tuple[FolderRecord, FolderRecord | None]:
    """The record of all the weights that `policy` begins with, and that of its adapter (None: it has none). Raises
    DataError where the start, whose weights those of an adapter are, is missing."""
    return (weights_only(base_of(store)), policy) if is_adapter(policy) else (policy, None)


@dataclass(frozen=True)
class MergedFolder(StoredFolder):
    """The HF folder of a stored adapter merged into `base`, as an argument for objects on other machines."""

    base: FolderRecord = field(kw_only=True)
    key: str = field(kw_only=True, default_factory=lambda: secrets.token_hex(8))
    """Where this crosses to several processes of a machine, they share the copy that has it in its path."""

    def path(self) -> Path:
        """A copy in this machine's temporary folder, there until `remove` or the end of the process that asked first:
        it merges, the others wait. Raises as `folder_path` does, and InfrastructureError."""
        base, adapter = (shared_folder_path(self.store, one) for one in (self.base, self.folder))
        name = f"{self.key}/{self.folder.uri}"
        with scratch_lock(self.key):
            return others_scratch(name) or self._merged(base, adapter, name)

    def _merged(self, base: Path, adapter: Path, name: str) -> Path:
        scratch = make_scratch_folder()
        # The process that asks is of the cluster: torch, and the memory of a whole model, are another one's.
        group = HostedGroup(
            f"merging of base and adapter on {socket.gethostname()}",
            "importlib:import_module",
            "opid_core.learning.lora",
        )
        try:
            group.call("write_merged", base, adapter, scratch / "merging")
            with faults(scratch / name, "written"):
                (scratch / name).parent.mkdir(parents=True)
                (scratch / "merging").rename(scratch / name)  # whole, or not there
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
        finally:
            group.kill()
        return scratch / name

    def remove(self, path: Path) -> None:
        """Remove the copy at `path`: the driver says so to all who share it, when all have read it."""
        shutil.rmtree(path.parents[self.folder.uri.count("/") + 1], ignore_errors=True)
