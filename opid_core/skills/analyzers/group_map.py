"""The map that the trajectories of a group draw together: how far each state is from success (ALGORITHM, section 3).

Nodes are the states that siblings were in, edges what they did there. Breadth-first search back from success gives the
shortest way that siblings showed, and what each step was worth: whether it took that way, a longer one, or one from
which nobody won.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict, deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

from envs.base import ActionWords, is_offered
from opid_core.samples import Samples
from opid_core.skills.analyzers.redaction import generalise, is_deed, is_named, redacted_groups, sub_steps, worded

_WON, _LOST = "won", "lost"


@dataclass(frozen=True)
class MappedStep:
    """What the map says of one step."""

    state: int
    """Number of the step's state among those of the group, from 0."""
    left: int | None
    """Steps to success from there by the shortest way that siblings showed; None where nobody won from there."""
    left_after: int | None
    """The same after the step; None where nobody won from there, or where that is unknown."""
    is_known: bool
    """Whether it is known where the step led: not of the last step of an episode that was cut short."""
    siblings: int
    """How many other trajectories were in the state."""
    kind: Literal["own", "other"] | None
    """`own`: the step took the shortest way where something else was done too, and may be confirmed; `other`: a shorter
    way was shown, and the step may be corrected; None: there is nothing to say."""
    action: str | None
    """The action that a skill of that kind names."""

    @property
    def reason(self) -> str:
        """JSON of why a skill of this kind is given: the table `skills` keeps it."""
        reason = {"kind": self.kind, "left": self.left, "left_after": self.left_after, "siblings": self.siblings}
        return json.dumps(reason)


def map_group(group: Sequence[Samples], words: ActionWords) -> dict[str, list[MappedStep]]:
    """What the map says of the steps of each trajectory of a group, as `redaction.redacted_groups` gives it.

    A lost ending is never `own`; nothing is said where two actions read the same, or where the better one was not on
    offer, and none that leads to where the player came from is named: siblings came from elsewhere. Source: ALGORITHM,
    section 3.
    """
    group_map = _GroupMap(group, words)
    return {trajectory.trajectory_ids[0]: group_map.steps(n) for n, trajectory in enumerate(group)}


def as_json(samples: Samples, words: ActionWords) -> list[str]:
    """The map as JSON for each of `samples`, which hold whole groups: steps `left` to success before and after the
    step, and what was done in its state by anyone, as a skill may tell of it. Null: nobody won from there."""
    maps: dict[tuple[str, int], str] = {}
    for group in redacted_groups(samples, words):
        mapped = map_group(group, words)
        done: dict[int, Counter[tuple[str, int | None]]] = defaultdict(Counter)
        for trajectory in group:
            for one, action in zip(mapped[trajectory.trajectory_ids[0]], trajectory.texts("action"), strict=True):
                done[one.state][worded(action, words), one.left_after] += one.is_known
        for name, steps in mapped.items():
            for step, one in enumerate(steps):
                tried = [
                    {"action": action, "left_after": after, "times": times}
                    for (action, after), times in done[one.state].items()
                    if times
                ]
                maps[name, step] = json.dumps({"left": one.left, "left_after": one.left_after, "done_there": tried})
    return [maps[key] for key in zip(samples.trajectory_ids, samples.texts("step"), strict=True)]


