"""From a YAML file and overrides to a checked config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from envs.base import validate_options
from opid_core.config.campaign import CampaignConfig
from opid_core.config.episodes import EnvironmentConfig
from opid_core.config.presets import merge
from opid_core.config.strict_yaml import MAX_YAML_BYTES, parse_yaml
from opid_core.errors import ConfigError
from opid_core.learning import methods
from opid_core.local_paths import expanded_path, shipped
from opid_core.reading import read_text
from opid_core.wording import describe_validation_error


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> CampaignConfig:
    """Read a campaign's YAML file, apply `key.sub=value` overrides (values are YAML), check everything.

    A file may name others that it `extends` (paths from its own folder, each on top of those before it): it then holds
    only what differs. A path that begins with `configs/` and is not here is that of a config installed with OPID.
    Raises ConfigError that names the file, the field and the allowed values.
    """
    data = read_config_file(shipped(Path(path)))
    if "rows" in data:
        raise ConfigError(f"{path}: rows: a study of several campaigns; run it with opid compare")
    return build_config(on_top(data, parse_overrides(overrides)), str(path))


def load_rows(path: Path, overrides: Sequence[str] = ()) -> list[CampaignConfig]:
    """The config of each row of a study: a file whose `rows` hold, by name, what differs from the rest of the file. The
    name is the row's `campaign`. A file without `rows` is one row.

    Raises ConfigError as `load_config`.
    """
    data = read_config_file(shipped(path))
    if "rows" not in data:
        return [load_config(path, overrides)]
    rows, on_all = data.pop("rows"), parse_overrides(overrides)
    if not isinstance(rows, dict) or not rows:
        raise ConfigError(f"{path}: rows: expected a mapping of names to what differs, as in grpo: {{method: ...}}")
    configs = []
    for name, row in rows.items():
        if not isinstance(row, dict) or "campaign" in row:
            raise ConfigError(
                f"{path}: rows.{name}: expected a mapping of config keys without `campaign`, {{}} for none; got {row!r}"
            )
        configs.append(build_config(on_top(on_top(data, {**row, "campaign": name}), on_all), f"{path}: row {name}"))
    return configs


def read_config_file(path: Path, extending: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The keys of a config file, those of the files that it extends below them; not checked yet.

    `extending`: the files that led here. Raises ConfigError for a file that cannot be read or extends itself.
    """
    if path.resolve() in extending:
        raise ConfigError(f"{path}: extends: the files extend each other in a circle")
    try:
        text = read_text(path, MAX_YAML_BYTES)
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the config: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: cannot read the config: not UTF-8 text ({error.reason})") from None
    try:
        data = parse_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    if data is None:
        raise ConfigError(f"{path}: the file is empty; `opid init DIR` writes configs to begin with")
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected a mapping of config keys, got {type(data).__name__}")
    base = data.pop("extends", None)
    if base is None:
        return data
    bases = base if isinstance(base, list) else [base]
    if not bases or not all(isinstance(one, str) for one in bases):
        raise ConfigError(f"{path}: extends: expected the path of a config file, or a list of them, got {base!r}")
    below: dict[str, Any] = {}
    for one in bases:
        file = shipped(expanded_path(one, f"{path}: extends"), path.parent)
        below = on_top(below, read_config_file(file, (*extending, path.resolve())))
    return on_top(below, data)


def on_top(below: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """`data` over what is `below` it. Where it names another environment, the options below fall away; where it names
    another method, those keys below that this one does not read. Its own are checked with the rest."""
    merged, world, section = merge(below, data), data.get("environment"), data.get("method")
    before = below.get("environment")
    name = before.get("name", EnvironmentConfig().name) if isinstance(before, Mapping) else None
    if isinstance(world, Mapping) and name not in (None, world.get("name", name)):
        merged["environment"] = {**merged["environment"], "options": world.get("options", {})}
    if isinstance(section, Mapping) and "name" in section:
        try:
            read = methods.get(section["name"]).model_fields
        except ConfigError:
            return merged  # `build_config` says what is wrong with the name
        merged["method"] = {key: value for key, value in merged["method"].items() if key in read or key in section}
    return merged


def build_config(data: Mapping[str, Any], source: str = "config") -> CampaignConfig:
    """A checked config from plain data. `source` names it in errors."""
    try:
        config = CampaignConfig.model_validate(data)
        options = validate_options(config.environment.name, config.environment.options)
    except ValidationError as error:
        raise ConfigError(f"{source}: " + describe_validation_error(error, CampaignConfig)) from None
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None
    environment = config.environment.model_copy(update={"options": options.model_dump(mode="json")})
    return config.model_copy(update={"environment": environment})


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """`key.sub=value` texts (values are YAML) as one nested dict; later ones win. Raises ConfigError."""
    data: dict[str, Any] = {}
    for override in overrides:
        data = merge(data, _parse_override(override))
    return data


def _parse_override(text: str) -> dict[str, Any]:
    key, separator, value = text.partition("=")
    if not separator or not key.strip():
        raise ConfigError(f"--set {text!r}: expected key=value, as in --set learner.learning_rate=1e-5")
    try:
        leaf = parse_yaml(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {text!r}: the value is not valid YAML: {error}") from None
    *parents, last = key.strip().split(".")
    nested: dict[str, Any] = {last: leaf}
    for part in reversed(parents):
        nested = {part: nested}
    return nested
