"""`python -m flows.reports.curves`: several campaigns of one kind (such as three seeds) in one table and one plot.

Example: python -m flows.reports.curves quickstart-0 quickstart-1 quickstart-2 --root runs --out docs/quickstart
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.reports.campaign import draw_campaign, save_plot
from flows.reports.chains import Evaluated, evaluations, first_and_last, read_chain
from flows.reports.formatting import with_interval
from infra.manifest import Manifest
from infra.store import read_config
from opid_core.evaluation import panel_name, same_tasks
from tasks.markdown import markdown_table

HEADER = ("campaign", "temperature", "games", "before (95%)", "after (95%)", "updates")
TEST = ("won more often after, before", "p")


def curves(
    campaigns: Annotated[list[str], typer.Argument(help="Names of the campaigns.")],
    root: Annotated[Path, typer.Option(help="Root of the store.")] = Path("runs"),
    out: Annotated[Path, typer.Option(help="Written: OUT.md and OUT.png.")] = Path("curves"),
) -> None:
    """Success before and after for each campaign, tested task by task (exact sign test), and their curves."""
    rows: list[list[str]] = []
    read: dict[str, tuple[list[Manifest], list[Evaluated], str]] = {}
    for name in campaigns:
        store, chain = read_chain(str(root), name)
        evaluated = evaluations(store, chain)
        read[name] = (chain, evaluated, panel_name(read_config(store)))
        for first, last in first_and_last(evaluated):
            before, after = (with_interval(e.success.micro, e.success.low, e.success.high) for e in (first, last))
            paired = same_tasks(first.episodes, last.episodes)
            test = [f"{paired.second_more}, {paired.first_more}", f"{paired.p_value:.2g}"] if paired else ["", ""]
            numbers = [f"{first.temperature:g}", str(last.success.episodes), before, after, str(last.policy_version)]
            rows.append([name, *numbers, *test])
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".md").write_text("\n".join(markdown_table([*HEADER, *TEST], rows)) + "\n", encoding="utf-8")
    save_plot(
        out.with_suffix(".png"),
        [(name, lambda axes, name=name: draw_campaign(axes, *read[name])) for name in campaigns],
    )
    print(f"written: {out.with_suffix('.md')}, {out.with_suffix('.png')}")


if __name__ == "__main__":
    typer.run(curves)
