"""Config files that extend others, and those that hold several campaigns as rows."""

from __future__ import annotations

import pytest

from opid_core.config import load_config, load_rows
from opid_core.errors import ConfigError
from opid_core.learning.methods import Grpo, Opid
from tests.opid_core.config_files import write


def test_a_file_holds_only_what_differs_from_the_one_it_extends(tmp_path):
    (tmp_path / "parts").mkdir()
    (tmp_path / "base.yaml").write_text("campaign: base\nseed: 4\nlearner: {ranks: 2, zero_stage: 3}\n")
    (tmp_path / "parts" / "next.yaml").write_text("extends: ../base.yaml\nseed: 5\n")
    config = load_config(write(tmp_path, "extends: parts/next.yaml\ncampaign: last\nlearner: {ranks: 1}\n"), ["seed=6"])
    assert (config.campaign, config.seed) == ("last", 6)
    assert (config.learner.ranks, config.learner.zero_stage) == (1, 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: campaign.yaml\ncampaign: c\n", "campaign.yaml: extends: the files extend each other in a circle"),
        ("extends: none.yaml\ncampaign: c\n", "none.yaml: cannot read the config: No such file"),
        (
            "extends: [1]\ncampaign: c\n",
            "campaign.yaml: extends: expected the path of a config file, or a list of them",
        ),
        ("extends: []\ncampaign: c\n", "campaign.yaml: extends: expected the path of a config file, or a list of them"),
        ("extends: [b.yaml]\ncampaign: c\n", "b.yaml: cannot read the config: No such file"),
    ],
)
def test_files_that_cannot_be_extended(tmp_path, text, message):
    with pytest.raises(ConfigError) as raised:
        load_config(write(tmp_path, text))
    assert message in str(raised.value)


def test_of_several_files_each_is_on_top_of_those_before_it(tmp_path):
    (tmp_path / "study.yaml").write_text("campaign: a\nseed: 4\niterations: 3\nrows: {one: {}, two: {seed: 9}}\n")
    (tmp_path / "model.yaml").write_text("campaign: b\nseed: 5\nlearner: {ranks: 8}\n")
    one, two = load_rows(write(tmp_path, "extends: [study.yaml, model.yaml]\nthreads: 7\n"))
    assert (one.campaign, one.seed, one.iterations, one.learner.ranks, one.threads) == ("one", 5, 3, 8, 7)
    assert two == one.model_copy(update={"campaign": "two", "seed": 9})


def test_rows_hold_what_differs(tmp_path):
    text = """
campaign: base
method: {name: opid, lambda_step: 0.5, normalize: mean}
rows:
  plain: {method: {name: grpo}}
  skills: {method: {lambda_episode: 0.25}}
"""
    plain, skills = load_rows(write(tmp_path, text), ["seed=3"])
    assert (plain.campaign, skills.campaign, plain.seed) == ("plain", "skills", 3)
    assert plain.method == Grpo(normalize="mean")
    assert skills.method == Opid(lambda_step=0.5, normalize="mean", lambda_episode=0.25)
    (alone,) = load_rows(write(tmp_path, "campaign: alone\n"))
    assert alone.campaign == "alone"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("{}", "campaign.yaml: rows: expected a mapping of names"),
        ("[a]", "campaign.yaml: rows: expected a mapping of names"),
        ("{a: }", "campaign.yaml: rows.a: expected a mapping of config keys without `campaign`, {} for none; got None"),
        ("{a: {campaign: b}}", "campaign.yaml: rows.a: expected a mapping of config keys without `campaign`"),
        ("{a: {seeed: 1}}", "campaign.yaml: row a: seeed: unknown key; did you mean 'seed'?"),
        ("{a b: {}}", "campaign.yaml: row a b: campaign: "),
    ],
)
def test_rows_that_are_none(tmp_path, rows, message):
    with pytest.raises(ConfigError) as raised:
        load_rows(write(tmp_path, f"rows: {rows}\n"))
    assert message in str(raised.value)


def test_a_study_is_no_campaign(tmp_path):
    with pytest.raises(ConfigError, match="rows: a study of several campaigns; run it with opid compare"):
        load_config(write(tmp_path, "campaign: c\nrows: {a: {}}\n"))
