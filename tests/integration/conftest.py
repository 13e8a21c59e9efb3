from __future__ import annotations

import os

import pytest
from filelock import FileLock

from tests.integration.campaigns import Campaign, finish, opened, start


@pytest.fixture(scope="session")
def campaign(tmp_path_factory) -> Campaign:
    """The tiny campaign, undisturbed; run once, whichever test process needs it first."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    root, output = shared / "undisturbed", shared / "undisturbed.txt"
    with FileLock(shared / "undisturbed.lock"):
        if not output.exists():
            output.write_text(finish(start(root), root), encoding="utf-8")
    return opened(root, output.read_text(encoding="utf-8"))
