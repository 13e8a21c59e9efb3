from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.alfworld import AlfworldEnvironment
from envs.base import ActionWords, action_words_of
from envs.search_qa import SearchQaEnvironment
from opid_core.config import AnalyzerConfig
from opid_core.samples import Samples
from opid_core.skills.analyzers import hindsight
from opid_core.skills.replies import Analysis
from tests.envs.corridor import Corridor, CorridorOptions
from tests.opid_core.skills.episodes import episode, together

CONFIG = AnalyzerConfig()
WORDS = AlfworldEnvironment.action_words
SEARCH_WORDS = SearchQaEnvironment.action_words
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
WORKFLOW = (
    "Plan: go to countertop, take apple, go to sinkbasin, clean apple, go to fridge, open fridge, move apple to fridge."
)


def analyses(*group: Samples, config: AnalyzerConfig = CONFIG, words: ActionWords = WORDS) -> list[Analysis]:
    return hindsight.analyze(together(*group), config, words)


@pytest.mark.parametrize(
    ("action", "general"),
    [
        ("take apple 1 from countertop 2", "take apple"),
        ("move apple 1 to fridge 1", "move apple to fridge"),
        ("heat egg 12 with microwave 1", "heat egg"),
        ("look", "look"),
        ("search[size 10 shoes]", "search[size 10 shoes]"),
        ("", ""),
    ],
)
def test_generalise(action, general):
    assert hindsight.generalise(action, WORDS) == general


def test_a_workflow_leaves_out_searching_looks_and_repeats():
    assert hindsight.workflow_skill(CLEAN_APPLE, WORDS) == WORKFLOW
    assert hindsight.workflow_steps(["take a 1 from b 1", "take a 2 from b 1"], WORDS) == ["take a"]
    assert hindsight.workflow_skill(["look"], WORDS) == ""


def test_avoidance_names_at_most_four_of_a_kind():
    skill = hindsight.avoidance_skill(missed=["take apple", "clean apple"], repeated=["look"], wrong=["take pan"])
    assert skill == "Do not skip: take apple, clean apple. Do not repeat: look. Avoid: take pan."
    assert hindsight.avoidance_skill() == "Do not waste steps."
    assert hindsight.avoidance_skill(wrong=list("abcde")) == "Avoid: a, b, c, d."


def test_a_success_becomes_its_workflow():
    failed_first = ["take apple 1 from countertop 1", *CLEAN_APPLE]
    (analysis,) = analyses(episode("x", failed_first, "success", {1: "Nothing happens."}))
    assert analysis.episode_skill == WORKFLOW
    assert analysis.summary.startswith("Succeeded in 12 steps: go to countertop, take apple")
    # the first step changed nothing: where it was done the second was right, and it is in the same state
    assert analysis.step_skills == dict.fromkeys((0, 1), "Do now: go to cabinet 1")
    assert [json.loads(reason)["kind"] for reason in analysis.reasons.values()] == ["other", "own"]
    assert (analysis.analyzer, analysis.error) == ("hindsight", None)


def test_a_success_without_a_known_working_action_is_a_failed_analysis():
    (analysis,) = analyses(episode("x", ["open fridge 1"], invalid=[0], critical=[0]))
    assert analysis.error is not None
    assert (analysis.episode_skill, analysis.step_skills) == ("", {})


def test_a_failure_misses_what_every_sibling_success_did():
    short = [a for a in CLEAN_APPLE if a not in ("look", "inventory")]
    failure = episode("f", ["go to countertop 2", "take apple 2 from countertop 2", "go to fridge 1"], "truncated")
    analysis = analyses(episode("s", CLEAN_APPLE), episode("t", short), failure)[2]
    assert analysis.episode_skill == "Do not skip: clean apple, move apple to fridge."
    assert analysis.summary.startswith("Failed after 3 steps, 0 of them without effect. Do not skip")


def test_a_step_done_too_seldom_is_missed():
    twice = ["take mug", "move mug", "take mug", "move mug"]
    assert hindsight.missed_steps(twice[:2], [twice]) == ["take mug", "move mug"]
    assert hindsight.missed_steps(twice[:2], [twice, ["move mug", "move mug"]]) == ["move mug"]
    assert hindsight.missed_steps(twice, [twice]) == []
    assert hindsight.missed_steps(twice[:1], []) == []


@pytest.mark.parametrize(
    ("actions", "skill"),
    [
        (
            ["go to desk 1", "go to bed 1", "go to desk 1", "go to bed 1", "open safe 1", "open safe 1", "look"],
            "Do not repeat: go to desk, go to bed, open safe.",
        ),
        (["look", "go to desk 1", "look", "go to bed 1", "look"], "Do not repeat: look."),
    ],
)
def test_a_failure_repeats(actions, skill):
    assert analyses(episode("f", actions, "failure"))[0].episode_skill == skill


