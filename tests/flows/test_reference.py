from pathlib import Path
from typing import Literal

import pytest
from pydantic import BaseModel, Field

from envs.base import BUILT_IN, options_model
from flows.reference import reference, rows, sections
from opid_core.config import CampaignConfig, build_config
from opid_core.hashing import MAY_DIFFER
from opid_core.learning import methods

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"
MODELS = [
    *sections(CampaignConfig),
    *(("method", method) for method in methods.BUILT_IN.values()),
    *(pair for name in BUILT_IN for pair in sections(options_model(name), "environment.options")),
]


def test_the_committed_page_is_what_the_models_say():
    assert PAGE.read_text(encoding="utf-8") == reference(), "docs/configuration.md is out of date: run `make docs`"


@pytest.mark.parametrize(("prefix", "model"), MODELS)
def test_every_section_and_every_field_is_described(prefix, model):
    assert (model.__doc__ or "").strip(), f"section {prefix or 'top level'} has no docstring"
    # `method.name` is described once, for all methods
    undescribed = [key for key, _, _, meaning in rows(model, prefix) if not meaning and key != "method.name"]
    assert not undescribed, f"fields without a docstring: {undescribed}"


def test_every_key_of_a_config_is_on_the_page():
    def keys(value: dict, prefix: str = "") -> list[str]:
        return [
            key
            for name, nested in value.items()
            for key in (keys(nested, f"{prefix}{name}.") if isinstance(nested, dict) else [f"{prefix}{name}"])
        ]

    found = keys(build_config({"campaign": "any"}).model_dump(mode="json"))
    assert "environment.options.generator.size" in found
    page = reference()
    assert [key for key in found if f"| `{key}` |" not in page] == []


def test_keys_that_may_differ_are_keys():
    assert {key.split(".")[0] for key in MAY_DIFFER} <= set(CampaignConfig.model_fields)


def test_rows_of_each_kind_of_field():
    class Inner(BaseModel):
        """A section."""

    class Part(BaseModel):
        left: int = 0
        right: int = 0

    class Example(BaseModel):
        model_config = {"use_attribute_docstrings": True}

        name: str = Field(pattern="^[a-z]+$")
        """A name,
        on two lines."""
        share: float = Field(default=1e-6, ge=0, lt=1)
        """A share."""
        limit: int | None = Field(default=None, ge=1)
        """A limit."""
        kind: Literal["one", "two"] = "one"
        """A kind."""
        kinds: tuple[Literal["a", "b"], ...] = Field(default=("a",), min_length=1)
        """Kinds."""
        pair: tuple[float, float] = (0.5, 2.0)
        """A pair."""
        parts: tuple[Part, ...] = ()
        """Parts."""
        flag: bool = True
        """A flag."""
        inner: Inner = Inner()

    assert rows(Example, "part") == [
        ("part.name", "text matching `^[a-z]+$`", "(required)", "A name, on two lines."),
        ("part.share", "number ≥ 0, < 1", "`1.0e-06`", "A share."),
        ("part.limit", "integer ≥ 1, or `null`", "`null`", "A limit."),
        ("part.kind", "`one`, `two`", "`one`", "A kind."),
        ("part.kinds", "list of `a`, `b` (at least 1)", "`[a]`", "Kinds."),
        ("part.pair", "list of 2 numbers", "`[0.5, 2.0]`", "A pair."),
        ("part.parts", "list of mappings with the keys `left`, `right`", "`[]`", "Parts."),
        ("part.flag", "`true`, `false`", "`true`", "A flag."),
    ]
    assert [prefix for prefix, _ in sections(Example, "part")] == ["part", "part.inner"]


def test_presets_are_listed_side_by_side():
    page = reference()
    assert "| `environment.success_reward` | `10.0` | `1.0` |" in page
    assert "| `method.baseline` | `step` | `trajectory` |" in page
    assert "| `dapo` | `learner.clip_high` | `0.28` |" in page
