from __future__ import annotations

from tasks.evaluate import evaluation_metrics
from tests.factories import make_table


def test_a_further_split_and_a_score_have_metrics_of_their_own():
    played = [("seen", "success", 1.0), ("seen", "failure", 0.5), ("unseen", "success", None)]
    rows = [
        {"task_id": str(n), "split": split, "outcome": outcome, "score": score, "task_type": ("nq", "popqa", "nq")[n]}
        for n, (split, outcome, score) in enumerate(played)
    ]
    metrics = evaluation_metrics(make_table("evaluations", rows))
    micro = {name: value for name, value in metrics.items() if name.endswith(("/success_micro", "/score"))}
    assert micro == {
        "evaluation/t0.5/success_micro": 0.5,
        "evaluation/t0.5/score": 0.75,
        "evaluation/unseen_t0.5/success_micro": 1.0,
    }
    by_type = {name: value for name, value in metrics.items() if "/success/" in name}
    assert by_type == {
        "evaluation/t0.5/success/nq": 1.0,
        "evaluation/t0.5/success/popqa": 0.0,
        "evaluation/unseen_t0.5/success/nq": 1.0,
    }
    assert metrics["evaluation/t0.5/score_low"] <= 0.75 <= metrics["evaluation/t0.5/score_high"]
