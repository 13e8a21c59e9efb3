"""A place on a node, without Ray around it (with it: test_hosting.py)."""

from __future__ import annotations

import pytest

from infra import processes
from infra.node_actor import NodeActor

pytestmark = pytest.mark.integration


def test_a_call_that_comes_after_the_end_of_its_process_says_so(monkeypatch):
    """The driver has ended the process; a call of before, which waited its turn, hears of that instead of failing."""
    monkeypatch.setattr(processes, "die_with_parent", lambda: None)  # an actor does, not this process
    place = NodeActor()
    place.start("counter", "counter", "tests.hosted:Counter", (5,), {}, {}, 60.0)
    place.create("counter")
    assert place.run("counter", "add", (2,), {}, False) == ("result", 7, [])
    place.kill("counter")
    kind, (error, _), progress = place.run("counter", "add", (2,), {}, False)
    assert (kind, error, progress) == ("death", "InfrastructureError", [])