class _GroupMap:
    def __init__(self, group: Sequence[Samples], words: ActionWords) -> None:
        self.group, self.words = group, words
        keys = _states(group, words)
        numbers = {state: n for n, state in enumerate(dict.fromkeys(state for states in keys for state in states))}
        self.states = [[numbers[state] for state in states] for states in keys]
        self.ends = [[*states[1:], _ending(t)] for states, t in zip(self.states, group, strict=True)]
        self.distance = self._distances()
        self.visits: dict[int, set[int]] = defaultdict(set)
        """By state the trajectories that were in it."""
        self.done: dict[int, set[tuple[str, Hashable]]] = defaultdict(set)
        """By state how each action done there reads, and where it led."""
        self.worth: dict[int, dict[str, int]] = defaultdict(dict)
        """By state and action the fewest steps left after it, of those from which somebody won."""
        self.takers: Counter[tuple[int, str]] = Counter()
        """How often each action was done in each state."""
        for n, trajectory in enumerate(group):
            for state, end, action in zip(self.states[n], self.ends[n], trajectory.texts("action"), strict=True):
                self.visits[state].add(n)
                self.done[state].add((worded(action, words), end))
                self.takers[state, action] += 1
                if (left := self.distance.get(end)) is not None:
                    self.worth[state][action] = min(left, self.worth[state].get(action, left))

    def _distances(self) -> dict[Hashable, int]:
        back: dict[Hashable, set[int]] = defaultdict(set)
        for states, ends in zip(self.states, self.ends, strict=True):
            for state, end in zip(states, ends, strict=True):
                back[end].add(state)
        distance: dict[Hashable, int] = {_WON: 0}
        queue: deque[Hashable] = deque(distance)
        while queue:
            reached = queue.popleft()
            for state in back[reached] - distance.keys():
                distance[state] = distance[reached] + 1
                queue.append(state)
        return distance

    def steps(self, n: int) -> list[MappedStep]:
        """Of the trajectory at place `n` of the group."""
        columns = (self.group[n].texts(name) for name in ("action", "admissible_actions", "is_valid"))
        mapped = []
        for state, end, action, offered, is_valid in zip(self.states[n], self.ends[n], *columns, strict=True):
            left, after = self.distance.get(state), self.distance.get(end)
            kind, named = None, None
            if left is not None and after == left - 1:
                if is_valid and _can_be_done(action, offered) and self._is_confirmed(state, end, action):
                    kind, named = "own", action
            elif left is not None and end is not None:
                named = self._better(state, action, math.inf if after is None else after, offered)
                kind = "other" if named is not None else None
            mapped.append(MappedStep(state, left, after, end is not None, len(self.visits[state]) - 1, kind, named))
        return mapped

    def _is_confirmed(self, state: int, end: Hashable, action: str) -> bool:
        """Whether something was done there that reads otherwise and is known to have led elsewhere."""
        reads = worded(action, self.words)
        return self._may_be_named(action) and any(
            other != reads and elsewhere not in (end, None) for other, elsewhere in self.done[state]
        )

    def _better(self, state: int, action: str, after: float, offered: Sequence[str]) -> str | None:
        """Of the actions on offer after which fewer steps were left the best; of equal ones that which was done most
        often, then the first by name."""
        reads = worded(action, self.words)
        shorter = [other for other, left in self.worth[state].items() if left < after]
        if reads in (worded(other, self.words) for other in shorter):
            return None
        named = [o for o in shorter if self._may_be_named(o) and _can_be_done(o, offered)]
        return min(named, key=lambda o: (self.worth[state][o], -self.takers[state, o], o), default=None)

    def _may_be_named(self, action: str) -> bool:
        return is_named(action, self.words) and action not in self.words.leading_back


def _can_be_done(action: str, offered: Sequence[str]) -> bool:
    """Whether the action is on offer, where a world lists its actions at all."""
    return not offered or is_offered(action, offered)


def _ending(trajectory: Samples) -> str | None:
    """Where the last step led; None where the episode was cut short, so that nobody knows."""
    return {"success": _WON, "failure": _LOST}.get(trajectory.texts("outcome")[0])


def _states(group: Sequence[Samples], words: ActionWords) -> list[list[Hashable]]:
    """The state of each step of each trajectory: the environment's own key where it gives one; else what was seen, what
    was on offer, and which of the sub-steps that all successes needed were done (places look alike before and after).
    """
    done_by_successes = [Counter(sub_steps(t, words)) for t in group if t.won[0]]
    needed = Counter(done_by_successes[0]) if done_by_successes else Counter()
    for done in done_by_successes[1:]:
        needed &= done
    return [_states_of(trajectory, needed, words) for trajectory in group]


def _states_of(trajectory: Samples, needed: Counter[str], words: ActionWords) -> list[Hashable]:
    names = ("state", "observation", "admissible_actions", "action", "acted")
    done: Counter[str] = Counter()
    states: list[Hashable] = []
    stays = False
    for key, seen, offered, action, acted in zip(*(trajectory.texts(name) for name in names), strict=True):
        if key is not None:
            states.append(key)
        elif stays:
            states.append(states[-1])  # nothing happened: the page that says so is no other state
        else:
            states.append((seen, tuple(sorted(offered)), tuple(sorted((done & needed).items()))))
        stays = not acted
        if acted and is_deed(action, words):
            done[generalise(action, words)] += 1
    return states