def test_a_failure_did_the_wrong_thing():
    actions = ["take pan 1 from desk 1", "take apple 1 from shelf 1", "open safe 1", "go to bed 1", "look"]
    failure = episode("f", actions, "failure", {3: "Nothing happens.", 4: "Nothing happens."})
    analysis = analyses(failure, episode("s", ["take apple 1 from shelf 1"]))[0]
    assert analysis.episode_skill == "Avoid: open safe, go to bed, take pan."
    assert "2 of them without effect" in analysis.summary
    assert analyses(failure)[0].episode_skill == "Avoid: open safe, go to bed."


def test_what_a_sibling_did_rightly_is_missed_where_it_had_no_effect_not_wrong():
    failure = episode("f", ["clean apple 1 with desk 1", "look"], "failure", {1: "Nothing happens."})
    success = episode("s", ["clean apple 1 with sinkbasin 1"])
    assert analyses(failure, success)[0].episode_skill == "Do not skip: clean apple."


def test_what_is_not_to_be_skipped_is_not_called_repeated():
    done = ["clean apple 1 with desk 1", "clean apple 1 with desk 1", "look", "look"]
    failure = episode("f", done, "failure", dict.fromkeys(range(4), "Nothing happens."))
    success = episode("s", ["clean apple 1 with sinkbasin 1"])
    assert analyses(failure, success)[0].episode_skill == "Do not skip: clean apple. Do not repeat: look."


def test_a_search_in_a_shop_is_an_action_on_offer():
    pages = [["search[<your query>]"], ["click[b01]", "click[b02]"], ["click[buy now]"]]
    keys = ["search", "results 1 2", "item 1"], ["search", "results 1 2", "item 2"]
    won = episode("s", ["search[red balm]", "click[b01]", "click[buy now]"], offered=pages, states=keys[0])
    lost = episode("f", ["search[balm]", "click[b02]", "click[buy now]"], "failure", offered=pages, states=keys[1])
    plan, avoided = analyses(won, lost, words=ActionWords())
    assert plan.episode_skill == "Plan: search[red balm], click[b01], click[buy now]."
    # both searches led to the same results
    assert plan.step_skills == avoided.step_skills == {1: "Do now: click[b01]"}
    assert avoided.episode_skill == "Do not skip: search[red balm], click[b01]. Avoid: search[balm], click[b02]."


def test_a_response_without_an_action_is_named_by_its_fault_not_by_its_text():
    actions = ["402nd month: - monday-sept. 30", "402nd month: - monday-sept. 30", "go to bed 1", "open safe 1"]
    (analysis,) = analyses(episode("f", actions, "failure", invalid=[0, 1], offered=[["go to bed 1"]] * 4))
    assert analysis.episode_skill == "Always answer in the form asked for, with one action. Avoid: open safe."
    assert "3 of them without effect" in analysis.summary
    # an action on offer was done although the response around it broke the form: the form is what was wrong
    (analysis,) = analyses(episode("f", ["go to bed 1"], "failure", invalid=[0], offered=[["go to bed 1"]]))
    assert analysis.episode_skill == "Always answer in the form asked for, with one action."


def test_what_a_success_did_in_a_response_that_broke_the_form_is_not_to_be_avoided():
    offered = [["take cloth 1", "clean cloth 1", "move cloth 1"]] * 3
    success = episode("s", ["take cloth 1", "clean cloth 1", "move cloth 1"], invalid=[1], offered=offered)
    failure = episode("f", ["take cloth 1", "clean cloth 1"], "failure", offered=offered[:2])
    won, lost = analyses(success, failure)
    assert won.episode_skill == "Plan: take cloth, clean cloth, move cloth."
    assert lost.episode_skill == "Do not skip: move cloth."


def test_what_is_on_offer_and_leads_nowhere_is_no_part_of_a_plan():
    pages = [["search[<your query>]", "click[search]"]] * 2 + [["click[buy now]"]]
    clicked = ["click[search]", "search[red balm]", "click[buy now]"]
    shown: dict[int, str] = dict.fromkeys((0, 1), "a search bar")
    states = ["search", "search", "item 1"]
    won = episode("s", clicked, observations=shown, offered=pages, states=states)
    lost = episode("f", clicked[:1] * 2, "failure", shown, offered=pages[:2], states=states[:2])
    plan, avoided = analyses(won, lost, words=ActionWords())
    assert plan.episode_skill == "Plan: search[red balm], click[buy now]."
    assert avoided.episode_skill == "Do not skip: search[red balm], click[buy now]. Do not repeat: click[search]."


