"""What a study found: a table a question, and curves, derived from the committed manifests of its campaigns alone."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from flows.reports.audit.pages import render
from flows.reports.campaign import save_plot
from flows.reports.chains import Evaluated, Panel, by_panel, evaluations_by_split, mean_metrics, read_chain, read_tables
from flows.reports.formatting import percent, quantity
from flows.reports.learning_curves import area_under_curve, mean_curve
from flows.reports.paired import corrected, of_shared_seeds, of_tasks, paired
from flows.reports.skills import effect_lines, effects_of
from flows.reports.study_tables import difference_table, metric_table, score_table, success_table
from flows.study import Study, study_folder
from infra.local_objects import faults
from infra.manifest import Manifest, weights_hash
from infra.store import CampaignStore, campaign_exists, read_config
from opid_core.comparison import PairedDifference, success, success_by_type
from opid_core.config import CampaignConfig
from opid_core.errors import ConfigError
from opid_core.evaluation import Estimate, panel_name, scores_by_task, table_success
from opid_core.hashing import MAY_DIFFER, config_differences
from opid_core.skills.effects import SkillEffect
from tasks.markdown import markdown_table
from tasks.results import is_evaluated

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CURVES = "curves.png"
OF_SEEDS = "seeds and tasks, the same tasks for all seeds"
OF_ONE_SEED = "tasks alone: of one seed the draw of training runs is no part of it"


@dataclass(frozen=True)
class SeedRun:
    """One finished campaign of a study."""

    seed: int
    chain: list[Manifest]
    evaluated: list[Evaluated]
    final: dict[Panel, pa.Table]
    """The last policy's evaluation."""
    before: dict[Panel, pa.Table]
    """The first policy's."""
    numbers: dict[str, float]
    """Means over iterations of the table `metrics`."""
    skills: list[SkillEffect]
    """What its skills did, most advantage first."""


@dataclass(frozen=True)
class MethodRow:
    """A method on one split at one temperature."""

    method: str
    split: str
    temperature: float
    seeds: tuple[int, ...]
    tasks: int
    before: float
    """Success (micro) of the policy that it started from, the mean over seeds."""
    micro: Estimate
    macro: Estimate
    by_type: dict[str, float]
    episodes: float
    """Training episodes played, the mean over seeds."""
    curve_mean: float
    """Success averaged over the training episodes that every run of the study played (`shared_episodes`)."""
    against_baseline: PairedDifference | None
    twin: str | None
    """Label of the OPID method's twin without skill signal where that is not the baseline."""
    against_twin: PairedDifference | None
    score: Estimate | None = None
    """Mean score, where the environment gives one."""
    score_against_baseline: PairedDifference | None = None


def read_runs(study: Study) -> tuple[dict[str, list[SeedRun]], list[str]]:
    """The finished campaigns by method, and the names of those that are not finished, with what an ended one lacks.

    Raises ConfigError for a campaign that is not the study's (made with another config, longer, or from other weights),
    and where the store cannot be read.
    """
    runs: dict[str, list[SeedRun]] = {label: [] for label in study.methods}
    unfinished = []
    starts: dict[str, str] = {}
    for label, seed, config in study.campaigns():
        where = config.root, config.campaign, config.storage.endpoint_url
        if not campaign_exists(*where):
            unfinished.append(config.campaign)
            continue
        store, chain = read_chain(*where)
        _check_campaign(store, config, chain)
        if len(chain) <= config.iterations:
            unfinished.append(config.campaign)
        elif not is_evaluated(config, chain[-1]):
            unfinished.append(
                f"{config.campaign} (without its final evaluation: one iteration more has it, --set "
                f"iterations={len(chain)})"
            )
        else:
            starts.setdefault(weights_hash(chain[0].policy), config.campaign)
            runs[label].append(_run(store, seed, chain))
    if len(starts) > 1:
        one, other, *_ = starts.values()
        raise ConfigError(f"campaigns {one} and {other} start from policies with other weights: that is no comparison")
    return runs, unfinished


