"""The flow that schedules deploy."""

from __future__ import annotations

from uuid import UUID

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowFilter, FlowFilterName

from flows.train import train
from opid_core.errors import ConfigError

pytestmark = pytest.mark.integration


def test_a_run_has_the_name_of_what_it_trains(tmp_path, prefect_server):
    def runs() -> dict[UUID, str]:
        with get_client(sync_client=True) as client:
            found = client.read_flow_runs(flow_filter=FlowFilter(name=FlowFilterName(any_=["train"])))
        return {run.id: run.name for run in found}

    before = runs()  # of other tests on this server
    for overrides in ([], ["seed=1", "campaign=another"]):
        with pytest.raises(ConfigError, match="missing"):
            train(str(tmp_path / "missing.yaml"), overrides)
    with pytest.raises(ConfigError, match="missing"):
        train(str(tmp_path / "missing.yaml"))
    assert sorted(name for run, name in runs().items() if run not in before) == ["another", "missing", "missing"]
