"""Which groups a rollout draws beyond the iteration's own."""

from __future__ import annotations

from typing import Any

from envs.base import Task
from infra.store import CampaignStore
from opid_core.config import build_config
from opid_core.rollout.episodes import Episode, EpisodeRequest
from tasks.iteration import CampaignRun, Iteration
from tasks.rollout import mixed_groups, requests, requests_again, requests_for_ties


def iteration(seed: int = 5) -> Iteration:
    config = build_config(
        {
            "campaign": "c",
            "environment": {"options": {"generator": {"size": "small", "train": 40}}},
            "rollout": {"tasks_per_iteration": 3, "group_size": 2},
            "method": {"name": "dapo"},
        }
    )
    it = Iteration(CampaignRun(config, CampaignStore("unused", "c")), [], 7, attempt=0)  # drawing reads nothing
    it.seed = seed
    return it


def played(asked: list[EpisodeRequest], **outcomes: tuple[str, str]) -> list[Episode]:
    """Each group's two episodes; by its number the outcomes of those that are not (success, failure)."""
    return [
        Episode(request, outcome=outcomes.get("g" + request.group_id[7:], ("success", "failure"))[index % 2])
        for index, request in enumerate(asked)
    ]


def group_ids(asked: list[EpisodeRequest]) -> list[str]:
    return [request.group_id for request in asked]


def test_a_group_is_mixed_when_some_won_others_did_not_and_none_broke():
    task = Task("t", "kind", None)
    outcomes = {
        "mixed": ("success", "truncated"),
        "won": ("success", "success"),
        "lost": ("failure", "truncated"),
        "broken": ("success", "broken"),
    }
    episodes = [
        Episode(EpisodeRequest(f"{group}-{index}", group, task, 0), outcome=outcome)
        for group, pair in outcomes.items()
        for index, outcome in enumerate(pair)
    ]
    assert mixed_groups(episodes) == {"mixed"}


def test_a_group_is_drawn_for_each_that_ties_or_broke_for_good():
    it = iteration()
    asked = requests(it)
    assert group_ids(asked) == [f"000007-{group:04d}" for group in (0, 0, 1, 1, 2, 2)]
    episodes = played(asked, g0000=("success", "success"), g0002=("broken", "success"))
    again = requests_again(it, episodes)
    assert group_ids(again) == ["000007-0002-again"] * 2
    episodes += played(again)  # its stand-in is mixed: only group 0 lacks one
    more = requests_for_ties(it, episodes, 0)
    assert group_ids(more) == ["000007-0003"] * 2
    assert [request.trajectory_id for request in more] == ["000007-0003-00", "000007-0003-01"]
    assert len({request.seed for request in (*asked, *again, *more)}) == 10
    # It ties too, and one more is drawn; after that nothing is lacking.
    episodes += played(more, g0003=("failure", "failure"))
    last = requests_for_ties(it, episodes, 1)
    assert group_ids(last) == ["000007-0004"] * 2
    assert requests_for_ties(it, episodes + played(last), 2) == []


def test_what_is_drawn_is_a_function_of_seed_and_draw():
    episodes = played(requests(iteration()), g0000=("success", "success"), g0001=("failure", "failure"))

    def drawn(draw: int, seed: int = 5) -> list[Any]:
        return [(request.task.task_id, request.seed) for request in requests_for_ties(iteration(seed), episodes, draw)]

    assert drawn(0) == drawn(0)
    assert len({task for task, _ in drawn(0)}) == 2
    assert drawn(0) != drawn(1)
    assert drawn(0) != drawn(0, seed=6)
