from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opid_core.config import AnalyzerConfig
from opid_core.skills.analyzers import hindsight
from opid_core.trajectory import Step, Trajectory

CONFIG = AnalyzerConfig()
CLEAN_APPLE = [
    "go to cabinet 1",
    "open cabinet 1",
    "look",
    "go to countertop 2",
    "take apple 1 from countertop 2",
    "go to sinkbasin 1",
    "clean apple 1 with sinkbasin 1",
    "inventory",
    "go to fridge 1",
    "open fridge 1",
    "move apple 1 to fridge 1",
]
WORKFLOW = [
    "go to countertop",
    "take apple",
    "go to sinkbasin",
    "clean apple",
    "go to fridge",
    "open fridge",
    "move apple to fridge",
]


def episode(
    trajectory_id: str,
    actions: list[str],
    outcome: str = "success",
    observations: dict[int, str] | None = None,
    invalid: tuple[int, ...] = (),
) -> Trajectory:
    """An episode whose observations are a function of the actions so far, unless given."""
    given = observations or {}
    steps = tuple(
        Step(
            step=number,
            observation=given.get(number, "after: " + " / ".join(actions[:number])),
            admissible_actions=(),
            response_text=f"<think>so</think><action>{action}</action>",
            action=action,
            is_valid=number not in invalid,
            reward=0.0,
        )
        for number, action in enumerate(actions)
    )
    return Trajectory(trajectory_id, "g", "task", "clean", "put a clean apple in the fridge", outcome, steps)


@pytest.mark.parametrize(
    ("action", "general"),
    [
        ("take apple 1 from countertop 2", "take apple"),
        ("move apple 1 to fridge 1", "move apple to fridge"),
        ("heat egg 12 with microwave 1", "heat egg"),
        ("use desklamp 1", "use desklamp"),
        ("look", "look"),
        ("search[size 10 shoes]", "search[size 10 shoes]"),
        ("", ""),
        ("<search>who was born in 812 in Belora</search>", "search: who was born in 812 in Belora"),
        ("<search></search>", "search"),
        ("<answer>812</answer>", "answer"),
    ],
)
def test_generalise(action, general):
    assert hindsight.generalise(action) == general


def test_workflow_drops_search_looks_and_repeats():
    assert hindsight.workflow_steps(CLEAN_APPLE) == WORKFLOW
    assert hindsight.workflow_steps(["take a 1 from b 1", "take a 2 from b 1"]) == ["take a"]
    assert hindsight.workflow_skill(CLEAN_APPLE) == (
        "Plan: go to countertop, take apple, go to sinkbasin, clean apple, go to fridge, open fridge, "
        "move apple to fridge."
    )
    assert hindsight.workflow_skill(["look"]) == ""


def test_avoidance_and_step_templates():
    skill = hindsight.avoidance_skill(missed=["take apple", "clean apple"], repeated=["look"], wrong=["take pan"])
    assert skill == "Do not skip: take apple, clean apple. Do not repeat: look. Avoid: take pan."
    assert hindsight.avoidance_skill() == "Do not waste steps."
    assert hindsight.avoidance_skill(wrong=list("abcde")) == "Avoid: a, b, c, d."
    assert hindsight.step_skill("open fridge 1") == "Do now: open fridge 1"


def test_a_success_becomes_its_workflow():
    failed_first = ["take apple 1 from countertop 1", *CLEAN_APPLE]
    trajectory = episode("x", failed_first, observations={1: "Nothing happens."})
    (analysis,) = hindsight.analyze([trajectory], CONFIG, {"x": [0, 5]})
    assert analysis.episode_skill == hindsight.workflow_skill(CLEAN_APPLE)
    assert analysis.summary.startswith("Succeeded in 12 steps: go to countertop, take apple")
    # at critical steps its own action, unless that failed
    assert analysis.step_skills == {5: "Do now: take apple 1 from countertop 2"}
    assert (analysis.analyzer, analysis.error) == ("hindsight", None)


def test_a_success_without_a_known_working_action_is_a_failed_analysis():
    (analysis,) = hindsight.analyze([episode("x", ["open fridge 1"], invalid=(0,))], CONFIG, {"x": [0]})
    assert analysis.error is not None
    assert (analysis.episode_skill, analysis.step_skills) == ("", {})


