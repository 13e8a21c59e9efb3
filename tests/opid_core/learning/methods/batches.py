"""Samples for the tests of the methods."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import torch

from opid_core.learning import methods
from opid_core.learning.losses import Aggregation, LossInput
from opid_core.learning.methods import Advantages
from opid_core.samples import Ragged, Samples


def log_probs(*rows: list[float] | None) -> pa.Array:
    """A column of log-probs; None where a sample has none."""
    return pa.array(rows, pa.list_(pa.float32()))


BATCH = Samples.from_columns(
    iteration=[1, 1, 1],
    score=np.array([10, 10, 0], np.float32),
    outcome=["success", "success", "failure"],
    discounted_return=np.array([9.5, 10, 0], np.float32),
    observation=["s", "t", "s"],
    group_id=["g", "g", "g"],
    trajectory_id=["x", "x", "y"],
    response_ids=Ragged.from_rows([[1, 1], [1], [1, 1]], np.int32),
    old_log_probs=log_probs([-1, -1], [-1], [-2, -2]),
    skill_log_probs=log_probs([-3, 0], None, [-1, -4]),
    added_log_probs=log_probs(None, None, None),
    placebo_log_probs=log_probs([-2, -2], None, [-2, -1]),
    route=["episode", "none", "step"],
)
"""One group: x won in two steps, y lost in one. Over one value a trajectory the scores' mean is 5. The skill's delta
is -2, 1 on x's first response and 1, -2 on y's; that of its placebo -1, -1 and 0, 1."""
KEYS: dict[str, Any] = {"baseline": "trajectory", "normalize": "mean", "lambda_episode": 0.5, "lambda_step": 0.25}


def method(name: str, **keys: Any) -> Any:
    """The method `name` with those of `keys` and of `KEYS` that it reads."""
    model = methods.get(name)
    bank = {} if keys.get("teacher") == "routed" else {"skill_bank": "bank.json"}
    given = {**bank, **KEYS, **keys}
    return model.model_validate({"name": name} | {key: given[key] for key in given if key in model.model_fields})


def compute(name: str, batch: Samples, **keys: Any) -> Advantages:
    one = method(name, **keys)
    return one.advantages(one.against(batch))


def total(batch: Samples, result: Advantages) -> np.ndarray:
    """The advantage of each response token, [tokens]."""
    return batch.per_token(result.outcome + result.step) + result.skill


def random_batch(seed: int, n_samples: int, longest: int) -> Samples:
    generator = np.random.default_rng(seed)
    lengths = generator.integers(1, longest + 1, n_samples)
    routes = generator.choice(["step", "episode", "none"], n_samples)
    added = (routes == "step") & (generator.random(n_samples) < 0.5)
    trajectories = generator.integers(0, 4, n_samples)

    def drawn(which: np.ndarray) -> pa.Array:
        rows = [generator.normal(size=n).tolist() if given else None for n, given in zip(lengths, which, strict=True)]
        return log_probs(*rows)

    return Samples.from_columns(
        iteration=[int(generator.integers(1, 121))] * n_samples,
        score=generator.normal(size=n_samples).astype(np.float32),
        outcome=generator.choice(["success", "failure"], 4)[trajectories].tolist(),
        discounted_return=generator.normal(size=n_samples).astype(np.float32),
        observation=[str(i) for i in generator.integers(0, 3, n_samples)],
        group_id=[str(i % 2) for i in trajectories],
        trajectory_id=[str(i) for i in trajectories],
        response_ids=Ragged.from_lengths(np.ones(lengths.sum(), np.int32), lengths),
        old_log_probs=drawn(np.ones(n_samples, bool)),
        skill_log_probs=drawn(routes != "none"),
        added_log_probs=drawn(added),
        placebo_log_probs=drawn(routes != "none"),
        route=routes.tolist(),
    )


def skill_input(log_probs, skill, mask, with_skill, aggregation: Aggregation = "token-mean", old=None) -> LossInput:
    """What the loss of a method with skills reads."""
    mask = mask.bool()
    return LossInput(
        log_probs=log_probs,
        old_log_probs=torch.zeros_like(log_probs) if old is None else old,
        advantages=torch.zeros_like(log_probs),
        response_mask=mask,
        aggregation=aggregation,
        skill_log_probs=skill,
        skill_mask=mask & torch.tensor(with_skill)[:, None],
    )
