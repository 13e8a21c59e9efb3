"""A commit as a Markdown artifact of its Prefect run: key numbers, where it lies, and the command that shows it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping

from infra.manifest import Manifest
from infra.store import CampaignStore, location

SHOWN = {
    "rollout/success_micro": "rollouts won",
    "routes/step": "critical share (steps with a step skill)",
    "skills/coverage": "trajectories with an episode skill",
    "skills/failed": "trajectories whose analysis failed",
    "update/kl_k3": "KL to the policy of the start",
    "seconds/iteration_s": "seconds",
}


def publish(store: CampaignStore, manifest: Manifest, metrics: Mapping[str, float]) -> None:
    """Create the artifact, where a Prefect task or flow runs: one call to its API."""
    from prefect.artifacts import create_markdown_artifact
    from prefect.runtime import flow_run, task_run

    if task_run.id is not None or flow_run.id is not None:
        create_markdown_artifact(
            markdown=markdown(store, manifest, metrics),
            key=artifact_key(store.campaign),
            description=f"{store.campaign}, iteration {manifest.iteration}",
        )


def artifact_key(campaign: str) -> str:
    """The key of a campaign's artifacts, one version an iteration: lower-case letters, digits and dashes."""
    return "audit-" + re.sub(r"[^a-z0-9]+", "-", campaign.lower()).strip("-")


def markdown(store: CampaignStore, manifest: Manifest, metrics: Mapping[str, float]) -> str:
    """What the artifact of a commit says."""
    evaluated = {
        name: f"{name.split('/')[1]}, held-out panel won"
        for name in sorted(metrics)
        if name.startswith("evaluation/") and name.endswith("/success_micro")
    }
    rows = [f"| {title} | {metrics[name]:.4g} |" for name, title in (SHOWN | evaluated).items() if name in metrics]
    expectations = [result for gate in manifest.gates.values() for result in gate.expectations]
    held = sum(result.passed for result in expectations)
    command = ["opid", "audit", f"{store.campaign}@{manifest.iteration}", "--root", store.root]
    if store.endpoint_url is not None:
        command += ["--endpoint-url", store.endpoint_url]
    return "\n".join(
        [
            f"# {store.campaign}, iteration {manifest.iteration}",
            "",
            *[f"**Degraded:** `{reason.replace('`', '')}`\n" for reason in manifest.degraded],
            "| | |",
            "|---|---|",
            *rows,
            f"| expectations held | {held} of {len(expectations)} |",
            "",
            f"Committed to `{location(store)}`. Its audit page is written by",
            "",
            "```",
            shlex.join(command),
            "```",
            "",
        ]
    )
