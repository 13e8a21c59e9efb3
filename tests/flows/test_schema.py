"""The JSON schema for editors, the configs that come with OPID, and the folder to begin with."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import jsonschema
import pytest
import yaml

from flows.schema import schema, text
from opid_core.config import load_config, load_rows
from opid_core.errors import ConfigError
from opid_core.hub import policy_folder

REPOSITORY = Path(__file__).parents[2]
CONFIGS = REPOSITORY / "configs"
TEMPLATES = REPOSITORY / "flows" / "templates"
SHIPPED = sorted([*CONFIGS.glob("*.yaml"), *CONFIGS.glob("*/*.yaml"), *TEMPLATES.glob("*.yaml")])
VALIDATOR = jsonschema.Draft202012Validator(schema())


def test_the_committed_schema_is_what_the_models_say():
    assert (CONFIGS / "opid.schema.json").read_text(encoding="utf-8") == text(), "run `make docs`"
    jsonschema.Draft202012Validator.check_schema(schema())


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_shipped_config_loads_fits_the_schema_and_names_it(path, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setenv("ALFWORLD_DATA", "/games")
    load_rows(path)
    written = path.read_text(encoding="utf-8")
    VALIDATOR.validate(yaml.safe_load(written))
    first = written.splitlines()[0]
    assert first.startswith("# yaml-language-server: $schema=")
    named = path.parent / first.partition("$schema=")[2]
    assert named.resolve() == CONFIGS / "opid.schema.json" or path.parent == TEMPLATES  # `opid init` writes it beside


@pytest.mark.parametrize(
    "wrong",
    [
        {"iterations": -1},
        {"iteration": 3},
        {"learner": {"learning_rat": 1}},
        {"method": {"name": "ppo"}},
        {"method": {"name": "sdar", "tied_groups": "sometimes"}},
        {"environment": {"name": "chess"}},
    ],
)
def test_the_schema_refuses_what_a_config_cannot_hold(wrong):
    with pytest.raises(jsonschema.ValidationError):
        VALIDATOR.validate({"campaign": "x", **wrong})


def test_names_of_ones_own_modules_fit_the_schema():
    VALIDATOR.validate({"method": {"name": "mine:Method", "own": 1}, "environment": {"name": "mine:World"}})


def test_a_distribution_has_every_file_of_the_configs_and_what_metrics_are():
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    prefix = "share/opid/"
    shipped = set()
    for target, patterns in settings["data-files"].items():
        found = [path for pattern in patterns for path in REPOSITORY.glob(pattern)]
        assert {path.parent for path in found} == {REPOSITORY / target.removeprefix(prefix)}
        shipped |= set(found)
    configs = {path for path in CONFIGS.rglob("*") if path.is_file()}
    assert shipped == configs | {REPOSITORY / "docs" / "metrics.md"}


def test_init_writes_commented_configs_with_their_schema_and_overwrites_nothing(tmp_path, opid):
    folder = tmp_path / "new" / "project"
    assert f"opid train {folder}/first.yaml --dry-run" in opid("init", folder)
    assert {path.name for path in folder.iterdir()} == {"first.yaml", "my_model.yaml", "opid.schema.json"}
    assert json.loads((folder / "opid.schema.json").read_text(encoding="utf-8")) == schema()
    assert load_config(folder / "first.yaml").campaign == "first"
    (folder / "first.yaml").write_text("mine")
    (folder / "my_model.yaml").unlink()
    with pytest.raises(ConfigError, match=r"first\.yaml exists already"):
        opid("init", folder)
    assert (folder / "first.yaml").read_text() == "mine"
    assert not (folder / "my_model.yaml").exists()


def test_what_is_installed_with_opid_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_config("configs/compare/grpo.yaml")
    assert config.policy
    assert policy_folder(config.policy) == CONFIGS / "policies" / "alfworld_tiny"
    own = tmp_path / "configs" / "policies" / "alfworld_tiny"
    own.mkdir(parents=True)
    assert policy_folder(config.policy) == Path("configs/policies/alfworld_tiny")  # what lies here is nearer
    with pytest.raises(ConfigError, match=r"configs/absent\.yaml: cannot read the config"):
        load_config("configs/absent.yaml")
