"""Several engines behind one: who plays what, in which order, and what is refused."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opid_core.errors import InfrastructureError, NumericsError
from opid_core.rollout.engines.fleet import EngineFleet, dealt
from opid_core.rollout.engines.vllm import canary_gap
from opid_core.rollout.episodes import Episode, EpisodeRequest, run_episodes
from opid_core.samples import Ragged
from tests.opid_core.rollout.scripted import SETTINGS, TOKENIZER, Completion, Room, ScriptedEngine, request

OLD, NEW = Path("policies/1"), Path("policies/2")


@dataclass
class StandIn(ScriptedEngine):
    """A replica whose work is done by the time that somebody waits for it."""

    name: str = "engine replica"
    policy_dir: Path = OLD
    given: list[tuple[int | None, list[str]]] = field(default_factory=list)
    """Of each call to the engine's process: for how many steps, and what was submitted with it."""
    unsent: list[str] = field(default_factory=list)
    begun: list[Completion] | None = None
    told: list[str] = field(default_factory=list)
    is_killed: bool = False

    @property
    def is_idle(self) -> bool:
        return not self.waiting and self.begun is None

    def submit(self, request_id, prompt_ids, **sampling) -> None:
        super().submit(request_id, prompt_ids, **sampling)
        self.unsent.append(request_id)

    def begin(self, max_steps: int | None = 1) -> None:
        if self.is_idle or self.begun is not None:
            return
        self.given.append((max_steps, self.unsent))
        self.unsent = []
        self.begun = super().step()
        while max_steps is None and not self.begun:
            self.begun = super().step()

    def step(self) -> list[Completion]:
        self.begin(max_steps=None)
        done, self.begun = self.begun, None
        assert done is not None
        return done

    def begin_load(self, policy_dir: Path) -> None:
        self.policy_dir = policy_dir

    def begin_sleep(self) -> None:
        self.told.append("sleep")

    def begin_wake(self) -> None:
        self.told.append("wake")

    def finish(self) -> None:
        assert self.is_idle
        self.told.append("done")

    def kill(self) -> None:
        self.is_killed = True


def fleet_of(*replicas: StandIn, first_done: Callable = lambda begun: begun[0]) -> EngineFleet[StandIn]:
    return EngineFleet(replicas, OLD, first_done)


def groups_of(sizes: Sequence[int]) -> list[EpisodeRequest]:
    return [
        replace(request(f"{group}-{member}", seed=10 * group + member), group_id=str(group))
        for group, size in enumerate(sizes)
        for member in range(size)
    ]


def played(engine, asked: Sequence[EpisodeRequest]) -> list[Episode]:
    return run_episodes(engine, TOKENIZER, Room, asked, SETTINGS)


def test_each_group_goes_to_the_replica_with_the_fewest_episodes():
    assert dealt(["a", "a", "b", "c", "d"], 2) == {"a": 0, "b": 1, "c": 1, "d": 0}
    assert dealt(["a", "b", "a"], 3) == {"a": 0, "b": 1}
    assert dealt([], 2) == {}


@given(groups=st.lists(st.sampled_from("abcdefgh"), max_size=40), replicas=st.integers(1, 9))
def test_every_group_has_one_replica_and_none_has_a_group_more_than_another(groups, replicas):
    homes = dealt(groups, replicas)
    assert set(homes) == set(groups)
    assert all(0 <= home < replicas for home in homes.values())
    episodes = Counter(homes[group] for group in groups)
    loads = [episodes[replica] for replica in range(replicas)]
    assert max(loads) - min(loads) <= max(Counter(groups).values(), default=0)
    assert homes == dealt(groups, replicas)


