from __future__ import annotations

import re
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowFilter, FlowFilterName
from rich.console import Console

from flows import plan
from flows import study as studies
from flows.study import MAY_VARY, check, load_study, run_study, shared_policy, show, study_folder, what_differs
from flows.train import train
from infra.store import open_campaign
from opid_core.config import CampaignConfig
from opid_core.errors import ConfigError, GateError, InfrastructureError
from opid_core.hub import HubModel
from opid_core.learning.methods import Opid
from tests.flows.studies import config_file


def test_a_study_has_every_method_with_every_seed(study, tmp_path):
    assert [(label, seed, config.campaign) for label, seed, config in study.campaigns()] == [
        ("plain", 5, "plain-seed5"),
        ("skills", 5, "skills-seed5"),
        ("plain", 6, "plain-seed6"),
        ("skills", 6, "skills-seed6"),
    ]
    assert {config.root for _, _, config in study.campaigns()} == {f"{tmp_path}/runs/mine"}
    assert {config.seed for _, seed, config in study.campaigns() if seed == 6} == {6}
    assert study.baseline == "plain"  # GRPO is OPID's twin: no other is added


def test_every_seed_is_one_that_the_engine_takes(tmp_path):
    path = config_file(tmp_path, "plain", "{name: grpo}")
    assert load_study("mine", [path], 2, ["seed=4294967294"]).seeds == (4294967294, 4294967295)
    with pytest.raises(ConfigError, match=r"plain\.yaml: seed: .*4294967296"):
        load_study("mine", [path], 3, ["seed=4294967294"])


def test_opid_without_a_twin_gets_one(tmp_path):
    study = load_study("mine", [config_file(tmp_path, "skills", "{name: opid, lambda_step: 0.1}")], 1)
    assert list(study.methods) == ["skills", "skills-lambda0"]
    twin, method = study.methods["skills-lambda0"].method, study.methods["skills"].method
    assert isinstance(twin, Opid)
    assert isinstance(method, Opid)
    assert (twin.lambda_episode, twin.lambda_step) == (0.0, 0.0)
    assert twin.model_copy(update={"lambda_episode": method.lambda_episode, "lambda_step": 0.1}) == method
    assert study.baseline == "skills-lambda0"
    # GRPO with another baseline rule is no twin
    files = [
        config_file(tmp_path, "skills", "{name: opid}"),
        config_file(tmp_path, "other", "{name: grpo, tied_groups: zero}"),
    ]
    assert list(load_study("mine", files, 1).methods) == ["skills", "other", "skills-lambda0"]


def test_a_twin_has_the_step_advantage_of_its_method(tmp_path):
    plain = config_file(tmp_path, "plain", "{name: grpo}")
    skills = config_file(tmp_path, "skills", "{name: opid, step_weight: 1.0, gamma: 0.9}")
    # GRPO has no step advantage: what it adds would be booked to the skills.
    study = load_study("mine", [skills, plain], 1)
    assert list(study.methods) == ["skills", "plain", "skills-lambda0"]
    twin = study.methods["skills-lambda0"].method
    assert isinstance(twin, Opid)
    assert (twin.lambda_episode, twin.lambda_step, twin.step_weight, twin.gamma) == (0.0, 0.0, 1.0, 0.9)
    assert [study.twin(label) for label in study.methods] == ["skills-lambda0", None, None]
    assert study.baseline == "plain"
    assert load_study("mine", [skills], 1).baseline == "skills-lambda0"
    # GiGPO (step weight 1) is the twin with the same numbers alone.
    same = config_file(tmp_path, "states", "{name: gigpo, gamma: 0.9}")
    study = load_study("mine", [skills, same], 1)
    assert (list(study.methods), study.twin("skills"), study.baseline) == (["skills", "states"], "states", "states")
    for other in ("gamma: 0.95", "gamma: 0.9, step_weight: 0.5", "gamma: 0.9, state_similarity: 0.9"):
        other = config_file(tmp_path, "other", f"{{name: gigpo, {other}}}")
        assert load_study("mine", [skills, other], 1).twin("skills") == "skills-lambda0"


def test_without_a_step_weight_what_it_would_need_makes_no_difference(tmp_path):
    files = [
        config_file(tmp_path, "plain", "{name: grpo}"),
        config_file(tmp_path, "skills", "{name: opid, gamma: 0.9, state_similarity: 0.9}"),
    ]
    study = load_study("mine", files, 1)
    assert (list(study.methods), study.twin("skills")) == (["plain", "skills"], "plain")


