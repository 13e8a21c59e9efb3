"""`opid audit --follow`, with commits made between its looks."""

from __future__ import annotations

import re
from contextlib import ExitStack
from pathlib import Path

import pytest

from flows.reports.audit import follow as following
from flows.reports.audit.follow import RELOAD_S, follow
from infra import lease, local_objects
from infra.store import CampaignStore, local_folder, manifests, open_campaign
from opid_core.errors import ConfigError, InfrastructureError
from tests.audited import CONFIG
from tests.conftest import S3_BUCKET
from tests.factories import START_ROWS, all_files, commit_rows, named_rows

ONE = {**CONFIG, "campaign": "one", "iterations": 2}


@pytest.fixture
def store(tmp_path) -> CampaignStore:
    """A campaign of two iterations, of which nothing is committed."""
    return open_campaign(tmp_path / "runs", "one", ONE)


def commit_next(store: CampaignStore, folder: Path) -> None:
    chain = manifests(store)
    commit_rows(store, folder, chain[-1] if chain else None, named_rows() if chain else START_ROWS)


def reloads(page: Path) -> str | None:
    """After how many seconds a browser reads the page again."""
    found = re.search(r'id="followed" data-seconds="(\d+)"', page.read_text(encoding="utf-8"))
    return found and found[1]


def test_pages_follow_the_commits_and_reload_until_the_last(store, tmp_path):
    pages, said, seen = tmp_path / "pages", [], []

    def wait() -> None:
        seen.append([(name, reloads(pages / name)) for name in all_files(pages)])
        commit_next(store, tmp_path)

    page = follow(store.root, None, "one", pages, said.append, wait=wait)
    index, first, second = "index.html", "iteration-000001.html", "iteration-000002.html"
    followed = str(RELOAD_S)
    assert seen == [[], [(index, followed)], [(index, followed), (first, None)]]
    assert page == pages / index
    assert [(name, reloads(pages / name)) for name in all_files(pages)] == [
        (index, None),
        (first, None),
        (second, None),
    ]
    assert 'href="iteration-000001.html"' in page.read_text(encoding="utf-8")
    assert len(said) == 4
    assert [re.search(r"(\d) of 2", line) is not None for line in said] == [False, True, True, True]


def test_commits_on_s3_are_followed_and_the_pages_lie_here(tmp_path, s3_server, monkeypatch):
    root, said, seen = f"s3://{S3_BUCKET}/{tmp_path.name}", [], []
    store = open_campaign(root, "one", ONE, s3_server.endpoint_url)
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)

    def wait() -> None:
        seen.append(len(all_files(here)))
        commit_next(store, tmp_path)

    page = follow(root, s3_server.endpoint_url, "one", None, said.append, wait=wait)
    assert seen == [0, 1, 2]
    assert page == local_folder(store, "audit") / "index.html"
    assert page.is_relative_to(here / "runs")
    assert reloads(page) is None
    assert all_files(page.parent) == ["index.html", "iteration-000001.html", "iteration-000002.html"]
    assert [re.search(r"\d of 2", line) is not None for line in said] == [False, True, True, True]


def test_a_driver_that_still_works_keeps_it_waiting(store, tmp_path):
    for _ in range(3):
        commit_next(store, tmp_path)
    said = []
    with ExitStack() as driver:
        driver.enter_context(lease.held(store, 30.0))
        page = follow(store.root, None, "one", None, said.append, wait=driver.close)
    assert page == Path(store.root) / "one" / "audit" / "index.html"
    assert ["running" in line for line in said] == [True, False]
    assert reloads(page) is None


@pytest.mark.parametrize(("every", "names"), [(False, ["iteration-000002.html"]), (True, None)])
def test_which_iterations_have_pages(store, tmp_path, every, names):
    for _ in range(3):
        commit_next(store, tmp_path)
    follow(store.root, None, "one", tmp_path / "pages", lambda text: None, every=every)
    assert all_files(tmp_path / "pages") == [
        "index.html",
        *(names or ["iteration-000001.html", "iteration-000002.html"]),
    ]


def test_what_was_read_of_a_commit_is_not_read_again(store, tmp_path, monkeypatch):
    for _ in range(2):
        commit_next(store, tmp_path)
    read, paths = local_objects.read, []

    def reading(path: Path, max_bytes: int) -> bytes | None:
        paths.append(path.relative_to(store.root).as_posix())
        return read(path, max_bytes)

    monkeypatch.setattr(local_objects, "read", reading)

    def wait() -> None:
        commit_next(store, tmp_path)
        paths.clear()

    follow(store.root, None, "one", tmp_path / "pages", lambda text: None, wait=wait)
    of_start = [path for path in paths if re.search(r"_(commits|stages)/00000[01]", path)]
    assert of_start == []
    assert "one/_commits/000002.json" in paths


def test_an_interrupt_leaves_a_page_that_does_not_reload(store, tmp_path):
    commit_next(store, tmp_path)
    page = tmp_path / "pages" / "index.html"

    def wait() -> None:
        assert reloads(page)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        follow(store.root, None, "one", page.parent, lambda text: None, wait=wait)
    assert reloads(page) is None


def test_a_fault_that_may_pass_is_told_once_and_waited_out(store, tmp_path, monkeypatch):
    for _ in range(3):
        commit_next(store, tmp_path)
    standing_of, faults, said = following.standing_of, ["away", "away", "refused"], []

    def standing(*arguments):
        if faults:
            raise InfrastructureError(faults.pop(0))
        return standing_of(*arguments)

    monkeypatch.setattr(following, "standing_of", standing)
    waited = []
    follow(store.root, None, "one", tmp_path / "pages", said.append, wait=lambda: waited.append(len(said)))
    assert waited == [1, 1, 2]
    assert [line.split(";")[0] for line in said[:2]] == ["away", "refused"]
    assert len(said) == 3


def test_a_campaign_that_does_not_exist_is_refused(store):
    with pytest.raises(ConfigError, match="no campaign 'other'"):
        follow(store.root, None, "other", None, print)


def test_the_command_ends_with_the_campaign(store, tmp_path, opid):
    for _ in range(3):
        commit_next(store, tmp_path)
    page = Path(store.root) / "one" / "audit" / "index.html"
    printed = opid("audit", "one", "--root", store.root, "--follow", "--iteration", "all").splitlines()
    assert printed[0].endswith(f"2 of 2 iterations committed, finished: {page}")
    assert printed[1:] == [str(page), f"Open {page} in a browser."]
    for arguments in (
        ["one", "two"],
        ["one@1"],
        ["one", "--format", "csv"],
        ["one", "--iteration", "1"],
        ["--overview"],
    ):
        with pytest.raises(ConfigError, match=r"audit --(follow|overview) takes"):
            opid("audit", *arguments, "--root", store.root, "--follow")
