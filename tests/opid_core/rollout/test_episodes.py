"""The episode loop over a scripted engine and a scripted world."""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from envs.base import TURN_LINE, StepResult, Task
from opid_core.errors import DataError, EnvironmentFault
from opid_core.rollout.episodes import run_episodes
from opid_core.rollout.tables import evaluations_table, steps_table, trajectories_table
from opid_core.seeds import derive
from tests.factories import CHAT_TEMPLATE, make_tokenizer
from tests.opid_core.rollout.scripted import (
    SETTINGS,
    TOKENIZER,
    AheadEngine,
    AsyncRoom,
    Room,
    ScriptedEngine,
    ScriptedTextEngine,
    ids,
    play,
    request,
)


def test_the_four_outcomes():
    engine = ScriptedEngine(
        {
            "won": ["look", "take mug 1"],
            "lost": ["put mug 1"],
            "long": ["look", "go to desk 1", "look"],
            "broken": ["look", "open drawer"],
        }
    )
    episodes = play(engine, "won", "lost", "long", "broken")
    assert [e.outcome for e in episodes] == ["success", "failure", "truncated", "broken"]
    assert [e.request.trajectory_id for e in episodes] == ["won", "lost", "long", "broken"]
    assert [[t.action for t in e.turns] for e in episodes] == [
        ["look", "take mug 1"],
        ["put mug 1"],
        ["look", "go to desk 1", "look"],
        ["look", "open drawer"],
    ]
    assert [e.error for e in episodes] == [None, None, None, "the drawer is stuck"]
    # The environment's rewards (0.25 a step, 1 for the win) times the success reward; a turn that broke has none.
    assert [[t.reward for t in e.turns] for e in episodes] == [[2.5, 10.0], [2.5], [2.5, 2.5, 2.5], [2.5, 0.0]]
    assert [e.episode_return for e in episodes] == [12.5, 2.5, 7.5, 2.5]
    # look 1, take mug 1: 3, put mug 1: 3, go to desk 1: 4, open drawer: 2 tokens; all that was sampled is counted.
    assert [e.tokens for e in episodes] == [4, 3, 6, 3]
    assert engine.tokens_generated == 16


def test_what_the_template_writes_of_an_answer_is_read_with_it_and_not_recorded():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE.replace("<assistant>", "<assistant> <think>")
    engine = ScriptedEngine({"a": ["look", "look", "look"]})
    (episode,) = run_episodes(engine, tokenizer, Room, [request("a")], SETTINGS)
    assert [(turn.action, turn.response_text) for turn in episode.turns] == [("<think>look", "look")] * 3


def test_no_barrier():
    """While `slow` waits for its first answer, `fast` plays its whole episode."""
    engine = ScriptedEngine(delays={"slow": [9, 1, 1], "fast": [1, 2, 1]})
    ended = []
    play(engine, "slow", "fast", on_episode=lambda e: ended.append((engine.now, e.request.trajectory_id)))
    assert engine.submissions == [(0, "slow"), (0, "fast"), (1, "fast"), (3, "fast"), (9, "slow"), (10, "slow")]
    assert ended == [(4, "fast"), (11, "slow")]


def test_the_engine_samples_on_while_a_turn_is_prepared():
    """The first answers end with step 2. The next turns of `a` and `b` are prepared during step 3, for `c`, and enter
    after it. `c` is alone when its turns are prepared: nothing is sampled meanwhile."""
    delays = {"a": [2, 1, 1], "b": [2, 1, 1], "c": [9, 1, 1]}
    engine = AheadEngine(delays=delays)
    play(engine, "a", "b", "c")
    expected = [(0, "a"), (0, "b"), (0, "c"), (3, "a"), (3, "b"), (5, "a"), (5, "b"), (9, "c"), (10, "c")]
    assert engine.submissions == expected


def test_slow_preparation_changes_no_submission(monkeypatch):
    delays = {"a": [2, 3, 1], "b": [3, 1, 2], "c": [4, 1, 4]}
    quick, slow = AheadEngine(delays=delays), AheadEngine(delays=delays)
    first = play(quick, "a", "b", "c")
    step = Room.step
    monkeypatch.setattr(Room, "step", lambda self, action: (time.sleep(0.01), step(self, action))[1])
    second = play(slow, "a", "b", "c")
    assert slow.submissions == quick.submissions
    assert [replace(e, seconds=0.0) for e in first] == [replace(e, seconds=0.0) for e in second]


@pytest.mark.parametrize("engine", [ScriptedEngine, AheadEngine])
def test_an_asynchronous_world_gives_the_same_episodes(engine):
    scripts = {
        "won": ["look", "take mug 1"],
        "lost": ["put mug 1"],
        "long": ["look", "go to desk 1", "look"],
        "broken": ["look", "open drawer"],
    }
    asked = [request(name, seed=index) for index, name in enumerate(scripts)]
    episodes = run_episodes(engine(scripts), TOKENIZER, AsyncRoom, asked, SETTINGS)
    expected = play(ScriptedEngine(scripts), *scripts)
    assert [replace(e, seconds=0.0) for e in episodes] == [replace(e, seconds=0.0) for e in expected]


