"""`python -m flows.reports.curves`: several campaigns of one kind (such as three seeds) in one table and one plot.

Example: python -m flows.reports.curves quickstart-0 quickstart-1 quickstart-2 --root runs --out docs/quickstart
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.reports.campaign import Evaluated, draw_campaign, evaluations, first_and_last, save_plot
from infra.store import find_campaign, manifests
from opid_core.evaluation import same_tasks


def curves(
    campaigns: Annotated[list[str], typer.Argument(help="Names of the campaigns.")],
    root: Annotated[Path, typer.Option(help="Root of the store.")] = Path("runs"),
    out: Annotated[Path, typer.Option(help="Written: OUT.md and OUT.png.")] = Path("curves"),
) -> None:
    """Success before and after for each campaign, tested task by task (exact sign test), and their curves."""
    lines = [
        "| campaign | temperature | games | before (95%) | after (95%) | updates | won more often after, before | p |",
        "|---|---|---|---|---|---|---|---|",
    ]
    found: dict[str, tuple[list, list[Evaluated]]] = {}
    for name in campaigns:
        store = find_campaign(root, name)
        chain = manifests(store)
        evaluated = evaluations(store, chain)
        found[name] = (chain, evaluated)
        for first, last in first_and_last(evaluated):
            paired = same_tasks(first.episodes, last.episodes)
            test = f"{paired.second_more}, {paired.first_more} | {paired.p_value:.2g}" if paired else " | "
            lines.append(
                f"| {name} | {first.temperature:g} | {last.success.episodes} | {_share(first)} | {_share(last)} "
                f"| {last.policy_version} | {test} |"
            )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    save_plot(
        out.with_suffix(".png"),
        [(name, lambda axes, name=name: draw_campaign(axes, *found[name])) for name in campaigns],
    )
    print(f"written: {out.with_suffix('.md')}, {out.with_suffix('.png')}")


def _share(evaluated: Evaluated) -> str:
    success = evaluated.success
    return f"{success.micro:.1%} ({success.low:.1%} to {success.high:.1%})"


if __name__ == "__main__":
    typer.run(curves)
