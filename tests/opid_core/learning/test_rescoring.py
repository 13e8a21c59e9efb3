"""From tables to training samples: the expected numbers follow from `scored_episodes`."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest

from opid_core.learning.rescoring import skill_prompts
from opid_core.samples import Ragged, Samples
from opid_core.schema import from_rows
from tests.opid_core.learning.scored_episodes import (
    EPISODE_SKILL,
    ROUTED,
    SKILLS,
    STEP_SKILL,
    TOKENIZER,
    config,
    learned,
    prompt_parts,
    rescore,
    score,
    tables,
)


def test_log_probs_of_all_three_policies():
    given = tables()
    scores, _ = rescore(given, config(), lambda *asked: Ragged(score(*asked).values - 1, asked[1].offsets))
    lengths = [len(row["prompt_ids"]) for row in given["steps"].to_pylist()]
    # 2 of the template; task 6, observation 2, actions 4, turn line 4; the second steps have "room 1 : look" too.
    assert lengths == [18, 22, 18, 18, 22, 18]
    rows = scores.to_pylist()
    assert [len(row["old_log_probs"]) for row in rows] == [2, 1, 3, 1, 1, 4]
    for row, length in zip(rows, lengths, strict=True):
        assert row["old_log_probs"] == pytest.approx([-length / 100] * len(row["old_log_probs"]))
        assert row["reference_log_probs"] == pytest.approx([-length / 100 - 1] * len(row["old_log_probs"]))
    assert rows[0]["skill_log_probs"] == pytest.approx([-0.23, -0.23])  # 18 + 5 tokens
    assert rows[1]["skill_log_probs"] == pytest.approx([-0.29])  # 22 + 7
    assert [row["skill_log_probs"] for row in rows[2:]] == [None] * 4
    assert [row["skill_prompt_ids"] is None for row in rows] == [False, False, True, True, True, True]


def test_advantages():
    """Scores less the penalty of the step: won 10, 10; lost 0; clumsy 0, -1. One value a trajectory: 10, 0, -0.5;
    their mean is 19/6, and the broken episode's group is no part of it."""
    scores, _ = rescore(tables(), config())
    rows = scores.to_pylist()
    mean = 19 / 6
    expected = [10 - mean, 10 - mean, -mean, -mean, -1 - mean, 0.0]
    assert [row["outcome_advantage"] for row in rows] == pytest.approx(expected)
    assert rows[0]["skill_advantages"] == pytest.approx([0.5 * -0.05] * 2)
    assert rows[1]["skill_advantages"] == pytest.approx([0.25 * -0.07])
    assert [row["skill_advantages"] for row in rows[2:]] == [[0.0] * 3, [0.0], [0.0], [0.0] * 4]
    assert [row["trained"] for row in rows] == [True] * 5 + [False]


def test_a_whole_group_is_left_out_when_one_of_its_episodes_broke():
    given = tables()
    together = [{**row, "group_id": "g"} for row in given["trajectories"].to_pylist()]
    steps = [{**row, "group_id": "g"} for row in given["steps"].to_pylist()]
    given |= {"trajectories": from_rows("trajectories", together), "steps": from_rows("steps", steps)}
    scores, metrics = rescore(given, config())
    assert scores.column("trained").to_pylist() == [False] * 6
    assert len(learned(given, scores)) == 0
    assert metrics["rollout/groups_trained"] == 0


def test_a_skill_on_a_broken_episode_teaches_nothing():
    """It is scored (the table says what the skill would have done) but carries no advantage, whatever the method does
    over all tokens that have a signal."""
    given = tables({**ROUTED, ("broken", 0): ("episode", "won/episode")})
    rows = rescore(given, config(normalize_skill=True))[0].to_pylist()
    assert rows[5]["skill_log_probs"] == pytest.approx([-0.23] * 4)
    assert (rows[5]["skill_advantages"], rows[5]["trained"]) == ([0.0] * 4, False)
    without = rescore(tables(), config(normalize_skill=True))[0].to_pylist()
    assert [row["skill_advantages"] for row in rows] == [row["skill_advantages"] for row in without]