def test_an_added_twin_replaces_no_method(tmp_path):
    skills = config_file(tmp_path, "skills", "{name: opid, step_weight: 1.0}")
    other = config_file(tmp_path, "skills-lambda0", "{name: grpo}")
    with pytest.raises(ConfigError, match=r"skills.yaml: campaign: the twin of 'skills' .* called 'skills-lambda0'"):
        load_study("mine", [skills, other], 1)
    # Where it is the right twin, no other is added.
    right = config_file(tmp_path, "skills-lambda0", "{name: gigpo}")
    assert list(load_study("mine", [skills, right], 1).methods) == ["skills", "skills-lambda0"]


def test_methods_that_differ_in_more_than_their_signal_are_refused(tmp_path):
    first = config_file(tmp_path, "plain", "{name: grpo}")
    second = config_file(tmp_path, "skills", "{name: opid}", "learner: {learning_rate: 1.0}\nthreads: 1\n")
    with pytest.raises(ConfigError) as raised:
        load_study("mine", [first, second], 1)
    assert str(raised.value) == (
        f"{second}: learner.learning_rate, threads: differs from {first}; the methods of a study may differ in "
        + ", ".join(MAY_VARY)
    )
    with pytest.raises(ConfigError, match="campaign: 'plain'"):
        load_study("mine", [first, first], 1)


@pytest.mark.parametrize("name", ["", ".", "..", "../up", "a/b", "/tmp/x"])
def test_a_study_s_name_is_that_of_one_folder(tmp_path, name):
    with pytest.raises(ConfigError, match=rf"^--name: '{name}'"):
        load_study(name, [config_file(tmp_path, "plain", "{name: grpo}")], 1)


def test_a_study_lies_in_no_campaign(study, tmp_path):
    open_campaign(tmp_path / "runs", "mine", {"campaign": "mine"})
    with pytest.raises(ConfigError, match=r"--name: mine .*runs"):
        check(study)


def test_a_study_goes_on_from_the_commit_of_the_hub_that_it_began_with(tmp_path, monkeypatch):
    monkeypatch.setattr(studies, "pinned", lambda model: HubModel(model.name, commits[model.revision]))
    commits = {"": "a" * 40, "v1": "c" * 40}
    file, console = config_file(tmp_path, "plain", "{name: grpo}"), Console(quiet=True)

    def study(policy: str):
        return load_study("mine", [file], 2, [f"policy={policy}"])

    policy = shared_policy(study("Org/Name"), console)
    assert policy == f"hf://Org/Name@{'a' * 40}"
    _, _, second = study(policy).campaigns()[1]
    open_campaign(second.root, second.campaign, second.model_dump(mode="json"))
    commits[""] = "b" * 40
    assert shared_policy(study("Org/Name"), console) == policy
    assert shared_policy(study("Org/Name@v1"), console) == f"hf://Org/Name@{'c' * 40}"
    assert shared_policy(study("Org/Other"), console) == f"hf://Org/Other@{'b' * 40}"


@pytest.mark.integration
@pytest.mark.parametrize(
    ("error", "begun"),
    [
        (GateError("rows"), ["plain-seed5", "skills-seed5", "plain-seed6", "skills-seed6"]),
        (InfrastructureError("the store is away"), ["plain-seed5", "skills-seed5"]),
        (KeyboardInterrupt(), ["plain-seed5", "skills-seed5"]),
    ],
)
def test_what_fails_again_each_time_leaves_the_other_campaigns_theirs(prefect_server, study, monkeypatch, error, begun):
    ran: list[str] = []

    def run(config: CampaignConfig) -> None:
        ran.append(config.campaign)
        if config.campaign == "skills-seed5":
            raise error

    monkeypatch.setattr(studies, "check_and_open", lambda config, console: None)
    monkeypatch.setattr(studies, "share_start", lambda config, first, console: False)
    monkeypatch.setattr(studies, "run_campaign", run)
    with pytest.raises(type(error)) as raised:
        run_study(study, Console(quiet=True))
    assert ran == begun
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(flow_filter=FlowFilter(name=FlowFilterName(any_=["compare"])))
    assert [run.parameters for run in runs if run.name == "mine" and run.parameters != {"name": "mine"}] == []
    assert "mine" in {run.name for run in runs}
    if isinstance(error, GateError):
        assert str(raised.value).startswith("study mine: not finished: skills-seed5; ")
        assert str(raised.value).endswith("skills-seed5: rows")


