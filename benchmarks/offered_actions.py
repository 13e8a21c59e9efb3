"""Which actions does a policy write that the world does not offer, and does training meet them?
`python -m benchmarks.offered_actions CAMPAIGN [--root runs]`.

A line an iteration: the share of steps whose action was on offer, among all steps, among those that follow an action
that was on offer and one that was not; the verbs of those not on offer, and how many of them repeat the action before;
and the mean outcome advantage of both. A share that falls while both advantages are near 0 falls because nothing holds
it.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from flows.reports.chains import read_chain, read_tables
from flows.reports.formatting import markdown_table

HEADER = (
    *("iteration", "steps", "on offer", "after one on offer", "after one that was not"),
    *("not on offer, by verb", "repeat the action before", "outcome advantage: on offer", "not on offer"),
)


def line(iteration: int, tables: Mapping[str, pa.Table]) -> list[str]:
    """The row of one iteration with the tables `steps` and `scores`."""
    steps = tables["steps"].select(["trajectory_id", "step", "action", "admissible_actions"]).to_pylist()
    offered = {(row["trajectory_id"], row["step"]): row["action"] in row["admissible_actions"] for row in steps}
    actions = {(row["trajectory_id"], row["step"]): row["action"] for row in steps}
    after: dict[bool, list[bool]] = {True: [], False: []}
    repeated = 0
    for (trajectory_id, step), now in offered.items():
        if step:
            after[offered[trajectory_id, step - 1]].append(now)
            repeated += not now and actions[trajectory_id, step] == actions[trajectory_id, step - 1]
    verbs = Counter(row["action"].split(" ")[0] for row in steps if not offered[row["trajectory_id"], row["step"]])
    advantages: dict[bool, list[float]] = {True: [], False: []}
    for row in tables["scores"].select(["trajectory_id", "step", "outcome_advantage"]).to_pylist():
        advantages[offered[row["trajectory_id"], row["step"]]].append(row["outcome_advantage"])
    return [
        *(str(iteration), str(len(offered)), f"{np.mean(list(offered.values())):.1%}"),
        *(f"{np.mean(after[was]):.1%} of {len(after[was])}" if after[was] else "" for was in (True, False)),
        ", ".join(f"{verb or '(none)'} {count}" for verb, count in verbs.most_common(4)),
        str(repeated),
        *(f"{np.mean(advantages[was]):+.3f}" if advantages[was] else "" for was in (True, False)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("campaign")
    parser.add_argument("--root", default="runs")
    options = parser.parse_args()
    store, chain = read_chain(options.root, options.campaign)
    rows = [line(one.iteration, read_tables(store, one, ["steps", "scores"])) for one in chain[1:]]
    print("\n".join(markdown_table(HEADER, rows)))


if __name__ == "__main__":
    main()
