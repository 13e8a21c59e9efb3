from __future__ import annotations

import pyarrow as pa
import pytest

from envs.base import ActionWords
from opid_core.samples import Samples
from opid_core.schema import from_rows
from opid_core.skills.placebos import placebos
from tests.factories import row
from tests.opid_core.learning.methods.batches import method

OFFERED = ["look", "go to bed 1", "search[<your query>]"]
TEXTS = {"x": "Plan: go, take.", "y": "Avoid: look.", "z": "Plan: open, put.", "w": "Do not repeat: look."}
"""Episode skills; x and z won, y and w did not; x and y are of group g, z and w of h."""


def skill(trajectory: str, step: int | None = None) -> dict:
    return row(
        "skills",
        skill_id=f"{trajectory}/{'episode' if step is None else step}",
        trajectory_id=trajectory,
        kind="episode" if step is None else "step",
        step=step,
        text=TEXTS[trajectory] if step is None else f"Do now: {trajectory}",
        outcome="success" if trajectory in "xz" else "truncated",
    )


SKILLS = from_rows("skills", [*map(skill, "xyzw"), *(skill(name, 1) for name in "xyz")])


def drawn(skill_ids: list[str | None], seed: int = 0, offered: list[str] = OFFERED, skills: pa.Table = SKILLS, **keys):
    """Placebos of the two steps of each trajectory."""
    ids = [name for name in "xyzw" for _ in range(2)]
    groups = ["g"] * 4 + ["h"] * 4
    columns = {"group_id": groups, "step": [0, 1] * 4, "admissible_actions": [offered] * 8}
    samples = Samples.from_columns(trajectory_id=ids, **columns)
    return placebos(samples, skills, skill_ids, method("opid", **keys), seed, ActionWords())


ROUTED = ["x/episode", "x/1", "y/episode", "y/1", "z/episode", "z/1", None, "w/episode"]


def test_without_a_rule_nothing_has_a_placebo():
    assert drawn(ROUTED) == [None] * 8
    assert drawn(ROUTED, placebo_step="fixed")[::2] == [None] * 4  # episode skills have none


def test_a_swapped_skill_is_another_groups_that_ended_alike():
    swapped = drawn(ROUTED, placebo_episode="swapped", placebo_step="swapped")
    # no step skill of h is of a loss
    assert swapped == [TEXTS["z"], "Do now: z", TEXTS["w"], None, TEXTS["x"], "Do now: x", None, TEXTS["y"]]
    only_g = SKILLS.slice(0, 2)
    assert drawn(["x/episode", *[None] * 7], skills=only_g, placebo_episode="swapped") == [None] * 8


def test_all_steps_of_an_episode_have_one_placebo():
    more = from_rows("skills", [skill("x"), *(skill(name) | {"skill_id": f"z{n}"} for n, name in enumerate("z" * 9))])
    more = more.set_column(4, "text", pa.array(["Plan: go, take.", *(f"Plan {n}." for n in range(9))]))
    of_both = [drawn(["x/episode"] * 2 + [None] * 6, seed, skills=more, placebo_episode="swapped") for seed in range(9)]
    assert all(one[0] == one[1] for one in of_both)
    assert len({one[0] for one in of_both}) > 3


def test_a_fixed_text_is_as_long_as_the_skill():
    fixed = drawn(ROUTED, placebo_episode="fixed", placebo_step="fixed")
    assert fixed[:3] == ["Keep in mind", "Keep in mind", "Keep in"]
    assert drawn(["w/episode", *[None] * 7], placebo_episode="fixed")[0] == "Keep in mind that"


def test_a_random_action_is_one_on_offer_that_can_be_done_as_it_reads():
    of_steps = [None, "x/1", *[None] * 6]
    found = {drawn(of_steps, seed, placebo_step="random_action")[1] for seed in range(20)}
    assert found == {"Do now: look", "Do now: go to bed 1"}
    assert drawn(of_steps, 3, placebo_step="random_action") == drawn(of_steps, 3, placebo_step="random_action")
    for offered in ([], ["search[<your query>]"]):
        assert drawn(of_steps, offered=offered, placebo_step="random_action")[1] is None


def test_what_says_the_same_as_the_skill_is_no_placebo_of_it():
    same = from_rows("skills", [skill("x", 1) | {"text": "Do now: look"}, skill("z", 1) | {"text": "Do now: look"}])
    of_steps = [None, "x/1", *[None] * 6]
    found = {drawn(of_steps, seed, skills=same, placebo_step="random_action")[1] for seed in range(20)}
    assert found == {"Do now: go to bed 1"}
    assert drawn(of_steps, skills=same, offered=["look"], placebo_step="random_action")[1] is None
    assert drawn(of_steps, skills=same, placebo_step="swapped")[1] is None


def test_a_method_without_skills_has_no_placebos():
    samples = Samples.from_columns(trajectory_id=["x"], group_id=["g"], step=[0], admissible_actions=[OFFERED])
    assert placebos(samples, SKILLS, [None], method("grpo"), 0, ActionWords()) == [None]


@pytest.mark.parametrize("name", ["opid", "rlsd", "sdar", "skill_sd", "opsd", "grpo_opsd"])
def test_every_method_with_skills_has_placebos(name):
    samples = Samples.from_columns(trajectory_id=["x"], group_id=["g"], step=[0], admissible_actions=[OFFERED])
    one = method(name, teacher="routed", placebo_step="fixed", placebo_episode="fixed", signal="placebo")
    assert placebos(samples, SKILLS, ["x/episode"], one, 0, ActionWords()) == ["Keep in mind"]
