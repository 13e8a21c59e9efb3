from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch

from envs.base import ActionWords
from opid_core import schema
from opid_core.errors import DataError
from opid_core.learning.methods import Opid
from opid_core.samples import Samples
from opid_core.skills.routing import route, route_table
from opid_core.skills.selector import critical_steps
from tests.opid_core.learning.methods.batches import method

WORDS = ActionWords()

# Group g, three trajectories of two steps. State s: returns 9, 1, 2 (mean 4, population variance 38/3).
# State m is visited by x and y with returns 10 and 8 (variance 1); state n by z alone.
RETURNS = np.array([9, 10, 1, 8, 2, 5], dtype=np.float32)
STATES = ["s", "m", "s", "m", "s", "n"]
TRAJECTORIES = ["x", "x", "y", "y", "z", "z"]
GROUP = ["g"] * 6


def critical(**options):
    return np.flatnonzero(critical_steps(RETURNS, STATES, GROUP, TRAJECTORIES, **options)).tolist()


def test_below_mean_steps_of_the_most_varied_states():
    # variances 38/3 and 1: the 0.75 quantile lies between, so only s is eligible; x is above its mean
    assert critical() == [2, 4]


def test_lower_quantile_lets_more_states_in_and_top_k_counts_by_score():
    # y: state s scores 38/3 * 3, state m scores 1 * 1
    assert critical(var_quantile=0.0, top_k=1) == [2, 4]
    assert critical(var_quantile=0.0, top_k=2) == [2, 3, 4]
    assert critical(top_k=0) == []


def test_absolute_deviation_lets_steps_above_the_mean_in():
    assert critical(below_mean_only=False) == [0, 2, 4]


def test_min_group_size():
    assert critical(var_quantile=0.0, top_k=2, min_group_size=3) == [2, 4]
    assert critical(min_group_size=4) == []


def test_of_equal_scores_the_later_step_wins():
    # x is below the mean by the same amount in two states of the same variance
    returns, states = np.array([0, 0, 2, 2.0]), ["s", "t", "s", "t"]
    found = critical_steps(returns, states, ["g"] * 4, ["x", "x", "y", "y"])
    assert found.tolist() == [False, True, False, False]


def test_equal_returns_and_other_groups_states_are_not_critical():
    assert not critical_steps([1.0, 1.0], ["s", "s"], ["g", "g"], ["x", "y"]).any()
    assert not critical_steps([1.0, 3.0], ["s", "s"], ["g", "h"], ["x", "y"]).any()
    assert critical_steps([], [], [], []).tolist() == []


def test_a_deviation_of_zero_counts_only_without_below_mean_only():
    returns, states, trajectories = [1.0, 2.0, 3.0], ["s"] * 3, ["x", "y", "z"]
    assert critical_steps(returns, states, ["g"] * 3, trajectories).tolist() == [True, False, False]
    assert critical_steps(returns, states, ["g"] * 3, trajectories, below_mean_only=False).all()


def test_tensors_give_a_tensor():
    found = critical_steps(torch.from_numpy(RETURNS), STATES, GROUP, TRAJECTORIES)
    assert isinstance(found, torch.Tensor)
    assert found.dtype == torch.bool
    assert found.tolist() == [False, False, True, False, True, False]


def test_unequal_lengths():
    with pytest.raises(DataError, match="lengths differ"):
        critical_steps([1.0], STATES, GROUP, TRAJECTORIES)


@pytest.mark.parametrize(
    ("episode", "steps", "lambdas", "expected"),
    [
        ("plan", {1: "act"}, (0.1, 0.1), ("step", "critical step")),
        ("plan", {0: "act"}, (0.1, 0.1), ("episode", "no step skill for this step")),
        ("plan", {1: "  "}, (0.1, 0.1), ("episode", "no step skill for this step")),
        ("plan", {1: "act"}, (0.1, 0.0), ("episode", "step skills are off")),
        ("plan", {1: "act"}, (0.0, 0.1), ("step", "critical step")),
        ("plan", {}, (0.0, 0.1), ("none", "episode skills are off")),
        ("plan", {1: "act"}, (0.0, 0.0), ("none", "episode and step skills are off")),
        (None, {1: "act"}, (0.1, 0.0), ("none", "step skills are off")),
        (None, {}, (0.1, 0.1), ("none", "no skills for this trajectory")),
        (" ", {0: "act"}, (0.1, 0.1), ("none", "no skill for this step")),
    ],
)
def test_route_is_critical_first(episode, steps, lambdas, expected):
    assert route(episode, steps, 1, lambda_episode=lambdas[0], lambda_step=lambdas[1]) == expected