def _check_campaign(store: CampaignStore, config: CampaignConfig, chain: list[Manifest]) -> None:
    """Raise ConfigError unless the campaign is the one that the study would run. Its policy may have another name; its
    weights are looked at."""
    ignored = (*MAY_DIFFER, "policy")
    if differing := config_differences(read_config(store), config.model_dump(mode="json"), ignored):
        raise ConfigError(
            f"campaign {config.campaign} in {store.root} was made with another config than the study's: "
            f"{', '.join(differing)}; give the study another name, or the config that the campaign was made with"
        )
    if len(chain) - 1 > config.iterations:
        raise ConfigError(
            f"campaign {config.campaign} in {store.root} has {quantity(len(chain) - 1, 'iteration')}, more than "
            f"the study's {config.iterations}: set iterations to what its campaigns have"
        )


def method_rows(study: Study, runs: dict[str, list[SeedRun]]) -> list[MethodRow]:
    """A row a method, split and temperature, paired with the baseline, and with its own twin where that is another
    method, over the seeds that both have."""
    rows = []
    until = shared_episodes(runs)
    for label, of_method in runs.items():
        twin = study.twin(label) if study.twin(label) != study.baseline else None
        for panel in dict.fromkeys(panel for run in of_method for panel in run.final):
            won, types = of_tasks(of_method, panel)
            micro, macro = success(won, types)
            curves = [_curve(run, panel) for run in of_method]
            others = [] if label == study.baseline else runs[study.baseline]
            scores = of_tasks(of_method, panel, scores_by_task)[0]
            rows.append(
                MethodRow(
                    method=label,
                    split=panel[0],
                    temperature=panel[1],
                    seeds=tuple(run.seed for run in of_method),
                    tasks=won.shape[1],
                    before=_before(of_method, panel),
                    micro=micro,
                    macro=macro,
                    by_type=success_by_type(won, types),
                    episodes=float(np.mean([episodes[-1] for episodes, _ in curves])),
                    curve_mean=float(np.mean([area_under_curve(*curve, until) for curve in curves])),
                    against_baseline=paired(of_method, others, panel),
                    twin=twin,
                    against_twin=None if twin is None else paired(of_method, runs[twin], panel),
                    score=success(scores, [""] * scores.shape[1])[0] if scores.size else None,
                    score_against_baseline=paired(of_method, others, panel, scores_by_task),
                )
            )
    return corrected(rows)


def shared_episodes(runs: dict[str, list[SeedRun]]) -> int:
    """Training episodes that every run played: beyond them methods cannot be compared episode by episode."""
    return min(int(_played(run.chain)[-1]) for of_method in runs.values() for run in of_method)


def write_comparison(study: Study) -> Path:
    """Write `compare/` (index.html, summary.md, results.json, curves.png) into the study's folder; returns it.

    Raises ConfigError when no campaign of the study is finished yet.
    """
    runs, unfinished = read_runs(study)
    if not any(runs.values()):
        raise ConfigError(
            f"study {study.name}: no campaign is finished yet ({', '.join(unfinished)}); run `opid compare` without "
            "--report-only"
        )
    rows = method_rows(study, runs)
    folder = study_folder(study) / "compare"
    text = summary(study, runs, rows, unfinished)
    results = json.dumps([asdict(row) for row in rows], indent=2, sort_keys=True)
    panels = dict.fromkeys((row.split, row.temperature) for row in rows)
    plots = [
        (f"{split}, temperature {t:g}", lambda axes, p=(split, t): draw_curves(axes, runs, p)) for split, t in panels
    ]
    with faults(folder, "written"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "summary.md").write_text(text, encoding="utf-8")
        (folder / "results.json").write_text(f"{results}\n", encoding="utf-8")
        save_plot(folder / CURVES, plots)
        (folder / "index.html").write_text(page(study.name, text, (folder / CURVES).read_bytes()), encoding="utf-8")
    return folder


