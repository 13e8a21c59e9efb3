from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from functools import cache

from hypothesis import given, settings
from hypothesis import strategies as st

from envs.alfworld.games import Game
from envs.alfworld.planner import solve
from envs.alfworld.tasks import game_of
from envs.base import ActionWords, Environment, Task, action_words_of, make, result_of, state_key_of
from opid_core.config import AnalyzerConfig
from opid_core.samples import Samples
from opid_core.skills.analyzers import hindsight
from opid_core.skills.analyzers.group_map import MappedStep, map_group
from opid_core.skills.analyzers.redaction import redacted_groups
from tests.envs.corridor import Corridor, CorridorOptions
from tests.opid_core.skills.episodes import episode, together

WORDS = ActionWords()
SEARCH_WORDS = ActionWords(tags=("search", "answer"), answer_tag="answer")


def mapped(*group: Samples, words: ActionWords = WORDS) -> dict[str, list[MappedStep]]:
    (told,) = redacted_groups(together(*group), words)
    return map_group(told, words)


def walk(name: str, states: str, actions: Sequence[str], outcome: str = "success", **more) -> Samples:
    """An episode through states that the environment names by letters."""
    return episode(name, actions, outcome, states=[*states], **more)


def told(steps: Sequence[MappedStep]) -> list[tuple]:
    return [(one.left, one.left_after, one.kind, one.action) for one in steps]


def test_longer_ways_are_corrected_and_the_shortest_confirmed():
    # s -> a -> b -> won by x; s -> b by y, and z does nothing at s, then goes where nobody won
    x = walk("x", "sab", ["to a", "to b", "open"])
    y = walk("y", "sb", ["jump", "open"])
    z = walk("z", "ssc", ["look", "to c", "wait"], "truncated")
    found = mapped(x, y, z)
    # left: s 2 (jump, open), a 2, b 1
    assert told(found["x"]) == [(2, 2, "other", "jump"), (2, 1, None, None), (1, 0, None, None)]
    assert told(found["y"]) == [(2, 1, "own", "jump"), (1, 0, None, None)]
    assert told(found["z"]) == [(2, 2, "other", "jump"), (2, None, "other", "jump"), (None, None, None, None)]
    assert [one.siblings for one in found["x"]] == [2, 0, 1]
    assert [one.is_known for one in found["z"]] == [True, True, False]  # it was cut short: nobody knows where it led
    assert found["x"][0].state == found["z"][1].state
    assert found["x"][0].reason == '{"kind": "other", "left": 2, "left_after": 2, "siblings": 2}'


def test_where_one_came_from_is_not_told_to_who_came_from_elsewhere():
    # both opened page i: x from results with the right product, y from others without it
    x = walk("x", "ript", ["wrong", "back", "right", "buy"])
    y = walk("y", "qi", ["wrong", "buy"], "failure")
    assert told(mapped(x, y)["y"]) == [(4, 3, None, None), (3, None, "other", "back")]
    found = mapped(x, y, words=ActionWords(leading_back=("back",)))
    assert told(found["y"]) == [(4, 3, None, None), (3, None, None, None)]
    assert told(found["x"])[1] == (3, 2, None, None)  # nor is it confirmed


def test_what_no_page_lists_counts_where_it_led_elsewhere_and_is_not_named():
    offered = [["search[<your query>]"], ["back"], ["buy"]]
    x = walk("x", "sir", ["search[a]", "search[b]", "buy"], offered=offered)
    y = walk("y", "sis", ["search[a]", "back", "search[c]"], "failure", offered=[*offered[:2], offered[0]])
    without_keys = episode("x", ["search[a]", "search[b]", "buy"], offered=offered)
    for trajectory, acted in ((x, [True, True, True]), (without_keys, [True, False, True])):
        ((told_of,),) = redacted_groups(trajectory, WORDS)
        assert told_of.numbers("acted").tolist() == acted
    assert told(mapped(x, y)["x"])[1] == (2, 1, None, None)  # the shortest way, which a skill could not name


def test_equal_ways_are_both_confirmed_and_the_one_most_took_is_named():
    left = [walk(name, "sa", ["left", "open"]) for name in "xy"]
    right = walk("z", "sb", ["right", "open"])
    lost = walk("f", "s", ["wait"], "failure")
    found = mapped(*left, right, lost)
    assert [found[name][0].action for name in "xyzf"] == ["left", "left", "right", "left"]
    assert [found[name][0].kind for name in "xyzf"] == ["own", "own", "own", "other"]