def test_a_failure_misses_what_every_sibling_success_did():
    short = [a for a in CLEAN_APPLE if a not in ("look", "inventory")]
    successes = [episode("s", CLEAN_APPLE), episode("t", short)]
    failure = episode("f", ["go to countertop 2", "take apple 2 from countertop 2", "go to fridge 1"], "truncated")
    analysis = hindsight.analyze([*successes, failure], CONFIG, {})[2]
    assert analysis.episode_skill == "Do not skip: clean apple, move apple to fridge."
    assert analysis.summary.startswith("Failed after 3 steps, 0 of them without effect. Do not skip")


def test_a_step_done_too_seldom_is_missed():
    twice = ["take mug 1 from desk 1", "move mug 1 to shelf 1", "take mug 2 from desk 1", "move mug 2 to shelf 1"]
    missed = hindsight.missed_steps(episode("f", twice[:2], "failure"), [episode("s", twice)])
    assert missed == ["take mug", "move mug to shelf"]
    assert hindsight.missed_steps(episode("f", twice, "failure"), [episode("s", twice)]) == []
    assert hindsight.missed_steps(episode("f", twice[:1], "failure"), []) == []


def test_a_failure_repeats():
    loop = ["go to desk 1", "go to bed 1", "go to desk 1", "go to bed 1", "open safe 1", "open safe 1", "look"]
    (analysis,) = hindsight.analyze([episode("f", loop, "failure")], CONFIG, {})
    assert analysis.episode_skill == "Do not repeat: go to desk, go to bed, open safe."
    spread = ["look", "go to desk 1", "look", "go to bed 1", "look"]
    (analysis,) = hindsight.analyze([episode("f", spread, "failure")], CONFIG, {})
    assert analysis.episode_skill == "Do not repeat: look."


def test_a_failure_did_the_wrong_thing():
    actions = ["take pan 1 from desk 1", "take apple 1 from shelf 1", "open safe 1", "go to bed 1", "look"]
    failure = episode("f", actions, "failure", observations={3: "Nothing happens.", 4: "Nothing happens."})
    success = episode("s", ["take apple 1 from shelf 1"])
    analysis = hindsight.analyze([failure, success], CONFIG, {})[0]
    assert analysis.episode_skill == "Avoid: open safe, go to bed, take pan."
    assert "2 of them without effect" in analysis.summary
    alone = hindsight.analyze([failure], CONFIG, {})[0]
    assert alone.episode_skill == "Avoid: open safe, go to bed."


def test_what_a_sibling_did_rightly_is_not_called_wrong():
    """Tried where it had no effect: it is missed, not to be avoided."""
    failure = episode("f", ["clean apple 1 with desk 1", "look"], "failure", observations={1: "Nothing happens."})
    success = episode("s", ["clean apple 1 with sinkbasin 1"])
    assert hindsight.analyze([failure, success], CONFIG, {})[0].episode_skill == "Do not skip: clean apple."


def test_a_search_in_a_shop_is_an_action_on_offer():
    def shopped(trajectory_id, actions, outcome):
        bare = episode(trajectory_id, actions, outcome)
        pages = [("search[<your query>]",), ("click[b01]", "click[b02]"), ("click[buy now]",)]
        steps = (dataclasses.replace(s, admissible_actions=p) for s, p in zip(bare.steps, pages, strict=True))
        return dataclasses.replace(bare, steps=tuple(steps))

    won = shopped("s", ["search[red balm]", "click[b01]", "click[buy now]"], "success")
    lost = shopped("f", ["search[red balm]", "click[b02]", "click[buy now]"], "failure")
    plan, avoided = hindsight.analyze([won, lost], CONFIG, {"s": [0]})
    assert plan.episode_skill == "Plan: search[red balm], click[b01], click[buy now]."
    assert plan.step_skills == {0: "Do now: search[red balm]"}
    assert avoided.episode_skill == "Do not skip: click[b01]. Avoid: click[b02]."


def test_a_response_without_an_action_is_named_by_its_fault_not_by_its_text():
    actions = ["402nd month: - monday-sept. 30", "402nd month: - monday-sept. 30", "go to bed 1", "open safe 1"]
    failure = episode("f", actions, "failure", invalid=(0, 1))
    on_offer = dataclasses.replace(
        failure, steps=tuple(dataclasses.replace(s, admissible_actions=("go to bed 1",)) for s in failure.steps)
    )
    (analysis,) = hindsight.analyze([on_offer], CONFIG, {})
    assert analysis.episode_skill == "Always answer in the form asked for, with one action. Avoid: open safe."
    assert "3 of them without effect" in analysis.summary
    # an action on offer is named although the response around it broke the form
    (analysis,) = hindsight.analyze(
        [dataclasses.replace(on_offer, steps=(dataclasses.replace(on_offer.steps[2], is_valid=False),))], CONFIG, {}
    )
    assert analysis.episode_skill == "Avoid: go to bed."


