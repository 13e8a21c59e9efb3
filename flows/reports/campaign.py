"""What a campaign achieved: a summary in Markdown and a plot, derived from committed manifests alone."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.reports.chains import Evaluated, evaluations_by_split, first_and_last, mean_metrics
from flows.reports.formatting import interval, quantity, say, score_text, show_markdown, with_interval
from flows.reports.skills import effect_lines, effects_of
from infra.local_objects import faults
from infra.manifest import Manifest
from infra.store import CampaignStore, local_folder, manifests, read_config
from opid_core.config import CampaignConfig
from opid_core.evaluation import by_split, by_temperature, panel_name, same_tasks, table_success
from tasks.markdown import markdown_table
from tasks.version import code_version

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def write_report(store: CampaignStore) -> Path:
    """Write `report/summary.md` and `report/success.png` into the campaign's local folder; returns the folder."""
    chain = manifests(store)
    folder = local_folder(store, "report")
    evaluated, more = evaluations_by_split(store, chain)
    text = summary(store, chain, evaluated, more)
    panel = panel_name(read_config(store))
    with faults(folder, "written"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "summary.md").write_text(text, encoding="utf-8")
        save_plot(folder / "success.png", [(store.campaign, lambda axes: draw_campaign(axes, chain, evaluated, panel))])
    return folder


def summary(
    store: CampaignStore, chain: Sequence[Manifest], evaluated: Sequence[Evaluated], more: Sequence[Evaluated] = ()
) -> str:
    """The tables of evaluations, of the first split and of `more`, and the commands to look further."""
    panel = panel_name(read_config(store))
    skills, means = effects_of(store, chain), mean_metrics(store, chain)
    lines = [
        f"# Campaign {store.campaign}",
        "",
        *_results(evaluated, panel, means.get("advantage_share/skill")),
        f"Preset: {chain[-1].preset or 'unknown'}. Share of the advantage over valid tokens, the mean over iterations: "
        f"{_advantage_shares(means)}.",
        "",
        f"{quantity(len(chain) - 1, 'iteration')} committed. Success on the {panel} (95% Wilson interval):",
        "",
        *_evaluations_table(evaluated),
    ]
    for split in dict.fromkeys(e.split for e in more):
        lines += ["", f"Success on the split {split}:", "", *_evaluations_table([e for e in more if e.split == split])]
    lines += [
        *_by_task_type(evaluated),
        "",
        *(["## The skills that did most", "", *effect_lines(skills), ""] if skills else []),
        "![success](success.png)",
        "",
        "Look further:",
        "",
        "```",
        *_commands(store),
        "```",
        "",
    ]
    return "\n".join(lines)


def _results(evaluated: Sequence[Evaluated], panel: str, skill_share: float | None) -> list[str]:
    """What came out, first of all: success before and after at each temperature, and the skills' part in it."""
    lines = [
        f"- **{first.success.micro:.1%} -> {last.success.micro:.1%}** of the {panel} won at temperature "
        f"{first.temperature:g} ({100 * (last.success.micro - first.success.micro):+.1f} points after "
        f"{quantity(last.policy_version, 'update')}). {_verdict(first, last)}"
        for first, last in first_and_last(evaluated)
    ]
    if skill_share:
        lines.append(
            f"- Skills gave {skill_share:.2%} of the advantage. What they add to success shows beside a campaign "
            "without them: `opid compare`."
        )
    return [*lines, ""] if lines else []


def _commands(store: CampaignStore) -> list[str]:
    where = ["--root", store.root, *(["--endpoint-url", store.endpoint_url] if store.endpoint_url else [])]
    return [
        shlex.join(["opid", "status", store.campaign, *where]),
        shlex.join(["opid", "audit", store.campaign, *where]),
        shlex.join(["tensorboard", "--logdir", str(local_folder(store, "tensorboard"))]),
    ]


def _evaluations_table(evaluated: Sequence[Evaluated]) -> list[str]:
    scored = any(e.success.score for e in evaluated)
    listed = any(e.admissible for e in evaluated)  # some worlds list no actions
    header = [
        *("policy after", "temperature", "games", "success (micro)", "95% interval", "macro"),
        *(["score (95%)"] if scored else []),
        *(["admissible actions"] if listed else []),
    ]
    rows = [
        [
            *(quantity(e.policy_version, "update"), f"{e.temperature:g}", str(e.success.episodes)),
            *(f"{e.success.micro:.1%}", interval(e.success.low, e.success.high), f"{e.success.macro:.1%}"),
            *([score_text(e.success.score)] if scored else []),
            *([f"{e.admissible:.1%}"] if listed else []),
        ]
        for e in evaluated
    ]
    return markdown_table(header, rows)


def _verdict(first: Evaluated, last: Evaluated) -> str:
    """What the panel's tasks, one by one, tell of a change; the draw of the training run is no part of it."""
    paired = same_tasks(first.episodes, last.episodes)
    if paired is None:
        return "They were evaluated on different tasks."
    return (
        f"Of the same tasks {paired.second_more} were won more often after, {paired.first_more} before (exact sign "
        f"test: p = {paired.p_value:.2g})."
    )


