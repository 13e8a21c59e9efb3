"""What a study found: a table a question, and curves, derived from the committed manifests of its campaigns alone."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float

from flows.reports.audit.pages import render
from flows.reports.campaign import Evaluated, evaluations, mean_metrics, save_plot
from flows.study import Study, differences, study_folder
from infra.manifest import Manifest, weights_hash
from infra.store import CampaignStore, find_campaign, manifests, read_config, read_table
from opid_core.config import CampaignConfig
from opid_core.errors import ConfigError
from opid_core.evaluation import (
    Estimate,
    PairedDifference,
    area_under_curve,
    by_temperature,
    difference,
    mean_curve,
    success,
    success_by_type,
    table_success,
    wins_by_task,
)
from opid_core.hashing import MAY_DIFFER

if TYPE_CHECKING:
    from matplotlib.axes import Axes


CURVES = "curves.png"


@dataclass(frozen=True)
class Run:
    """One finished campaign of a study."""

    seed: int
    chain: list[Manifest]
    evaluated: list[Evaluated]
    final: dict[float, pa.Table]
    """The last policy's evaluation by temperature."""
    before: dict[float, pa.Table]
    """The first policy's."""
    numbers: dict[str, float]
    """Means over iterations of the table `metrics`."""


@dataclass(frozen=True)
class Row:
    """A method at one temperature."""

    method: str
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


def read_runs(study: Study) -> tuple[dict[str, list[Run]], list[str]]:
    """The finished campaigns by method, and the names of those that are not finished.

    Raises ConfigError for a campaign that is not the study's: made with another config, longer, or from other weights.
    """
    runs: dict[str, list[Run]] = {label: [] for label in study.methods}
    unfinished = []
    starts: dict[str, str] = {}
    for label, seed, config in study.campaigns():
        try:
            store = find_campaign(config.root, config.campaign, config.storage.endpoint_url)
        except ConfigError:
            unfinished.append(config.campaign)
            continue
        chain = manifests(store)
        _check_campaign(store, config, chain)
        if len(chain) <= config.iterations:
            unfinished.append(config.campaign)
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
    free = (*MAY_DIFFER, "policy")
    if differing := differences(read_config(store), config.model_dump(mode="json"), free):
        raise ConfigError(
            f"campaign {config.campaign} in {store.root} was made with another config than the study's: "
            f"{', '.join(differing)}; give the study another name, or the config that the campaign was made with"
        )
    if len(chain) - 1 > config.iterations:
        raise ConfigError(
            f"campaign {config.campaign} in {store.root} has {len(chain) - 1} iterations, more than the study's "
            f"{config.iterations}: set iterations to what its campaigns have"
        )


def rows(study: Study, runs: dict[str, list[Run]]) -> list[Row]:
    """A row a method and temperature, paired with the baseline, and with its own twin where that is another method,
    over the seeds that both have."""
    found = []
    until = shared_episodes(runs)
    for label, mine in runs.items():
        twin = study.twin(label) if study.twin(label) != study.baseline else None
        for temperature in sorted({t for run in mine for t in run.final}):
            won, types = _shares_won(mine, temperature)
            micro, macro = success(won, types)
            curves = [_curve(run, temperature) for run in mine]
            found.append(
                Row(
                    method=label,
                    temperature=temperature,
                    seeds=tuple(run.seed for run in mine),
                    tasks=won.shape[1],
                    before=float(np.mean([table_success(run.before[temperature]).micro for run in mine])),
                    micro=micro,
                    macro=macro,
                    by_type=success_by_type(won, types),
                    episodes=float(np.mean([episodes[-1] for episodes, _ in curves])),
                    curve_mean=float(np.mean([area_under_curve(*curve, until) for curve in curves])),
                    against_baseline=None
                    if label == study.baseline
                    else _against(mine, runs[study.baseline], temperature),
                    twin=twin,
                    against_twin=None if twin is None else _against(mine, runs[twin], temperature),
                )
            )
    return found


def shared_episodes(runs: dict[str, list[Run]]) -> int:
    """Training episodes that every run played: beyond them methods cannot be compared episode by episode."""
    return min(int(_played(run.chain)[-1]) for mine in runs.values() for run in mine)


