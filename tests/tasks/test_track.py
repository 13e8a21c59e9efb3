"""What a commit leaves at the Prefect server and at other trackers."""

from __future__ import annotations

import importlib.util
import itertools
import logging
import shutil
import sys
import time
import types
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import prefect.artifacts
import pyarrow as pa
import pytest
from prefect.artifacts import Artifact
from prefect.exceptions import ObjectNotFound

from infra.store import local_folder, read_table
from opid_core.config import build_config
from opid_core.errors import ConfigError, InfrastructureError
from tasks import trackers
from tasks.iteration import CampaignRun
from tasks.progress import StageProgress, artifact_key
from tasks.track import markdown, track, track_metrics
from tasks.trackers.commits import committed
from tests.audited import Shape, make_campaign


def metrics_of(store, manifest) -> dict[str, float]:
    rows = read_table(store, manifest.tables["metrics"]).to_pylist()
    return {row["name"]: row["value"] for row in rows if row["value"] is not None}


def test_the_artifact_says_what_was_committed_and_how_to_look_at_it(tmp_path):
    store, chain = make_campaign(tmp_path, 1, Shape(), degraded=1)
    text = markdown(store, chain, {"rollout/success_micro": 0.25, "routes/step": 1 / 3, "unknown": 7.0})
    assert text == (
        "# audited, iteration 1\n\n**Degraded:** `skills: 2 of 6 analyses failed`\n\n"
        "| of the iteration | value |\n| --- | --- |\n"
        "| rollouts won | 0.25 |\n| critical share (steps with a step skill) | 0.3333 |\n"
        f"| expectations held | 1 of 2 |\n\nIts manifest is `{tmp_path}/audited/_commits/000001.json`. Its audit "
        "page is written by\n\n"
        f"```\nopid audit audited@1 --root {tmp_path}\n```\n"
    )


def test_the_artifact_draws_success_over_the_campaign(tmp_path):
    store, (start, *_) = make_campaign(tmp_path, 0, Shape())
    held_out = "evaluation/t1/success_micro"
    shares = [None, 0.0, 0.124, 0.125, 0.5, 0.999, 1.0]
    metrics = [{"rollout/success_micro": share, held_out: 0.25 if share == 1.0 else None} for share in shares]
    made = [start.model_copy(update={"iteration": n, "metrics": one}) for n, one in enumerate(metrics)]
    text = markdown(store, made, {"rollout/success_micro": 1.0, held_out: 0.25})
    assert "| rollouts won | 0.0% | ▁▁▂▅██ | 100.0% |\n\n" in text
    assert text.count("held-out panel won") == 1  # one value is no curve
    many = [start.model_copy(update={"metrics": {"rollout/success_micro": n / 200}}) for n in range(121)]
    (line,) = [one for one in markdown(store, many, {}).splitlines() if "▁" in one]
    assert line.split(" | ")[1:3] == ["0.0%", "▁" * 9 + "▂" * 8 + "▃" * 8 + "▄" * 9 + "▅" * 7]
    assert markdown(store, many[:1], {}).count("▁") == 0


def test_a_task_publishes_the_artifact_under_a_key_that_prefect_takes(tmp_path, prefect_server):
    store, chain = make_campaign(tmp_path, 1, Shape(), name="My_campaign.2")
    with CampaignRun(build_config({"campaign": store.campaign, "root": store.root}), store, chain):
        track(store.campaign, 1)
        track(store.campaign, 0)  # has none
    published = Artifact.get(artifact_key("audit", store.campaign))
    assert published is not None
    assert published.key == "audit-my-campaign-2"  # pyright: ignore[reportAttributeAccessIssue]
    assert published.data == markdown(store, chain, metrics_of(store, chain[1]))  # pyright: ignore[reportAttributeAccessIssue]


# Trackers -----------------------------------------------------------------------------------------------------------

QUIET = {"tensorboard": False}


def campaign(tmp_path, iterations=2, **tracking):
    """A committed campaign, and its config."""
    store, chain = make_campaign(tmp_path, iterations, Shape())
    config = {"campaign": "audited", "root": str(tmp_path), "iterations": iterations, "seed": 7}
    return build_config(config | {"tracking": QUIET | tracking}), store, chain


def commits_of(config, store, chain):
    """The commits of `chain` as trackers get them of another process than the one that made them."""
    return committed(config, store, chain, partial(read_table, store), pytest.fail)


def write(config, store, chain) -> None:
    """Bring the trackers of `config` up to the newest commit of `chain`."""
    trackers.write(commits_of(config, store, chain))


@pytest.fixture
def seconds(monkeypatch) -> None:
    """Event files are read in the order of their names, which tell seconds: commits are some apart."""
    monkeypatch.setattr(time, "time", map(float, itertools.count(1_800_000_000)).__next__)