def skill_row(trajectory_id, kind, step, text):
    name = {"episode": "episode", "step": f"step{step}", "failed": "failed"}[kind]
    row = dict.fromkeys(schema.SKILLS.names)
    return row | {
        "skill_id": f"{trajectory_id}/{name}",
        "trajectory_id": trajectory_id,
        "kind": kind,
        "step": step,
        "text": text,
        "outcome": "failure",
        "analyzer": "hindsight",
        "attempts": 1,
    }


def samples_of(trajectory_ids: list[str], steps: list[int], iteration: int = 1) -> Samples:
    columns = {"step": pa.array(steps, pa.int32()), "iteration": pa.array([iteration] * len(steps), pa.int32())}
    return Samples(pa.table({"trajectory_id": trajectory_ids, **columns}))


def test_route_table_names_the_injected_skill():
    samples = samples_of(["x", "x", "y", "z"], [0, 1, 0, 0])
    rows = [
        skill_row("x", "episode", None, "plan"),
        skill_row("x", "step", 1, "act"),
        skill_row("y", "failed", None, ""),
    ]
    skills = schema.from_rows("skills", rows)
    table = route_table(samples, skills, Opid(), seed=0, words=WORDS)
    assert table.schema.equals(schema.ROUTES)
    assert [(r["route"], r["skill_id"]) for r in table.to_pylist()] == [
        ("episode", "x/episode"),
        ("step", "x/step1"),
        ("none", None),
        ("none", None),
    ]
    assert table["added_skill_id"].null_count == 4
    for name in ("grpo", "gigpo", "rloo", "dapo"):
        assert set(route_table(samples, skills, method(name), seed=0, words=WORDS)["route"].to_pylist()) == {"none"}
    assert route_table(samples, skills, method("sdar", teacher="routed"), seed=0, words=WORDS).equals(table)


def routed(routing: str, seed: int = 0, **keys) -> list[tuple]:
    """(step, route, skill, added skill) of a trajectory of five steps with an episode skill and those of steps 1, 3."""
    samples = samples_of(["x"] * 5, [4, 0, 1, 2, 3])
    texts = (("episode", None, "plan"), ("step", 1, "act"), ("step", 3, "wait"))
    skills = schema.from_rows("skills", [skill_row("x", *one) for one in texts])
    rows = route_table(samples, skills, method("opid", routing=routing, **keys), seed, WORDS).to_pylist()
    return sorted((r["step"], r["route"], r["skill_id"], r["added_skill_id"]) for r in rows)


def test_the_ablations_of_routing():
    episode = [(step, "episode", "x/episode", None) for step in range(5)]
    own = {1: (1, "step", "x/step1", None), 3: (3, "step", "x/step3", None)}
    assert routed("critical_first") == [own.get(step, episode[step]) for step in range(5)]
    assert routed("episode_only") == episode
    assert routed("step_only") == [own.get(step, (step, "none", None, None)) for step in range(5)]
    assert routed("additive") == [(*own[step][:3], "x/episode") if step in own else episode[step] for step in range(5)]
    assert routed("additive", lambda_episode=0.0) == routed("step_only")
    assert routed("additive", lambda_step=0.0) == episode


def test_random_routing_moves_the_step_skills_to_as_many_random_steps():
    seen = set()
    for seed in range(20):
        rows = routed("random", seed)
        assert rows == routed("random", seed)
        assert sorted(skill for _, route, skill, _ in rows if route == "step") == ["x/step1", "x/step3"]
        assert all(skill == "x/episode" for _, route, skill, _ in rows if route == "episode")
        seen.add(tuple(step for step, route, _, _ in rows if route == "step"))
    assert len(seen) > 5  # of the ten pairs of steps


def test_once_the_schedule_has_ended_nothing_is_routed():
    skills = schema.from_rows("skills", [skill_row("x", "episode", None, "plan")])
    stopping = method("opid", lambda_schedule="stop", lambda_iterations=2)
    for iteration, route_name in ((1, "episode"), (2, "episode"), (3, "none")):
        table = route_table(samples_of(["x"], [0], iteration), skills, stopping, seed=0, words=WORDS)
        assert table["route"].to_pylist() == [route_name]
        assert stopping.wants_skills(iteration - 1) == (route_name != "none")
