from __future__ import annotations

import math

from opid_core.skills.counts import analysis_metrics
from tests.factories import make_table


def test_analyses_count_once_whatever_skills_they_gave():
    common = {"tokens": 100, "cost": 0.25, "seconds": 2.0}
    table = make_table(
        "skills",
        [
            {"skill_id": "a/e", "trajectory_id": "a", "text": "open the door", **common},
            {"skill_id": "a/0", "trajectory_id": "a", "text": "look", **common},
            {"skill_id": "b", "trajectory_id": "b", "text": "", "tokens": None, "cost": None, "error": "no reply"},
            {"skill_id": "c", "trajectory_id": "c", "text": "look", **common},
        ],
    )
    metrics = analysis_metrics(table, {"look"})
    assert metrics == {
        "analyses/count": 3.0,
        "analyses/with_error": 1.0,
        "analyses/tokens": 200.0,
        "analyses/cost": 0.5,
        "seconds/analyses_s": metrics["seconds/analyses_s"],
        "skills/new_texts": 1.0,
    }
    assert metrics["seconds/analyses_s"] >= 4.0
    assert math.isnan(analysis_metrics(table.slice(2, 1), set())["analyses/cost"])