def test_a_sibling_shows_what_to_do_where_a_response_held_no_action():
    success = episode("s", ["go to desk 1", "take mug 1 from desk 1"], observations={0: "room"})
    failure = episode("f", ["well, well"], "failure", observations={0: "room"}, invalid=(0,))
    analysis = hindsight.analyze([success, failure], CONFIG, {})[1]
    assert analysis.step_skills == {0: "Do now: go to desk 1"}
    assert analysis.episode_skill.endswith("Do not skip: take mug.")


def test_the_first_divergence_and_critical_steps_name_the_siblings_action():
    # both see "room" first; f leaves the sibling's way there, meets its later state "desk" and strays again
    success = episode("s", ["look", "go to desk 1", "take mug 1 from desk 1"], observations={0: "room", 2: "desk"})
    failure = episode("f", ["look", "go to bed 1", "go to desk 1", "look"], "failure", {0: "room", 1: "x", 3: "desk"})
    longer = episode("t", ["wait", "go to desk 1", "examine mug 1", "use mug 1"], observations={0: "room", 2: "desk"})
    # step 0: f did what s did there, so the first divergence is at step 3; the shorter sibling is followed
    analyses = hindsight.analyze([longer, failure, success], CONFIG, {"f": [1, 3]})
    assert analyses[1].step_skills == {3: "Do now: take mug 1 from desk 1"}
    # without s the divergence is at step 0, and the critical step 3 follows; step 1 is a state no success saw
    analyses = hindsight.analyze([longer, failure], CONFIG, {"f": [1, 3]})
    assert analyses[1].step_skills == {0: "Do now: wait", 3: "Do now: examine mug 1"}
    assert hindsight.analyze([failure], CONFIG, {"f": [1, 3]})[0].step_skills == {}


def test_the_same_text_with_other_actions_on_offer_is_another_state():
    def one(trajectory_id: str, action: str, offered: tuple[str, ...], outcome: str) -> Trajectory:
        step = Step(0, "room", offered, "", action, True, 0.0)
        return Trajectory(trajectory_id, "g", "task", "t", "text", outcome, (step,))

    success = one("s", "a", ("a", "b"), "success")
    same = one("f", "b", ("b", "a"), "failure")
    other = one("h", "b", ("b", "a", "c"), "failure")
    analyses = hindsight.analyze([success, same, other], CONFIG, {"h": [0]})
    assert [a.step_skills for a in analyses] == [{}, {0: "Do now: a"}, {}]


def test_the_siblings_last_visit_of_a_state_counts():
    success = episode("s", ["go to bed 1", "go to desk 1", "open desk 1"], observations={0: "room", 2: "room"})
    failure = episode("f", ["look"], "failure", {0: "room"})
    assert hindsight.analyze([success, failure], CONFIG, {})[1].step_skills == {0: "Do now: open desk 1"}


def test_max_step_skills_failed_only_and_broken():
    success, failure = episode("s", CLEAN_APPLE), episode("f", ["look"], "failure")
    broken, empty = episode("b", ["look"], "broken"), episode("e", [], "failure")
    capped = CONFIG.model_copy(update={"max_step_skills": 2})
    analyses = hindsight.analyze([success, broken, empty, failure], capped, {"s": [4, 5, 6]})
    assert [a.trajectory_id for a in analyses] == ["s", "f"]
    assert list(analyses[0].step_skills) == [4, 5]
    failed_only = CONFIG.model_copy(update={"failed_only": True})
    assert [a.trajectory_id for a in hindsight.analyze([success, failure], failed_only, {})] == ["f"]


# --- actions in tags: searching and answering -------------------------------------------------------------------------


def search(query: str) -> str:
    return f"<search>{query}</search>"


def answer(text: str) -> str:
    return f"<answer>{text}</answer>"


def asked(trajectory_id: str, actions: list[str], outcome: str = "success", question: str = "") -> Trajectory:
    """An episode that answers a question."""
    question = question or "Your question is: What did the founder of Belora work as?"
    return dataclasses.replace(episode(trajectory_id, actions, outcome), task_text=question)