def test_without_a_reference_there_are_no_reference_log_probs():
    scores, _ = rescore(tables(), config(), score_reference=None)
    assert scores.column("reference_log_probs").null_count == scores.num_rows
    assert not learned(tables(), scores).has("reference_log_probs").any()


def test_the_samples_of_the_learner():
    given = tables()
    scores, _ = rescore(given, config(), score)
    samples = learned(given, scores)
    kept = given["steps"].to_pylist()[:5]  # the broken episode is last
    assert [row.tolist() for row in samples.prompt_ids] == [row["prompt_ids"] for row in kept]
    assert [row.tolist() for row in samples.response_ids] == [row["response_ids"] for row in kept]
    # Outcome 10 - 19/6, skill -0.025 on both tokens of the first response.
    advantages = samples.advantages()
    np.testing.assert_allclose(advantages[:2], [41 / 6 - 0.025] * 2, rtol=1e-6)
    np.testing.assert_allclose(advantages[-1], -25 / 6, rtol=1e-6)
    np.testing.assert_allclose(samples.tokens("old_log_probs")[1], [-0.22], rtol=1e-6)
    np.testing.assert_allclose(samples.tokens("skill_log_probs")[1], [-0.29], rtol=1e-6)
    assert samples.has("skill_log_probs").tolist() == [True, True, False, False, False]
    np.testing.assert_allclose(samples.tokens("reference_log_probs")[1], [-0.22], rtol=1e-6)
    assert advantages.dtype == samples.tokens("old_log_probs").values.dtype == np.float32


def test_metrics():
    _, metrics = rescore(tables(), config())
    # Responses with a skill: two tokens of delta -0.05 and one of -0.07. Shares over the trained tokens:
    # outcome 3 * 41/6 + 3 * 19/6 + 19/6 + 25/6, skill 2 * 0.025 + 0.0175.
    outcome, skill = 3 * 41 / 6 + 4 * 19 / 6 + 25 / 6, 0.0675
    assert metrics == pytest.approx(
        {
            "advantage_share/outcome": outcome / (outcome + skill),
            "advantage_share/step": 0.0,
            "advantage_share/skill": skill / (outcome + skill),
            "advantage_magnitude/outcome": outcome / 8,
            "advantage_magnitude/step": 0.0,
            "advantage_magnitude/skill": skill / 8,
            "rollout/groups_trained": 1,
            "rollout/groups_filtered": 0,
            "rollout/tie_rate": 0.0,
            "rescore/engine_gap_max": 0.125,
            "rescore/engine_gap_mean": 0.125,
            "rescore/skill_delta_mean": -0.17 / 3,
            "rescore/skill_delta_std": 0.02 * 2**0.5 / 3,
            "rescore/prompts_cut": 0,
            "tokens/rescore": 12 + 3,
        },
        abs=1e-6,
    )


def test_skill_prompts_are_the_plain_prompts_with_the_skill_in_them():
    given = tables({**ROUTED, ("clumsy", 1): ("episode", "won/episode")})
    samples = Samples.from_tables(given["steps"], given["trajectories"], given["routes"])
    texts = [EPISODE_SKILL, STEP_SKILL, None, None, EPISODE_SKILL, None]
    prompts = skill_prompts(samples, texts, samples.texts("route"), prompt_parts, TOKENIZER, config())
    assert prompts.rows.tolist() == [0, 1, 4]
    # The words of the titles and of the turn line are unknown to the small tokenizer.
    title, turn = "<unk> <unk>", "<unk> <unk> <unk> <unk>"
    task, actions = "put mug 1 in drawer 1", "look open drawer 1"
    assert [TOKENIZER.decode(ids) for ids in prompts.ids] == [
        f"<user> {task} {title} {EPISODE_SKILL} room 1 {actions} {turn} <assistant>",
        f"<user> {task} room 1 : look room 2 {actions} {title} {STEP_SKILL} {turn} <assistant>",
        f"<user> {task} {title} {EPISODE_SKILL} room 1 : look room 2 {actions} {turn} <assistant>",
    ]


