"""Weights & Biases: a run of the project `tracking.wandb_project` (needs the extra `wandb`). Address, key and mode come
from its own variables of the environment."""

from __future__ import annotations

from collections.abc import Sequence

from opid_core.errors import ConfigError
from tasks.trackers.commits import Committed


def check() -> None:
    """Raise ConfigError that says what to install."""
    _module()


def write(commits: Sequence[Committed]) -> None:
    """Log the metrics and a table of the skills at the step of the iteration, in the campaign's run, which is resumed
    by its id. Commits that the run has already are left as they are; offline it cannot be asked, and gets the newest
    alone."""
    wandb, last = _module(), commits[-1]
    with wandb.init(
        project=last.config.tracking.wandb_project,
        id=last.run,
        name=last.config.campaign,
        resume="allow",
        config=last.config.model_dump(mode="json"),
    ) as run:
        first = run.step  # that it has not
        for commit in commits[-1:] if run.offline else commits:
            if commit.iteration < first:
                continue
            logged: dict = dict(commit.metrics)
            if commit.skills:
                columns = [*commit.skills[0]]
                logged["skills"] = wandb.Table(columns=columns, data=[[*skill.values()] for skill in commit.skills])
            run.log(logged, step=commit.iteration)


def _module():
    try:
        import wandb  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ConfigError(
            "tracking.wandb_project is set but wandb is not installed: pip install 'opid[wandb]'"
        ) from None
    return wandb
