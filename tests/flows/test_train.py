"""The flow that schedules deploy."""

from __future__ import annotations

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowFilter, FlowFilterName

from flows.train import train
from opid_core.errors import ConfigError

pytestmark = pytest.mark.integration


def test_a_run_has_the_name_of_what_it_trains(tmp_path, prefect_server):
    config = str(tmp_path / "missing.yaml")
    for arguments in ((), ([],), (["seed=1", "campaign=another"],)):
        with pytest.raises(ConfigError, match="missing"):
            train(config, *arguments)

    with get_client(sync_client=True) as client:
        found = client.read_flow_runs(flow_filter=FlowFilter(name=FlowFilterName(any_=["train"])))
    # Other tests train on this server at the same time.
    assert sorted(run.name for run in found if run.parameters["config"] == config) == ["another", "missing", "missing"]
