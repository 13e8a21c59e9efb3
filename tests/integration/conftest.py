from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
from filelock import FileLock

from tests.integration.campaigns import Campaign, finish, opened, start


@pytest.fixture(scope="session")
def campaign(shared_folder, prefect_server) -> Campaign:
    """The tiny campaign, undisturbed; run once, whichever test process needs it first."""
    root, output = shared_folder / "undisturbed", shared_folder / "undisturbed.txt"
    with FileLock(shared_folder / "undisturbed.lock"):
        if not output.exists():
            output.write_text(finish(start(root, prefect_server), root), encoding="utf-8")
    return opened(root, output.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def frozen_libraries() -> Iterator[None]:
    """The objects of a learner that is closed are collected: the collector passes over those of the libraries."""
    from opid_core.learning.deepspeed_setup import prepare_process

    prepare_process(threads=1)
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