def test_a_skill_pushes_out_the_oldest_history_and_is_counted():
    """28 tokens hold the plain prompt (22) but not the one with the step skill (29) until its history (4) is gone."""
    tight = config().model_copy(update={"rollout": config().rollout.model_copy(update={"max_prompt_tokens": 28})})
    scores, metrics = rescore(tables(), tight)
    row = scores.to_pylist()[1]
    assert row["history_dropped"] == 1
    assert len(row["skill_prompt_ids"]) == 25
    assert metrics["rescore/prompts_cut"] == 1


def test_the_order_of_the_rows_does_not_matter():
    given = tables()
    rows = {row["trajectory_id"] + str(row["step"]): row for row in rescore(given, config())[0].to_pylist()}
    order = [4, 1, 5, 0, 3, 2]
    taken = {name: given[name].take(order) for name in ("steps", "routes")}
    shuffled, _ = rescore({**given, **taken}, config())
    found = shuffled.to_pylist()
    assert [row["trajectory_id"] + str(row["step"]) for row in found] == [list(rows)[index] for index in order]
    for row in found:
        expected = rows[row["trajectory_id"] + str(row["step"])]
        assert row["outcome_advantage"] == pytest.approx(expected["outcome_advantage"], rel=1e-6)
        assert {**row, "outcome_advantage": 0} == {**expected, "outcome_advantage": 0}


def test_opid_with_lambda_zero_is_grpo_bit_for_bit():
    given = tables()
    off, _ = rescore(given, config(lambda_episode=0.0, lambda_step=0.0))
    grpo, _ = rescore(given, config(name="grpo"))
    assert off.equals(grpo)
    assert not any(any(row["skill_advantages"]) for row in off.to_pylist())
    only_step, _ = rescore(given, config(lambda_episode=0.0))
    found = [row["skill_advantages"] for row in only_step.to_pylist()]
    assert found[0] == [0.0, 0.0]
    assert found[1] == pytest.approx([-0.0175])


def test_nothing_routed_asks_for_no_skill_scores():
    asked = []

    def counting(prompts: Ragged, responses: Ragged) -> Ragged:
        asked.append(len(prompts))
        return score(prompts, responses)

    scores, metrics = rescore(tables({}), config(), score=counting)
    assert asked == [6]
    assert scores.column("skill_log_probs").null_count == 6
    assert metrics["advantage_share/skill"] == 0.0
    assert {name for name, value in metrics.items() if math.isnan(value)} == {
        "rescore/skill_delta_mean",
        "rescore/skill_delta_std",
    }


def test_an_iteration_whose_episodes_all_broke_teaches_nothing():
    given = tables()
    outcomes = given["trajectories"].to_pylist()
    broken = from_rows("trajectories", [{**row, "outcome": "broken"} for row in outcomes])
    scores, metrics = rescore({**given, "trajectories": broken}, config())
    assert not any(row["trained"] or row["outcome_advantage"] for row in scores.to_pylist())
    assert len(learned(given, scores)) == 0
    assert metrics["advantage_share/outcome"] == 0.0


def test_both_skills_of_a_step_are_scored():
    """The step skill adds 7 tokens to the 22 of the prompt, the episode skill 5."""
    given = tables()
    routes = given["routes"].to_pylist()
    routes[1]["added_skill_id"] = "won/episode"
    given["routes"] = from_rows("routes", routes)
    scores, metrics = rescore(given, config(routing="additive"))
    rows = scores.to_pylist()
    assert rows[1]["skill_log_probs"] == pytest.approx([-0.29])
    assert rows[1]["added_log_probs"] == pytest.approx([-0.27])
    assert [row["added_log_probs"] is None for row in rows] == [True, False, True, True, True, True]
    assert rows[1]["skill_advantages"] == pytest.approx([0.25 * -0.07 + 0.5 * -0.05])
    assert metrics["tokens/rescore"] == 12 + 3 + 1


