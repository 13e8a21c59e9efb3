import pytest

from infra.store import CampaignStore, open_campaign
from tests.infra.stored import CONFIG


@pytest.fixture
def store(tmp_path) -> CampaignStore:
    return open_campaign(tmp_path / "runs", "demo", CONFIG)
