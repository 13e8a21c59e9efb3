"""Policy 0: a copy of the base policy that the config names, or a tiny one made by warm start."""

from __future__ import annotations

from pathlib import Path

from infra.scratch import scratch_folder
from infra.store import STATE_FOLDER, new_attempt, put_folder
from opid_core.policies import check_policy_folder
from opid_core.warm_start import warm_start
from tasks.context import Place, Policy, StageResult
from tasks.progress import report
from tasks.stage import environment_maker, stage


@stage("initial_policy")
def initial_policy(place: Place) -> StageResult:
    """Store policy 0: the weights alone, should the base policy be one of another campaign's. A learner continues from
    a stored optimizer state, with its learning rate and all, so a policy that begins has none."""
    config = place.config
    uri = f"policies/000000/{new_attempt()}"
    if config.policy is not None:
        check_policy_folder(config.policy)
        stored = put_folder(place.store, Path(config.policy), uri, without=STATE_FOLDER)
    else:
        with scratch_folder() as folder:
            warm_start(config, environment_maker(config), folder, on_progress=lambda *p: report(place.iteration, *p))
            stored = put_folder(place.store, folder, uri)
    return StageResult(policy=Policy(version=0, folder=stored))
