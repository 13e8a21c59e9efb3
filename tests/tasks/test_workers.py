"""In which order engine and learner are started, and have the GPUs: the engine needs its share of the memory free."""

from __future__ import annotations

import numpy as np
import pytest

from infra.manifest import FolderRecord
from infra.store import open_campaign
from opid_core.config import build_config
from opid_core.errors import ConfigError, InfrastructureError
from opid_core.rollout.engines import vllm
from opid_core.samples import Ragged
from tasks import workers

POLICY, NEXT = (FolderRecord(uri=f"policies/00000{number}/abc", files=()) for number in (1, 2))
ROWS = Ragged.from_rows([[1]], np.int32)


class _Process:
    """An engine or a learner, of which is written down what it is told; `fails` names what it cannot do."""

    replicas = ()

    def __init__(self, events: list[str], fails: set[str], name: str) -> None:
        self._events, self._fails, self._name = events, fails, name
        self._tell("starts")

    def _tell(self, what: str) -> None:
        if f"{self._name} {what}" in self._fails:
            raise InfrastructureError(what)
        self._events.append(f"{self._name} {what}")

    def load_policy(self, folder) -> None:
        self._tell("loads")

    def sleep(self) -> None:
        self._tell("sleeps")

    def wake(self) -> None:
        self._tell("wakes")

    def offload(self) -> None:
        self._tell("leaves")

    def reload(self) -> None:
        self._tell("comes back")

    def score(self, prompts, responses, reference=None) -> None:
        self._tell("scores" if reference is None else "scores by the reference")

    def stored(self) -> FolderRecord:
        self._tell("has stored")
        return NEXT

    def kill(self) -> None:
        self._events.append(f"{self._name} ends")


@pytest.fixture
def events() -> list[str]:
    return []


@pytest.fixture
def fails() -> set[str]:
    return set()


@pytest.fixture
def make_workers(events, fails, tmp_path, monkeypatch):
    """Workers whose processes are stand-ins."""

    def canary(replicas, score, *_) -> None:
        events.append("canary")
        score(ROWS, ROWS)

    monkeypatch.setattr(workers, "start_engine", lambda *_, **__: _Process(events, fails, "engine"))
    monkeypatch.setattr(workers, "RemoteLearner", lambda *_: _Process(events, fails, "learner"))
    monkeypatch.setattr(vllm, "canary_gap", canary)
    monkeypatch.setattr(
        workers.Workers, "tokenizer", lambda *_: type("Tokenizer", (), {"encode": lambda *_, **__: [1]})
    )

    def make(share_gpus: bool) -> workers.Workers:
        config = build_config({"campaign": "c", "root": str(tmp_path), "engine": {"share_gpus": share_gpus}})
        return workers.Workers(config, open_campaign(config.root, "c", config.model_dump(mode="json")))

    return make


def rescored_and_updated(processes: workers.Workers) -> None:
    """What an iteration asks of the learner, up to the storing of its state."""
    score = processes.learner(POLICY).score
    score(ROWS, ROWS)
    processes.reference_score(POLICY, POLICY)(ROWS, ROWS)
    with processes.updating(POLICY):
        pass
    processes.updated(NEXT)


PLAYS_FIRST = ["engine starts", "canary", "engine sleeps", "learner starts", "learner scores"]
CHECKED = ["canary", "engine sleeps", "learner comes back", "learner scores", "learner leaves", "engine wakes"]
ENDS = ["learner ends", "engine ends"]


def test_an_engine_starts_before_the_learner_that_was_here_already(make_workers, events):
    with make_workers(share_gpus=False) as processes:
        processes.learner(POLICY)  # of a run that is resumed with the re-scoring
        processes.engine(POLICY)
        processes.engine(POLICY)
    assert events == [
        *("learner starts", "learner ends", "engine starts", "learner starts", "canary", "learner scores"),
        *ENDS,
    ]


def test_engine_and_learner_have_shared_gpus_in_turns(make_workers, events):
    with make_workers(share_gpus=True) as processes:
        processes.engine(POLICY)
        processes.engine(POLICY)  # an evaluation, and then a rollout, of the same policy
        assert events == [*PLAYS_FIRST, "learner leaves", "engine wakes"]
        events.clear()
        rescored_and_updated(processes)
        assert events == ["engine sleeps", "learner comes back", "learner scores", "learner scores by the reference"]
        events.clear()
        processes.engine(NEXT)  # played ahead, while the learner stores
        processes.stored()
        processes.engine(NEXT)
        assert events == ["learner leaves", "engine wakes", "engine loads", *CHECKED, "learner has stored"]
        events.clear()
        processes.learner(NEXT)
    assert events == ["engine sleeps", "learner comes back", *ENDS]


def test_a_run_that_is_resumed_with_the_rescoring_keeps_its_learner_on_shared_gpus(make_workers, events):
    with make_workers(share_gpus=True) as processes:
        rescored_and_updated(processes)
        processes.stored()
        processes.engine(NEXT)
    assert events == [
        *("learner starts", "learner scores", "learner scores by the reference", "learner has stored"),
        *("learner leaves", "engine starts", *CHECKED),
        *ENDS,
    ]


def test_a_learner_of_another_policy_starts_when_the_engine_sleeps_and_the_old_one_is_gone(make_workers, events):
    with make_workers(share_gpus=True) as processes:
        processes.engine(POLICY)
        events.clear()
        processes.learner(NEXT)
        assert events == ["learner ends", "engine sleeps", "learner starts"]


@pytest.mark.parametrize("fault", ["engine wakes", "engine loads"])
def test_after_a_fault_ahead_of_a_learner_that_stores_the_learner_goes_on_and_a_new_engine_plays(
    make_workers, events, fails, fault
):
    with make_workers(share_gpus=True) as processes:
        processes.engine(POLICY)
        rescored_and_updated(processes)
        fails.add(fault)
        with pytest.raises(InfrastructureError):
            processes.engine(NEXT)
        processes.close_engine()  # as the stage that plays ahead does
        fails.clear()
        events.clear()
        processes.stored()
        processes.learner(NEXT)
        assert events == ["learner has stored", "learner comes back"]
        events.clear()
        processes.engine(NEXT)
        assert events == ["learner leaves", "engine starts", *CHECKED]


@pytest.mark.parametrize("fault", ["engine sleeps", "learner comes back"])
def test_a_second_try_after_a_fault_on_shared_gpus_begins_with_new_processes(make_workers, events, fails, fault):
    with make_workers(share_gpus=True) as processes:
        processes.engine(POLICY)
        fails.add(fault)
        with pytest.raises(InfrastructureError):
            processes.learner(POLICY)
        processes.close()  # as every stage does
        fails.clear()
        events.clear()
        processes.learner(POLICY)
        processes.engine(POLICY)
        assert events == ["learner starts", "learner leaves", "engine starts", *CHECKED]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ValueError("Free memory on device cuda:0 (9/80 GiB) on startup is less than desired"), InfrastructureError),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), InfrastructureError),
        (AssertionError("Error in memory profiling. Initial free memory 9 GiB"), InfrastructureError),
        (ValueError("User-specified max_model_len (9) is greater than the derived max_model_len"), ConfigError),
        (ValueError("No available memory for the cache blocks."), ConfigError),
        (RuntimeError("a bug"), RuntimeError),
    ],
)
def test_memory_that_others_hold_may_be_free_at_the_next_try(tmp_path, error, kind):
    assert type(vllm.start_fault(tmp_path, error)) is kind
