from __future__ import annotations

from pathlib import Path

import pytest

from opid_core.config import CampaignConfig, LearnerConfig, build_config, load_config
from opid_core.errors import ConfigError
from opid_core.hashing import MAY_DIFFER, config_hash, training_hash
from opid_core.hub import policy_folder
from opid_core.learning.methods import Gigpo, Grpo, Opid
from tests.opid_core.config_files import write


def test_a_minimal_file_gets_the_released_numbers(tmp_path):
    config = load_config(write(tmp_path, "campaign: first\n"))
    assert config.campaign == "first"
    assert config.environment.success_reward == 10.0
    assert config.environment.invalid_action_penalty == 0.1
    assert isinstance(config.method, Opid)
    assert (config.method.baseline, config.method.normalize) == ("step", "mean_std")
    # The environment's options are stored as its own model has them, defaults included.
    assert config.environment.options["generator"]["train"] == 3553


def test_the_paper_preset_and_a_value_that_wins_over_it(tmp_path):
    config = load_config(write(tmp_path, "campaign: c\npreset: paper\nenvironment: {invalid_action_penalty: 0.5}\n"))
    assert config.environment.success_reward == 1.0
    assert config.environment.invalid_action_penalty == 0.5
    assert isinstance(config.method, Opid)
    assert (config.method.baseline, config.method.normalize) == ("trajectory", "mean_population_std")


def test_the_released_numbers_follow_the_environment(tmp_path):
    text = "campaign: c\nenvironment: {name: NAME}\n"
    shop = load_config(write(tmp_path, text.replace("NAME", "webshop")))
    assert isinstance(shop.method, Opid)
    assert (shop.environment.success_reward, shop.method.baseline, shop.method.normalize) == (10.0, "step", "mean")
    paper = load_config(tmp_path / "campaign.yaml", ["preset=paper"])
    assert isinstance(paper.method, Opid)
    assert paper.method.normalize == "mean_population_std"
    questions = load_config(write(tmp_path, text.replace("NAME", "search_qa")))
    assert (questions.environment.success_reward, questions.environment.invalid_action_penalty) == (1.0, 0.01)
    assert (questions.learner.kl_coefficient, questions.learner.warmup_iterations) == (0.001, 15)
    paper = load_config(tmp_path / "campaign.yaml", ["preset=paper"])
    assert (paper.learner.kl_coefficient, paper.learner.warmup_iterations) == (0.01, 0)
    dapo = load_config(tmp_path / "campaign.yaml", ["method.name=dapo", "learner.warmup_iterations=3"]).learner
    assert (dapo.kl_coefficient, dapo.warmup_iterations, dapo.clip_high) == (0.001, 3, 0.28)


@pytest.mark.parametrize(
    ("environment", "split"),
    [("alfworld", "valid_unseen"), ("search_qa", "valid_unseen"), ("webshop", "validation"), ("scienceworld", "dev")],
)
def test_the_evaluated_split_is_the_environments_held_out_one(tmp_path, environment, split):
    path = write(tmp_path, f"campaign: c\nenvironment: {{name: {environment}}}\n")
    for preset in ("released", "paper"):
        assert load_config(path, [f"preset={preset}"]).evaluation.splits == (split,)
    assert load_config(path, ["evaluation.split=other"]).evaluation.splits == ("other",)
    (of_base := tmp_path / "base.yaml").write_text("campaign: base\nevaluation: {tasks: 3}\n")
    evaluation = load_config(of_base, [f"environment.name={environment}"]).evaluation
    assert (evaluation.split, evaluation.tasks) == (split, 3)


