"""Suites of what looks at a campaign: `metrics`, with their drift, and `evaluations`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import pyarrow as pa

from opid_core.evaluation import mean_interval
from opid_core.schema import OUTCOMES
from tasks.gates.columns import plain
from tasks.gates.expectations import Expectation, at_least, has_text, in_range, in_set, is_finite, only, warn
from tasks.gates.frame import Frame, Limits, frame_of

DRIFT_FLOORS = {
    "rollout/success_micro": 0.2,
    "rollout/response_tokens": 5.0,
    "skills/chars": 50.0,
    "routes/step": 0.1,
    "rescore/engine_gap_mean": 0.01,
    "update/kl_k3": 0.01,
    "update/reference_kl": 0.05,
}
"""Metrics that are watched for drift, and how far each may always be from its mean, in its own unit."""
ABOVE_PLACEBO = re.compile("signal/(.+)/above_placebo")
"""Metrics that tell a kind of skill from its placebo."""
MIN_HISTORY = 5
"""Fewer values than this say nothing about how a metric varies."""


def metrics(table: pa.Table, related: Mapping[str, pa.Table], limits: Limits) -> list[Frame]:
    """The suite of `metrics`: finite values of named metrics, and drift and placebos over the iterations before."""
    rows = plain(table)
    required = sorted(limits.required_metrics or ())
    contains = Expectation("ExpectColumnDistinctValuesToContainSet", {"column": "name", "value_set": required})
    suite = (
        has_text("name"),
        is_finite("value"),
        *([contains] if required else []),
        *only("iteration", limits.iteration),
    )
    return [frame_of("metrics", rows, *suite), *_drift(rows, limits), *_placebos(rows, limits)]


def is_watched(name: str) -> bool:
    """Whether the gate holds a metric against the iterations before."""
    return name in DRIFT_FLOORS or ABOVE_PLACEBO.fullmatch(name) is not None


def evaluations(table: pa.Table, related: Mapping[str, pa.Table], limits: Limits) -> list[Frame]:
    """The suite of `evaluations`: known outcomes, counts in range, the whole panel at each temperature."""
    rows = plain(table)
    keys = ["policy_version", "split", "temperature", "repetition"]
    rows = rows.assign(episodes_of_panel=rows.groupby(keys)["task_id"].transform("size"))
    suite = (
        in_set("outcome", OUTCOMES),
        is_finite("return"),
        in_range("score", low=0, high=1),
        *(in_range(c, low=0) for c in ("temperature", "repetition", "tokens", "valid_actions", "admissible_actions")),
        *(at_least("steps", column) for column in ("valid_actions", "admissible_actions")),
        Expectation("ExpectTableRowCountToBeBetween", {"min_value": 1}),
        *only("episodes_of_panel", limits.panel_size),
        *(only("policy_version", limits.policy_version) or [in_range("policy_version", low=0)]),
    )
    return [frame_of("evaluations", rows, *suite)]


def _drift(rows: pd.DataFrame, limits: Limits) -> list[Frame]:
    """One row a watched metric, with the range that the iterations before lead to expect."""
    watched, settings = [], limits.settings
    history = limits.history[max(0, len(limits.history) - settings.drift_iterations) :]
    for name, value in zip(rows["name"], rows["value"], strict=True):
        past = [v for m in history if (v := m.get(name)) is not None] if name in DRIFT_FLOORS else []
        if len(past) >= MIN_HISTORY and value is not None and math.isfinite(value):
            low, high = expected_range(past, settings.drift_deviations, DRIFT_FLOORS[name])
            watched.append(
                {"name": name, "value": value, "low": low, "high": high, "drifted": not low <= value <= high}
            )
    if not watched:
        return []
    return [Frame(pd.DataFrame(watched), ("name", "value", "low", "high"), (warn(in_set("drifted", [False])),))]


def _placebos(rows: pd.DataFrame, limits: Limits) -> list[Frame]:
    """One row a kind of skill that has had a placebo long enough: how far above it the order was, over iterations."""
    judged = []
    for name, value in zip(rows["name"], rows["value"], strict=True):
        if not (match := ABOVE_PLACEBO.fullmatch(str(name))):
            continue
        values = [*(m.get(name) for m in limits.history), value]
        known = [v for v in values if v is not None and math.isfinite(v)][-limits.settings.placebo_iterations :]
        if len(known) == limits.settings.placebo_iterations:
            above = mean_interval(known, [1] * len(known))
            # Iterations that are all alike have no interval: they say what their mean says.
            lowest = above.mean if math.isnan(above.low) else above.low
            told = "by what they say" if lowest > 0 else "by being there, not by what they say"
            judged.append({"skills": match[1], "above_placebo": above.mean, "low": above.low, "act": told})
    if not judged:
        return []
    key = ("skills", "above_placebo", "low")
    return [Frame(pd.DataFrame(judged), key, (warn(in_set("act", ["by what they say"])),))]


def expected_range(past: Sequence[float], deviations: float, floor: float) -> tuple[float, float]:
    """Mean of `past` -+ `deviations` sample standard deviations (Bessel), at least `floor`."""
    mean, spread = float(np.mean(past)), max(deviations * float(np.std(past, ddof=1)), floor)
    return mean - spread, mean + spread