def in_tensorboard(store, name: str) -> list[tuple[int, Any]]:
    """The steps of a metric, or of the skills, that TensorBoard shows, with their values."""
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    shown = EventAccumulator(str(local_folder(store, "tensorboard"))).Reload()
    return [(event.step, make_ndarray(event.tensor_proto).flatten()[0]) for event in shown.Tensors(name)]


@pytest.mark.usefixtures("seconds")
def test_tensorboard_shows_each_step_once_and_the_skills_that_did_most(tmp_path):
    config, store, chain = campaign(tmp_path, tensorboard=True)
    for length in (2, 3, 3):  # the last commit twice, as a campaign that goes on does
        write(config, store, chain[:length])
    for name in ("rollout/success_micro", "rollout/steps"):
        assert in_tensorboard(store, name) == [
            (step, pytest.approx(metrics_of(store, chain[step])[name])) for step in (1, 2)
        ]
    tables = in_tensorboard(store, "skills/text_summary")
    assert [step for step, _ in tables] == [1, 2]
    lines = tables[1][1].decode().splitlines()
    assert lines[0].startswith("| kind | text | steps |")
    skills = commits_of(config, store, chain)[-1].skills
    assert skills[0]["text"] in lines[2]
    assert len(lines) == 2 + len(skills)


@pytest.mark.usefixtures("seconds")
@pytest.mark.parametrize(
    "left", ["nothing", "half of the first", "the first", "half of the second", "files of an older version"]
)
def test_tensorboard_makes_up_for_what_was_left_undone(tmp_path, monkeypatch, left):
    from torch.utils.tensorboard import SummaryWriter

    config, store, chain = campaign(tmp_path, 3, tensorboard=True)
    if left not in ("nothing", "half of the first"):
        write(config, store, chain[:2])
    if left.startswith("half"):
        with monkeypatch.context() as patched:
            patched.setattr(SummaryWriter, "add_text", lambda *_: 1 / 0)
            with pytest.raises(InfrastructureError):
                write(config, store, chain[:2] if left == "half of the first" else chain[:3])
    if left == "files of an older version":
        (local_folder(store, "tensorboard") / "newest").unlink()
    write(config, store, chain)
    steps = [1, 3] if left == "files of an older version" else [1, 2, 3]
    assert [step for step, _ in in_tensorboard(store, "rollout/steps")] == steps
    assert [step for step, _ in in_tensorboard(store, "skills/text_summary")] == steps


@pytest.mark.usefixtures("seconds")
def test_another_campaign_of_the_name_begins_anew_in_tensorboards_folder(tmp_path):
    config, store, chain = campaign(tmp_path, tensorboard=True)
    write(config, store, chain)
    other_store, other_chain = make_campaign(tmp_path / "again", 1, Shape(), seed=1)
    folder = local_folder(other_store, "tensorboard")
    shutil.copytree(local_folder(store, "tensorboard"), folder)
    write(config, other_store, other_chain)
    (shown,) = in_tensorboard(other_store, "rollout/steps")
    assert shown == (1, pytest.approx(metrics_of(other_store, other_chain[1])["rollout/steps"]))


def test_a_tracker_that_begins_late_gets_all_metrics_and_the_newest_skills(tmp_path, wandb):
    config, store, chain = campaign(tmp_path, 12, wandb_project="mine")
    read: list[str] = []

    def table(record, columns):
        read.append(record.path.split("/")[0])
        return read_table(store, record, columns)

    trackers.write(committed(config, store, chain, table, pytest.fail))
    (logged,) = wandb.runs.values()
    assert [(step, "skills" in metrics) for metrics, step in logged] == [(n, n > 2) for n in range(1, 13)]
    assert (read.count("metrics"), read.count("scores")) == (12, 10)


@pytest.mark.usefixtures("seconds")
def test_a_damaged_table_is_told_once_and_the_trackers_go_on_with_later_iterations(tmp_path, wandb):
    config, store, chain = campaign(tmp_path, 3, tensorboard=True, wandb_project="mine")
    damaged = [chain[1].tables["metrics"].path, chain[2].tables["scores"].path]
    for path in damaged:
        (Path(store.root) / "audited" / path).write_bytes(b"no table")
    told: list[str] = []
    for _ in range(2):
        trackers.write(committed(config, store, chain, partial(read_table, store), told.append))
    assert [step for step, _ in in_tensorboard(store, "rollout/steps")] == [2, 3]
    assert [step for step, _ in in_tensorboard(store, "skills/text_summary")] == [1, 3]
    (logged,) = wandb.runs.values()
    assert [(step, "rollout/steps" in metrics, "skills" in metrics) for metrics, step in logged] == [
        (1, False, True),
        (2, True, False),
        (3, True, True),
    ]
    begins = ["audited, iteration 1: its metrics are left out", "audited, iteration 2: its skills are left out"]
    assert [text.split(" of the trackers")[0] for text in told] == begins
    assert all(path in text for path, text in zip(damaged, told, strict=True))


