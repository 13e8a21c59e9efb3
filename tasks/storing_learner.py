"""A learner that stores what it has learned, from the machine that it is on."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from infra.manifest import FileRecord, FolderRecord
from infra.scratch import make_scratch_folder
from infra.store import STATE_FOLDER, CampaignStore, put_folder, put_part
from opid_core.learning.learner import Learner


class StoringLearner(Learner):
    """A `Learner` whose ranks store what they save: each its own shards, the first one the weights too."""

    def store(self, store: CampaignStore, uri: str) -> FolderRecord:
        """Store the policy at `uri`. On return its weights are there, and its state is on this machine's disk: it is
        uploaded in the background, until `stored`, while the learner may score. The weights' record (first rank)."""
        folder, files = make_scratch_folder(), ()
        self.export(folder)
        self.save(folder / STATE_FOLDER)
        if torch.distributed.get_rank() == 0:
            files = put_folder(store, folder, uri, without=STATE_FOLDER).files
        self._weights = FolderRecord(uri=uri, files=files)
        self._upload = ThreadPoolExecutor(1).submit(self._put_state, store, folder, uri)
        return self._weights

    def stored(self) -> FolderRecord:
        """Wait for what `store` began: the record of all ranks' files. Raises what went wrong with the upload."""
        parts: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(parts, (*self._weights.files, *self._upload.result()))
        files = sorted((file for part in parts for file in part), key=lambda file: file.path)
        return FolderRecord(uri=self._weights.uri, files=tuple(files))

    def _put_state(self, store: CampaignStore, folder: Path, uri: str) -> tuple[FileRecord, ...]:
        """Copy the state in `folder`, if there is one (at ZeRO 0 the first rank has it all), and remove the folder."""
        try:
            return put_part(store, folder, uri, STATE_FOLDER)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
