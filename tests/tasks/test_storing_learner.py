"""A learner in a process of its own that stores what it holds, the optimizer state in the background."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from infra.groups import Group
from infra.manifest import state_files, weights_only
from infra.store import CampaignStore, folder_path, location, open_campaign
from opid_core.config import CampaignConfig, build_config
from opid_core.errors import InfrastructureError
from opid_core.samples import Ragged
from tasks.places import LocalPlaces
from tests.factories import make_tiny_policy_folder, stored_paths

pytestmark = pytest.mark.integration

URI = "policies/000001/a"


@pytest.fixture
def config(tmp_path) -> CampaignConfig:
    values = {"campaign": "c", "root": str(tmp_path / "runs"), "threads": 1, "learner": {"ranks": 2, "zero_stage": 1}}
    return build_config(values)


@pytest.fixture
def store(config) -> CampaignStore:
    return open_campaign(config.root, config.campaign, config.model_dump(mode="json"))


@pytest.fixture
def learner(config, tmp_path):
    group = LocalPlaces(config).learner(make_tiny_policy_folder(tmp_path / "policy"), config.learner)
    yield group
    group.kill()


def scored(learner: Group) -> Ragged:
    tokens = Ragged.from_rows([[5, 6], [7, 8, 9]], np.int64)
    return learner.call("score", tokens, tokens)


def test_the_weights_are_there_first_and_the_state_of_all_ranks_in_the_end(learner, store):
    before = scored(learner)
    weights = learner.call("store", store, URI)
    assert (folder_path(store, weights) / "model.safetensors").is_file()
    assert state_files(weights) == []
    assert scored(learner).values.tolist() == before.values.tolist()
    whole = learner.call("stored")
    assert weights_only(whole) == weights
    assert [Path(file.path).name for file in state_files(whole) if file.path.endswith(".pt")] == [
        "mp_rank_00_model_states.pt",
        *(f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for rank in (0, 1)),
    ]
    assert [file.path for file in whole.files] == stored_paths(store, "policies")
    folder_path(store, whole)


def test_an_upload_that_fails_is_an_infrastructure_fault_of_what_waits_for_it(learner, store):
    blocking = Path(location(store, f"{URI}/optimizer"))
    blocking.parent.mkdir(parents=True)
    blocking.touch()
    assert len(learner.call("store", store, URI).files) > 0
    scored(learner)
    with pytest.raises(InfrastructureError, match="optimizer"):
        learner.call("stored")
