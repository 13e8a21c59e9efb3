"""The shipped tiny campaigns of environments that others have written, rollout to commit, each with the real package;
OpenEnv's behind a server of its protocol."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from infra.store import verify
from tests.envs.open_env_server import open_env_server
from tests.integration.campaigns import REPOSITORY, finish, opened, start

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(1200)]

GUESSING = "observation_field: text, action_field: message, success: reward, success_from: 1.0"


@pytest.mark.parametrize("name", ["gymnasium", "textarena", "scienceworld", "openenv"])
def test_the_shipped_campaign_commits_an_iteration(tmp_path, prefect_server, name):
    if name != "openenv":
        pytest.importorskip(name, reason=f"needs the extra `{name}`")
    root: Path = tmp_path / name
    text = (REPOSITORY / "configs" / f"tiny_{name}.yaml").read_text(encoding="utf-8")
    options = ["campaign=tiny", "iterations=1"]
    with ExitStack() as servers:
        if name == "openenv":
            url = servers.enter_context(open_env_server())
            options.append(f"environment.options={{url: '{url}', task: guess the number, {GUESSING}}}")
        printed = finish(start(root, prefect_server, *options, text=text), root)
    found = opened(root, printed)
    assert [manifest.iteration for manifest in found.chain] == [0, 1]
    verify(found.store)
    trajectories, steps = found.rows("trajectories", 1), found.rows("steps", 1)
    assert len(trajectories) == 2 * 3
    assert {row["outcome"] for row in trajectories} <= {"success", "failure", "truncated"}
    assert len(steps) == sum(row["steps"] for row in trajectories) == found.chain[1].tables["scores"].rows
    # Members of a group begin in the same world.
    first = {(row["group_id"], row["task_id"], row["observation"]) for row in steps if row["step"] == 0}
    assert len(first) == 2