@pytest.mark.integration
def test_a_study_and_train_open_a_store_in_the_same_way(prefect_server, study, tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "check", lambda config: None)  # it would find the root before the store is opened
    root = tmp_path / "runs"
    root.write_text("no folder")
    with pytest.raises(ConfigError) as of_train:
        train(str(tmp_path / "plain.yaml"), [f"root={root}/mine", "campaign=plain-seed5"])
    assert str(of_train.value) == f"root: {root} is not a folder; choose another root"
    with pytest.raises(ConfigError, match=re.escape(f"plain-seed5: {of_train.value}") + "$"):
        run_study(study, Console(quiet=True))


def test_studies_of_one_name_on_s3_have_folders_of_their_own(tmp_path):
    file = config_file(tmp_path, "plain", "{name: grpo}")
    folders = [study_folder(load_study("mine", [file], 1, [f"root=s3://{bucket}/runs"])) for bucket in "ab"]
    assert [folder.name.startswith("mine-") for folder in folders] == [True, True]
    assert folders[0] != folders[1]


def test_a_folder_stands_for_its_files(tmp_path):
    folder = tmp_path / "methods"
    folder.mkdir()
    with pytest.raises(ConfigError, match=rf"^{folder}: "):
        load_study("mine", [folder], 1)
    config_file(folder, "b", "{name: grpo}")
    config_file(folder, "a", "{name: rloo}")
    (folder / "notes.md").write_text("no config")
    assert list(load_study("mine", [folder], 1).methods) == ["a", "b"]
    config_file(folder, "c", "{name: grpo}", "environment: {name: webshop}\n")
    with pytest.raises(ConfigError, match=r"c.yaml: environment.*a.yaml"):
        load_study("mine", [folder], 1)


def test_rows_of_one_file_are_methods(tmp_path):
    file = config_file(tmp_path, "study", "{name: opid}", "rows: {plain: {method: {name: grpo}}, skills: {}}\n")
    study = load_study("mine", [file, config_file(tmp_path, "more", "{name: rloo}")], 1)
    assert (list(study.methods), study.twin("skills")) == (["plain", "skills", "more"], "plain")
    file = config_file(tmp_path, "study", "{name: opid}", "rows: {plain: {}, skills: {policy: another}}\n")
    with pytest.raises(ConfigError, match=r"study.yaml: policy: "):
        load_study("mine", [file], 1)


def test_the_plan_counts_what_a_study_takes(tmp_path):
    """2 seeds of an iteration: 2 tasks of 2 episodes, at most 30 steps each; a call to the analyzer a trajectory."""
    skills = config_file(tmp_path, "skills", "{name: opid}", "analyzer: {backend: llm}\n")
    plain = config_file(tmp_path, "plain", "{name: grpo}")
    study = load_study("mine", [plain, skills], 2)
    console = Console(record=True, width=200)
    show(study, console)
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in console.export_text(clear=False).splitlines()]
    numbers = {row[0]: row[1:] for row in cells if len(row) > 2}
    assert numbers == {
        "plain": ["2", "8", "240", "0", "", ""],
        "skills": ["2", "8", "240", "8", "", ""],
        "all": ["4", "16", "480", "8", "", ""],
    }
    assert "Hours and disk unknown: the policy is not on this machine" in console.export_text()
    with pytest.raises(ConfigError, match=r"--card: .*'H1000'"):
        show(study, console, "H1000")


def test_the_plan_tells_in_words_what_differs(tmp_path):
    """Keys that all share are left out, and so are defaults of keys that one method alone has."""
    shared = "tied_groups: zero"
    skills = config_file(tmp_path, "skills", f"{{name: opid, {shared}, lambda_episode: 1.0}}")
    alone = load_study("mine", [skills], 1)
    assert what_differs(alone.methods) == {
        "skills": "lambda_episode 1, lambda_step 0.001",
        "skills-lambda0": "lambda_episode 0, lambda_step 0",
    }
    plain = config_file(tmp_path, "plain", f"{{name: grpo, {shared}}}")
    states = config_file(tmp_path, "states", f"{{name: gigpo, {shared}, gamma: 0.5}}", "learner: {clip_high: 0.3}\n")
    study = load_study("mine", [plain, states], 1)
    assert what_differs(study.methods) == {
        "plain": "grpo, gamma 0.95, learner.clip_high 0.2",
        "states": "gigpo, gamma 0.5, learner.clip_high 0.3",
    }
    console = Console(record=True, width=80)
    show(alone, console)
    assert "skills-lambda0: lambda_episode 0, lambda_step 0" in console.export_text().splitlines()


def test_the_shipped_methods_make_a_study():
    study = load_study("first", [Path(__file__).parents[2] / "configs" / "compare"], 3)
    assert list(study.methods) == ["grpo", "opid_0.01", "opid_0.1", "rlsd", "sdar"]
    assert study.baseline == "grpo"
