"""`opid compare`; `flows.study` runs the campaigns, `flows.reports.study` compares them."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from flows import settings
from flows.cli.common import Overrides, app, console


@app.command()
def compare(
    configs: Annotated[list[Path], typer.Argument(metavar="CONFIG...", help="Configs, one a method.")],
    name: Annotated[str, typer.Option(help="Name of the study: its folder in the store's root.")] = "study",
    seeds: Annotated[int, typer.Option(min=1, help="Campaigns of each method, with seeds from the config's on.")] = 3,
    overrides: Overrides = [],  # noqa: B006
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything and list the campaigns.")] = False,
    report_only: Annotated[bool, typer.Option("--report-only", help="Only report on what is finished.")] = False,
) -> None:
    """Compare methods: campaigns of each with several seeds from one policy, then tables, paired tests and curves.

    The same command continues after any interruption. Methods may differ in their signal alone; every OPID method gets
    its twin without skill signal.

    Example: [bold]opid compare configs/compare/*.yaml --seeds 3 --name signals[/]
    """
    from flows.reports.formatting import show_markdown

    with console.status(f"{name}: checking"):  # the imports alone take seconds
        from flows.study import check, load_study, run_study, show, study_folder

        study = load_study(name, configs, seeds, overrides)
        settings.apply(study_folder(study))
        if not report_only:
            check(study, console)
            show(study, console)
    if dry_run:
        console.print("Dry run: nothing was written.")
        return
    if not report_only:
        from flows.prefect_api import prefect_api

        try:
            with ExitStack() as running:
                with console.status(f"{name}: starting Prefect"):
                    running.enter_context(prefect_api())
                run_study(study, console)
        except KeyboardInterrupt:
            console.print("Interrupted. The same command continues where it was.")
            raise typer.Exit(130) from None
    from flows.reports.study import write_comparison

    folder = write_comparison(study)
    show_markdown(console, (folder / "summary.md").read_text(encoding="utf-8"))
    console.print(f"Report: {folder / 'index.html'}", soft_wrap=True)
