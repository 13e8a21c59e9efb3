"""MLflow: a run of the experiment `tracking.mlflow_experiment` (needs the extra `mlflow`). The server and its
credentials come from MLflow's own variables of the environment (MLFLOW_TRACKING_URI, ...)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from opid_core.errors import ConfigError
from opid_core.hashing import MAY_DIFFER, flat
from tasks.trackers.commits import Committed, without_secrets

if TYPE_CHECKING:
    from mlflow import MlflowClient

RUN = "opid.run"
NEWEST = "opid.iteration"
"""Tag of a run: the iteration that was written last."""
_BATCH = 100
"""The server takes at most so many parameters at once."""


def check() -> None:
    """Raise ConfigError that says what to install, or that MLFLOW_TRACKING_URI is no address."""
    _client()


def write(commits: Sequence[Committed]) -> None:
    """Log the metrics at the step of the iteration and its skills as a table (`skills/000003.json`), in the campaign's
    run: found by its tag, made with the keys that training depends on as parameters. Commits that the run has already
    are left as they are."""
    from mlflow.entities import Metric

    client, last = _client(), commits[-1]
    run_id, newest = _run(client, last)
    missing = commits[newest:]
    if not missing:
        return
    client.log_dict(run_id, last.config.model_dump(mode="json"), "config.json")
    for commit in missing:
        # With the time of the commit: a point that is sent again is the same point.
        metrics = [Metric(_name(k), v, commit.at_ms, commit.iteration) for k, v in commit.metrics.items()]
        for part in _parts(metrics):
            client.log_batch(run_id, metrics=part)
        if commit.skills:
            table = {"columns": [*commit.skills[0]], "data": [[*skill.values()] for skill in commit.skills]}
            client.log_dict(run_id, table, f"skills/{commit.iteration:06d}.json")
        if commit is last:  # before the tag that says that all is there
            client.update_run(run_id, status="FINISHED" if last.is_last else "RUNNING")
        client.set_tag(run_id, NEWEST, str(commit.iteration))


def _client() -> MlflowClient:
    try:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException
    except ImportError:
        raise ConfigError(
            "tracking.mlflow_experiment is set but mlflow is not installed: pip install 'opid[mlflow]'"
        ) from None
    try:
        return MlflowClient()
    except MlflowException as error:
        raise ConfigError(f"MLFLOW_TRACKING_URI: {without_secrets(str(error))}") from None


def _run(client: MlflowClient, commit: Committed) -> tuple[str, int]:
    """Id of the campaign's run, and the iteration that it has last (0: none)."""
    from mlflow.entities import Param

    name = commit.config.tracking.mlflow_experiment
    assert name is not None
    experiment = client.get_experiment_by_name(name)
    experiment_id = experiment.experiment_id if experiment else client.create_experiment(name)
    found = client.search_runs([experiment_id], f"tags.`{RUN}` = '{commit.run}'", max_results=1)
    newest = int(found[0].data.tags.get(NEWEST, 0)) if found else 0
    if newest:
        return found[0].info.run_id, newest
    # Also of a run that has no iteration yet: who made it may have ended before its parameters.
    tags = {RUN: commit.run}
    run = found[0] if found else client.create_run(experiment_id, run_name=commit.config.campaign, tags=tags)
    keys = flat(commit.config.model_dump(mode="json"))
    trained = {k: v for k, v in keys.items() if not any(k == name or k.startswith(f"{name}.") for name in MAY_DIFFER)}
    for part in _parts([Param(_name(key), str(value)[:6000]) for key, value in trained.items()]):
        client.log_batch(run.info.run_id, params=part)
    return run.info.run_id, 0


def _parts(items: Sequence[Any]) -> list[Sequence[Any]]:
    return [items[start : start + _BATCH] for start in range(0, len(items), _BATCH)]


def _name(name: str) -> str:
    """`name` in the characters that MLflow takes."""
    return re.sub(r"[^\w\-. :/]", "_", name, flags=re.ASCII)
