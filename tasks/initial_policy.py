"""Policy 0: a copy of the base policy that the config names (a folder, a model of the hub), or a tiny one made by warm
start."""

from __future__ import annotations

import json
from pathlib import Path

from prefect.assets import materialize

from infra.scratch import scratch_folder
from infra.store import STATE_FOLDER, new_attempt, put_folder
from opid_core.hub import BASE_MODEL, hub_model, pinned, policy_folder
from opid_core.policy_check import check_policy_folder
from opid_core.warm_start import warm_start
from tasks.episodes import environment_maker
from tasks.iteration import TASK, asset, stage
from tasks.progress import report


@materialize(asset("policy"), task_run_name="initial_policy", **TASK)
def initial_policy(campaign: str, iteration: int, attempt: int) -> None:
    """Store policy 0: the weights alone, should the base policy be one of another campaign's. A learner continues from
    a stored optimizer state, with its learning rate and all, so a policy that begins has none."""
    with stage("initial_policy", campaign, iteration, attempt) as it:
        if it.is_reused:
            return
        config, uri = it.config, f"policies/000000/{new_attempt()}"
        with scratch_folder() as folder:
            if config.policy is None:
                warm_start(config, environment_maker(config), folder, on_progress=lambda *p: report(iteration, *p))
                base = folder
            else:
                base = base_policy(config.policy, folder)
            it.keep_policy(put_folder(it.store, base, uri, without=STATE_FOLDER))


def base_policy(policy: str, scratch: Path) -> Path:
    """The folder that `policy` names; one of the hub as links in `scratch`, beside them what says where it is from."""
    folder = policy_folder(policy)
    check_policy_folder(folder)
    if (model := hub_model(policy)) is None:
        return folder
    for file in folder.iterdir():
        if file.name != BASE_MODEL:
            (scratch / file.name).symlink_to(file.resolve())
    of = pinned(model)
    (scratch / BASE_MODEL).write_text(json.dumps({"name": of.name, "revision": of.revision}, indent=2) + "\n")
    return scratch
