"""`learner.shared_prefixes: auto`: what is measured, what follows, and that a campaign keeps what it began with."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from rich.console import Console

from flows import number_type, prefix_sharing
from flows.auto import choices, decided
from flows.prefix_sharing import FASTER, LARGEST, Seconds, measured, why_unmeasured
from flows.study import load_study, with_decisions
from flows.train import check_and_open
from infra.store import find_campaign, open_campaign, read_config
from opid_core.architectures import SHARING
from opid_core.config import CampaignConfig, build_config
from opid_core.errors import ConfigError, DataError
from tests.architectures import tiny_config
from tests.factories import make_tiny_policy_folder
from tests.flows.cli.test_cli import SMALL, opid, own_environment  # noqa: F401 - an autouse fixture
from tests.flows.studies import config_file

AUTO = {"shared_prefixes": "auto"}
SLOWER, FASTER_BY_A_HALF = Seconds(1.0, 1.1), Seconds(1.5, 1.0)


def config_of(tmp_path, **sections: Any) -> CampaignConfig:
    return build_config({**SMALL, "root": str(tmp_path / "runs"), **sections})


@pytest.fixture
def measure(monkeypatch):
    """Makes these the seconds that are measured, on a machine without a GPU; returns what is asked for: the model's
    type and width, and the number type."""
    asked: list[tuple[str, int, str]] = []

    def make(seconds: Seconds | None) -> list[tuple[str, int, str]]:
        def seconds_of(model, dtype):
            assert seconds is not None, "nothing is to be measured"
            asked.append((model.model_type, model.hidden_size, dtype))
            return seconds

        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(prefix_sharing, "measured", seconds_of)
        return asked

    return make


@pytest.mark.parametrize(
    ("seconds", "shares"),
    [
        (Seconds(FASTER, 1.0), True),
        (Seconds(FASTER - 0.001, 1.0), False),
        (SLOWER, False),
        (FASTER_BY_A_HALF, True),
    ],
)
def test_prefixes_are_shared_where_that_is_faster_by_the_factor(tmp_path, measure, seconds, shares):
    assert FASTER == 1.05
    asked, told = measure(seconds), []
    config = decided(config_of(tmp_path, learner=AUTO), told.append)
    assert config == config_of(tmp_path, learner={"shared_prefixes": shares})
    assert asked == [("qwen2", 64, "float32")]  # the policy of the warm start
    (text,) = told
    assert text.startswith(f"shared_prefixes auto: {str(shares).lower()}: ")
    assert f"{seconds.alone / seconds.shared:.2f} times as fast" in text


@pytest.mark.parametrize("shares", [True, False])
def test_what_is_named_is_not_measured(tmp_path, measure, shares):
    measure(None)
    config = config_of(tmp_path, learner={"shared_prefixes": shares})
    assert choices([config], pytest.fail) == {}


def test_the_number_type_is_decided_first(tmp_path, measure, monkeypatch):
    asked = measure(FASTER_BY_A_HALF)
    monkeypatch.setattr(number_type, "measured_rates", lambda sizes: {"float32": 1e9, "bfloat16": 8e9})
    policy = make_tiny_policy_folder(tmp_path / "policy")
    config = config_of(tmp_path, policy=str(policy), learner={"dtype": "auto", **AUTO})
    assert choices([config], lambda text: None) == {
        "learner": {"dtype": "bfloat16", "shared_prefixes": True},
        "engine": {"canary_tolerance": 0.1},
    }
    assert asked == [("qwen2", 64, "bfloat16")]


def test_an_architecture_that_cannot_share_is_told_and_not_measured(tmp_path, measure):
    measure(None)
    policy, told = make_tiny_policy_folder(tmp_path / "policy"), []
    stored = json.loads((policy / "config.json").read_text())
    windows = {"use_sliding_window": True, "sliding_window": 64, "layer_types": ["sliding_attention"] * 2}
    (policy / "config.json").write_text(json.dumps({**stored, **windows}))
    config = decided(config_of(tmp_path, learner=AUTO, policy=str(policy)), told.append)
    assert config.learner.shared_prefixes is False
    assert "shared_prefixes auto: false: not all layers of this qwen2 are full attention" in told[0]


class Recorder(Console):
    def __init__(self, told: list[str]) -> None:
        super().__init__()
        self.told = told

    def print(self, *parts: object, **named: object) -> None:
        self.told.append(" ".join(map(str, parts)))


def test_on_a_gpu_it_is_false_unmeasured(tmp_path, measure, monkeypatch):
    measure(None)
    told: list[str] = []
    config = config_of(tmp_path, learner=AUTO)
    assert decided(config, told.append, card="h100").learner.shared_prefixes is False
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert decided(config, told.append).learner.shared_prefixes is False
    assert all("shared_prefixes auto: false: on a GPU" in text for text in told)
    assert len(told) == 2
    measure(FASTER_BY_A_HALF)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert decided(config, told.append, card="cpu").learner.shared_prefixes is True


def test_a_policy_that_is_only_played_is_not_measured(tmp_path, measure):
    measure(None)
    config = config_of(tmp_path, learner=AUTO)
    assert decided(config, pytest.fail, folder=make_tiny_policy_folder(tmp_path / "policy")) is config


@pytest.mark.parametrize("before", [SLOWER, FASTER_BY_A_HALF])
def test_a_campaign_that_has_begun_keeps_what_was_decided(tmp_path, measure, before):
    measure(before)
    told: list[str] = []
    config = config_of(tmp_path, learner=AUTO)
    begun = check_and_open(config, Recorder(told))
    assert begun.learner.shared_prefixes is (before is FASTER_BY_A_HALF)
    assert read_config(find_campaign(config.root, config.campaign)) == begun.model_dump(mode="json")
    measure(None)
    elsewhere = config.model_copy(update={"cluster": config.cluster.model_copy(update={"address": "10.0.0.1:6379"})})
    again = decided(elsewhere, told.append)
    assert again.learner == begun.learner
    assert told[-1].endswith(", as campaign small began")


@pytest.mark.parametrize("stored", ["auto", None, 1])
def test_a_stored_config_must_say_whether(tmp_path, measure, stored):
    measure(None)
    config = config_of(tmp_path, learner=AUTO)
    values = config.model_dump(mode="json")
    values["learner"]["shared_prefixes"] = stored
    open_campaign(config.root, config.campaign, values)
    with pytest.raises(
        DataError, match=rf"config\.json: learner\.shared_prefixes: expected true, false, got {stored!r}"
    ):
        decided(config, pytest.fail)


def test_a_campaign_from_before_the_key_goes_on_without_it(tmp_path, measure):
    measure(None)
    config = config_of(tmp_path, learner=AUTO)
    values = config.model_dump(mode="json")
    del values["learner"]["shared_prefixes"]
    open_campaign(config.root, config.campaign, values)
    assert decided(config, lambda text: None).learner.shared_prefixes is False


def test_on_a_cluster_it_is_named(tmp_path, measure):
    measure(None)
    config = config_of(tmp_path, learner=AUTO, cluster={"address": "10.0.0.1:6379"})
    with pytest.raises(ConfigError, match=r"cluster\.address; name what learner\.shared_prefixes is there$"):
        decided(config, pytest.fail)


def test_all_campaigns_of_a_study_do_the_same(tmp_path, measure):
    files = [config_file(tmp_path, name, f"{{name: {name}}}") for name in ("grpo", "rloo")]
    policy = make_tiny_policy_folder(tmp_path / "policy")
    for path in files:
        text = path.read_text().replace("policy: somewhere\n", f"policy: {policy}\n")
        path.write_text(text + "learner: {shared_prefixes: auto}\n")
    asked = measure(FASTER_BY_A_HALF)
    study = with_decisions(load_study("mine", files, 2), lambda text: None)
    assert {c.learner.shared_prefixes for _, _, c in study.campaigns()} == {True}
    assert len(asked) == 1


def test_a_dry_run_says_what_auto_is(monkeypatch, capsys, tmp_path, measure):
    measure(FASTER_BY_A_HALF)
    path = tmp_path / "small.yaml"
    path.write_text(json.dumps({**SMALL, "root": str(tmp_path / "runs"), "learner": AUTO}))
    assert opid(monkeypatch, "train", path, "--dry-run") == 0
    shown = capsys.readouterr().out
    assert "shared_prefixes auto: true: a CPU thread computes layers as the policy's 1.50 times as fast" in shown
    assert "shared_prefixes: true\n" in shown
    assert not (tmp_path / "runs").exists()


@pytest.fixture
def counted(monkeypatch):
    """A clock that goes on by a second for each token that a model looks up, and which model that was: (vocabulary,
    number type) of its embeddings."""
    seen: list[tuple[int, int, torch.dtype]] = []
    embedding = torch.nn.functional.embedding

    def count(ids, weight, *more, **named):
        seen.append((ids.numel(), len(weight), weight.dtype))
        return embedding(ids, weight, *more, **named)

    monkeypatch.setattr(torch.nn.functional, "embedding", count)
    return seen, lambda: float(sum(tokens for tokens, _, _ in seen))


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3_moe", "smollm3", "deepseek_v3", "glm4"])
def test_what_is_measured_has_the_shares_of_an_iteration_and_few_layers_of_the_policy(counted, model_type):
    """Of four sequences of 330 tokens on average, in two pairs, 2 x 198 tokens are left out of re-scoring, which counts
    twice, and 2 x 132 of the update: 2 x 0.7 + 0.8 in place of 3 seconds a token."""
    seen, clock = counted
    config = tiny_config(model_type, num_hidden_layers=5, vocab_size=1000)
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    state = torch.random.get_rng_state()
    seconds = measured(config, "bfloat16", clock)
    assert seconds == pytest.approx((3.0, 2.2), abs=0.01)
    assert seconds.faster == pytest.approx(3.0 / 2.2, abs=0.01)
    assert {(vocabulary, dtype) for _, vocabulary, dtype in seen} == {(600, torch.bfloat16)}  # three of five layers
    assert len(seen) == 3 * 4
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == before
    assert torch.equal(torch.random.get_rng_state(), state)
    assert (config.num_hidden_layers, config.vocab_size) == (5, 1000)
    assert model_type in SHARING


def test_a_table_of_few_positions_is_made_long_enough():
    config = tiny_config("gpt2", max_position_embeddings=32)
    assert min(measured(config)) > 0
    assert config.max_position_embeddings == 32


def test_a_policy_that_would_take_long_is_told_and_not_measured():
    assert why_unmeasured(tiny_config("qwen2")) is None
    # three of its layers have 3 x 4096 x 4096 each behind attention alone, which is 151M
    reason = why_unmeasured(tiny_config("qwen2", hidden_size=4096, intermediate_size=4096, num_hidden_layers=5))
    assert reason is not None
    assert f"{LARGEST // 10**6}M" in reason