def test_a_sibling_shows_what_to_do_where_a_response_held_no_action():
    success = episode("s", ["go to desk 1", "take mug 1 from desk 1"], "success", {0: "room"})
    failure = episode("f", ["well, well"], "failure", {0: "room"}, invalid=[0])
    analysis = analyses(success, failure)[1]
    assert analysis.step_skills == {0: "Do now: go to desk 1"}
    assert analysis.episode_skill.endswith("Do not skip: take mug.")


def test_the_same_text_with_other_actions_on_offer_is_another_state():
    success = episode("s", ["a"], "success", {0: "room"}, offered=[["a", "b"]])
    same = episode("f", ["b"], "failure", {0: "room"}, offered=[["b", "a"]])
    other = episode("h", ["b"], "failure", {0: "room"}, offered=[["b", "a", "c"]], critical=[0])
    assert [a.step_skills for a in analyses(success, same, other)] == [{0: "Do now: a"}, {0: "Do now: a"}, {}]


def test_corrections_and_confirmations_take_turns_critical_ones_first():
    best = episode("x", ["a", "b", "c", "d"], states=["s", "t", "u", "v"])
    wasted = ["w", "a", "w", "b", "w", "c", "d"]  # "w" changes nothing
    slow = episode("y", wasted, states=["s", "s", "t", "t", "u", "u", "v"], critical=[4])
    for most, steps in ((1, [4]), (2, [1, 4]), (3, [0, 1, 4]), (4, [0, 1, 3, 4]), (9, [0, 1, 2, 3, 4, 5])):
        found = analyses(best, slow, config=CONFIG.model_copy(update={"max_step_skills": most}))[1]
        assert found.step_skills == {step: f"Do now: {'aabbcc'[step]}" for step in steps}
        assert [*found.reasons] == steps


def test_one_analysis_of_each_analysed_trajectory():
    group = episode("s", CLEAN_APPLE), episode("b", ["look"], "broken"), episode("f", ["look"], "failure")
    assert [analysis.trajectory_id for analysis in analyses(*group)] == ["s", "f"]


def test_groups_are_no_siblings_and_the_order_is_that_of_the_samples():
    other = episode("s", CLEAN_APPLE, group_id="h")
    mixed = together(episode("f", ["look"], "failure"), other, episode("g", ["look"], "failure"))
    progress: list[tuple[int, int]] = []
    of_each = hindsight.analyze(mixed, CONFIG, WORDS, lambda *counts: progress.append(counts))
    assert [(a.trajectory_id, a.episode_skill) for a in of_each] == [
        ("f", "Do not waste steps."),
        ("s", WORKFLOW),
        ("g", "Do not waste steps."),
    ]
    assert progress == [(1, 2), (2, 2)]


# The words of an environment ---------------------------------------------------------------------------------------


class SignedCorridor(Corridor):
    """The corridor of docs/environments.md, which says how its actions read."""

    action_words = ActionWords(moving_verbs=("go",), failed_observations=("You bump into a wall.",))


@pytest.mark.parametrize(
    ("world", "plan"),
    [
        (Corridor, "Plan: go left, go right, take key, go right, open door."),
        (SignedCorridor, "Plan: go right, take key, go right, open door."),
    ],
)
def test_an_environment_of_ones_own_may_say_how_its_actions_read(world, plan):
    words = action_words_of(world(CorridorOptions()))
    actions = ["go left", "go right", "go right", "take key", "go right", "open door"]
    assert analyses(episode("s", actions), words=words)[0].episode_skill == plan


def test_what_a_failure_looks_like_is_the_environments_to_say():
    bumped = episode("f", ["go left", "go right"], "failure", {1: "You bump into a wall."})
    refused = episode("f", ["go left", "go right"], "failure", {1: "Nothing happens."})
    for words, skills in (
        (ActionWords(), ["Do not waste steps.", "Avoid: go left."]),
        (SignedCorridor.action_words, ["Avoid: go left.", "Do not waste steps."]),
    ):
        assert [analyses(one, words=words)[0].episode_skill for one in (bumped, refused)] == skills


# Actions in tags: searching and answering --------------------------------------------------------------------------


def search(query: str) -> str:
    return f"<search>{query}</search>"


def answer(text: str) -> str:
    return f"<answer>{text}</answer>"


def asked(
    trajectory_id: str,
    actions: list[str],
    outcome: str = "success",
    question: str = "What did the founder of Belora work as?",
    critical: tuple[int, ...] = (),
    invalid: tuple[int, ...] = (),
) -> Samples:
    """An episode that answers a question."""
    task = f"Your question is: {question}"
    return episode(trajectory_id, actions, outcome, critical=critical, invalid=invalid, task_text=task)


