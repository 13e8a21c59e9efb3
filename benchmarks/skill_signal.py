"""How often a campaign's skill signal favours the expert's action: `python -m benchmarks.skill_signal CAMPAIGN`.

The expert is asked at every step of every stored trajectory what it would do, having seen what the policy saw. A table
a route says how often delta (log-prob of the sampled response with the skill in the prompt less that without) is above
0 for the expert's actions and for others.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from envs.base import make, validate_options
from infra.store import find_campaign, manifests, read_config, read_table
from opid_core.config import build_config
from opid_core.skills.signal import by_route, expert_agrees


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.skill_signal", description=__doc__)
    parser.add_argument("campaigns", nargs="+")
    parser.add_argument("--root", default="runs")
    given = parser.parse_args()
    print("| campaign | route | expert's actions | others | delta > 0: expert's | delta > 0: others | ordered |")
    print("|---|---|---|---|---|---|---|")
    together = []
    for name in given.campaigns:
        rows = list(_rows(given.root, name))
        _print(name, rows)
        together += rows
    if len(given.campaigns) > 1:
        _print("all", together)


def _print(name: str, rows: list[tuple[str, float, bool]]) -> None:
    for route, found in by_route(rows).items():
        print(
            f"| {name} | {route} | {found.as_expert} | {found.otherwise} | {found.favoured_as_expert:.1%} "
            f"| {found.favoured_otherwise:.1%} | {found.ordered:.3f} |",
            flush=True,
        )


def _rows(root: str, campaign: str) -> Iterator[tuple[str, float, bool]]:
    """(route, delta, whether the action is the expert's) of every step that was scored under a skill."""
    store = find_campaign(root, campaign)
    config = build_config(read_config(store), campaign)
    environment = make(config.environment.name, validate_options(config.environment.name, config.environment.options))
    tasks = {task.task_id: task for task in environment.tasks(config.environment.train_split)}
    for manifest in manifests(store)[1:]:
        routes = read_table(store, manifest.tables["routes"]).select(["trajectory_id", "step", "route"]).to_pylist()
        route_of = {(row["trajectory_id"], row["step"]): row["route"] for row in routes}
        scores = read_table(store, manifest.tables["scores"])
        columns = ["trajectory_id", "step", "old_log_probs", "skill_log_probs"]
        delta_of = {
            (row["trajectory_id"], row["step"]): sum(row["skill_log_probs"]) - sum(row["old_log_probs"])
            for row in scores.select(columns).to_pylist()
            if row["skill_log_probs"] is not None
        }
        steps = read_table(store, manifest.tables["steps"]).sort_by(
            [("trajectory_id", "ascending"), ("step", "ascending")]
        )
        wanted = ["trajectory_id", "step", "task_id", "observation", "admissible_actions", "action"]
        trajectories: dict[str, list[dict]] = {}
        for row in steps.select(wanted).to_pylist():
            trajectories.setdefault(row["trajectory_id"], []).append(row)
        for trajectory in trajectories.values():
            agrees = expert_agrees(environment, tasks[trajectory[0]["task_id"]], trajectory)
            for step, same in zip(trajectory, agrees or [], strict=agrees is not None):
                key = (step["trajectory_id"], step["step"])
                if key in delta_of:
                    yield route_of[key], delta_of[key], same


if __name__ == "__main__":
    main()
