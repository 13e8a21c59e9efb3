"""The pages of a campaign while it runs: written again after each commit, until it has ended."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from flows.output import make_folder
from flows.reports.audit import pages_folder
from flows.reports.audit.pages import CAMPAIGN_PAGE, Commits, read_commits, write_pages
from flows.reports.chains import read_chain
from flows.reports.standing import Standing, standing_of
from infra.manifest import uncollected
from infra.store import is_committed, manifests_after
from opid_core.errors import InfrastructureError

POLL_S = 10.0
"""Between two looks for a new commit: each is a handful of small requests."""
RELOAD_S = 20
"""After which an open page is read again."""


def follow(
    root: str,
    endpoint_url: str | None,
    campaign: str,
    out: Path | None,
    say: Callable[[str], None],
    *,
    every: bool = False,
    wait: Callable[[], None] = lambda: time.sleep(POLL_S),
) -> Path:
    """Write the page of `campaign` and those of its iterations (the newest at each look, or `every` one), as
    `write_audit`, and again after each commit; returns the campaign's page when the campaign is finished.

    The campaign's page reloads itself while this runs, and no more once it ends, however it ends. `say` is told each
    change, and each fault of the store that may pass. Raises ConfigError for an unknown campaign.
    """
    store, chain = read_chain(root, campaign, endpoint_url)
    folder = make_folder(pages_folder(store, out))
    page, shown, reloads, told = folder / CAMPAIGN_PAGE, 0, False, ""
    commits = Commits()
    try:
        while True:
            try:
                chain = manifests_after(store, chain)
                standing = standing_of(store, chain)
                if is_committed(store, len(chain)):
                    continue  # meanwhile: who works on it was asked too late for this chain
                if len(chain) > shown:
                    reloads = standing.state != "finished"
                    new = range(max(1, shown), len(chain))[0 if every else -1 :]
                    with uncollected():
                        commits = read_commits(store, chain, commits)
                        reload_s = RELOAD_S if reloads else None
                        write_pages(store, chain, new, folder, reload_s=reload_s, commits=commits)
                    shown = len(chain)
                now = _line(standing, page)
            except InfrastructureError as error:
                standing, now = None, f"{error}; trying again"
            if now != told:
                say(now)
                told = now
            if standing is not None and standing.state == "finished":
                return page
            wait()
    finally:
        if reloads:
            with suppress(InfrastructureError), uncollected():
                write_pages(store, chain, [], folder, commits=read_commits(store, chain, commits))


def _line(standing: Standing, page: Path) -> str:
    if standing.committed_at is None:
        return f"{standing.campaign}: nothing is committed yet: waiting"
    waiting = {"finished": "", "running": ""}.get(standing.state, ", waiting")
    return (
        f"{standing.committed_at[:19].replace('T', ' ')} UTC: {standing.iterations_done} of "
        f"{standing.iterations_planned} iterations committed, {standing.state}{waiting}: {page}"
    )