def test_a_skill_with_a_placebo_is_scored_under_both():
    """The placebo's 2 tokens and its title's add 4 to the 18 of the prompt, the skill adds 5."""
    given = tables()
    routes = given["routes"].to_pylist()
    routes[0]["placebo"] = "room 1"
    given["routes"] = from_rows("routes", routes)
    contrast = {"signal": "contrast", "placebo_episode": "fixed", "placebo_step": "fixed"}
    scores, metrics = rescore(given, config(**contrast))
    rows = scores.to_pylist()
    assert rows[0]["placebo_log_probs"] == pytest.approx([-0.22, -0.22])
    assert [row["placebo_log_probs"] is None for row in rows] == [False, True, True, True, True, True]
    assert rows[0]["skill_advantages"] == pytest.approx([0.5 * -0.01] * 2)
    assert rows[1]["skill_advantages"] == [0.0]  # its skill has no placebo to be held against
    assert rows[0]["old_log_probs"] == pytest.approx([-0.18, -0.18])
    assert metrics["tokens/rescore"] == 12 + 3 + 2


def test_the_step_advantage_holds_visits_of_a_room_against_each_other():
    """Returns: no rewards, so 0, less the penalty 1 at clumsy's second step. Room 1 is seen by three with return 0,
    room 2 by two with 0 and -1."""
    scores, metrics = rescore(tables(), config(name="gigpo", step_weight=0.5))
    rows = scores.to_pylist()
    assert [row["step_advantage"] for row in rows] == [0.0, 0.25, 0.0, 0.0, -0.25, 0.0]
    # Outcome as for OPID; step 0.25 on two tokens.
    assert metrics["advantage_share/step"] == pytest.approx(0.5 / (0.5 + 3 * 41 / 6 + 4 * 19 / 6 + 25 / 6))
    np.testing.assert_allclose(learned(tables(), scores).advantages()[2], 41 / 6 + 0.25, rtol=1e-6)


def test_tied_groups_are_filtered_where_the_method_says_so():
    given = tables()
    lost = [{**row, "outcome": "failure"} for row in given["trajectories"].to_pylist() if row["outcome"] != "broken"]
    broken = given["trajectories"].to_pylist()[3]
    tied = {**given, "trajectories": from_rows("trajectories", [*lost, broken])}
    for name, trained in (("grpo", [True] * 5 + [False]), ("dapo", [False] * 6)):
        scores, metrics = rescore(tied, config(name=name))
        assert scores.column("trained").to_pylist() == trained
        assert len(learned(tied, scores)) == sum(trained)
        assert metrics["rollout/groups_filtered"] == (name == "dapo")
        assert metrics["rollout/tie_rate"] == 1.0
    mixed, metrics = rescore(given, config(name="dapo"))
    assert mixed.column("trained").to_pylist() == [True] * 5 + [False]
    assert (metrics["rollout/groups_trained"], metrics["rollout/groups_filtered"]) == (1, 0)


def test_the_iteration_reaches_the_method():
    given = tables()
    iterations = [given["steps"].set_column(1, "iteration", pa.array([i] * 6, pa.int32())) for i in (1, 101)]
    early, late = (
        rescore({**given, "steps": s}, config(name="rlsd", teacher="routed"))[0].to_pylist() for s in iterations
    )
    # A = 41/6, delta -0.05: 0.5 * (1 - 1/100) of the credit is weighed with exp(-0.05).
    assert early[0]["skill_advantages"] == pytest.approx([41 / 6 * 0.495 * (np.exp(-0.05) - 1)] * 2)
    assert late[0]["skill_advantages"] == [0.0, 0.0]


def test_under_an_unchanged_prompt_delta_is_exactly_0():
    """A blank skill leaves the prompt byte for byte; routing would not even score it."""
    given = tables()
    skills = [{**row, "text": " "} for row in SKILLS]
    rows = rescore({**given, "skills": from_rows("skills", skills)}, config())[0].to_pylist()
    assert rows[0]["skill_prompt_ids"] == given["steps"].to_pylist()[0]["prompt_ids"]
    assert rows[0]["skill_log_probs"] == rows[0]["old_log_probs"]
    assert rows[0]["skill_advantages"] == [0.0, 0.0]
