"""In which order engine and learner are started: the engine needs its share of the memory free."""

from __future__ import annotations

import pytest

from infra.manifest import FolderRecord
from infra.store import open_campaign
from opid_core.config import build_config
from opid_core.errors import ConfigError, InfrastructureError
from opid_core.rollout.engines import vllm
from tasks import workers

POLICY = FolderRecord(uri="policies/000001/abc", files=())


class _Process:
    def __init__(self, events: list[str], name: str) -> None:
        self._events, self._name = events, name
        events.append(f"{name} starts")

    score, replicas = None, ()

    def kill(self) -> None:
        self._events.append(f"{self._name} ends")


def test_an_engine_starts_before_the_learner_that_was_here_already(tmp_path, monkeypatch):
    events: list[str] = []
    monkeypatch.setattr(workers, "start_engine", lambda *_, **__: _Process(events, "engine"))
    monkeypatch.setattr(workers, "RemoteLearner", lambda *_: _Process(events, "learner"))
    monkeypatch.setattr(vllm, "canary_gap", lambda *_: events.append("canary"))
    monkeypatch.setattr(
        workers.Workers, "tokenizer", lambda *_: type("Tokenizer", (), {"encode": lambda *_, **__: [1]})
    )
    config = build_config({"campaign": "c", "root": str(tmp_path)})
    with workers.Workers(config, open_campaign(config.root, "c", config.model_dump(mode="json"))) as processes:
        processes.learner(POLICY)  # of a run that is resumed with the re-scoring
        processes.engine(POLICY)
        processes.engine(POLICY)
    assert events == [
        *("learner starts", "learner ends", "engine starts", "learner starts", "canary"),
        *("learner ends", "engine ends"),
    ]


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