def summary(study: Study, runs: dict[str, list[SeedRun]], rows: Sequence[MethodRow], unfinished: Sequence[str]) -> str:
    """The tables, in Markdown: all of them of the first split, success and differences of each further one."""
    first = next(iter(study.methods.values()))
    every_split = {split: [row for row in rows if row.split == split] for split in dict.fromkeys(r.split for r in rows)}
    rows, *of_more_splits = every_split.values()
    lines = [
        f"# Study {study.name}",
        "",
        f"Preset {first.preset}; seeds {', '.join(map(str, study.seeds))}; "
        f"{quantity(first.iterations, 'iteration')}; the final policy of each campaign, not the best. Success is the "
        f"mean over seeds with a 95% bootstrap interval ({OF_ONE_SEED if len(study.seeds) == 1 else OF_SEEDS}), on the "
        f"split {rows[0].split}.",
        "",
        *_results(study, runs, rows),
    ]
    if unfinished:
        lines += [f"**Not finished, left out:** {', '.join(unfinished)}", ""]
    lines += success_table(rows)
    lines += [
        "",
        f"## Against {study.baseline}",
        "",
        "Paired by seed and task; p: two-sided sign-flip test over tasks, blind to the draw of training runs; p (Holm) "
        "is corrected for all comparisons of this page. Detectable: the true difference that this test finds, at 5% "
        "and before the correction, with a chance of 80%, given how the tasks' differences vary.",
        "",
        *difference_table([(r, r.against_baseline) for r in rows]),
    ]
    if any(r.against_twin for r in rows):
        lines += ["", "## Against the twin without skill signal", ""]
        lines += ["The same method with both lambdas 0, paired and tested as above.", ""]
        lines += difference_table([(r, r.against_twin) for r in rows], twins=True)
    if any(r.score for r in rows):
        lines += ["", "## Score", "", "Mean score of the final policy's episodes, 0 to 100, and paired as above.", ""]
        lines += score_table(rows, study.baseline)
    for further in of_more_splits:
        lines += ["", f"## On the split {further[0].split}", "", *success_table(further), ""]
        lines += [f"Against {study.baseline}, paired and tested as above:", ""]
        lines += difference_table([(r, r.against_baseline) for r in further])
    types = sorted({name for row in rows for name in row.by_type})
    temperatures = sorted({row.temperature for row in rows})
    headings = [f"{r.method}, {r.temperature:g}" if len(temperatures) > 1 else r.method for r in rows]
    lines += ["", "## By task type", "", "Success, the mean over seeds.", ""]
    lines += markdown_table(
        ["task type", *headings], [[name, *(percent(r.by_type.get(name)) for r in rows)] for name in types]
    )
    lines += [
        "",
        "## Sample efficiency",
        "",
        f"Success averaged over the first {shared_episodes(runs):,} training episodes, which every run played. "
        "Episodes: all that were played, the mean over seeds.",
        "",
    ]
    by_method = {label: [r for r in rows if r.method == label] for label in dict.fromkeys(r.method for r in rows)}
    lines += markdown_table(
        ["method", "episodes", *(f"temperature {t:g}" for t in temperatures)],
        [
            [label, f"{of_method[0].episodes:,.0f}", *(percent(r.curve_mean) for r in of_method)]
            for label, of_method in by_method.items()
        ],
    )
    lines += ["", f"![curves]({CURVES})", ""]
    for label, of_method in runs.items():
        for run in of_method:
            if run.skills:
                lines += [
                    f"## The skills of {label}, seed {run.seed}, that did most",
                    "",
                    *effect_lines(run.skills),
                    "",
                ]
    lines += ["## Signal and cost", "", "Means over iterations and seeds.", ""]
    return "\n".join([*lines, *metric_table(runs)]) + "\n"


