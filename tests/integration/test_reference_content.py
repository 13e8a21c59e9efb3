"""Data and weights are those of the record, byte for byte: whoever changes one says so, and records anew."""

from __future__ import annotations

import pytest

from benchmarks.reference_campaigns import CASES, contents, machine, recorded


def test_the_tiny_campaign_has_the_recorded_data_and_weights(campaign):
    record = recorded()
    if record["machine"] != machine():
        pytest.skip(f"recorded on {record['machine']}, this is {machine()}: floats round differently")
    now, before = contents(campaign.chain), record["campaigns"]["tiny"]
    assert [commit["weights"] for commit in now] == [commit["weights"] for commit in before]
    assert [commit["content"] for commit in now] == [commit["content"] for commit in before], (
        "the weights are the recorded ones, the tables are not; if that is meant, say why in the commit and run "
        "`python -m benchmarks.reference_campaigns --record`"
    )


def test_every_case_is_on_record():
    assert set(recorded()["campaigns"]) == set(CASES)