@pytest.mark.parametrize(
    ("action", "skill"),
    [
        (search("who founded Belora 2"), "Do now: search: who founded Belora 2"),
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
    assert hindsight.step_skill(action, SEARCH_WORDS) == skill


def test_the_workflow_of_an_answered_question_leaves_the_answer_out():
    actions = [search("Belora"), search("Tavi Omen"), answer("a baker")]
    analysis, _ = analyses(asked("s", actions), asked("f", [answer("dyer")], "failure"), words=SEARCH_WORDS)
    assert analysis.episode_skill == "Plan: search: Belora, search: Tavi Omen, answer."
    assert analysis.step_skills == {0: "Do now: search: Belora"}
    assert analysis.summary == "Succeeded in 3 steps: search: Belora, search: Tavi Omen, answer."


def test_a_query_that_names_the_right_answer_is_not_told():
    checked = [search("Belora"), search("was Tavi a BAKER?"), answer("The baker")]
    failure = asked("f", [search("which bakery"), search("the baker of Belora"), answer("a dyer")], "failure")
    success, failed = analyses(asked("s", checked), failure, words=SEARCH_WORDS)
    assert success.episode_skill == "Plan: search: Belora, search, answer."
    # the second query cannot be told
    assert success.step_skills == {0: "Do now: search: Belora"}
    # "bakery" is another word. The answer that was wrong is not told either.
    assert failed.episode_skill == "Do not skip: search: Belora. Avoid: search: which bakery."
    # Where the question itself names the answer, a query may too.
    (analysis,) = analyses(asked("s", checked, question="Was Tavi a baker or a dyer?"), words=SEARCH_WORDS)
    assert analysis.episode_skill == "Plan: search: Belora, search: was Tavi a BAKER?, answer."


def test_a_failure_learns_what_to_search_where_a_sibling_went_on_searching():
    success = asked("s", [search("Belora"), search("Tavi"), answer("baker")])
    hasty = asked("f", [search("Belora"), answer("dyer")], "failure")
    analysis = analyses(success, hasty, words=SEARCH_WORDS)[1]
    assert analysis.episode_skill == "Do not skip: search: Tavi."
    assert analysis.step_skills == {1: "Do now: search: Tavi"}


def test_a_success_is_no_warning_against_its_actions_where_their_responses_broke_the_form():
    for broken in (0, 1):
        success = asked("s", [search("Belora"), answer("baker")], invalid=(broken,))
        failure = asked("f", [search("Belora"), answer("dyer")], "failure")
        won, lost = analyses(success, failure, words=SEARCH_WORDS)
        assert won.episode_skill == "Plan: search: Belora, answer."
        assert lost.episode_skill == "Do not waste steps."


def test_queries_that_cannot_be_told_may_differ_and_are_neither_repeated_nor_wrong():
    success = asked("s", [search("Belora"), answer("baker")])
    failure = asked("f", [search("Tavi the baker"), search("is Omen a baker"), answer("dyer")], "failure")
    assert analyses(success, failure, words=SEARCH_WORDS)[1].episode_skill == "Do not skip: search: Belora."


def test_two_different_answers_are_no_divergence_that_a_skill_could_tell():
    success = asked("s", [search("Tavi"), answer("baker")])
    failure = asked("f", [search("Tavi"), answer("dyer")], "failure", critical=(1,))
    analysis = analyses(success, failure, words=SEARCH_WORDS)[1]
    assert (analysis.episode_skill, analysis.step_skills) == ("Do not waste steps.", {})


@settings(max_examples=60)
@given(
    st.lists(
        st.lists(st.sampled_from(["Belora", "Tavi", "Omen Tavi", "the Omen"]), max_size=3), min_size=1, max_size=4
    ),
    st.sampled_from(["Omen", "Omen Tavi", "omen, tavi!"]),
)
def test_no_skill_tells_the_answer_of_a_success(queries, right):
    all_steps = tuple(range(4))
    group = [asked("s", [*map(search, queries[0]), answer(right)], critical=all_steps)]
    for n, of_sibling in enumerate(queries[1:]):
        actions = [*map(search, of_sibling), answer("dyer")]
        group.append(asked(f"f{n}", actions, "failure", critical=all_steps))
    for analysis in analyses(*group, words=SEARCH_WORDS):
        for text in (analysis.summary, analysis.episode_skill, *analysis.step_skills.values()):
            words = text.replace(",", " ").replace(".", " ").split()
            joined = " ".join(word for word in words if word != "the")
            assert right.replace(",", "").replace("!", "").lower() not in joined.lower()
            assert "dyer" not in joined
