"""How much of the responses the skills know, by delta alone: the gate's evidence against skills that quote."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import pyarrow as pa

from tasks.gates.expectations import in_range, warn
from tasks.gates.frame import STEP_KEY, Frame

FALSE_ALARMS = 0.001
"""Chance, at most, of a warning about the skills of one route and outcome that know no more than the action."""


def evidence(deltas: Sequence[float], choices: Sequence[int], steps: int) -> float:
    """The log of an e-value, in nats, against skills that tell of a response at most which of its `choices` it took.

    `deltas`: of each response the log-prob of the whole of it under the skill less that without, in nats; `choices`:
    how many actions it could have taken; `steps`: how many there are in all, those without a skill or left out too.

    A response y is drawn from the policy p, and E[p(y | skill) / p(y)] is 1 for a skill that does not depend on y. For
    one that depends on it through one of K choices it is the sum over the choices a of P(a | skill of a), at most K.
    So the mean of exp(delta) / K over all steps has an expectation of at most 1, whatever else they have in common,
    and by Markov's inequality it reaches 1 / FALSE_ALARMS with a chance of FALSE_ALARMS at most, whatever its tails.
    Source: Vovk and Wang, E-values, 2021; K is the maximal leakage of Issa, Wagner and Kamath, 2020.
    """
    if not len(deltas):
        return -math.inf
    return float(np.logaddexp.reduce(np.asarray(deltas, np.float64) - np.log(choices)) - math.log(steps))


def knowledge(deltas: pd.DataFrame, related: Mapping[str, pa.Table]) -> Frame:
    """One row a route and outcome: what delta says of how much their skills know.

    `deltas`: of each scored step its key, `delta` and `tokens`. Only steps count whose action was on offer.
    """
    steps = related["steps"].select([*STEP_KEY, "action", "admissible_actions"]).to_pandas()
    offered = steps["admissible_actions"].map(lambda actions: 0 if actions is None else len(set(actions)))
    is_offered = [
        actions is not None and action in set(actions)
        for action, actions in zip(steps["action"], steps["admissible_actions"], strict=True)
    ]
    steps = steps.assign(choices=offered, is_offered=is_offered).drop(columns=["action", "admissible_actions"])
    rows = deltas
    for other in (
        steps,
        related["routes"].select([*STEP_KEY, "route"]).to_pandas(),
        related["trajectories"].select(["trajectory_id", "outcome"]).to_pandas(),
    ):
        key = [column for column in STEP_KEY if column in other]
        rows = rows.merge(pd.DataFrame(other).drop_duplicates(key), on=key)
    found = []
    for _, part in rows.groupby(["route", "outcome"]):
        counted, sums = part[part["is_offered"]], part["delta"].to_numpy()
        found.append(
            {
                "route": part["route"].iloc[0],
                "outcome": part["outcome"].iloc[0],
                "steps": len(part),
                "delta": float(sums.mean()),
                "delta_per_token": float(sums.sum() / part["tokens"].to_numpy().sum()),
                "evidence": evidence(counted["delta"].tolist(), counted["choices"].tolist(), len(steps)),
            }
        )
    columns = ["route", "outcome", "steps", "delta", "delta_per_token", "evidence"]
    frame = pd.DataFrame(found, columns=columns)
    frame["evidence"] = frame["evidence"].astype(float).replace(-np.inf, np.nan)
    return Frame(frame, tuple(columns[:-1]), (warn(in_range("evidence", high=-math.log(FALSE_ALARMS))),))