def test_template_arguments_keep_their_kind_and_need_a_policy(tmp_path):
    arguments = "prompting: {template_arguments: {enable_thinking: false, effort: low, budget: 3}}\n"
    path = write(tmp_path, f"campaign: c\npolicy: somewhere\n{arguments}")
    config = load_config(path)
    assert config.prompting.template_arguments == {"enable_thinking": False, "effort": "low", "budget": 3}
    assert build_config(config.model_dump(mode="json")) == config
    for wrong, message in (
        (["policy=null"], "a warm start's policy knows the defaults alone"),
        (["prompting.step_block='no skill'"], r"prompting\.step_block"),
        (["prompting.step_block='{skill} {other}'"], r"prompting\.step_block"),
        (["prompting.template_arguments={'a b': 1}"], r"template_arguments\.a b"),
        (["prompting.template_arguments={tools: [1]}"], r"template_arguments\.tools"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_config(path, wrong)


def test_a_split_is_evaluated_once(tmp_path):
    path = write(tmp_path, "campaign: c\nevaluation: {split: valid_seen, more_splits: [valid_unseen]}\n")
    assert load_config(path).evaluation.splits == ("valid_seen", "valid_unseen")
    assert load_config(path, ["evaluation.more_splits=[]"]).evaluation.splits == ("valid_seen",)
    with pytest.raises(ConfigError, match="each split once"):
        load_config(path, ["evaluation.split=valid_unseen"])


def test_the_learning_rate_warms_up_by_the_iteration_alone():
    learner = LearnerConfig(learning_rate=8.0, warmup_iterations=4)
    assert [learner.learning_rate_in(iteration) for iteration in range(1, 7)] == [2.0, 4.0, 6.0, 8.0, 8.0, 8.0]
    assert LearnerConfig(learning_rate=8.0).learning_rate_in(1) == 8.0


def test_what_a_method_sets_and_a_value_that_wins_over_it(tmp_path):
    path = write(tmp_path, "campaign: c\nmethod: {name: dapo}\n")
    assert load_config(path).learner.clip_high == 0.28
    assert load_config(path).learner.clip_low == 0.2
    assert load_config(path, ["learner.clip_high=0.3"]).learner.clip_high == 0.3
    assert load_config(path, ["method.name=grpo"]).learner.clip_high == 0.2
    # A stored config is complete: reading it again changes nothing.
    stored = load_config(path, ["learner.clip_high=0.2"])
    assert build_config(stored.model_dump(mode="json")) == stored


def test_keys_of_another_method_below_fall_away(tmp_path):
    (tmp_path / "base.yaml").write_text(
        "campaign: base\nmethod: {name: opid, lambda_step: 0.1, tied_groups: zero, step_weight: 0.5}\n"
    )
    assert load_config(tmp_path / "base.yaml", ["method.name=grpo"]).method == Grpo(tied_groups="zero")
    path = write(tmp_path, "extends: base.yaml\nmethod: {name: gigpo}\n")
    assert load_config(path).method == Gigpo(tied_groups="zero", step_weight=0.5)
    assert load_config(path, ["method.name=opid", "method.lambda_step=0.2"]).method == Opid(
        tied_groups="zero", step_weight=0.5, lambda_step=0.2
    )
    # What stands beside the name is the new method's own.
    with pytest.raises(ConfigError, match=r"campaign\.yaml: method\.lambda_step: the method sdar does not read"):
        load_config(path, ["method.name=sdar", "method.lambda_step=0.2"])


def test_options_of_another_environment_below_fall_away(tmp_path):
    path = write(tmp_path, "campaign: c\nenvironment: {max_steps: 7, options: {generator: {size: small, train: 40}}}\n")
    questions = load_config(path, ["environment.name=search_qa", "environment.options.generator.train=50"]).environment
    assert (questions.max_steps, questions.options["generator"]["train"]) == (7, 50)
    assert questions.options["generator"]["passages"] == 2000
    assert load_config(path, ["environment.name=alfworld"]).environment.options["generator"]["train"] == 40


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sed: 3", r"sed: unknown key; did you mean 'seed'\?"),
        ("learner: {learning_rat: 1}", r"learner\.learning_rat: unknown key; did you mean 'learning_rate'\?"),
        (
            "tracking: {xyz: 1}",
            r"tracking\.xyz: unknown key; valid keys: tensorboard, wandb_project, mlflow_experiment",
        ),
        ("analyzer: {llm: {modle: m}}", r"analyzer\.llm\.modle: unknown key; did you mean 'model'\?"),
        (
            "environment: {options: {generator: {sise: small}}}",
            r"environment\.options\.generator\.sise: unknown key; did you mean 'size'\?",
        ),
        ("environment: {options: {task_types: [fly]}}", r"environment\.options\.task_types\.0: Input should be '"),
        ("environment: {name: chess}", r"environment\.name: unknown environment 'chess'; known: .*alfworld"),
        ("preset: fast", r"preset: Input should be 'released' or 'paper' \(got 'fast'\)"),
        ("preset: [1]", r"preset: Input should be 'released' or 'paper' \(got \[1\]\)"),
        ("environment: {name: {a: 1}}", r"environment\.name: Input should be a valid string \(got \{'a': 1\}\)"),
        ("method: {name: ppo}", r"method\.name: unknown method 'ppo'; known: grpo, gigpo, .*, opid, or module:name"),
        ("method: {name: [grpo]}", r"method\.name: unknown method \['grpo'\]; known: grpo"),
        ("method: opid", r"method: expected keys below it \(got 'opid'\)"),
        ("learner:", r"learner: expected keys below it \(got null\)"),
        ("evaluation: {temperatures: 1.0}", r"evaluation\.temperatures: expected a list, as in \[1\.0\] \(got 1\.0\)"),
        ("evaluation: {temperatures: {a: 1}}", r"evaluation\.temperatures: expected a list \(got \{'a': 1\}\)"),
        ("storage: {endpoint_url: 'localhost:9000'}", r"storage\.endpoint_url: must begin with http:// or https://"),
        ("method: {name: sdar, routing: additive}", r"method\.routing: Input should be .* 'random' \(got 'additive'\)"),
        ("method: {name: skill_grpo}", r"method\.skill_bank: Field required"),
        (
            "method: {name: rloo, baseline: step}",
            r"method\.baseline: the method rloo .*; its keys: name, gamma, tied_groups",
        ),
        (
            "method: {lamda_step: 1}",
            r"method\.lamda_step: the method opid does not read .*; did you mean 'lambda_step'\?",
        ),
        ("method: {weight: 1}", r"method\.weight: the method opid does not read .*: name, .*lambda_step"),
        ("method: {lambda_step: -1}", r"method\.lambda_step: Input should be greater than or equal to 0 \(got -1\)"),
        ("iterations: -1", r"iterations: .*greater than or equal to 0 \(got -1\)"),
        ("seed: many", r"seed: .*valid integer.* \(got 'many'\)"),
        ("seed: 4294967296", r"seed: Input should be less than 4294967296 \(got 4294967296\)"),
        (
            "evaluation: {temperatures: [0, 0.01, 0.009]}",
            r"evaluation\.temperatures: .*0\.009 must be 0 or at least 0\.01",
        ),
        ("rollout: {temperature: 0.7}", r"rollout\.temperature: unknown key"),
        ("learner: {adam_betas: [0.9, 1.0]}", r"learner\.adam_betas\.1: Input should be less than 1 \(got 1\.0\)"),
        ("learner: 3", r"learner: .* \(got 3\)"),
        (
            "engine: {share_gpus: true}\nlearner: {zero_stage: 3}",
            r"engine\.share_gpus: at learner\.zero_stage 3 .*; use 0, 1 or 2, or set engine\.share_gpus to false",
        ),
        (
            "learner: {zero_stage: 0, dtype: bfloat16}",
            r"learner\.zero_stage: 0 keeps no float32 master weights for dtype bfloat16; use 1, 2 or 3 \(got 0\)",
        ),
        (
            "learner: {zero_stage: 0, dtype: auto}",
            r"learner\.zero_stage: 0 keeps no float32 master weights for dtype auto; use 1, 2 or 3 \(got 0\)",
        ),
    ],
)
def test_errors_name_the_file_the_field_and_what_is_allowed(tmp_path, text, message):
    path = write(tmp_path, f"campaign: c\n{text}\n")
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_folders_are_written_as_in_a_shell(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    config = build_config({"campaign": "c", "root": "~/runs", "policy": "$HOME/models/tiny"})
    assert config.root == "/home/someone/runs"
    assert policy_folder("$HOME/models/tiny") == Path("/home/someone/models/tiny")
    assert config.policy == "$HOME/models/tiny"  # another machine may continue the campaign
    for root in ("$NO_SUCH_VARIABLE/runs", "~no-such-user/runs"):
        with pytest.raises(ConfigError, match=r"root: .* (not set|no such user)"):
            build_config({"campaign": "c", "root": root})


@pytest.mark.parametrize("root", ["s3:/bucket/x", "s3:bucket/x", "s3:///x", "S3://bucket", "file:/x", "gs://bucket/x"])
def test_a_mistyped_address_is_no_folder(root):
    with pytest.raises(ConfigError, match=r"root: .* must be .*s3://BUCKET/PREFIX"):
        build_config({"campaign": "c", "root": root})


def test_an_address_with_a_key_is_refused_and_not_shown():
    for root in ("s3://key:secret@bucket/x", "s3:/key:secret@bucket/x"):
        with pytest.raises(ConfigError, match="root: ") as raised:
            build_config({"campaign": "c", "root": root})
        assert "secret" not in str(raised.value)


def test_addresses_and_folders_with_a_colon_are_roots():
    for root in ("s3://bucket", "s3://bucket/x", "file:///runs", "./s3:x", "runs/a:b", "10:30"):
        assert build_config({"campaign": "c", "root": root}).root == root.removeprefix("./")


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"learner": {"learning_rate": float("inf")}}, "learner.learning_rate"),
        ({"recovery": {"lease_ttl_s": float("inf")}}, "recovery.lease_ttl_s"),
        ({"recovery": {"lease_ttl_s": 1e12}}, "recovery.lease_ttl_s"),
        ({"recovery": {"stage_timeout_s": 1e300}}, "recovery.stage_timeout_s"),
        ({"recovery": {"stage_retries": 51}}, "recovery.stage_retries"),
        ({"method": {"lambda_step": float("inf")}}, "method.lambda_step"),
        ({"evaluation": {"temperatures": [float("nan")]}}, "evaluation.temperatures.0"),
        ({"evaluation": {"temperatures": []}}, "evaluation.temperatures"),
        ({"evaluation": {"temperatures": [0.4, 1, 0.4]}}, "evaluation.temperatures"),
        ({"evaluation": {"temperatures": [-0.1]}}, "evaluation.temperatures"),
        ({"policy": ""}, "policy"),
        ({"evaluation": {"skill_bank": ""}}, "evaluation.skill_bank"),
        ({"environment": {"options": {"manifest": ""}}}, "environment.options.manifest"),
        (
            {"environment": {"name": "search_qa", "options": {"retrieval": {"timeout_s": float("inf")}}}},
            "environment.options.retrieval.timeout_s",
        ),
    ],
)
def test_numbers_are_bounded_and_texts_are_not_empty(values, field):
    with pytest.raises(ConfigError, match=rf"^config: {field}: "):
        build_config({"campaign": "c", **values})


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "x" * 65])
def test_campaign_names_are_folder_names(name):
    with pytest.raises(ConfigError, match=r"config: campaign: must (be letters, digits|not be empty)"):
        build_config({"campaign": name})


