"""`opid train`."""

from __future__ import annotations

from typing import Annotated

import typer

from flows import settings
from flows.cli.common import Card, ConfigPath, Overrides, app, check_card, console, exit_on_interrupt


@app.command()
def train(
    config_path: ConfigPath,
    overrides: Overrides = [],  # noqa: B006 - typer wants a plain default
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and its sizes, check everything.")] = False,
    card: Card = None,
) -> None:
    """Run the campaign that CONFIG names, or resume it: the same command after any interruption.

    Example: [bold]opid train configs/quickstart.yaml --set iterations=5 --set campaign=short[/]
    """
    from opid_core.config import load_config
    from opid_core.errors import OpidError

    check_card(card, dry_run)
    config = load_config(config_path, overrides)
    settings.apply(config.root)
    if dry_run:
        from flows import auto, plan
        from flows.reports.formatting import say

        by_auto = config.learner.dtype == auto.AUTO
        try:
            config = auto.decided(config, lambda text: say(console, text), card=card)
            problem = plan.problem(lambda: plan.check(config, weights=False))
        except OpidError as error:  # as of a hub that is away; the plan has all but estimates
            problem = error
        plan.show(config, console, card, by_auto=by_auto, prompt=problem is None)
        if problem:
            raise problem
        return
    with exit_on_interrupt():
        with console.status(f"{config.campaign}: checking"):  # the imports alone take seconds
            from flows.prefect_api import prefect_api
            from flows.train import check_and_open, train_campaign

            config = check_and_open(config, console)
        train_campaign(config, console, prefect_api())