def test_mlflow_shows_each_step_once_with_config_and_skills(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)  # where MLflow keeps artifacts beside a database
    config, store, chain = campaign(tmp_path, mlflow_experiment="agents")
    write(config, store, chain[:2])
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("agents")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.status, run.info.run_name, run.data.params["seed"]) == ("RUNNING", "audited", "7")
    assert not {"iterations", "root", "tracking.mlflow_experiment"} & {*run.data.params}
    longer = config.model_copy(update={"iterations": 3})  # may change between runs of a campaign
    for resumed in (config, longer):
        write(resumed, store, chain)
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.status, run.data.tags["opid.iteration"]) == ("FINISHED", "2")
    for name in ("rollout/success_micro", "evaluation/0.4/success_micro"):
        history = client.get_metric_history(run.info.run_id, name)
        assert {point.step: point.value for point in history} == {
            step: metrics_of(store, chain[step])[name] for step in (1, 2)
        }
        assert len(history) == 2
    table = mlflow.artifacts.load_dict(f"{run.info.artifact_uri}/skills/000002.json")
    skills = commits_of(config, store, chain)[-1].skills
    assert table == {"columns": [*skills[0]], "data": [[*skill.values()] for skill in skills]}
    stored = mlflow.artifacts.load_dict(f"{run.info.artifact_uri}/config.json")
    assert build_config(stored).iterations == 2
    awkward = pa.table({"name": ["rollout/success/[nq] \u00e9"], "value": [0.5]})
    third = chain[2].model_copy(update={"iteration": 3, "tables": {"metrics": chain[2].tables["metrics"]}})
    trackers.write(committed(longer, store, [*chain, third], lambda *_: awkward, pytest.fail))
    assert client.get_run(run.info.run_id).data.metrics["rollout/success/_nq_ _"] == 0.5
    other_store, other_chain = make_campaign(tmp_path / "again", 1, Shape())
    write(config, other_store, other_chain)
    assert len(client.search_runs([experiment.experiment_id])) == 2  # another campaign of the name has a run of its own


def test_a_run_of_mlflow_whose_maker_ended_before_its_parameters_gets_them(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    config, store, chain = campaign(tmp_path, mlflow_experiment="agents")
    log_batch = mlflow.MlflowClient.log_batch
    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", lambda *_, **__: 1 / 0)
    with pytest.raises(InfrastructureError, match="MLflow: ZeroDivisionError"):
        write(config, store, chain[:2])
    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", log_batch)
    write(config, store, chain[:2])
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("agents").experiment_id])
    assert (run.data.params["seed"], run.data.tags["opid.iteration"]) == ("7", "1")


