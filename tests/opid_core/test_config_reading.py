"""How a config file and `--set` are read: YAML as it shows itself, and errors that name file and line."""

from __future__ import annotations

import pytest

from opid_core.config import load_config
from opid_core.errors import ConfigError
from tests.opid_core.config_files import write


def test_overrides_are_yaml_and_the_last_one_wins(tmp_path):
    path = write(tmp_path, "campaign: c\nseed: 1\nlearner: {epochs: 2, weight_decay: 0.5}\n")
    config = load_config(
        path,
        [
            "seed=2",
            "seed=3",
            "preset=paper",
            "learner.learning_rate=1e-5",
            "learner.weight_decay=0",
            "learner.dual_clip=null",
            "evaluation.temperatures=[0.4, 1.0]",
            "tracking.tensorboard=false",
            "environment.options.generator.size=small",
        ],
    )
    assert config.seed == 3
    assert config.environment.success_reward == 1.0
    assert config.learner.learning_rate == 1e-5
    assert (config.learner.epochs, config.learner.weight_decay, config.learner.dual_clip) == (2, 0.0, None)
    assert config.evaluation.temperatures == (0.4, 1.0)
    assert config.tracking.tensorboard is False
    assert config.environment.options["generator"]["size"] == "small"


def test_exponents_without_a_point_are_numbers_in_the_file_and_in_overrides(tmp_path):
    """YAML 1.1 reads 1e-5 as text."""
    path = write(tmp_path, "campaign: c\nlearner: {learning_rate: 1e-5, dual_clip: 2e0}\n")
    assert (load_config(path).learner.learning_rate, load_config(path).learner.dual_clip) == (1e-5, 2.0)
    overridden = load_config(path, ["learner.learning_rate=3e-4", "evaluation.temperatures=[4e-1]"])
    assert (overridden.learner.learning_rate, overridden.evaluation.temperatures) == (3e-4, (0.4,))


def test_text_that_looks_like_a_number_stays_text(tmp_path):
    path = write(tmp_path, "campaign: c\n")
    assert load_config(path, ["campaign='7'"]).campaign == "7"
    assert load_config(path, ["campaign=1e5"]).campaign == "1e5"
    assert load_config(path, ["policy=nan"]).policy == "nan"


@pytest.mark.parametrize("key", ["prompting.template_arguments", "analyzer.llm.request_options.inner"])
@pytest.mark.parametrize("word", ["on", "Off", "YES", "no"])
def test_a_word_that_no_type_makes_a_truth_value_is_refused(tmp_path, key, word):
    path = write(tmp_path, "campaign: c\npolicy: somewhere\n")
    message = f"{key.removesuffix('.inner')}: .*: '{word}' is a text .* write true or false"
    with pytest.raises(ConfigError, match=message):
        load_config(path, [f"{key}={{enable_thinking: {word}}}"])


def test_yaml_of_today(tmp_path):
    """A merge may be overridden, quotes make a text, and `on` is a word."""
    text = "campaign: '010'\nrollout: &r {group_size: 4}\nanalyzer: {llm: {structured_output: on}}\n"
    config = load_config(
        write(tmp_path, text), ["learner={<<: {epochs: 2, ranks: 2}, ranks: 1}", "tracking.tensorboard=no"]
    )
    assert (config.campaign, config.analyzer.llm.structured_output) == ("010", "on")
    assert (config.learner.epochs, config.learner.ranks, config.tracking.tensorboard) == (2, 1, False)


def test_unreadable_files(tmp_path):
    with pytest.raises(ConfigError, match=r"absent\.yaml: cannot read the config: No such file"):
        load_config(tmp_path / "absent.yaml")
    with pytest.raises(ConfigError, match="cannot read the config: not a regular file"):
        load_config(tmp_path)
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"binary\.yaml: cannot read the config: not UTF-8"):
        load_config(binary)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        *((override, r"--set '.*': expected key=value") for override in ("seed", "=3", " =3")),
        ("seed=[", r"--set 'seed=\[': the value is not valid YAML"),
    ],
)
def test_an_override_that_cannot_be_read(tmp_path, override, message):
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path, "campaign: c\n"), [override])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "campaign: c\nlearner: {epochs: 2}\nseed: 1\nlearner: {ranks: 2}\n",
            r"not valid YAML: learner: stands twice, first on line 2.*line 4",
        ),
        (
            "campaign: c\nrollout: {group_size: 4, group_size: 8}\n",
            "not valid YAML: group_size: stands twice, first on line 2",
        ),
        ("campaign: c\nseed: 010\n", "not valid YAML: 010: .* base 8"),
        ("campaign: c\nrecovery: {stage_timeout_s: 1:30}\n", "not valid YAML: 1:30: .* base 60"),
        ("campaign: c\nseed: [1\n", "not valid YAML: .*line 2"),
        ("campaign: c\nlearner:\n\tepochs: 1\n", "not valid YAML: line 3: a tab; indent with spaces$"),
        ("campaign: c\nseed: 1\n\t\n", "not valid YAML: line 3: a tab; indent with spaces$"),
        ("- campaign\n", "expected a mapping of config keys, got list"),
        ("", "the file is empty"),
        ("# campaign: c\n", "the file is empty"),
        ("seed: 1\n", "campaign: Field required"),
    ],
)
def test_a_file_that_says_no_config_or_another_than_it_shows(tmp_path, text, message):
    with pytest.raises(ConfigError, match=rf"(?s)campaign\.yaml: {message}"):
        load_config(write(tmp_path, text))