@pytest.mark.parametrize("engine", [ScriptedEngine, AheadEngine])
def test_a_world_that_waits_holds_nobody_up(engine):
    """`slow` gets its first answer from the world when `fast` has played to its end."""
    ended: list[str] = []

    async def until_fast_ended() -> None:
        while not ended:
            await asyncio.sleep(0.001)

    asked = [request("slow", task=Task("t", "kind", until_fast_ended)), request("fast")]
    played = engine()
    run_episodes(played, TOKENIZER, AsyncRoom, asked, SETTINGS, lambda e: ended.append(e.request.trajectory_id))
    assert ended == ["fast", "slow"]
    assert [name for _, name in played.submissions] == ["slow", "fast", "fast", "fast", "slow", "slow"]


@pytest.mark.parametrize("engine", [ScriptedEngine, AheadEngine])
def test_an_episode_that_ended_holds_nothing_that_others_wait_for(engine):
    """The world has one place, which an environment keeps as long as it lives."""
    place = threading.Semaphore(1)

    class OnePlace(AsyncRoom):
        async def reset(self, task):
            async with asyncio.timeout(20):
                while not place.acquire(blocking=False):
                    await asyncio.sleep(0.001)
            weakref.finalize(self, place.release)
            return await super().reset(task)

    asked = [request("first"), request("second"), request("third")]
    episodes = run_episodes(engine(), TOKENIZER, OnePlace, asked, SETTINGS)
    assert [len(episode.turns) for episode in episodes] == [3, 3, 3]


def test_what_an_asynchronous_world_still_does_ends_with_the_loop():
    ended = threading.Event()

    async def for_ever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    asked = [request("waits", task=Task("t", "kind", for_ever)), request("fails")]
    with pytest.raises(KeyError, match="a bug"):
        run_episodes(
            ScriptedEngine({"waits": ["look"], "fails": ["close drawer"]}), TOKENIZER, AsyncRoom, asked, SETTINGS
        )
    assert ended.wait(10)


def test_a_turn_records_what_the_policy_saw_and_said():
    engine = ScriptedEngine({"a": ["you look", "go to desk 1", "take mug 1"]})
    (episode,) = play(engine, "a")
    first, second, third = episode.turns
    assert episode.task_text == "task t"
    assert (first.observation, second.observation, third.observation) == ("room 1", "room 2", "room 3")
    # On offer when the decision was made, not after it.
    assert first.admissible_actions == ("look", "go 0")
    assert third.admissible_actions == ("look", "go 2")
    assert (first.response_text, first.action, first.is_valid) == ("you look", "you look", False)
    assert second.is_valid
    assert list(first.response_ids) == ids("you look")
    assert list(first.log_probs) == [-0.5, -0.5]
    assert first.prompt.text == f"task t\n0 room 1\nlook, go 0\n{TURN_LINE}"
    assert third.prompt.text == (f"task t\nroom 1 : you look\nroom 2 : go to desk 1\n2 room 3\nlook, go 2\n{TURN_LINE}")
    assert [asked["prompt_ids"] for asked in engine.asked] == [list(turn.prompt.ids) for turn in episode.turns]
    assert {(asked["max_tokens"], asked["temperature"]) for asked in engine.asked} == {(8, 1.0)}


def test_the_history_is_as_long_as_the_settings_say():
    (episode,) = play(ScriptedEngine(), "a", settings=replace(SETTINGS, history_length=1))
    assert episode.turns[2].prompt.text == f"task t\nroom 2 : look\n2 room 3\nlook, go 2\n{TURN_LINE}"


def test_a_static_skill_stands_in_every_prompt_of_its_task():
    bank = {"kind": "take mug 1"}
    (episode,) = play(ScriptedEngine(), "a", settings=replace(SETTINGS, skill_of=lambda task: bank[task.task_type]))
    skill = "Episode skill:\ntake mug 1\n"
    assert episode.turns[0].prompt.text == f"task t\n{skill}0 room 1\nlook, go 0\n{TURN_LINE}"
    assert [turn.prompt.text.count(skill) for turn in episode.turns] == [1, 1, 1]


