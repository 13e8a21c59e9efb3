"""A reader that looks at a campaign all the time while it is being killed, through the public functions alone.

`python -m benchmarks.chaos.reader ROOT CAMPAIGN ENDPOINT_URL FOLDER PAUSE_S` reads until FOLDER/stop exists, PAUSE_S
seconds between two readings, then writes FOLDER/reader.json: how often it read everything, how often the storage was
away, and what was wrong.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from infra.manifest import Manifest
from infra.store import find_campaign, manifests, read_table, verify
from opid_core.errors import ConfigError, DataError, InfrastructureError


def read_all(root: str, campaign: str, endpoint_url: str | None, seen: list[Manifest]) -> list[Manifest]:
    """Read and re-hash everything that is committed. Raises DataError also where something committed has vanished."""
    store = find_campaign(root, campaign, endpoint_url)
    chain = manifests(store)
    if [manifest.checksum for manifest in chain[: len(seen)]] != [manifest.checksum for manifest in seen]:
        raise DataError(f"the chain of {len(seen)} manifests is no beginning of the chain of {len(chain)} read next")
    verify(store, chain=chain)
    for manifest in chain:
        for name, record in manifest.tables.items():
            rows = read_table(store, record).num_rows
            if rows != record.rows:
                raise DataError(f"{record.path}: table {name} has {rows} rows, its manifest says {record.rows}")
    return chain


def main(root: str, campaign: str, endpoint_url: str, folder: Path, pause_s: float) -> None:
    """Read until told to stop; the last time afterwards, so that one whole reading is of the end."""
    report = {"readings": 0, "away": 0, "manifests": 0, "wrong": []}
    seen: list[Manifest] = []
    last = False
    while not last:
        last = (folder / "stop").exists()
        try:
            seen = read_all(root, campaign, endpoint_url or None, seen)
            report["readings"] += 1
        except InfrastructureError:
            report["away"] += 1
        except ConfigError as error:
            if seen:  # before the campaign exists it is right to say that there is none
                report["wrong"].append(f"{type(error).__name__}: {error}")
        except DataError as error:
            report["wrong"].append(f"{type(error).__name__}: {error}")
        if not last:
            time.sleep(pause_s)
    report["manifests"] = len(seen)
    (folder / "reader.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], Path(sys.argv[4]), float(sys.argv[5]))
