"""Policy 0: a copy of the base policy that the config names, or a tiny one made by warm start."""

from __future__ import annotations

from prefect.assets import materialize

from infra.scratch import scratch_folder
from infra.store import STATE_FOLDER, new_attempt, put_folder
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
        if config.policy_folder is not None:
            check_policy_folder(config.policy_folder)
            it.keep_policy(put_folder(it.store, config.policy_folder, uri, without=STATE_FOLDER))
            return
        with scratch_folder() as folder:
            warm_start(config, environment_maker(config), folder, on_progress=lambda *p: report(iteration, *p))
            it.keep_policy(put_folder(it.store, folder, uri))