def test_an_engine_that_speaks_text_plays_the_same_episodes():
    """With words for tokens both engines see and say the same; only the text engine's tokens are its own affair."""
    scripts = {"a": ["you look", "take mug 1"], "b": ["look", "open drawer"]}
    by_tokens = play(ScriptedEngine(scripts), "a", "b")
    engine = ScriptedTextEngine({name: list(script) for name, script in scripts.items()})
    asked = [request(name, seed=index) for index, name in enumerate(("a", "b"))]
    by_text = run_episodes(engine, None, Room, asked, replace(SETTINGS, max_prompt_tokens=1))
    for episode, other in zip(by_text, by_tokens, strict=True):
        assert (episode.outcome, episode.error) == (other.outcome, other.error)
        assert [turn.prompt.text for turn in episode.turns] == [turn.prompt.text for turn in other.turns]
        for turn, its_twin in zip(episode.turns, other.turns, strict=True):
            unknown = turn.prompt.ids, turn.response_ids, turn.log_probs
            assert ([len(values) for values in unknown], turn.tokens) == ([0, 0, 0], 7)
            twin_prompt = {"prompt": turn.prompt, "response_ids": turn.response_ids, "log_probs": turn.log_probs}
            alike = replace(its_twin, **twin_prompt, tokens=7)
            assert turn == alike
    assert [episode.tokens for episode in by_text] == [14, 14]
    messages = [turn.prompt.text for step in zip(*(e.turns for e in by_text), strict=True) for turn in step]
    assert [asked["message"] for asked in engine.asked] == messages
    assert [asked["seed"] for asked in engine.asked] == [derive(0, 0), derive(1, 0), derive(0, 1), derive(1, 1)]
    assert {(asked["max_tokens"], asked["temperature"]) for asked in engine.asked} == {(8, 1.0)}


def test_every_turn_has_a_seed_of_its_own():
    engine = ScriptedEngine()
    first, second = play(engine, "a", "b")  # their episodes have the seeds 0 and 1
    assert [turn.seed for turn in first.turns] == [derive(0, 0), derive(0, 1), derive(0, 2)]
    assert [turn.seed for turn in second.turns] == [derive(1, 0), derive(1, 1), derive(1, 2)]
    by_submission = {asked["seed"] for asked in engine.asked}
    assert by_submission == {turn.seed for turn in (*first.turns, *second.turns)}
    assert len(by_submission) == 6


def test_a_world_that_cannot_be_reset_breaks_its_own_episode_only():
    broken = Task("broken", "kind", EnvironmentFault("no such game"))
    engine, ended = ScriptedEngine(), []
    episodes = run_episodes(
        engine, TOKENIZER, Room, [request("x", task=broken), request("y")], SETTINGS, lambda e: ended.append(e.outcome)
    )
    assert [(e.outcome, e.error, len(e.turns)) for e in episodes] == [
        ("broken", "no such game", 0),
        ("truncated", None, 3),
    ]
    assert ended == ["broken", "truncated"]
    assert {name for _, name in engine.submissions} == {"y"}


def test_other_exceptions_leave_the_loop():
    with pytest.raises(KeyError, match="a bug"):
        play(ScriptedEngine({"a": ["close drawer"]}), "a", "b")
    broken = Task("t", "kind", DataError("a bad game file"))
    with pytest.raises(DataError, match="a bad game file"):
        run_episodes(ScriptedEngine(), TOKENIZER, Room, [request("a", task=broken)], SETTINGS)


@pytest.mark.parametrize("engine", [ScriptedEngine, AheadEngine])
def test_an_episode_whose_world_takes_too_long_is_broken(engine):
    async def for_ever() -> None:
        await asyncio.Event().wait()

    asked = [request("silent", task=Task("t", "kind", for_ever)), request("won")]
    script = {"silent": ["look"], "won": ["take mug 1"]}
    silent, won = run_episodes(engine(script), TOKENIZER, AsyncRoom, asked, replace(SETTINGS, timeout_s=0.02))
    assert (silent.outcome, won.outcome) == ("broken", "success")
    assert "environment.episode_timeout_s (0.02)" in (silent.error or "")
    (at_once,) = play(ScriptedEngine(), "a", settings=replace(SETTINGS, timeout_s=-1.0))  # a world that never waits
    assert (at_once.outcome, len(at_once.turns)) == ("broken", 1)


def test_half_a_character_of_a_world_is_no_fault_of_the_run():
    class Cut(Room):
        def reset(self, task):
            super().reset(task)
            self.task_text = "find \ud83d it"
            return "a room \ud83d"

    (episode,) = run_episodes(ScriptedEngine({"a": ["take mug 1"]}), TOKENIZER, Cut, [request("a")], SETTINGS)
    assert (episode.outcome, episode.task_text, episode.turns[0].observation) == (
        "success",
        "find \ufffd it",
        "a room \ufffd",
    )


