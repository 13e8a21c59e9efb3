"""A start that several campaigns of a study have in common: its panel is played once."""

from __future__ import annotations

import hashlib
from pathlib import Path

from infra import stages
from infra.manifest import FolderRecord
from infra.store import CampaignStore, manifests, new_attempt, read_table, write_table
from opid_core.config import CampaignConfig
from opid_core.hub import BASE_MODEL
from tasks.evaluate import evaluation_metrics
from tasks.results import StageResult, made_from
from tasks.version import code_version

_STAGE = "evaluate"


def adopt_evaluation(config: CampaignConfig, store: CampaignStore, folder: Path, other: CampaignStore) -> bool:
    """Record, as a finished stage of the start of the campaign of `config`, the evaluation that `other` has committed
    of its own start: that of a campaign with the same seed, world, panel and engine, which so plays the same episodes.
    The stage is gone on with as after an interruption.

    False, and nothing is done, where this campaign has evaluated its start, or where the start of `other` is not
    committed, is of another version of the program, or of another policy than the one in `folder`.
    """
    theirs, attempt = manifests(other)[:1], stages.current_attempt(store, 0)
    if not theirs or manifests(store) or _STAGE in stages.finished(store, 0, attempt):
        return False
    (start,) = theirs
    if start.code_version != code_version() or not _is_copy_of(start.policy, folder):
        return False
    evaluations = read_table(other, start.tables["evaluations"])
    result = StageResult(
        tables={"evaluations": write_table(store, "evaluations", 0, new_attempt(), evaluations)},
        gates=(start.gates["evaluations"],),
        metrics=evaluation_metrics(evaluations),
    )
    stages.record(store, 0, attempt, _STAGE, made_from(config, None, _STAGE), result.model_dump(mode="json"))
    return True


def _is_copy_of(policy: FolderRecord, folder: Path) -> bool:
    """Whether all files of the stored policy, but for the note of where it is from, are those of `folder`."""
    for file in policy.files:
        path = folder / policy.name_of(file)
        if path.name == BASE_MODEL:
            continue
        if not path.is_file() or path.stat().st_size != file.size:
            return False
        with open(path, "rb") as data:
            if hashlib.file_digest(data, "sha256").hexdigest() != file.sha256:
                return False
    return True
