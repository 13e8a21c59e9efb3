"""The shipped tiny campaigns of the other environments, rollout to commit (ALFWorld: test_campaign.py).

WebShop's is trained with dapo, which draws further groups for those whose outcomes tie; search's with a method of a
user's own, whose class the learner's process imports too, with adapters, and on an S3 server.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.manifest import weights_hash
from infra.store import read_config, verify
from tests.conftest import S3_BUCKET
from tests.integration.adapters import LORA, check_adapters
from tests.integration.campaigns import REPOSITORY, finish, opened, start

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200)]


@pytest.mark.parametrize(
    ("name", "penalty", "method", "more"),
    [
        # Slow: WebShop's pages are in tests/envs, its gates in tests/tasks/gates, what dapo draws in tests/tasks.
        pytest.param("webshop", 0.1, "{name: dapo, resample_tied_rounds: 1}", (), marks=pytest.mark.slow),
        ("search_qa", 0.01, "{name: 'tests.opid_core.learning.methods.self_imitation:SelfImitation'}", LORA),
    ],
    ids=["webshop", "search_qa"],
)
def test_an_iteration(tmp_path, prefect_server, request, name, penalty, method, more):
    if name == "webshop":
        pytest.importorskip("thefuzz", reason="needs the extra `webshop`")
    root: Path = tmp_path / name
    text = (REPOSITORY / "configs" / f"tiny_{name}.yaml").read_text(encoding="utf-8")
    options = ("campaign=tiny", "iterations=1", f"method={method}", *more)
    stored, endpoint_url = str(root), None
    if name == "search_qa":
        stored, endpoint_url = f"s3://{S3_BUCKET}/{tmp_path.name}", request.getfixturevalue("s3_server").endpoint_url
        options += (f"root={stored}", f"storage.endpoint_url={endpoint_url}")
    printed = finish(start(root, prefect_server, *options, text=text), root)
    found = opened(stored, printed, endpoint_url)
    assert [manifest.iteration for manifest in found.chain] == [0, 1]
    verify(found.store)
    steps, trajectories = found.rows("steps", 1), found.rows("trajectories", 1)
    metrics = {row["name"]: row["value"] for row in found.rows("metrics", 1)}
    drawn_for_ties = metrics.get("rollout/groups_for_ties", 0)
    assert len(trajectories) == (2 + drawn_for_ties) * 3
    of_group: dict[str, list[bool]] = {}
    for row in trajectories:
        of_group.setdefault(row["group_id"], []).append(row["outcome"] == "success")
    tied = [group for group, won in of_group.items() if len(set(won)) == 1]
    if "dapo" in method:
        assert drawn_for_ties > 0  # a tiny policy's groups tie
        assert (metrics["rollout/groups_trained"], metrics["rollout/groups_filtered"]) == (
            len(of_group) - len(tied),
            len(tied),
        )
        weights = [weights_hash(manifest.policy) for manifest in found.chain]
        assert (weights[0] == weights[1]) is (len(tied) == len(of_group))  # nothing to learn, nothing learnt
    else:
        assert (len(of_group), metrics["rollout/groups_trained"]) == (2, 2)
        assert metrics["update/imitation_loss"] >= 0  # the user's own loss was part of the update
        check_adapters(found, tmp_path)
    assert {row["outcome"] for row in trajectories} <= {"success", "failure", "truncated"}
    assert all(row["prompt_text"].count(row["task_text"]) >= 1 for row in steps)
    # Members of a group begin in the same state.
    first = {}
    for row in (row for row in steps if row["step"] == 0):
        first.setdefault(row["group_id"], set()).add((row["task_id"], row["observation"]))
    assert [len(states) for states in first.values()] == [1] * len(of_group)
    assert read_config(found.store)["environment"]["invalid_action_penalty"] == penalty
