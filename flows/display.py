"""Live progress of a campaign in the terminal; plain lines where the output is no terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from opid_core.config import CampaignConfig
from tasks import progress


@contextmanager
def live_progress(config: CampaignConfig, console: Console) -> Iterator[None]:
    """Draw the campaign's and the current stage's progress while the block runs."""
    columns = (
        TextColumn("{task.fields[label]:<16}", style="bold", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.description}", markup=False),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(elapsed_when_finished=False),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        campaign_bar = bars.add_task("", total=config.iterations, label=config.campaign)
        stage_bar = bars.add_task("", total=None, label="start")
        current: tuple[int | None, str] | None = None

        def show(event: progress.Progress) -> None:
            nonlocal current
            if event.event != "progress":
                console.print(event.note, highlight=False)
                if event.iteration is not None and event.event in ("resumed", "committed"):
                    bars.update(campaign_bar, completed=event.iteration)
                return
            key = (event.iteration, event.stage)
            if key != current:
                current = key
                bars.reset(stage_bar)
            label = event.stage if event.iteration is None else f"{event.iteration}: {event.stage}"
            bars.update(stage_bar, label=label, completed=event.done, total=event.total or None, description=event.note)

        stop = progress.listen(show)
        try:
            yield
        finally:
            stop()
