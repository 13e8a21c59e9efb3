"""ScienceWorld: elementary science in text, played on its authors' package, which runs in a Java process.

An environment of one file, as docs/environments.md tells how to write one. Needs the extra `scienceworld` and a Java
runtime.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import importlib.metadata
import json
import logging
import os
import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from envs.base import ActionWords, Decision, StepResult, Task, check_split, register
from envs.cache import build_once
from envs.manifest import pick
from envs.wording import (
    NUMBERED_PHRASES,
    TAGGED_PHRASES,
    TAGGED_TURN,
    numbered_prompt_parts,
    parse_tagged_action,
    tagged_response,
)
from opid_core.errors import ConfigError, DataError, EnvironmentFault, InfrastructureError
from opid_core.sections import Section

SPLITS = ("train", "dev", "test")
"""The package's: a half, a quarter and a quarter of each task's variations."""
WAITING = "wait1"
"""The action that lets one tick pass."""
REFUSED = ("No known action matches that input.", "Unknown action.")
"""How the world's answers to actions that it does not know begin."""
AMBIGUOUS = "Ambiguous request"
"""How the world begins to ask which of several actions was meant; the numbers that follow are the actions then."""
JAVA_OPTIONS = (
    # The package keeps things in sets by their identity: with one hash for all, lists and solutions have the same order
    # in every run. The flag is HotSpot's; other runtimes pass it over.
    *("-XX:+IgnoreUnrecognizedVMOptions", "-XX:+UnlockExperimentalVMOptions", "-XX:hashCode=2"),
    *("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"),  # less to compile and to keep: many processes share a machine
)
ALIASES = (("examine ", "look at "), ("drop ", "put down "))
"""What the package's solutions call an action, and what its list of actions does."""
HARMLESS = ("look around", "inventory", "look at agent", "look at air")
"""Actions that change nothing, so that the solution still leads to the goal."""

_ROLE = "You are an agent in ScienceWorld, a text world of rooms and things in which science tasks are done."
_AROUND = "\nAround you: "
_FIXED_PHRASES = (
    _ROLE,
    TAGGED_TURN,
    *NUMBERED_PHRASES,
    *TAGGED_PHRASES,
    "This room is called the",
    "In it, you see:",
    "You also see:",
    "In your inventory, you see:",
    "A door to the",
    "(that is open)",
    "(that is closed)",
    "(containing nothing)",
    "a substance called",
    "<your object>",
    "<your other object>",
    "The door is now open.",
    "You move to the",
    *REFUSED,
)
_Answer = TypeVar("_Answer")


class ScienceWorldOptions(Section):
    """Which tasks, and how hard the world is."""

    task_types: tuple[str, ...] = ()
    """The package's names of tasks, such as `find-plant`; empty: all 30."""
    easy: bool = True
    """The package's simplifications, as most published agents use them: doors and containers stand open, flower pots
    water themselves, `teleport` leads to every room; nothing is connected to a circuit where that is not the task."""
    manifest: str | None = None
    """File of task ids a split, in task order: JSON `{"train": [id, ...]}`, or text with a `split id` pair a line."""