def test_the_engines_time_does_not_count():
    class Slow(ScriptedEngine):
        def step(self):
            time.sleep(0.3)
            return super().step()

    limit = replace(SETTINGS, timeout_s=0.8)  # of 0.9 s
    (episode,) = play(Slow(), "a", settings=limit)
    assert (episode.outcome, len(episode.turns)) == ("truncated", 3)
    assert episode.seconds > 0.9

    async def wait() -> None:
        await asyncio.sleep(0.01)  # its answers come while the engine works for the other

    asked = [request("a", task=Task("t", "kind", wait)), request("b")]
    episode, _ = run_episodes(Slow(), TOKENIZER, AsyncRoom, asked, limit)
    assert (episode.outcome, len(episode.turns)) == ("truncated", 3)


def test_a_win_with_the_last_action_is_a_success():
    (episode,) = play(ScriptedEngine({"a": ["look", "look", "take mug 1"]}), "a")
    assert (episode.outcome, len(episode.turns)) == ("success", 3)


def test_no_requests_no_episodes():
    assert play(ScriptedEngine()) == []


answers = st.lists(
    st.sampled_from(["look", "take mug 1", "put mug 1", "open drawer", "you look"]), min_size=3, max_size=3
)


@given(scripts=st.lists(answers, min_size=1, max_size=4), data=st.data())
@hypothesis_settings(max_examples=30, deadline=None)
def test_episodes_do_not_depend_on_the_order_in_which_answers_come(scripts, data):
    names = [f"e{index}" for index in range(len(scripts))]
    given_answers = dict(zip(names, scripts, strict=True))
    delays = {name: data.draw(st.lists(st.integers(1, 5), min_size=3, max_size=3)) for name in names}
    at_once, late = ScriptedEngine(given_answers), ScriptedEngine(given_answers, delays)
    first, second = play(at_once, *names), play(late, *names)
    assert [replace(e, seconds=0.0) for e in first] == [replace(e, seconds=0.0) for e in second]
    for engine, episodes in ((at_once, first), (late, second)):
        assert engine.tokens_generated == sum(e.tokens for e in episodes)


def test_tables_of_episodes():
    engine = ScriptedEngine({"won": ["you look", "take mug 1"], "broken": ["open drawer"]})
    episodes = play(engine, "won", "broken", "long")
    steps = steps_table(episodes, "c", 4, 2).to_pylist()
    assert [(row["trajectory_id"], row["step"]) for row in steps] == [
        ("won", 0),
        ("won", 1),
        ("broken", 0),
        ("long", 0),
        ("long", 1),
        ("long", 2),
    ]
    assert [row["done"] for row in steps] == [False, True, True, False, False, True]
    assert [row["truncated"] for row in steps] == [False, False, False, False, False, True]
    assert {(row["campaign"], row["iteration"], row["policy_version"]) for row in steps} == {("c", 4, 2)}
    trajectories = trajectories_table(episodes, "c", 4).to_pylist()
    shown = ("trajectory_id", "outcome", "return", "steps", "tokens", "error")
    assert [tuple(row[name] for name in shown) for row in trajectories] == [
        ("won", "success", 12.5, 2, 5, None),
        ("broken", "broken", 0.0, 1, 2, "the drawer is stuck"),
        ("long", "truncated", 7.5, 3, 3, None),
    ]
    evaluated = evaluations_table(episodes, 2, "seen", 0.5).to_pylist()
    # `look` is on offer; `you look`, `take mug 1` and `open drawer` are not. Only `you look` is malformed.
    assert [(row["valid_actions"], row["admissible_actions"], row["seed"]) for row in evaluated] == [
        (1, 0, 0),
        (1, 0, 1),
        (3, 3, 2),
    ]


class Graded(Room):
    """The room, worth a tenth more after every step, and 1 when it is won."""

    def step(self, action: str) -> StepResult:
        result = super().step(action)
        return replace(result, score=1.0 if result.won else self.steps / 10)


def test_the_score_of_an_episode_is_what_the_world_said_last():
    answers = {"won": ["look", "take mug 1"], "lost": ["look", "put mug 1"], "broken": ["look", "open drawer"]}
    asked = [request(name) for name in answers]
    episodes = run_episodes(ScriptedEngine(answers), TOKENIZER, Graded, asked, SETTINGS)
    assert [episode.score for episode in episodes] == [1.0, 0.2, 0.1]
    assert [episode.episode_return for episode in episodes] == [12.5, 5.0, 2.5]  # as without scores
    for table in (trajectories_table(episodes, "c", 1), evaluations_table(episodes, 0, "seen", 1.0)):
        assert table.column("score").to_pylist() == pytest.approx([1.0, 0.2, 0.1])
    assert trajectories_table(play(ScriptedEngine(), "long"), "c", 1).column("score").to_pylist() == [None]


@pytest.mark.parametrize("score", [-0.01, 1.5, float("nan")])
def test_a_score_beyond_0_and_1_is_refused(score):
    with pytest.raises(DataError, match=r"StepResult\.score"):
        StepResult("", reward=0.0, done=False, won=False, score=score)