@pytest.mark.parametrize(
    ("action", "skill"),
    [
        (search("who founded Belora"), "Do now: search: who founded Belora"),
        (search("Belora 2"), "Do now: search: Belora 2"),
        (search(""), "Do now: search"),
        (answer("Tavi"), "Do now: answer"),
        (search(f"so {answer('Tavi')}"), "Do now: answer"),  # the world takes it as an answer
        ("<think>look around</think>", "Do now: look around"),  # part of a response, no kind of action
        ("search[red mug]", "Do now: search[red mug]"),
        ("take mug 1 from desk 2", "Do now: take mug 1 from desk 2"),
        ("<search>open", "Do now: open"),  # no block: only the tag is taken out, as of any text
    ],
)
def test_a_step_skill_says_what_kind_of_action_it_names(action, skill):
    assert hindsight.step_skill(action) == skill


def test_the_workflow_of_an_answered_question_leaves_the_answer_out():
    actions = [search("Belora"), search("Tavi Omen"), answer("a baker")]
    assert hindsight.workflow_skill(actions) == "Plan: search: Belora, search: Tavi Omen, answer."
    (analysis,) = hindsight.analyze([asked("s", actions)], CONFIG, {"s": [0, 2]})
    assert analysis.episode_skill == "Plan: search: Belora, search: Tavi Omen, answer."
    assert analysis.step_skills == {0: "Do now: search: Belora", 2: "Do now: answer"}
    assert analysis.summary == "Succeeded in 3 steps: search: Belora, search: Tavi Omen, answer."


def test_a_query_that_names_the_right_answer_is_not_told():
    checked = [search("Belora"), search("was Tavi a BAKER?"), answer("The baker")]
    failure = asked("f", [search("which bakery"), search("the baker of Belora"), answer("a dyer")], "failure")
    success, failed = hindsight.analyze([asked("s", checked), failure], CONFIG, {"s": [1]})
    assert success.episode_skill == "Plan: search: Belora, search, answer."
    assert success.step_skills == {1: "Do now: search"}
    # "bakery" is another word. The answer that was wrong is not told either.
    assert failed.episode_skill == "Do not skip: search: Belora. Avoid: search: which bakery."
    # Where the question itself names the answer, a query may too.
    question = "Your question is: Was Tavi a baker or a dyer?"
    (analysis,) = hindsight.analyze([asked("s", checked, question=question)], CONFIG, {})
    assert analysis.episode_skill == "Plan: search: Belora, search: was Tavi a BAKER?, answer."


def test_a_failure_learns_what_to_search_where_a_sibling_went_on_searching():
    success = asked("s", [search("Belora"), search("Tavi"), answer("baker")])
    hasty = asked("f", [search("Belora"), answer("dyer")], "failure")
    (_, analysis) = hindsight.analyze([success, hasty], CONFIG, {})
    assert analysis.episode_skill == "Do not skip: search: Tavi."
    assert analysis.step_skills == {1: "Do now: search: Tavi"}


def test_two_different_answers_are_no_divergence_that_a_skill_could_tell():
    success, failure = (
        asked("s", [search("Tavi"), answer("baker")]),
        asked("f", [search("Tavi"), answer("dyer")], "failure"),
    )
    (_, analysis) = hindsight.analyze([success, failure], CONFIG, {"f": [1]})
    assert (analysis.episode_skill, analysis.step_skills) == ("Do not waste steps.", {})


@settings(max_examples=100)
@given(
    st.lists(
        st.lists(st.sampled_from(["Belora", "Tavi", "Omen Tavi", "the Omen"]), max_size=3), min_size=1, max_size=4
    ),
    st.sampled_from(["Omen", "Omen Tavi", "omen, tavi!"]),
)
def test_no_skill_tells_the_answer_of_a_success(queries, right):
    group = [asked("s", [*map(search, queries[0]), answer(right)])]
    group += [asked(f"f{n}", [*map(search, q), answer("dyer")], "failure") for n, q in enumerate(queries[1:])]
    critical = {trajectory.trajectory_id: range(len(trajectory.steps)) for trajectory in group}
    for analysis in hindsight.analyze(group, CONFIG, critical):
        for text in (analysis.summary, analysis.episode_skill, *analysis.step_skills.values()):
            words = text.replace(",", " ").replace(".", " ").split()
            joined = " ".join(word for word in words if word != "the")
            assert right.replace(",", "").replace("!", "").lower() not in joined.lower()
            assert "dyer" not in joined


@given(st.text("abc 123", min_size=1).map(str.strip), st.sampled_from(["take", "go to", "clean", "look"]))
def test_actions_without_tags_are_worded_as_before(words, verb):
    """Policies are warm-started on these texts."""
    assert hindsight.step_skill(f"{verb} {words}") == " ".join(f"Do now: {verb} {words}".split())
    assert hindsight.worded(f"{verb} {words}") == f"{verb} {words}"
