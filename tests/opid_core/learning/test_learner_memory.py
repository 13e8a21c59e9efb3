"""A learner whose memory runs out outside a forward or backward pass. No accelerator: the error is torch's own."""

from __future__ import annotations

import pytest
import torch

from opid_core.config import LearnerConfig
from opid_core.errors import OutOfMemory
from opid_core.learning import learner as module
from opid_core.learning.learner import Learner

CUDA_TEXT = "CUDA out of memory. Tried to allocate 2.00 GiB.\nSee the documentation"


def out_of_memory(*arguments, **named):
    raise torch.OutOfMemoryError(CUDA_TEXT)


@pytest.fixture
def learner() -> Learner:
    """One that is loaded, as far as it says."""
    made = object.__new__(Learner)
    made.config, made._engine, made._shapes = LearnerConfig(), None, {}  # pyright: ignore[reportAttributeAccessIssue]
    return made


def test_making_a_learner(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "prepare_process", out_of_memory)
    with pytest.raises(OutOfMemory, match=r"micro_batch_tokens = 16384.*Tried to allocate 2\.00 GiB\.$"):
        Learner(tmp_path, LearnerConfig(), threads=1, seed=0)


def test_saving_and_exporting(monkeypatch, tmp_path, learner):
    monkeypatch.setattr(module.checkpoint, "save", out_of_memory)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    monkeypatch.setattr(Learner, "named_weights", out_of_memory)
    for write in (learner.save, learner.export):
        with pytest.raises(OutOfMemory, match="out of memory with learner"):
            write(tmp_path)
