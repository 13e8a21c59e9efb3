"""A world, an engine, a tokenizer and a learner that answer at once, for measurements of what lies between them."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

from envs.base import PromptParts, StepResult, Task, register
from infra.hosting import HostedGroup
from infra.manifest import FolderRecord
from infra.scratch import scratch_folder
from infra.store import STATE_FOLDER, CampaignStore, put_folder
from opid_core.samples import Ragged, Samples

ACTIONS = ["open door", *[f"go to shelf {n}" for n in range(1, 21)], *[f"take mug {n}" for n in range(1, 6)]]
ROLE = "You are in a store room. " + "A rule of the room that every prompt repeats. " * 96
THOUGHT = "The mug is not here, so the next shelf is worth a look. " * 35
SEEN = " ".join(f"On it are a mug {n}, a plate {n} and a lamp {n}." for n in range(1, 9))
POOL = 1_000_000
"""Numbers that tokens and log-probs are cut from: as varied as real ones, so that Parquet has as much to do."""


class StoreRoomOptions(BaseModel):
    tasks: int = 16


class StoreRoom:
    """Shelves that look alike, and a door; prompts of about 8,000 characters."""

    task_text = ""
    admissible_actions: Sequence[str] = ACTIONS

    def __init__(self, options: StoreRoomOptions) -> None:
        self.options = options

    def tasks(self, split: str) -> list[Task]:
        return [Task(f"room-{n}", f"kind-{n % 6}", n) for n in range(self.options.tasks)]

    def reset(self, task: Task) -> str:
        self.number = task.payload
        self.task_text = f"Your task is to: bring mug {self.number} to the door and open it."
        return self._look(0)

    def step(self, action: str) -> StepResult:
        if action == "open door":
            return StepResult("The door is open.", 1.0, True, True)
        shelf = int(action.rsplit(" ", 1)[1]) if action.startswith("go") else 0
        return StepResult(self._look(shelf), 0.0, False, False)

    def _look(self, shelf: int) -> str:
        return f"Room {self.number}. You are at shelf {shelf}. {SEEN}"

    @staticmethod
    def parse_action(response_text: str) -> tuple[str, bool]:
        block = re.search(r"<action>(.*?)</action>", response_text)
        return (block[1], True) if block else ("", False)

    @staticmethod
    def prompt_parts(
        task_text: str,
        history: Sequence[tuple[str, str]],
        observation: str,
        admissible_actions: Sequence[str],
        history_length: int,
    ) -> PromptParts:
        shown = tuple(f"Observation: {o} Action: {a}" for o, a in history[max(0, len(history) - history_length) :])
        return PromptParts(
            role=ROLE,
            task=task_text,
            history_header=f"{len(history)} steps so far." if shown else "",
            history=shown,
            current=f"Now: {observation}",
            actions="Admissible actions: " + ", ".join(admissible_actions),
            turn="Now it's your turn. Think, then act.",
        )


register("store_room", StoreRoomOptions, StoreRoom)


class InstantTokenizer:
    """As many new ints as asked for, half of them the same in all prompts; the first tells whether there is a skill."""

    chat_template = "plain"

    def __init__(self, prompt_tokens: int) -> None:
        self._pool = np.random.default_rng(0).integers(1000, 150_000, POOL)
        self._ids = self._pool[:prompt_tokens].copy()
        self.added_tokens_decoder: dict[int, Any] = {}

    def apply_chat_template(self, messages: Any, **settings: Any) -> str:
        return messages[0]["content"]

    def encode(self, text: str, add_special_tokens: bool = False, split_special_tokens: bool = False) -> list[int]:
        half, begin = len(self._ids) // 2, _begin(text)
        self._ids[half:] = self._pool[begin : begin + len(self._ids) - half]
        ids = self._ids.tolist()
        ids[0] = 1 + ("skill:" in text)
        return ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return f"<think>{THOUGHT}</think><action>{ACTIONS[ids[0]]}</action>"


@dataclass(frozen=True)
class InstantCompletion:
    request_id: str
    token_ids: list[int]
    log_probs: list[float]


class InstantEngine:
    """Of 128 episodes 20 win in their 28th turn and 28 in their 30th: 3,800 turns."""

    def __init__(self, response_tokens: int) -> None:
        generator = np.random.default_rng(1)
        self.tokens_generated = 0
        self._length = response_tokens
        self._ids = generator.integers(1000, 150_000, POOL)
        self._log_probs = -generator.exponential(0.5, POOL).astype(np.float32)
        self._turns: dict[str, int] = {}
        self._members: dict[str, int] = {}
        self._waiting: list[str] = []

    def submit(self, request_id: str, prompt_ids: Sequence[int], **sampling: Any) -> None:
        self._waiting.append(request_id)

    def begin(self) -> None:
        """Nothing to work ahead on."""

    def step(self) -> list[InstantCompletion]:
        waiting, self._waiting = self._waiting, []
        return [self._answer(name) for name in waiting]

    def _answer(self, name: str) -> InstantCompletion:
        turn = self._turns[name] = self._turns.get(name, -1) + 1
        member = self._members.setdefault(name, len(self._members))
        last = 27 if member % 32 < 5 else 29 if member % 32 < 12 else None
        part = slice(begin := _begin(f"{name} {turn}"), begin + self._length)
        ids = self._ids[part].tolist()
        ids[0] = 0 if turn == last else 1 + (member * 7 + turn * 3 + turn * member % 5) % (len(ACTIONS) - 1)
        self.tokens_generated += len(ids)
        return InstantCompletion(name, ids, self._log_probs[part].tolist())


class InstantLearner:
    """Lives in a process of its own, as the learner does, so that what crosses is measured."""

    def __init__(self) -> None:
        import opid_core.learning.learner  # noqa: F401 - what the real one's process has loaded

        self._pool = -np.random.default_rng(2).exponential(0.5, POOL).astype(np.float32)

    def score(self, prompts: Ragged, responses: Ragged, reference: Path | None = None) -> Ragged:
        first = prompts.values[prompts.offsets[:-1]]  # whether a skill stands in the prompt
        shift = np.repeat(0.01 * first + 0.001 * (reference is not None), responses.lengths)
        noise = self._pool[(responses.values * 7) % POOL]
        return Ragged((noise - shift).astype(np.float32), responses.offsets)

    def update(self, samples: Samples, **options: Any) -> dict[str, float]:
        return {"optimizer_steps": 1.0, "tokens": float(len(samples.response_ids.values)), "kl_k3": 0.0}

    def export(self, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"weights")

    def save(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "state.pt").write_bytes(b"state")

    def memory(self, reset: bool) -> dict[str, int]:
        return memory(reset)


class InstantWorkers:
    """In place of `tasks.workers.Workers`."""

    micro_batch_tokens, has_engine, is_storing = 16384, True, False

    def __init__(self, prompt_tokens: int, response_tokens: int) -> None:
        self._tokenizer, self._engine = InstantTokenizer(prompt_tokens), InstantEngine(response_tokens)
        self.group = HostedGroup("learner", "benchmarks.stand_ins:InstantLearner")

    def tokenizer(self, policy: Any) -> InstantTokenizer:
        return self._tokenizer

    def engine(self, policy: Any) -> InstantEngine:
        return self._engine

    def learner(self, policy: Any) -> InstantWorkers:
        return self

    def score(self, prompts: Ragged, responses: Ragged, reference: Path | None = None) -> Ragged:
        return self.group.call("score", prompts, responses, reference)

    def update(self, samples: Samples, *, on_progress: Callable[..., None], **options: Any) -> dict[str, float]:
        return self.group.call("update", samples)

    def export(self, folder: Path) -> None:
        self.group.call("export", folder)

    def save(self, folder: Path) -> None:
        self.group.call("save", folder)

    def store(self, store: CampaignStore, uri: str) -> FolderRecord:
        self._stored = store_policy(self, store, uri)
        return self._stored

    def reference_score(self, policy: Any, reference: Any) -> Callable[[Ragged, Ragged], Ragged]:
        return lambda prompts, responses: self.score(prompts, responses, Path("reference"))

    @contextmanager
    def updating(self, policy: Any):
        yield self

    def updated(self, policy: Any) -> None:
        pass

    def stored(self) -> FolderRecord:
        return self._stored

    def shrink_micro_batches(self) -> None:
        pass

    def close_engine(self) -> None:
        pass

    def close(self) -> None:
        self.group.kill()


def store_policy(learner: Any, store: CampaignStore, uri: str) -> FolderRecord:
    """Store what a learner of this process exports and saves."""
    with scratch_folder() as folder:
        learner.export(folder)
        learner.save(folder / STATE_FOLDER)
        return put_folder(store, folder, uri)


def memory(reset: bool = False) -> dict[str, int]:
    """Bytes that this process holds (`VmRSS`) and at most held (`VmHWM`), from now on where `reset`."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    found = dict(re.findall(r"^(VmRSS|VmHWM):\s+(\d+) kB", status, re.MULTILINE))
    if reset:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    return {name: 1024 * int(kib) for name, kib in found.items()}


def _begin(text: str) -> int:
    """Where in the pool the numbers of `text` begin."""
    return zlib.crc32(text.encode()) % (POOL - 100_000)
