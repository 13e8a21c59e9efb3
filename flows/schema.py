"""The JSON schema of a campaign's config file, for editors: `python -m flows.schema > configs/opid.schema.json`."""

from __future__ import annotations

import json
from typing import Any

from envs.base import BUILT_IN
from opid_core.config import CampaignConfig
from opid_core.learning import methods


def schema() -> dict[str, Any]:
    """What a file may hold: every key with type, bounds, default and meaning. It knows less than OPID does: which keys
    a method or an environment reads, and what must fit together, is checked by `opid train --dry-run`."""
    whole = CampaignConfig.model_json_schema()
    whole |= {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "OPID campaign"}
    del whole["required"]  # a file may extend another one
    whole["properties"]["extends"] = {
        "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}],
        "description": "Another config file, from this file's folder, or several, each on top of those before it: this "
        "one holds what differs.",
    }
    whole["properties"]["rows"] = {
        "type": "object",
        "minProperties": 1,
        "additionalProperties": {"$ref": "#"},
        "description": "Of a study (`opid compare`): by the name of a method what differs from the rest of the file.",
    }
    method = whole["$defs"]["Method"]
    for model in reversed(methods.BUILT_IN.values()):  # OPID's first: its `routing` knows one more
        of_model = model.model_json_schema()
        whole["$defs"] |= {
            name: definition for name, definition in of_model.get("$defs", {}).items() if name not in whole["$defs"]
        }
        method["properties"] = {**of_model["properties"], **method["properties"]}
    _named(method, list(methods.BUILT_IN))
    _named(whole["$defs"]["EnvironmentConfig"], list(BUILT_IN))
    return whole


def _named(section: dict[str, Any], built_in: list[str]) -> None:
    """Let `name` be one of `built_in` or `module:name`, whose own keys nobody knows here."""
    section["properties"]["name"] |= {"anyOf": [{"enum": built_in}, {"pattern": ":"}]}
    section.pop("required", None)
    section["additionalProperties"] = True


def text() -> str:
    """The schema as it is written to a file."""
    return json.dumps(schema(), indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    print(text(), end="")