def test_a_list_whose_item_is_wrong_has_one_problem():
    options = {"generator": {"size": "small", "train": 6}, "task_types": ["fly"]}
    with pytest.raises(ConfigError, match=r"task_types\.0: ") as caught:
        build_config({"campaign": "c", "environment": {"options": options}})
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(ConfigError, match=r"task_types: .* at least 1 item"):
        build_config({"campaign": "c", "environment": {"options": {**options, "task_types": []}}})


def test_several_problems_are_told_at_once():
    with pytest.raises(ConfigError) as caught:
        build_config({"campaign": "c", "sed": 1, "iterations": -1})
    assert len(str(caught.value).splitlines()) == 2


def test_the_hash_depends_on_values_alone(tmp_path):
    one = load_config(write(tmp_path, "campaign: c\nseed: 1\nlearner: {epochs: 1, learning_rate: 0.001}\n"))
    same = load_config(write(tmp_path, "learner: {learning_rate: 1.0e-3}\nseed: 1\ncampaign: c\n"))
    assert config_hash(one) == config_hash(same)
    assert config_hash(one) != config_hash(one.model_copy(update={"seed": 2}))
    # A stored config that is read again is the same config.
    assert config_hash(build_config(one.model_dump(mode="json"))) == config_hash(one)


def test_the_hash_is_the_one_of_the_written_text():
    import hashlib
    import json

    config = build_config({"campaign": "c"})
    text = json.dumps(config.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert config_hash(config) == hashlib.sha256(text.encode()).hexdigest()


def test_configs_are_frozen():
    config = build_config({"campaign": "c"})
    assert isinstance(config, CampaignConfig)
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 2  # pyright: ignore[reportAttributeAccessIssue]


OTHER_VALUES = {
    "iterations": 7,
    "root": "elsewhere",
    "threads": 5,
    "storage": {"endpoint_url": "http://127.0.0.1:9000"},
    "tracking": {"tensorboard": False},
    "notify": {"url_env": "OPID_NOTIFY_URL"},
    "cluster": {"address": "head:6379"},
    "recovery": {"stage_retries": 1},
    "gates": {"max_copied_words": 5},
    "analyzer.llm.base_url": "http://127.0.0.1:9/v1",
    "analyzer.llm.api_key_env": "OTHER_KEY",
    "analyzer.llm.timeout_s": 5,
    "analyzer.llm.max_retries": 9,
    "analyzer.llm.concurrency": 2,
    "analyzer.llm.prompt_price": 1.5,
    "analyzer.llm.completion_price": 2.5,
    "engine.replicas": 2,
    "engine.tensor_parallel": 2,
    "rollout.loop": "replicas",
    "engine.max_concurrent": 3,
    "engine.kv_cache_mib": 99,
    "engine.gpu_memory_fraction": 0.3,
    "engine.share_gpus": True,
    "learner.ranks": 2,
    "learner.micro_batch_tokens": 999,
    "learner.gradient_checkpointing": True,
    "learner.shared_prefixes": True,
}


@pytest.mark.parametrize("key", MAY_DIFFER)
def test_what_may_differ_trains_the_same(key):
    value = OTHER_VALUES[key]
    for part in reversed(key.split(".")):
        value = {part: value}
    changed = build_config({"campaign": "c", **value})
    assert config_hash(changed) != config_hash(build_config({"campaign": "c"}))
    assert training_hash(changed) == training_hash(build_config({"campaign": "c"}))


@pytest.mark.parametrize(
    "values", [{"seed": 1}, {"learner": {"learning_rate": 1e-5}}, {"engine": {"dtype": "float16"}}]
)
def test_anything_else_trains_otherwise(values):
    assert training_hash(build_config({"campaign": "c", **values})) != training_hash(build_config({"campaign": "c"}))