def _results(study: Study, runs: dict[str, list[SeedRun]], rows: Sequence[MethodRow]) -> list[str]:
    """What skills added, a sentence a method with skills and temperature, and their part in the advantage: all over the
    seeds that the method and its twin share."""
    lines = []
    for row in rows:
        twin = study.twin(row.method)
        against = row.against_baseline if twin == study.baseline else row.against_twin
        if against is None or twin is None:
            continue
        of_method = of_shared_seeds(runs[row.method], runs[twin])
        before = _before(of_method, (row.split, row.temperature))
        shares = [share for run in of_method if (share := run.numbers.get("advantage_share/skill")) is not None]
        panel = panel_name(study.methods[row.method].model_dump(mode="json"))
        reached, without = against.means
        e = against.estimate
        lines += [
            f"**{row.method}, temperature {row.temperature:g}: {before:.1%} -> {reached:.1%}; without "
            f"skills ({twin}) {without:.1%}.** Difference {100 * e.mean:+.1f} points (95%: {100 * e.low:+.1f} to "
            f"{100 * e.high:+.1f}), p = {against.p_value:.2g} ({against.adjusted_p or against.p_value:.2g} corrected), "
            f"{against.tasks} tasks of the {panel}, {against.seeds} seed{'s' * (against.seeds > 1)}."
            + (f" Skills' share of the advantage: {percent(float(np.mean(shares)))}." if shares else ""),
            "",
        ]
    return lines


def page(study: str, text: str, curves: bytes) -> str:
    """The summary as one self-contained HTML page with its plot; markup in `text` stays text."""
    from markdown_it import MarkdownIt
    from markupsafe import Markup

    tables = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    image = f"data:image/png;base64,{base64.b64encode(curves).decode()}"
    body = tables.replace(f'src="{CURVES}"', f'src="{image}"')
    return render("study.html.j2", images="data:", study=study, body=Markup(body))


def draw_curves(axes: Axes, runs: dict[str, list[SeedRun]], panel: Panel) -> None:
    """Success by training episodes played: a thin line a seed, the mean bold up to where the shortest ends."""
    for number, (label, of_method) in enumerate(runs.items()):
        curves = [_curve(run, panel) for run in of_method if panel in run.final]
        for episodes, shares in curves:
            axes.plot(episodes, shares, color=f"C{number}", linewidth=0.7, alpha=0.4)
        if curves:
            axes.plot(*mean_curve(curves), color=f"C{number}", marker="o", label=label)
    axes.set(xlabel="training episodes", ylabel="success", ylim=(0, 1))
    axes.yaxis.set_major_formatter("{x:.0%}")
    axes.grid(alpha=0.3)


def _run(store: CampaignStore, seed: int, chain: list[Manifest]) -> SeedRun:
    first, further = evaluations_by_split(store, chain)
    return SeedRun(
        seed=seed,
        chain=chain,
        evaluated=[*first, *further],
        final=by_panel(read_tables(store, chain[-1], ["evaluations"])["evaluations"]),
        before=by_panel(read_tables(store, chain[0], ["evaluations"])["evaluations"]),
        numbers=mean_metrics(store, chain),
        skills=effects_of(store, chain),
    )


def _before(runs: Sequence[SeedRun], panel: Panel) -> float:
    """Success of the policy that they started from, the mean over seeds."""
    return float(np.mean([table_success(run.before[panel]).micro for run in runs]))


def _played(chain: list[Manifest]) -> np.ndarray:
    """Training episodes played before each policy version."""
    return np.cumsum([0, *(manifest.tables["trajectories"].rows or 0 for manifest in chain[1:])])


def _curve(run: SeedRun, panel: Panel) -> tuple[np.ndarray, np.ndarray]:
    """Training episodes played and success, at each evaluation."""
    played = _played(run.chain)
    points = [(played[e.policy_version], e.success.micro) for e in run.evaluated if (e.split, e.temperature) == panel]
    episodes, shares = zip(*points, strict=True)
    return np.array(episodes, np.float64), np.array(shares)
