"""The flow that schedules deploy."""

from __future__ import annotations

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowFilter, FlowFilterName

from flows.train import train
from opid_core.errors import ConfigError

pytestmark = pytest.mark.integration


def test_a_run_has_the_name_of_what_it_trains(tmp_path, prefect_server):
    for overrides in ([], ["seed=1", "campaign=another"]):
        with pytest.raises(ConfigError, match="missing"):
            train(str(tmp_path / "missing.yaml"), overrides)
    with pytest.raises(ConfigError, match="missing"):
        train(str(tmp_path / "missing.yaml"))
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(flow_filter=FlowFilter(name=FlowFilterName(any_=["train"])))
    assert sorted(run.name for run in runs) == ["another", "missing", "missing"]