def test_a_loop_is_no_way_and_costs_the_steps_that_it_takes():
    x = walk("x", "sasab", ["go", "back", "go", "on", "open"])
    # s to a, a to b: 3 left at s and 2 at a; the way back from a leads to 3 left
    assert told(mapped(x)["x"]) == [
        (3, 2, None, None),
        (2, 3, "other", "on"),
        (3, 2, None, None),
        (2, 1, "own", "on"),
        (1, 0, None, None),
    ]


def test_a_group_that_nobody_won_has_no_map():
    found = mapped(walk("x", "sa", ["go", "on"], "truncated"), walk("y", "sb", ["stay", "on"], "failure"))
    assert {one.kind for steps in found.values() for one in steps} == {None}


def test_a_lost_ending_is_not_confirmed_nor_is_what_reads_like_it_said():
    right, wrong = (
        walk(n, "qa", ["<search>b</search>", f"<answer>{n}</answer>"], o)
        for n, o in (("x", "success"), ("y", "failure"))
    )
    hasty = walk("z", "q", ["<answer>no</answer>"], "failure")
    searched = walk("w", "qaa", ["<search>b</search>", "<search>c</search>", "<answer>x</answer>"])
    found = mapped(right, wrong, hasty, searched, words=SEARCH_WORDS)
    answer = "<answer></answer>"
    assert told(found["x"])[1] == (1, 0, "own", answer)  # w searched there again
    assert told(found["y"])[1] == (1, None, None, None)  # "answer" is what it did
    assert told(found["z"]) == [(2, None, "other", "<search>b</search>")]
    assert told(found["w"])[1] == (1, 1, "other", answer)


def test_open_actions_are_the_same_where_they_lead_to_the_same():
    x = walk("x", "qa", ["<search>founder of b</search>", "<answer>x</answer>"])
    y = walk("y", "qa", ["<search>who founded b</search>", "<answer>x</answer>"])
    z = walk("z", "qc", ["<search>c</search>", "<answer>c</answer>"], "failure")
    assert {one[0].kind for one in mapped(x, y, words=SEARCH_WORDS).values()} == {None}  # nothing else was tried
    found = mapped(x, y, z, words=SEARCH_WORDS)
    assert [found[n][0].action for n in "xy"] == ["<search>founder of b</search>", "<search>who founded b</search>"]
    assert found["z"][0].action == "<search>founder of b</search>"


def test_an_action_that_was_not_on_offer_is_not_named():
    # the environment's key joins two pages of which only one offers the short way
    x = walk("x", "sa", ["jump", "open"], offered=[["jump", "to b"], ["open"]])
    y = walk("y", "sba", ["to b", "to a", "open"], offered=[["to b"], ["to a"], ["open"]])
    found = mapped(x, y)
    assert (found["y"][0].left, found["y"][0].left_after, found["y"][0].kind) == (2, 2, None)
    assert found["x"][0].kind == "own"


def test_a_malformed_response_is_corrected_but_not_confirmed():
    x, y = (walk(n, "sa", ["go", "open"], invalid=[0] if n == "x" else []) for n in "xy")
    z = walk("z", "s", ["wait"], "failure")
    found = mapped(x, y, z)
    assert (found["x"][0].kind, found["y"][0].kind) == (None, "own")


def test_without_keys_places_are_told_apart_by_what_was_done():
    words = ActionWords(moving_verbs=("go",), failed_observations=("No.",))
    x = episode(
        "x", ["go desk", "take mug", "go bed", "put mug"], observations={0: "bed", 1: "desk", 2: "ok", 3: "bed"}
    )
    y = episode("y", ["put mug", "go desk"], "truncated", observations={0: "bed", 1: "No."})
    found = mapped(x, y, words=words)
    # the bed before and after the mug was taken; a page that says No is no other state
    assert [one.left for one in found["x"]] == [4, 3, 2, 1]
    assert [(one.left, one.kind, one.action) for one in found["y"]] == [(4, "other", "go desk"), (4, None, None)]


# Worlds whose true distance is known -------------------------------------------------------------------------------


def play(environment: Environment, task: Task, name: str, choices: Sequence[int | str], has_key: bool) -> Samples:
    """An episode of `choices`: actions, or which of those on offer (one more is refused)."""
    seen, offered, actions, states, outcome = [result_of(environment.reset(task))], [], [], [], "truncated"
    for choice in choices:
        offered.append([*environment.admissible_actions])
        states.append(state_key_of(environment))
        options = [*offered[-1], "dance"]
        actions.append(choice if isinstance(choice, str) else options[choice % len(options)])
        result = result_of(environment.step(actions[-1]))
        seen.append(result.observation)
        if result.won:
            outcome = "success"
            break
    return episode(name, actions, outcome, dict(enumerate(seen)), offered=offered, states=states if has_key else None)


