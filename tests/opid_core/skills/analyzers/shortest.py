"""Skills from the shortest success of each group: an analyzer in one file."""

from __future__ import annotations

from opid_core.config import AnalyzerConfig
from opid_core.samples import Samples
from opid_core.skills.replies import Analysis


def analyze(samples: Samples, config: AnalyzerConfig) -> list[Analysis]:
    """Tells each trajectory of a group what its shortest success did, and at critical steps what that did in the same
    situation."""
    trajectories = {name: samples.select(rows) for name, rows in samples.by_trajectory().items()}
    shortest: dict[str, Samples] = {}  # by group
    for trajectory in trajectories.values():
        group = trajectory.group_ids[0]
        if trajectory.won[0] and (group not in shortest or len(trajectory) < len(shortest[group])):
            shortest[group] = trajectory
    analyses = []
    for name, trajectory in trajectories.items():
        if not trajectory.numbers("analyzed")[0]:  # broken, or a success after analyzer.failed_only_after
            continue
        model = shortest.get(trajectory.group_ids[0])
        if model is None:
            analyses.append(Analysis(name, summary="", episode_skill="", step_skills={}, error="nobody won"))
            continue
        actions = model.texts("action")
        did = dict(zip(model.texts("observation"), actions, strict=True))
        critical = trajectory.select(trajectory.numbers("critical"))
        seen = zip(critical.texts("step"), critical.texts("observation"), strict=True)
        step_skills = {step: f"Now {did[observation]}." for step, observation in seen if observation in did}
        summary = f"Ended in {trajectory.texts('outcome')[0]} after {len(trajectory)} steps."
        analyses.append(Analysis(name, summary, f"It can be done so: {', then '.join(actions)}.", step_skills))
    return analyses
