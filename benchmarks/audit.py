"""Sizes and times of the audit pages of a large campaign, in a real browser: `python -m benchmarks.audit`.

Needs Playwright's Python package and a Chromium on the PATH (Debian: apt-get install chromium). The campaign is made
up, through the real schema and store: 150 iterations of 128 trajectories, the last with all its steps (30 a
trajectory, responses of about 75 tokens). Times are wall clock; on a busy machine the processor times tell more.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

from flows.reports.audit.pages import CAMPAIGN_PAGE, page_of, write_pages
from tests.audited import Shape, make_campaign

SHAPE = Shape(tasks=16, group_size=8, steps=30, tokens=75)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.audit", description=__doc__)
    parser.add_argument("--iterations", type=int, default=150)
    parser.add_argument("--opens", type=int, default=5, help="how often each page is opened, in a new browser context")
    parser.add_argument("--out", type=Path, help="keep the pages in this folder")
    given = parser.parse_args()
    last = given.iterations
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        store, chain = make_campaign(root, given.iterations, SHAPE, full=lambda iteration: iteration == last)
        folder = given.out or root / "pages"
        started_s = time.perf_counter()
        write_pages(store, chain, [], folder)
        campaign_s = time.perf_counter() - started_s
        started_s = time.perf_counter()
        write_pages(store, chain, [last], folder)
        both_s = time.perf_counter() - started_s
        print(f"written: campaign {campaign_s:.1f} s, campaign and iteration {both_s:.1f} s")
        with sync_playwright() as playwright:
            chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"))
            for name in (CAMPAIGN_PAGE, page_of(last)):
                wall_s, processor_s = zip(*(opened(chromium, folder / name) for _ in range(given.opens)), strict=True)
                size = (folder / name).stat().st_size / 1e6
                print(
                    f"{name}: {size:.2f} MB, opens in {statistics.median(wall_s):.2f} s (median of {given.opens}, best "
                    f"{min(wall_s):.2f}, worst {max(wall_s):.2f}); processor time of the page's main thread "
                    f"{statistics.median(processor_s):.2f} s"
                )
            wall_s, processor_s = opened(chromium, folder / page_of(last), search="open lamp desk")
            print(f"opened, and all its text searched: {wall_s:.2f} s, processor time {processor_s:.2f} s")
            chromium.close()


def opened(chromium: Browser, page: Path, search: str = "") -> tuple[float, float]:
    """Seconds from the address to the page with its data shown (and the list filtered by `search`) in a new context of
    a running browser: wall clock, and processor time of the page's main thread."""
    context = chromium.new_context()
    tab = context.new_page()
    devtools = context.new_cdp_session(tab)
    devtools.send("Performance.enable", {"timeDomain": "threadTicks"})
    started_s = time.perf_counter()
    tab.goto(page.as_uri())
    tab.wait_for_selector("body[data-ready=yes]", state="attached")
    if search:
        tab.fill("#text", search)
        tab.wait_for_selector("#count:has-text(' of ')")
    wall_s = time.perf_counter() - started_s
    metrics = {metric["name"]: metric["value"] for metric in devtools.send("Performance.getMetrics")["metrics"]}
    context.close()
    return wall_s, metrics["TaskDuration"]


if __name__ == "__main__":
    main()
