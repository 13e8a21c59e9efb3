"""What is said and checked of the analyzer before a campaign."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from flows import memory, notify, plan
from flows.plan import FEW_STATES, analyzer_cost, check, check_space, show, warn
from infra.store import open_campaign, size_text
from opid_core.config import StorageConfig, build_config
from opid_core.errors import ConfigError
from opid_core.skills.analyzers.messages import INSTRUCTIONS
from tests.chat_server import Answer, chat_server
from tests.envs.open_env_server import open_env_server
from tests.factories import make_chain, make_tiny_policy_folder, refuse
from tests.flows.cli.test_cli import SMALL

SHIPPED = Path(__file__).parents[2] / "configs" / "policies" / "alfworld_tiny"
LLM = {"model": "teacher", "max_tokens": 500, "max_prompt_chars": 8000, "base_url": "http://127.0.0.1:9/v1"}


@pytest.mark.parametrize(
    ("address", "said"),
    [
        (None, r"OPID_NOTIFY_URL is not set"),
        ("https://example.org/a-secret", "OPID_NOTIFY_URL holds no address that Apprise knows"),
        ("json://127.0.0.1:9/a-secret, nonsense://a-secret", "OPID_NOTIFY_URL holds no address that Apprise knows"),
    ],
)
def test_an_address_for_messages_is_checked_before_any_work(monkeypatch, caplog, address, said):
    monkeypatch.delenv("OPID_NOTIFY_URL", raising=False)
    if address:
        monkeypatch.setenv("OPID_NOTIFY_URL", address)
    config = build_config({**SMALL, "notify": {"url_env": "OPID_NOTIFY_URL"}})
    with pytest.raises(ConfigError, match=rf"^notify\.url_env: .*{said}") as raised:
        notify.check(config)
    assert "a-secret" not in str(raised.value) + caplog.text


def plan_of(**analyzer) -> list[str]:
    return analyzer_cost(build_config({**SMALL, "analyzer": analyzer})).splitlines()


def test_rules_ask_no_model():
    assert plan_of() == ["hindsight: no calls to a model"]


def test_the_plan_counts_calls_tokens_and_cost():
    """2 groups of 3: 6 calls; the data of each is at most 8000 characters = 2000 tokens."""
    llm = {**LLM, "prompt_price": 0.0, "completion_price": 10.0}
    prompt_tokens = 6 * (2000 + len(INSTRUCTIONS) // 4)
    assert plan_of(backend="llm_then_hindsight", llm=llm) == [
        "llm_then_hindsight: teacher at http://127.0.0.1:9/v1",
        f"at most 6 calls, {prompt_tokens / 1e6:.2f}M prompt tokens, 0.00M completion tokens an iteration, cost 0.03",
        f"at most 12 calls, {2 * prompt_tokens / 1e6:.2f}M prompt tokens, 0.01M completion tokens in all, cost 0.06",
    ]


def test_without_prices_the_cost_is_unknown():
    *_, last = plan_of(backend="llm", llm=LLM)
    assert last == "cost unknown: set analyzer.llm.prompt_price and completion_price"


def test_an_episode_shorter_than_the_limit_is_what_is_paid_for():
    """2 steps of at most 464 + 24 tokens."""
    config = build_config({**SMALL, "analyzer": {"backend": "llm", "llm": {**LLM, "max_prompt_chars": 400_000}}})
    config = config.model_copy(update={"environment": config.environment.model_copy(update={"max_steps": 2})})
    prompt_tokens = 6 * (2 * 488 + len(INSTRUCTIONS) // 4)
    assert f"{prompt_tokens / 1e6:.2f}M prompt tokens" in analyzer_cost(config).splitlines()[1]


def test_a_refused_key_is_found_before_any_work(tmp_path):
    with chat_server() as server:
        server.answers = [Answer(401, "no")]
        analyzer = {"backend": "llm", "llm": {**LLM, "base_url": server.url}}
        config = build_config({**SMALL, "root": str(tmp_path / "runs"), "analyzer": analyzer})
        with pytest.raises(ConfigError, match="refused the key of OPENAI_API_KEY"):
            check(config)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_prompt_tokens": 464, "max_response_tokens": 49}, r"max_prompt_tokens 464 .* 49 .* the 512 tokens"),
        (
            {"max_prompt_tokens": 30},
            r"rollout.max_prompt_tokens: .* tokens without any history, max_prompt_tokens is 30",
        ),
        ({"max_prompt_tokens": 464, "max_response_tokens": 48}, None),
    ],
)
def test_limits_that_the_model_or_a_prompt_cannot_meet(tmp_path, limits, message):
    rollout = {**SMALL["rollout"], **limits}
    config = build_config({**SMALL, "root": str(tmp_path / "runs"), "policy": str(SHIPPED), "rollout": rollout})
    with pytest.raises(ConfigError, match=message) if message else nullcontext():
        check(config)


def test_a_policy_that_cannot_share_prefixes_is_found_before_any_work(tmp_path):
    policy = make_tiny_policy_folder(tmp_path / "policy")
    stored = json.loads((policy / "config.json").read_text())
    windows = {"use_sliding_window": True, "sliding_window": 64, "layer_types": ["sliding_attention"] * 2}
    (policy / "config.json").write_text(json.dumps({**stored, **windows}))
    values = {**SMALL, "root": str(tmp_path / "runs"), "policy": str(policy), "learner": {"shared_prefixes": True}}
    with pytest.raises(ConfigError, match=r"learner.shared_prefixes: .*layer_types sliding_attention"):
        check(build_config(values), weights=False)
    assert not (tmp_path / "runs").exists()


def test_the_plan_shows_the_first_prompt_as_the_policy_gets_it():
    console = Console(record=True, width=200)
    show(build_config({**SMALL, "policy": str(SHIPPED)}), console)
    shown = console.export_text()
    assert "as the policy gets it:\n<|user|>You are" in shown
    assert shown.count("Admissible actions:") == 1
    assert "<|end|><|assistant|>\n" in shown


@pytest.mark.parametrize(
    ("method", "penalty", "warned"),
    [
        ({"name": "grpo", "baseline": "trajectory"}, 0.1, True),
        ({"name": "grpo", "baseline": "trajectory"}, 0.0, False),
        ({"name": "grpo", "baseline": "trajectory", "tied_groups": "zero"}, 0.1, False),
        ({"name": "grpo", "baseline": "trajectory", "normalize": "mean"}, 0.1, False),
        ({"name": "grpo"}, 0.1, False),
        ({"name": "rloo"}, 0.1, False),
    ],
)
def test_a_penalty_that_would_be_blown_up_is_warned_of(method, penalty, warned):
    console = Console(record=True, width=200)
    warn(build_config({**SMALL, "method": method, "environment": {"invalid_action_penalty": penalty}}), console)
    assert ("method.tied_groups" in console.export_text()) == warned


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"engine": {"dtype": "bfloat16"}}, "engine.canary_tolerance 0.001 with engine.dtype bfloat16"),
        ({"engine": {"dtype": "bfloat16", "canary_tolerance": 0.05}}, None),
        ({"learner": {"dtype": "bfloat16"}}, "engine.canary_tolerance 0.001 with learner.dtype bfloat16"),
        ({"learner": {"dtype": "bfloat16"}, "engine": {"canary_tolerance": 0.05}}, None),
        (
            {"learner": {"warmup_iterations": 15, "learning_rate": 2e-4}, "iterations": 8},
            "reaches 0.000107, never 0.0002",
        ),
        ({"learner": {"warmup_iterations": 8}, "iterations": 8}, None),
    ],
)
def test_numbers_that_do_not_go_together_are_warned_of(values, message, monkeypatch):
    monkeypatch.setattr(plan, "device_warnings", lambda config: [])
    console = Console(record=True, width=200)
    warn(build_config({**SMALL, **values}), console)
    shown = console.export_text()
    assert (message in shown) if message else not shown


def test_an_answer_that_the_tokenizer_does_not_keep_is_found_before_any_work(tmp_path):
    policy = make_tiny_policy_folder(tmp_path / "policy", max_positions=512)  # it has no word for a tag
    with pytest.raises(ConfigError, match="does not keep an answer in the asked form"):
        check(build_config({**SMALL, "root": str(tmp_path / "runs"), "policy": str(policy)}))


def disk_with(free_mib: dict[Path, float]):
    """`shutil.disk_usage` of a disk at each of the folders."""
    return lambda path: SimpleNamespace(free=free_mib[Path(path)] * 2**20)


def test_a_disk_must_hold_what_is_still_to_come(tmp_path, monkeypatch):
    root, temporary = tmp_path / "runs", tmp_path / "temporary"
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    config = build_config({**SMALL, "root": str(root)})
    other = config.model_copy(update={"campaign": "other"})
    one = memory.stored(config)
    each_mib = one.lasting_mib + one.state_mib
    assert one.campaign_mib == 3 * each_mib  # the start and two iterations

    def check_disks(configs, root_mib: float, temporary_mib: float) -> None:
        free = {tmp_path: root_mib, root: root_mib, temporary: temporary_mib}
        monkeypatch.setattr(shutil, "disk_usage", disk_with(free))
        check_space(configs)

    check_disks([config], 3 * each_mib, each_mib)
    with pytest.raises(ConfigError, match=r"free, the campaign needs"):
        check_disks([config], 2.9 * each_mib, each_mib)
    with pytest.raises(ConfigError, match=rf"^{temporary}: .* set TMPDIR to a folder on a larger disk"):
        check_disks([config], 3 * each_mib, 0.9 * each_mib)
    make_chain(open_campaign(root, config.campaign, config.model_dump(mode="json")), tmp_path, 2)
    check_disks([config], each_mib, each_mib)
    with pytest.raises(ConfigError, match=r"free, the campaign needs"):
        check_disks([config], 0.9 * each_mib, each_mib)
    (root / "lost+found").mkdir()
    refuse(monkeypatch, "lost+found")  # beside the campaign, and none of its business
    check_disks([config.model_copy(update={"iterations": 1})], 0, 0)  # all of it is there
    check_disks([config, other], 4 * each_mib, each_mib)
    with pytest.raises(ConfigError, match=r"free, the campaign needs"):
        check_disks([config, other], 3.9 * each_mib, each_mib)


def test_where_all_optimizer_states_are_too_much_fewer_are_proposed(tmp_path, monkeypatch):
    config = build_config({**SMALL, "root": str(tmp_path), "iterations": 200})
    kept = config.model_copy(update={"storage": StorageConfig(optimizer_states=FEW_STATES)})
    monkeypatch.setattr(shutil, "disk_usage", disk_with({tmp_path: 0.5}))
    needed = re.escape(size_text(memory.stored(kept).campaign_mib * 2**20))
    with pytest.raises(ConfigError, match=rf"optimizer_states={FEW_STATES} .*: then it needs {needed}$"):
        check_space([config])
    with pytest.raises(ConfigError, match=rf"needs {needed}; free some space, or choose another root$"):
        check_space([kept])


def test_a_server_with_one_session_is_enough_for_the_check():
    with open_env_server(sessions=1) as url:
        options = {"url": url, "observation_field": "text", "wait_s": 20}
        check(build_config({**SMALL, "policy": str(SHIPPED), "environment": {"name": "openenv", "options": options}}))
