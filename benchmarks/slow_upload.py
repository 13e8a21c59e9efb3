"""`opid` whose optimizer states take long to upload: `python -m benchmarks.slow_upload SECONDS train CONFIG`."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from infra.manifest import FileRecord
from infra.store import CampaignStore
from tasks.storing_learner import StoringLearner

_SECONDS = "OPID_UPLOAD_S"


class SlowLearner(StoringLearner):
    """Its state is on its way for so many seconds more: half of them before the first byte, half after the last."""

    def _put_state(self, store: CampaignStore, folder: Path, uri: str) -> tuple[FileRecord, ...]:
        time.sleep(float(os.environ[_SECONDS]) / 2)
        files = super()._put_state(store, folder, uri)
        time.sleep(float(os.environ[_SECONDS]) / 2)
        return files


if __name__ == "__main__":
    os.environ[_SECONDS] = sys.argv.pop(1)
    from flows.cli import main as cli
    from tasks import places

    places.LEARNER = "benchmarks.slow_upload:SlowLearner"
    cli.main()