def shortest_ways(group: Sequence[Samples], found: dict[str, list[MappedStep]]) -> dict[int, tuple[str, int]]:
    """By state an action on the map's shortest way and the state it led to (-1: won), from the mapped steps alone."""
    ways = {}
    for trajectory in group:
        steps = found[trajectory.trajectory_ids[0]]
        after = [*(one.state for one in steps[1:]), -1]
        for one, action, end in zip(steps, trajectory.texts("action"), after, strict=True):
            if one.left is not None and one.left_after == one.left - 1:
                ways[one.state] = (action, end)
    return ways


def check(group: Sequence[Samples], words: ActionWords) -> dict[str, list[MappedStep]]:
    """What holds of every map: it claims no more than siblings showed, and names nothing that was not on offer."""
    found = mapped(*group, words=words)
    for trajectory in group:
        steps = found[trajectory.trajectory_ids[0]]
        for t, one in enumerate(steps):
            if trajectory.won[0]:
                assert one.left is not None
                assert one.left <= len(trajectory) - t
            if one.kind is not None:
                assert one.action in trajectory.texts("admissible_actions")[t]
                assert (one.kind == "own") == (one.action == trajectory.texts("action")[t])
    for analysis in hindsight.analyze(together(*group), AnalyzerConfig(), words):
        for step, text in analysis.step_skills.items():
            assert text == f"Do now: {found[analysis.trajectory_id][step].action}"
    return found


CORRIDORS = st.integers(0, 23)
WALKS = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=14), min_size=1, max_size=4)


@settings(max_examples=80, deadline=None)
@given(CORRIDORS, WALKS)
def test_in_a_corridor_no_distance_is_less_than_the_true_one(number, walks):
    corridor = Corridor(CorridorOptions(rooms=4))
    task = [*corridor.tasks("train"), *corridor.tasks("valid_unseen")][number]
    group = [play(corridor, task, f"w{n}", choices, has_key=False) for n, choices in enumerate(walks)]
    found = check(group, WORDS)
    _, key, door = task.payload
    for trajectory in group:
        room, has_key = task.payload[0], False
        for one, action in zip(found[trajectory.trajectory_ids[0]], trajectory.texts("action"), strict=True):
            true = abs(room - door) + 1 if has_key else abs(room - key) + 1 + abs(key - door) + 1
            assert one.left is None or one.left >= true
            room += {"go left": -1, "go right": 1}.get(action, 0)
            has_key = has_key or action == "take key"


@cache
def household() -> tuple[Environment, list[tuple[Task, Game, list[str]]]]:
    environment = make("alfworld", {"generator": {"size": "small", "train": 6}})
    games = [(task, game_of(task, environment.options.generator)) for task in environment.tasks("train")]  # pyright: ignore[reportAttributeAccessIssue]
    return environment, [(task, game, solve(game)) for task, game in games]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 5), st.integers(0, 10**6))
def test_in_a_household_the_shortest_way_of_the_map_wins_and_is_no_shorter_than_the_planners(number, seed):
    environment, games = household()
    task, _, plan = games[number]
    rng = random.Random(seed)

    def strayed(choices: list[int | str]) -> list[int | str]:
        """The plan with steps astray between its own, which are undone where the plan needs that."""
        mixed = [[rng.randrange(40) for _ in range(rng.choice((0, 0, 1, 2)))] + [c] for c in choices]
        return [*itertools.chain.from_iterable(mixed)] + [rng.randrange(40) for _ in range(3)]

    group = [play(environment, task, f"w{n}", strayed([*plan]), has_key=True) for n in range(4)]
    found = check(group, action_words_of(environment))
    ways = shortest_ways(group, found)
    for trajectory in group:
        t = rng.randrange(len(trajectory))
        one = found[trajectory.trajectory_ids[0]][t]
        assert one.left is None or one.left >= len(plan) - t
        if one.left is None:
            continue
        environment.reset(task)
        for action in trajectory.texts("action")[:t]:
            environment.step(action)
        state, won = one.state, False
        for _ in range(one.left):
            assert not won
            action, state = ways[state]
            won = result_of(environment.step(action)).won
        assert won