def test_mlflow_gets_what_was_left_undone(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    config, store, chain = campaign(tmp_path, 3, mlflow_experiment="agents")
    write(config, store, chain[:2])
    log_dict = mlflow.MlflowClient.log_dict
    with monkeypatch.context() as patched:
        patched.setattr(mlflow.MlflowClient, "log_dict", lambda *a: 1 / 0 if "skills" in a[3] else log_dict(*a))
        with pytest.raises(InfrastructureError):
            write(config, store, chain)  # the metrics of the second are there, its skills are not
    client = mlflow.MlflowClient()
    experiment_id = client.get_experiment_by_name("agents").experiment_id
    assert [run.info.status for run in client.search_runs([experiment_id])] == ["RUNNING"]
    write(config, store, chain)
    (run,) = client.search_runs([experiment_id])
    assert (run.info.status, run.data.tags["opid.iteration"]) == ("FINISHED", "3")
    history = client.get_metric_history(run.info.run_id, "rollout/steps")
    assert [(point.step, point.value) for point in history] == [
        (step, metrics_of(store, chain[step])["rollout/steps"]) for step in (1, 2, 3)
    ]
    tables = [file.path for file in client.list_artifacts(run.info.run_id, "skills")]
    assert tables == [f"skills/00000{step}.json" for step in (1, 2, 3)]


def test_an_address_that_mlflow_cannot_use_is_refused_before_any_work(monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "ftp://me:a-password@somewhere")
    config = build_config({"campaign": "c", "tracking": QUIET | {"mlflow_experiment": "agents"}})
    with pytest.raises(ConfigError, match=r"^MLFLOW_TRACKING_URI: ") as raised:
        trackers.check(config)
    assert "a-password" not in str(raised.value)


class WandbError(Exception):
    pass


@pytest.fixture
def wandb(monkeypatch) -> types.SimpleNamespace:
    """A stand-in for W&B's module, which is not installed: runs by their ids, `fault` is raised by the next."""
    module = types.SimpleNamespace(runs={}, fault=None, offline=False)

    def init(**options):
        logged = module.runs.setdefault(options["id"], [])

        def log(metrics: dict, step: int) -> None:
            if module.fault:
                raise module.fault
            logged.append((metrics, step))

        newest = logged[-1][1] + 1 if logged and not module.offline else 0
        return nullcontext(types.SimpleNamespace(log=log, step=newest, offline=module.offline))

    module.init, module.Table = init, lambda columns, data: (columns, data)
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_wandb_gets_each_step_once_in_one_run(tmp_path, wandb):
    config, store, chain = campaign(tmp_path, wandb_project="mine")
    for length in (2, 3, 3):
        write(config, store, chain[:length])
    ((run_id, logged),) = wandb.runs.items()
    assert run_id == f"audited-{chain[0].checksum[:8]}"
    assert [step for _, step in logged] == [1, 2]
    skills = commits_of(config, store, chain)[-1].skills
    table = ([*skills[0]], [[*skill.values()] for skill in skills])
    assert logged[1][0] == metrics_of(store, chain[2]) | {"skills": table}


def test_wandb_gets_what_was_left_undone_unless_it_is_offline(tmp_path, wandb):
    config, store, chain = campaign(tmp_path, wandb_project="mine")
    wandb.fault = WandbError("down")
    with pytest.raises(InfrastructureError):
        write(config, store, chain[:2])
    wandb.fault = None
    write(config, store, chain)
    (logged,) = wandb.runs.values()
    assert [step for _, step in logged] == [1, 2]
    assert logged[0][0].keys() - metrics_of(store, chain[1]).keys() == {"skills"}
    wandb.runs.clear()
    wandb.offline = True  # it cannot be asked what it has
    write(config, store, chain)
    assert [[step for _, step in logged] for logged in wandb.runs.values()] == [[2]]


def test_the_fault_of_a_tracker_keeps_nothing_from_the_others_and_tells_no_secret(tmp_path, wandb, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "a-key-of-wandb-0123456789")
    wandb.fault = WandbError("HTTP 503 of https://me:secret@host/ for a-key-of-wandb-0123456789")
    config, store, chain = campaign(tmp_path, tensorboard=True, wandb_project="mine")
    local_folder(store, "tensorboard").write_text("no folder")
    with pytest.raises(InfrastructureError) as raised:
        write(config, store, chain)
    tensorboard, _, said = str(raised.value).partition("; ")
    assert tensorboard.startswith(f"TensorBoard: {store.root}/audited/tensorboard/newest: cannot be written: ")
    assert said == "Weights & Biases: WandbError: HTTP 503 of https://host/ for [key]"


@pytest.mark.parametrize("fault", [httpx.ConnectError("refused"), ObjectNotFound(ValueError(), "refused")])
def test_a_fault_of_prefects_server_is_one_of_a_tracker_and_keeps_nothing_from_the_others(
    tmp_path, monkeypatch, wandb, fault
):
    def refuses(**artifact: str) -> None:
        raise fault

    monkeypatch.setattr(prefect.artifacts, "create_markdown_artifact", refuses)
    config, store, chain = campaign(tmp_path, wandb_project="mine")
    wandb.fault = WandbError("full")
    with pytest.raises(InfrastructureError, match=r"^Prefect: .*; Weights & Biases: WandbError: full$"):
        track_metrics(CampaignRun(config, store, chain[:2]), chain[:2])
    wandb.fault = None
    with pytest.raises(InfrastructureError, match=rf"^Prefect: {type(fault).__name__}: refused$"):
        track_metrics(CampaignRun(config, store, chain), chain)
    (logged,) = wandb.runs.values()
    assert [step for _, step in logged] == [1, 2]


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
def test_wandb_itself_takes_a_commit_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    config, store, chain = campaign(tmp_path, wandb_project="mine")
    write(config, store, chain)
    (written,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert written.name == f"run-audited-{chain[0].checksum[:8]}.wandb"
    assert b"rollout/success_micro" in written.read_bytes()
    assert [*written.parent.glob("files/media/table/skills_*.table.json")]


def test_a_line_of_the_log_counts_what_can_be_counted(caplog, monkeypatch):
    monkeypatch.setattr("tasks.progress.LOG_EVERY_S", 0.0)
    told = StageProgress(1, "evaluate", "progress-c", logging.getLogger("stage"))
    with caplog.at_level(logging.INFO, "stage"):
        told(note="300 tasks")
        told(7, 600, "7 of 7 won")
    assert caplog.messages == ["evaluate: 300 tasks", "evaluate: 7 of 600 7 of 7 won"]