class ScienceWorldEnvironment:
    """One running episode. Raises ConfigError where the package or a Java runtime is missing, and for a task type that
    the package does not have.

    An observation is what the world answered, and after "Around you:" what can be seen and is carried, which the
    package tells for free; of past steps a prompt shows the answer alone.
    """

    parse_action = staticmethod(parse_tagged_action)
    response_text = staticmethod(tagged_response)
    fixed_phrases = _FIXED_PHRASES
    action_words = ActionWords(
        passive_verbs=("look", "inventory", "examine", "wait", "wait1", "read"),
        moving_verbs=("go", "teleport", "open", "close"),
        failed_observations=REFUSED,
    )

    def __init__(self, options: ScienceWorldOptions) -> None:
        self.options = options
        self.admissible_actions: Sequence[str] = ()
        self.task_text = ""
        known = _package_tasks()
        for name in options.task_types:
            if name not in known:
                raise ConfigError(f"environment.options.task_types: no task {name!r}; known: {', '.join(known)}")

    def splits(self) -> Sequence[str]:
        """The package's splits."""
        return SPLITS

    def tasks(self, split: str) -> Sequence[Task]:
        """The variations of `split`, as `task/variation`, in the order of their hashes, so that every prefix mixes the
        task types; with a manifest, those that it names, in its order."""
        check_split(split, SPLITS)
        chosen = self.options.task_types or _package_tasks()
        tasks = [Task(f"{name}/{number}", name, number) for name in chosen for number in _variations(name)[split]]
        tasks.sort(key=lambda task: hashlib.sha256(task.task_id.encode()).digest())
        return pick(tasks, self.options.manifest, split) if self.options.manifest else tasks

    def reset(self, task: Task) -> str:
        """Start `task`. Raises InfrastructureError where Java does not start or has died."""
        self._task = task
        self._world = _load(task, self.options.easy)
        templates = _ask(lambda: list(self._world.getPossibleActions()))
        self._templates = [_with_blanks(text) for text in templates if text not in ("reset task", "task")]
        self.task_text = " ".join(_ask(self._world.getTaskDescription).split())
        return self._observation("The task begins.")

    def step(self, action: str) -> StepResult:
        """Do `action`. Won is a score of 100; one below 0 (the wrong thing was chosen) ends the episode.

        Raises EnvironmentFault where the package fails, InfrastructureError where its process has died.
        """
        answer = _ask(lambda: self._world.step(action))
        score, completed = _ask(lambda: (self._world.getScore(), self._world.getCompleted()))
        points = round(100 * score)
        won = points >= 100
        return StepResult(
            self._observation(answer),
            reward=1.0 if won else 0.0,
            done=completed or points < 0,
            won=won,
            score=max(0, points) / 100,
        )

    def state_key(self) -> str:
        """A hash of what is seen, what is carried and which parts of the task are done; other rooms are left out."""
        progress = _ask(self._world.getGoalProgressStr)
        return hashlib.sha256(f"{self._seen}\n{progress}".encode()).hexdigest()[:16]

    def expert(self, observation: str) -> Solution:
        """The package's own solution of the task that `reset` just started."""
        return Solution(_solution(self._task, self.options.easy))

    def _observation(self, answer: str) -> str:
        look, carried = _ask(lambda: (self._world.freeActionLook(), self._world.freeActionInventory()))
        self._seen = f"{look.strip()}\n{carried.strip()}"
        self.admissible_actions = self._templates
        if answer.startswith(AMBIGUOUS):
            starts = (line.partition(":")[0].strip() for line in answer.splitlines()[1:])
            self.admissible_actions = [number for number in starts if number.isdecimal()]
        shown = "You look around." if answer == look else answer.strip()
        return f"{shown}{_AROUND}{self._seen}"

    @staticmethod
    def prompt_parts(
        task_text: str,
        history: Sequence[tuple[str, str]],
        observation: str,
        admissible_actions: Sequence[str],
        history_length: int,
    ):
        """See `envs.wording.numbered_prompt_parts`; past observations without what was around."""
        past = [(seen.partition(_AROUND)[0], action) for seen, action in history]
        return numbered_prompt_parts(
            _ROLE, TAGGED_TURN, task_text, past, observation, admissible_actions, history_length
        )


class Solution:
    """Plays the package's solution from the start. Raises DataError once somebody did something else that may have
    changed the world: the package has no other."""

    def __init__(self, actions: Sequence[str]) -> None:
        self._actions = actions
        self._done = 0
        self._left_with = ""

    def observe(self, action: str, observation: str) -> None:
        if self._done < len(self._actions) and action == self._actions[self._done]:
            self._done += 1
        elif action not in HARMLESS and not observation.startswith(REFUSED):
            self._left_with = self._left_with or action

    def decide(self, admissible_actions: Sequence[str]) -> Decision:
        if self._left_with:
            raise DataError(
                f"the package's solution was left with {self._left_with!r}; it has one from the start alone"
            )
        if self._done == len(self._actions):
            return Decision(WAITING, "All is done; let time pass.")
        return Decision(self._actions[self._done], "This comes next.")

    def clumsy_actions(self, admissible_actions: Sequence[str]) -> Sequence[str]:
        """`HARMLESS`."""
        return HARMLESS


def _with_blanks(template: str) -> str:
    """`move OBJ to OBJ` as `move <your object> to <your other object>`."""
    return template.replace("OBJ", "<your object>", 1).replace("OBJ", "<your other object>", 1)


# The package's side. One Java process serves all episodes of this process: one for each would take 200 MiB each.

_starting = threading.Lock()
_gateways: dict[int, Any] = {}
"""The connection to the Java process, by the id of the process that started it: a fork cannot use its parent's."""