@given(
    sizes=st.lists(st.integers(1, 3), min_size=1, max_size=5),
    replicas=st.integers(1, 4),
    script=st.integers(0, 2**32),
    timings=st.lists(st.integers(0, 2**32), min_size=2, max_size=2),
)
def test_whoever_is_faster_each_replica_sees_the_same_in_the_same_order(sizes, replicas, script, timings):
    """And what comes out is what one engine gives. Answers take 1 to 4 of their engine's steps."""
    asked = groups_of(sizes)
    steps = random.Random(script)
    delays = {one.trajectory_id: [steps.randint(1, 4) for _ in range(SETTINGS.max_steps)] for one in asked}
    alone = StandIn(delays=delays)
    expected = [episode.turns for episode in played(fleet_of(alone), asked)]
    seen = []
    for timing in timings:
        engines = [StandIn(delays=delays) for _ in range(replicas)]
        fleet = fleet_of(*engines, first_done=random.Random(timing).choice)
        assert [episode.turns for episode in played(fleet, asked)] == expected
        assert fleet.is_idle
        assert fleet.tokens_generated == alone.tokens_generated
        seen.append([(engine.given, engine.asked) for engine in engines])
    assert seen[0] == seen[1]


def test_one_replica_is_given_what_an_engine_without_a_fleet_is():
    delays = {"0-0": [1, 2, 1], "0-1": [2, 1, 3], "1-0": [3, 1, 1]}
    asked, alone, member = groups_of([2, 1]), StandIn(delays=delays), StandIn(delays=delays)
    assert [e.turns for e in played(alone, asked)] == [e.turns for e in played(fleet_of(member), asked)]
    assert member.given == alone.given


def test_a_group_stays_on_its_replica_and_the_next_batch_is_dealt_anew():
    one, other = StandIn(), StandIn()
    fleet = fleet_of(one, other)
    for _ in range(2):  # a fleet that has played deals as a new one does
        played(fleet, groups_of([2, 1, 2]))
    turns = SETTINGS.max_steps
    assert Counter(name for _, name in one.submissions) == dict.fromkeys(("0-0", "0-1"), 2 * turns)
    assert Counter(name for _, name in other.submissions) == dict.fromkeys(("1-0", "2-0", "2-1"), 2 * turns)


def test_no_replica_that_is_done_waits_behind_a_faster_one():
    """Of several that are done, the one that was heard least lately comes first."""
    engines = [StandIn(name=str(number)) for number in range(3)]
    heard = []

    def first_done(begun: Sequence[StandIn]) -> StandIn:
        heard.append(begun[0].name)
        return begun[0]

    played(fleet_of(*engines, first_done=first_done), groups_of([1, 1, 1]))
    assert heard[:6] == ["0", "1", "2", "0", "1", "2"]


def test_new_weights_go_to_all_and_an_answer_with_others_is_refused():
    deaf = StandIn(name="engine replica 2 of 2")
    fleet = fleet_of(StandIn(), deaf)
    fleet.load_policy(NEW)
    played(fleet, groups_of([1, 1]))
    deaf.policy_dir = OLD
    with pytest.raises(InfrastructureError, match=r"replica 2 of 2 .* policies/1, the others hold policies/2"):
        played(fleet, groups_of([1, 1]))


def test_all_replicas_leave_their_gpus_side_by_side_and_take_them_back():
    told: list[str] = []
    fleet = fleet_of(StandIn(told=told), StandIn(told=told))
    fleet.sleep()
    fleet.wake()
    assert told == ["sleep", "sleep", "done", "done", "wake", "wake", "done", "done"]


def test_the_canary_samples_on_every_replica_and_names_the_one_that_differs():
    """The stand-ins' log-probs are -0.5; the learner gives the last sequences, those of replica 2, -0.75."""

    def score(prompts: Ragged, responses: Ragged) -> Ragged:
        assert [[*prompts[row]] for row in range(len(prompts))] == [[1, 2], [3], [1, 2], [3]]
        return Ragged(np.array([-0.5, -0.5, -0.5, learner], np.float32), responses.offsets)

    engines: Any = [StandIn(), StandIn()]
    learner = -0.5
    assert canary_gap(engines, score, [[1, 2], [3]], 0.1) == 0.0
    learner = -0.75
    with pytest.raises(NumericsError, match=r"engine replica 2 of 2 and learner differ by 0.25 nats"):
        canary_gap(engines, score, [[1, 2], [3]], 0.1)


def test_the_end_of_a_fleet_is_the_end_of_all():
    engines = [StandIn(), StandIn()]
    fleet_of(*engines).kill()
    assert [engine.is_killed for engine in engines] == [True, True]
