"""Which actions does a policy write that the world does not offer, and does training meet them?
`python -m benchmarks.offered_actions CAMPAIGN [--root runs]`.

A line an iteration: the share of steps whose action was on offer, among all steps, among those that follow an action
that was on offer and one that was not; the verbs of those not on offer, and how many of them repeat the action before;
how many go to the place where the player stands (ALFWorld); and of both, those on offer and not, the mean outcome
advantage of a token, and of the steps under an episode skill their mean skill advantage (summed over a step's tokens,
in nats) and how many they are. A share that falls while all of these are near 0 falls because nothing holds it.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from envs.base import is_offered
from flows.reports.chains import read_chain, read_tables
from tasks.markdown import markdown_table

_ARRIVED = re.compile(r"You arrive at ([a-z]+ \d+)")
HEADER = (
    *("iteration", "steps", "on offer", "after one on offer", "after one that was not"),
    *("not on offer, by verb", "repeat the action before", "go to where they stand"),
    *("outcome advantage: on offer", "not on offer", "skill advantage, episode: on offer", "not on offer"),
)


def line(iteration: int, tables: Mapping[str, pa.Table]) -> list[str]:
    """The row of one iteration with the tables `steps`, `routes` and `scores`."""
    columns = ["trajectory_id", "step", "observation", "action", "admissible_actions"]
    steps = {(row["trajectory_id"], row["step"]): row for row in tables["steps"].select(columns).to_pylist()}
    offered = {key: is_offered(row["action"], row["admissible_actions"]) for key, row in steps.items()}
    after: dict[bool, list[bool]] = {True: [], False: []}
    verbs, repeated, standing, receptacle = Counter(), 0, 0, ""
    for trajectory_id, step in sorted(steps):
        key, before, row = (trajectory_id, step), (trajectory_id, step - 1), steps[trajectory_id, step]
        receptacle = "" if step == 0 else receptacle
        if arrived := _ARRIVED.match(row["observation"]):
            receptacle = arrived[1]
        if step:
            after[offered[before]].append(offered[key])
        if not offered[key]:
            verbs[row["action"].split(" ")[0]] += 1
            repeated += step > 0 and row["action"] == steps[before]["action"]
            standing += row["action"] == f"go to {receptacle}"
    route = dict(zip(*(_keys(tables["routes"]), tables["routes"].column("route").to_pylist()), strict=True))
    outcome: dict[bool, list[float]] = {True: [], False: []}
    skill: dict[bool, list[float]] = {True: [], False: []}
    scores = tables["scores"].select(["outcome_advantage", "skill_advantages"]).to_pylist()
    for key, row in zip(_keys(tables["scores"]), scores, strict=True):
        outcome[offered[key]].append(row["outcome_advantage"])
        if route[key] == "episode":
            skill[offered[key]].append(sum(row["skill_advantages"]))
    return [
        *(str(iteration), str(len(steps)), f"{np.mean(list(offered.values())):.1%}"),
        *(f"{np.mean(after[was]):.1%} of {len(after[was])}" if after[was] else "" for was in (True, False)),
        ", ".join(f"{verb or '(none)'} {count}" for verb, count in verbs.most_common(4)),
        *(str(repeated), str(standing)),
        *(f"{np.mean(outcome[was]):+.3f}" if outcome[was] else "" for was in (True, False)),
        *(f"{np.mean(skill[was]):+.3f} of {len(skill[was])}" if skill[was] else "" for was in (True, False)),
    ]


def _keys(table: pa.Table) -> list[tuple[str, int]]:
    return list(zip(*(table.column(name).to_pylist() for name in ("trajectory_id", "step")), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("campaign")
    parser.add_argument("--root", default="runs")
    options = parser.parse_args()
    store, chain = read_chain(options.root, options.campaign)
    rows = [line(one.iteration, read_tables(store, one, ["steps", "routes", "scores"])) for one in chain[1:]]
    print("\n".join(markdown_table(HEADER, rows)))


if __name__ == "__main__":
    main()