def _advantage_shares(means: Mapping[str, float]) -> str:
    """The share of each component (ALGORITHM, section 6)."""
    prefix = "advantage_share/"
    shares = {name.removeprefix(prefix): share for name, share in means.items() if name.startswith(prefix)}
    return ", ".join(f"{name} {share:.2%}" for name, share in sorted(shares.items())) or "no iteration yet"


def _by_task_type(evaluated: Sequence[Evaluated]) -> list[str]:
    """The newest policy's success by task type (for search-based QA: exact match by data set)."""
    newest = max((e.policy_version for e in evaluated), default=None)
    lines = []
    for e in evaluated:
        if e.policy_version == newest and len(e.success.per_type) > 1:
            title = f"task type (after {quantity(e.policy_version, 'update')}, temperature {e.temperature:g})"
            rows = [
                [name, str(e.success.episodes_per_type[name]), f"{share:.1%}"]
                for name, share in e.success.per_type.items()
            ]
            lines += ["", *markdown_table([title, "episodes", "success"], rows)]
    return lines


def draw_campaign(axes: Axes, chain: Sequence[Manifest], evaluated: Sequence[Evaluated], panel: str) -> None:
    """Success of the training rollouts by iteration, and of the `panel` by update with its intervals."""
    points = [
        (m.iteration - 1, m.metrics["rollout/success_micro"])
        for m in chain
        if m.metrics.get("rollout/success_micro") is not None
    ]
    if points:
        axes.plot(
            *zip(*points, strict=True), color="0.7", linewidth=1, label="training rollouts (other games each time)"
        )
    for temperature in sorted({e.temperature for e in evaluated}):
        part = [e for e in evaluated if e.temperature == temperature]
        errors = [[e.success.micro - e.success.low for e in part], [e.success.high - e.success.micro for e in part]]
        axes.errorbar(
            [e.policy_version for e in part],
            [e.success.micro for e in part],
            yerr=errors,
            marker="o",
            capsize=3,
            label=f"{panel}, temperature {temperature:g} (95%)",
        )
    from matplotlib.ticker import MaxNLocator

    axes.set(xlabel="updates", ylabel="success")
    axes.yaxis.set_major_formatter("{x:.0%}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)


def save_plot(path: Path, panels: Sequence[tuple[str, Callable[[Axes], None]]]) -> None:
    """Write a PNG with one panel a (title, drawing function) of shares, side by side, and one legend.

    The legend stands where it hides least. The axis of shares ends above what is drawn, so that small differences show.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2 + 5 * len(panels), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    for number, (title, draw) in enumerate(panels, start=1):
        axes = figure.add_subplot(1, len(panels), number)
        draw(axes)
        axes.set_title(title)
        axes.autoscale(axis="y")
        axes.set_ylim(0, min(1.0, axes.get_ylim()[1]))
        if number == 1:
            axes.legend(loc="best", fontsize="small")
    figure.savefig(path, dpi=110)


def print_report(folder: Path, console: Console) -> None:
    """Print the summary and where it lies."""
    show_markdown(console, (folder / "summary.md").read_text(encoding="utf-8"))
    say(console, f"Report: {folder / 'summary.md'}\nPlot: {folder / 'success.png'}")


def show_evaluations(table: pa.Table, console: Console) -> None:
    """Print success and the number of episodes by split, temperature and task type."""
    parts = [(split, *part) for split, of_split in by_split(table).items() for part in by_temperature(of_split).items()]
    for split, temperature, part in parts:
        success = table_success(part)
        rows = Table("task type", "episodes", "success", title=Text(f"{split}, temperature {temperature:g}"))
        for name, share in success.per_type.items():
            rows.add_row(Text(name), str(success.episodes_per_type[name]), f"{share:.1%}")
        episodes = str(success.episodes)
        rows.add_row("micro, 95% interval", episodes, with_interval(success.micro, success.low, success.high))
        rows.add_row("macro", episodes, f"{success.macro:.1%}")
        if success.score is not None:
            rows.add_row("mean score, 95% interval", episodes, score_text(success.score))
        console.print(rows)


def evaluation_record(config: CampaignConfig, policy: str, table: pa.Table) -> dict[str, Any]:
    """An evaluation as plain data that can be compared with another: what was played, success, and every episode with
    its seed. `skill_bank` is the file of the static skills that stood in the prompts, whichever key named it."""

    def success(of_split: pa.Table) -> dict[str, Any]:
        return {f"{t:g}": asdict(table_success(part)) for t, part in by_temperature(of_split).items()}

    return {
        "policy": policy,
        "preset": config.preset,
        "environment": config.environment.model_dump(mode="json"),
        "evaluation": config.evaluation.model_dump(mode="json"),
        "rollout": config.rollout.model_dump(mode="json", include={"max_prompt_tokens", "max_response_tokens"}),
        "engine": config.engine.model_dump(mode="json", include={"dtype"}),
        "prompting": config.prompting.model_dump(mode="json"),
        "skill_bank": config.bank_at_test,
        "seed": config.seed,
        "code_version": code_version(),
        "success": success(table),
        "success_of_more_splits": {split: success(part) for split, part in [*by_split(table).items()][1:]},
        "episodes": table.to_pylist(),
    }