def write_comparison(study: Study) -> Path:
    """Write `compare/` (index.html, summary.md, results.json, curves.png) into the study's folder; returns it.

    Raises ConfigError when no campaign of the study is finished yet.
    """
    runs, unfinished = read_runs(study)
    if not any(runs.values()):
        raise ConfigError(f"study {study.name}: no campaign is finished yet; run `opid compare` without --report-only")
    found = rows(study, runs)
    folder = study_folder(study) / "compare"
    folder.mkdir(parents=True, exist_ok=True)
    text = summary(study, runs, found, unfinished)
    (folder / "summary.md").write_text(text, encoding="utf-8")
    (folder / "results.json").write_text(
        json.dumps([asdict(row) for row in found], indent=2, sort_keys=True) + "\n", encoding="utf-8"
    )
    temperatures = sorted({row.temperature for row in found})
    panels = [(f"temperature {t:g}", lambda axes, t=t: draw_curves(axes, runs, t)) for t in temperatures]
    save_plot(folder / CURVES, panels)
    (folder / "index.html").write_text(page(study.name, text, (folder / CURVES).read_bytes()), encoding="utf-8")
    return folder


def summary(study: Study, runs: dict[str, list[Run]], found: Sequence[Row], unfinished: Sequence[str]) -> str:
    """The tables, in Markdown."""
    first = next(iter(study.methods.values()))
    lines = [
        f"# Study {study.name}",
        "",
        f"Preset {first.preset}; seeds {', '.join(map(str, study.seeds))}; {first.iterations} iterations; the "
        "final policy of each campaign, not the best. Success is the mean over seeds with a 95% bootstrap interval "
        "(seeds and tasks, the same tasks for all seeds).",
        "",
    ]
    if unfinished:
        lines += [f"**Not finished, left out:** {', '.join(unfinished)}", ""]
    lines += _table(
        ["method", "temperature", "seeds", "tasks", "before", "success (micro)", "success (macro)"],
        [
            [
                *(r.method, f"{r.temperature:g}", str(len(r.seeds)), str(r.tasks), _share(r.before)),
                *(_interval(r.micro), _interval(r.macro)),
            ]
            for r in found
        ],
    )
    lines += ["", f"## Against {study.baseline}", ""]
    lines += [
        "Paired by seed and task; p: two-sided sign-flip test over tasks, blind to the draw of training runs, and not "
        "corrected for the number of methods.",
        "",
    ]
    lines += _difference_table((r, r.against_baseline) for r in found)
    if any(r.against_twin for r in found):
        lines += ["", "## Against the twin without skill signal", ""]
        lines += ["The same method with both lambdas 0, paired and tested as above.", ""]
        lines += _difference_table(((r, r.against_twin) for r in found), twins=True)
    types = sorted({name for row in found for name in row.by_type})
    several = len({row.temperature for row in found}) > 1
    lines += ["", "## By task type", "", "Success, the mean over seeds.", ""]
    lines += _table(
        ["task type", *(f"{r.method}, {r.temperature:g}" if several else r.method for r in found)],
        [[name, *(_share(r.by_type.get(name)) for r in found)] for name in types],
    )
    lines += ["", "## Sample efficiency", ""]
    lines += [
        f"Success averaged over the first {shared_episodes(runs):,} training episodes, which every run played. "
        "Episodes: all that were played, the mean over seeds.",
        "",
    ]
    by_method = {label: [r for r in found if r.method == label] for label in dict.fromkeys(r.method for r in found)}
    lines += _table(
        ["method", "episodes", *(f"temperature {t:g}" for t in sorted({r.temperature for r in found}))],
        [
            [label, f"{mine[0].episodes:,.0f}", *(_share(r.curve_mean) for r in mine)]
            for label, mine in by_method.items()
        ],
    )
    lines += ["", f"![curves]({CURVES})", "", "## Signal and cost", "", "Means over iterations and seeds.", ""]
    lines += _numbers(runs)
    return "\n".join(lines) + "\n"


def page(study: str, text: str, curves: bytes) -> str:
    """The summary as one self-contained HTML page with its plot; markup in `text` stays text."""
    from markdown_it import MarkdownIt
    from markupsafe import Markup

    tables = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    image = f"data:image/png;base64,{base64.b64encode(curves).decode()}"
    body = tables.replace(f'src="{CURVES}"', f'src="{image}"')
    return render("study.html.j2", images="data:", study=study, body=Markup(body))


def draw_curves(axes: Axes, runs: dict[str, list[Run]], temperature: float) -> None:
    """Success by training episodes played: a thin line a seed, the mean bold up to where the shortest ends."""
    for number, (label, mine) in enumerate(runs.items()):
        curves = [_curve(run, temperature) for run in mine if temperature in run.final]
        for episodes, shares in curves:
            axes.plot(episodes, shares, color=f"C{number}", linewidth=0.7, alpha=0.4)
        if curves:
            axes.plot(*mean_curve(curves), color=f"C{number}", marker="o", label=label)
    axes.set(xlabel="training episodes", ylabel="success", ylim=(0, 1))
    axes.yaxis.set_major_formatter("{x:.0%}")
    axes.grid(alpha=0.3)


