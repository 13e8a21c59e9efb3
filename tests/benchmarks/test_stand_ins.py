"""What stands in for engine and learner in measurements has all that the pipeline asks of them."""

from __future__ import annotations

import inspect

import pytest

from benchmarks.soak import InProcessWorkers
from benchmarks.stand_ins import InstantWorkers
from tasks.workers import RemoteLearner, Workers

CONTEXT = {"kill", "offload", "reload"}
"""Of a learner, called by its workers alone."""


def public(kind: type) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_")}


@pytest.mark.parametrize("stand_in", [InProcessWorkers, InstantWorkers])
def test_workers_and_learner_in_one_have_what_the_real_ones_have(stand_in):
    assert public(Workers) | public(RemoteLearner) - CONTEXT <= public(stand_in)
    for real in (Workers, RemoteLearner):
        for name in (public(real) & public(stand_in)) - {"micro_batch_tokens", "has_engine"}:
            asked = inspect.signature(getattr(real, name)).parameters.values()
            positional = [one.name for one in asked if one.kind is one.POSITIONAL_OR_KEYWORD]
            given = [*inspect.signature(getattr(stand_in, name)).parameters][: len(positional)]
            assert given == positional, name