def _package_tasks() -> list[str]:
    """The names of the package's tasks. Raises ConfigError where it or Java is not there."""
    try:
        from scienceworld.constants import ID2TASK  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ConfigError(
            f"environment.name: scienceworld needs an extra ({error}): pip install 'opid[scienceworld]'"
        ) from None
    if shutil.which("java") is None:
        raise ConfigError(
            "environment.name: scienceworld runs in Java, and there is no `java` on the PATH; install a Java runtime "
            "(Debian: apt-get install default-jre-headless)"
        )
    return list(ID2TASK.values())


def _gateway() -> Any:
    with _starting:
        if os.getpid() not in _gateways:
            from py4j.java_gateway import (  # pyright: ignore[reportMissingImports]
                GatewayParameters,
                JavaGateway,
                launch_gateway,
            )
            from scienceworld.constants import BASEPATH, JAR_PATH  # pyright: ignore[reportMissingImports]

            logging.getLogger("py4j").setLevel(logging.CRITICAL)  # what goes wrong is raised, and told once
            try:
                # cwd: where the package runs it writes a file. die_on_exit: Java ends when its standard input does,
                # however this process ends.
                port, process = launch_gateway(
                    classpath=JAR_PATH, cwd=BASEPATH, die_on_exit=True, return_proc=True, javaopts=[*JAVA_OPTIONS]
                )
            except (OSError, ValueError) as error:
                raise InfrastructureError(f"scienceworld: Java did not start: {error}") from None
            gateway = JavaGateway(
                gateway_parameters=GatewayParameters(auto_field=True, port=port), java_process=process
            )
            _gateways[os.getpid()] = gateway
            atexit.register(close)
        return _gateways[os.getpid()]


def close() -> None:
    """End the Java process of this process, if it has one; the next episode starts another."""
    if gateway := _gateways.pop(os.getpid(), None):
        gateway.close()
        process = gateway.java_process
        process.stdin.close()
        process.kill()
        process.wait()


def _ask(question: Callable[[], _Answer]) -> _Answer:
    """What the package answers. Raises EnvironmentFault where it fails, InfrastructureError where Java has died."""
    from py4j.protocol import Py4JError, Py4JNetworkError  # pyright: ignore[reportMissingImports]

    try:
        return question()
    except (Py4JNetworkError, OSError) as error:
        close()
        raise InfrastructureError(f"scienceworld: its Java process has died: {error}") from None
    except Py4JError as error:
        raise EnvironmentFault(f"scienceworld: {str(error).strip()[:500]}") from None


def _load(task: Task, easy: bool, with_solution: bool = False) -> Any:
    """A new world at the start of `task`. Raises DataError for a task that the package does not have."""
    gateway = _gateway()

    def load() -> Any:
        world = gateway.jvm.scienceworld.runtime.pythonapi.PythonInterface()
        if error := world.load(task.task_type, task.payload, "easy" if easy else "", with_solution):
            raise DataError(f"scienceworld, task {task.task_id}: {error}")
        return world

    return _ask(load)


@functools.lru_cache(maxsize=10_000)
def _solution(task: Task, easy: bool) -> tuple[str, ...]:
    """The package's solution of `task`, which it finds by playing: some seconds of computing."""
    world = _load(task, easy, with_solution=True)
    actions = [action.lower() for action in _ask(lambda: list(world.getGoldActionSequence()))]
    for alias, listed in ALIASES:
        actions = [listed + action.removeprefix(alias) if action.startswith(alias) else action for action in actions]
    return tuple(actions)


@functools.cache
def _variations(name: str) -> dict[str, list[int]]:
    """Split -> the numbers of the variations of a task, asked of the package once a machine."""

    def ask(folder: Path) -> None:
        world = _load(Task(name, name, 0), easy=True)
        parts = (world.getVariationsTrain, world.getVariationsDev, world.getVariationsTest)
        numbers = {split: _ask(lambda part=part: list(part())) for split, part in zip(SPLITS, parts, strict=True)}
        (folder / "variations.json").write_text(json.dumps(numbers), encoding="utf-8")

    folder = build_once(
        "scienceworld", name, {"task": name, "package": importlib.metadata.version("scienceworld")}, ask
    )
    return json.loads((folder / "variations.json").read_text(encoding="utf-8"))


register("scienceworld", ScienceWorldOptions, ScienceWorldEnvironment)
