"""`opid audit` as the user types it, on committed rows."""

from __future__ import annotations

import csv
from pathlib import Path

from infra.store import local_folder, manifests, open_campaign
from tests.audited import CONFIG
from tests.conftest import S3_BUCKET
from tests.factories import FIRST, START_ROWS, all_files, commit_rows, named_rows


def make(root: str, tmp_path: Path, name: str, *, seed: int = 0, won: bool = False, endpoint_url: str | None = None):
    """A campaign of one iteration; with `won` its second trajectory is a success too."""
    store = open_campaign(root, name, {**CONFIG, "campaign": name, "seed": seed}, endpoint_url)
    rows = named_rows()
    if won:
        rows["trajectories"][1] |= {"outcome": "success", "return": 10.0}
    commit_rows(store, tmp_path, commit_rows(store, tmp_path, None, START_ROWS), rows)
    return store


def test_two_campaigns_are_compared(tmp_path, opid):
    root = str(tmp_path / "runs")
    make(root, tmp_path, "one")
    make(root, tmp_path, "two", seed=7, won=True)
    before = all_files(Path(root))
    lines = opid("audit", "one", "two@1", "--root", root).splitlines()
    assert lines[0] == "one@1 and two@1"
    rows = [tuple(cell.strip() for cell in line.split("│")[1:-1]) for line in lines if line.startswith("│")]
    for row in [
        ("seed", "0", "7"),
        ("success", "1 (50.0%)", "2 (100.0%)"),
        ("failure", "1 (50.0%)", "0 (0.0%)"),
        ("step", "1 (33.3%)", "1 (33.3%)"),
        ("episode, success", "1", "0", "0"),
        ("rollout/return", "5", "5", "+0"),
    ]:
        assert row in rows, row
    assert all_files(Path(root)) == before


def test_no_text_in_csv_is_a_formula(tmp_path, opid):
    store = open_campaign(str(tmp_path / "runs"), "one", {**CONFIG, "campaign": "one"})
    rows = named_rows()
    texts = ['=HYPERLINK("http://example.org")', "+1", "-1", "@x", "\t=1", "as = it is"]
    for step, column, text in zip(
        [0, 0, 0, 1, 1, 1], ["action", "observation", "response_text"] * 2, texts, strict=True
    ):
        rows["steps"][step][column] = text
    commit_rows(store, tmp_path, commit_rows(store, tmp_path, None, START_ROWS), rows)
    opid("audit", "one@1", "--root", store.root, "--format", "csv", "--out", tmp_path / "tables")
    with open(tmp_path / "tables" / "steps.csv", encoding="utf-8", newline="") as file:
        found = [row[column] for row in csv.DictReader(file) for column in ("action", "observation", "response_text")]
    assert found[:6] == [*(f"'{text}" for text in texts[:5]), texts[5]]


def test_a_campaign_on_s3_is_read_there_and_its_pages_lie_here(tmp_path, s3_server, opid, monkeypatch):
    root = f"s3://{S3_BUCKET}/{tmp_path.name}"
    place = ["--root", root, "--endpoint-url", s3_server.endpoint_url]
    store = make(root, tmp_path, "one", endpoint_url=s3_server.endpoint_url)
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    printed = opid("audit", "one", *place)
    folder = local_folder(store, "audit").relative_to(here)
    assert printed.endswith(f"Open {here}/{folder}/index.html in a browser.\n")
    pages = [f"{folder}/{name}" for name in ("index.html", "iteration-000001.html")]
    assert all_files(here) == pages
    again = f"opid audit one {' '.join(place)} --iteration all"
    assert f"<code>{again}</code>" in (here / pages[0]).read_text(encoding="utf-8")
    assert opid("audit", "--overview", *place).startswith(f"{here}/runs/overview.html\n")
    assert f'href="{folder.parent.name}/audit/index.html"' in (here / "runs" / "overview.html").read_text(
        encoding="utf-8"
    )
    out = tmp_path / "tables"
    opid("audit", "one@1", "--format", "csv", "--out", str(out), *place)
    assert (out / "steps.csv").read_text(encoding="utf-8").count(FIRST) >= 2
    assert opid("audit", "one@0", "one", *place).startswith("one@0 and one@1\n")
    assert len(manifests(store)) == 2
