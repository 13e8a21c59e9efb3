"""`opid compare`; `flows.study` runs the campaigns, `flows.reports.study` compares them."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from flows import settings
from flows.cli.common import Card, Overrides, app, check_card, console, exit_on_interrupt


@app.command()
def compare(
    configs: Annotated[
        list[Path],
        typer.Argument(metavar="CONFIG...", help="Configs, one a method; or a file with rows; or a folder of them."),
    ],
    name: Annotated[
        str | None,
        typer.Option(
            help="Name of the study: its folder in the store's root. Default: of a single file or folder its own."
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Campaigns of each method, with seeds from the config's on.")] = 3,
    overrides: Overrides = [],  # noqa: B006
    tiny: Annotated[
        bool, typer.Option("--tiny", help="The same methods on a tiny policy and a generated world: minutes on a CPU.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the campaigns and what they take, check all.")
    ] = False,
    card: Card = None,
    report_only: Annotated[bool, typer.Option("--report-only", help="Only report on what is finished.")] = False,
) -> None:
    """Compare methods: campaigns of each with several seeds from one policy, then tables, paired tests and curves.

    The same command continues after any interruption. Methods may differ in `method`, `analyzer` and the clip range
    alone; every OPID method gets its twin without skill signal.

    Example: [bold]opid compare configs/compare/*.yaml --seeds 3 --name signals[/]
    """
    from flows.reports.formatting import say, show_markdown

    check_card(card, dry_run)
    name = name or (configs[0].resolve().name.removesuffix(".yaml") if len(configs) == 1 else "study") + "_tiny" * tiny
    with console.status(f"{name}: checking"):  # the imports alone take seconds
        from flows.auto import AUTO
        from flows.plan import problem
        from flows.study import check, load_study, run_study, show, study_folder, with_decisions
        from opid_core.errors import OpidError
        from tasks.store import when_reachable

        study = load_study(name, configs, seeds, overrides, tiny=tiny)
        settings.apply(study_folder(study))
        fault, tell = None, partial(say, console)
        first = next(iter(study.methods.values()))
        by_auto, decide = first.learner.dtype == AUTO, partial(with_decisions, study, tell, card)
        if dry_run:
            try:
                study = decide()
                fault = problem(lambda: check(study, weights=False))
            except OpidError as error:  # as of a hub that is away; the plan has all but hours and disk
                fault = error
        else:
            study = when_reachable(first.recovery, decide, tell)
        if not (dry_run or report_only):
            when_reachable(first.recovery, lambda: check(study), tell)
        if dry_run or not report_only:
            show(study, console, card, by_auto=by_auto)
    if dry_run:
        console.print("Dry run: nothing was written.")
        if fault:
            raise fault
        return
    if not report_only:
        from flows.prefect_api import prefect_api
        from infra.interrupts import defer_interrupts

        with exit_on_interrupt(), ExitStack() as running:
            with console.status(f"{name}: starting Prefect"):
                running.enter_context(prefect_api())
            with defer_interrupts():
                run_study(study, console)
    from flows.reports.study import write_comparison

    folder = write_comparison(study)
    show_markdown(console, (folder / "summary.md").read_text(encoding="utf-8"))
    console.print(f"Report: {folder / 'index.html'}", soft_wrap=True)