def _run(store: CampaignStore, seed: int, chain: list[Manifest]) -> Run:
    return Run(
        seed=seed,
        chain=chain,
        evaluated=evaluations(store, chain),
        final=by_temperature(read_table(store, chain[-1].tables["evaluations"])),
        before=by_temperature(read_table(store, chain[0].tables["evaluations"])),
        numbers=mean_metrics(store, chain),
    )


def _shares_won(runs: Sequence[Run], temperature: float) -> tuple[Float[np.ndarray, "seeds tasks"], list[str]]:
    """Of each task's repetitions, and the tasks' types. A task that only broke in some run is left out."""
    wins = [wins_by_task(run.final[temperature]) for run in runs]
    if any(panel.keys() != wins[0].keys() for panel in wins):
        raise ConfigError("the campaigns of a study were evaluated on different tasks: they cannot be compared")
    kept = [task for task in sorted(wins[0]) if all(panel[task] for panel in wins)]
    final = runs[0].final[temperature]
    types = dict(zip(*(final.column(name).to_pylist() for name in ("task_id", "task_type")), strict=True))
    shares = np.array([[np.mean(panel[task]) for task in kept] for panel in wins])
    return shares, [types[task] for task in kept]


def _against(mine: Sequence[Run], baseline: Sequence[Run], temperature: float) -> PairedDifference | None:
    shared = {run.seed for run in mine} & {run.seed for run in baseline}
    if not shared:
        return None
    one, other = ([run for run in runs if run.seed in shared] for runs in (mine, baseline))
    shares, _ = _shares_won([*one, *other], temperature)
    return difference(shares[: len(one)], shares[len(one) :])


def _played(chain: list[Manifest]) -> np.ndarray:
    """Training episodes played before each policy version."""
    return np.cumsum([0, *(manifest.tables["trajectories"].rows or 0 for manifest in chain[1:])])


def _curve(run: Run, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """Training episodes played and success, at each evaluation."""
    played = _played(run.chain)
    points = [(played[e.policy_version], e.success.micro) for e in run.evaluated if e.temperature == temperature]
    episodes, shares = zip(*points, strict=True)
    return np.array(episodes, np.float64), np.array(shares)


def _numbers(runs: dict[str, list[Run]]) -> list[str]:
    """Shares of the advantage's components, ties, and what each phase took."""
    prefixes = ("advantage_share/", "rollout/tie_rate", "skills/coverage", "seconds/stage/", "tokens/")
    prefixes += ("update/tokens", "update/distillation_loss")
    names = sorted(
        {name for mine in runs.values() for run in mine for name in run.numbers if name.startswith(prefixes)}
    )
    finished = {label: mine for label, mine in runs.items() if mine}

    def mean(mine: Sequence[Run], name: str) -> str:
        values = [run.numbers[name] for run in mine if name in run.numbers]
        return _shown(name, float(np.mean(values))) if values else ""

    return _table(["", *finished], [[name, *(mean(mine, name) for mine in finished.values())] for name in names])


def _difference_table(found: Iterable[tuple[Row, PairedDifference | None]], *, twins: bool = False) -> list[str]:
    """The rows that have a difference; `twins`: with the label of the twin."""
    return _table(
        ["method", *(["twin"] if twins else []), "temperature", "difference (95%)", "p"],
        [
            [
                row.method,
                *([row.twin or ""] if twins else []),
                f"{row.temperature:g}",
                _interval(against.estimate),
                f"{against.p_value:.3f}",
            ]
            for row, against in found
            if against is not None
        ],
    )


def _table(header: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    cells: list[Sequence[Any]] = [header, ["---"] * len(header), *body]
    return ["| " + " | ".join(row) + " |" for row in cells]


def _shown(name: str, value: float) -> str:
    if name.startswith(("tokens/", "update/tokens")):
        return f"{value:,.0f}"
    if name == "update/distillation_loss":
        return f"{value:.4f}"
    return f"{value:.1f}" if name.startswith("seconds/") else f"{value:.2%}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _interval(estimate: Estimate) -> str:
    return f"{estimate.mean:.1%} ({estimate.low:.1%} to {estimate.high:.1%})"
