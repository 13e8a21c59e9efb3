"""`python -m flows.reference`: docs/configuration.md, made from the config models themselves."""

from __future__ import annotations

import types
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, TypeGuard, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from envs.base import BUILT_IN, options_model
from opid_core.config import PRESETS, PRESETS_BY_ENVIRONMENT, CampaignConfig
from opid_core.hashing import MAY_DIFFER
from opid_core.learning import methods
from tasks.markdown import markdown_table

_INTRODUCTION = f"""\
# Configuration

One YAML file describes a campaign; `configs/quickstart.yaml` is an example. This page is made from the config models
by `make docs`; `opid init DIR` writes commented ones to begin with.

* A key left out has its default; only `campaign` must be given. An unknown key or value is refused, with the nearest
  valid name.
* A dotted key below is a nested key of the file: `learner.learning_rate` stands in the section `learner`.
* `--set KEY=VALUE` of the commands overrides the file: `--set learner.learning_rate=1e-5 --set campaign=second`.
  Another `environment.name` drops the options below it, another `method.name` the keys that it does not read.
* A key stands once. Numbers are finite, and of base 10: YAML would take `010` for 8 and `1:30` for 90, so both are
  refused. `~` and `$NAME` may stand in folders and files; one that begins with `configs/` and is not here is that which
  was installed with OPID.
* Editors with a YAML language server complete and check keys by `configs/opid.schema.json` (`opid schema` prints it).
* `opid train CONFIG --dry-run` prints every value that a run would have.
* A campaign is continued with the config that it was created with. Only {", ".join(f"`{key}`" for key in MAY_DIFFER)}
  may differ; any other change is refused with the difference, and needs another campaign name.
"""

_NOUNS: dict[Any, tuple[str, str]] = {
    bool: ("`true`, `false`", "truth values"),
    int: ("integer", "integers"),
    float: ("number", "numbers"),
    str: ("text", "texts"),
}
"""A type in words, of one value and of several."""

_BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def reference() -> str:
    """The whole page in Markdown: a table a section, environments' options, presets."""
    parts = [_INTRODUCTION]
    for prefix, model in sections(CampaignConfig):
        if model is methods.Method:
            parts.append(_methods())
            continue
        parts.append(_section(f"`{prefix}`" if prefix else "Top level", prefix, model))
        if prefix == "environment":
            parts += [
                _section(f"`{nested}` for `name: {name}`", nested, nested_model)
                for name in BUILT_IN
                for nested, nested_model in sections(options_model(name), "environment.options")
            ]
    return "\n".join([*parts, _presets()])


def sections(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """(dotted key, model) of `model` and of all models nested in it, outer ones first."""
    yield prefix, model
    for name, field in model.model_fields.items():
        for nested in get_args(field.annotation) if _is_union(field.annotation) else (field.annotation,):
            if _is_model(nested):
                yield from sections(nested, f"{prefix}.{name}" if prefix else name)


def rows(model: type[BaseModel], prefix: str = "") -> list[tuple[str, str, str, str]]:
    """(dotted key, allowed values, default, meaning) of each field of `model` that is no section of its own."""
    return [
        (
            f"{prefix}.{name}" if prefix else name,
            allowed(field),
            "(required)" if field.is_required() else f"`{_as_yaml(field)}`",
            " ".join((field.description or "").split()),
        )
        for name, field in model.model_fields.items()
        if not _is_model(field.annotation)
    ]


def allowed(field: FieldInfo) -> str:
    """The values that a field takes, in words: its type and its bounds."""
    bounds = _bounds(field.metadata)
    patterns = [f"matching `{c.pattern}`" for c in field.metadata if getattr(c, "pattern", None)]
    lengths = [f"(at least {c.min_length})" for c in field.metadata if getattr(c, "min_length", 0)]
    choices = [c for c in get_args(field.annotation) if c is not type(None)] if _is_union(field.annotation) else []
    words = " ".join([_in_words(choices[0] if choices else field.annotation), *patterns, ", ".join(bounds + lengths)])
    return words.strip() + (", or `null`" if choices else "")


def _bounds(constraints: Sequence[Any]) -> list[str]:
    return [
        f"{sign} {bound if isinstance(bound, int) else f'{bound:g}'}"
        for constraint in constraints
        for name, sign in _BOUNDS.items()
        if (bound := getattr(constraint, name, None)) is not None
    ]


def _in_words(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{str(value).lower() if isinstance(value, bool) else value}`" for value in arguments)
    if origin is dict:
        return "mapping"
    if origin is tuple and get_origin(arguments[0]) is Literal:
        return f"list of {_in_words(arguments[0])}"
    if origin is tuple and _is_model(arguments[0]):
        return f"list of mappings with the keys {', '.join(f'`{key}`' for key in arguments[0].model_fields)}"
    if origin is tuple:
        count = "" if Ellipsis in arguments else f"{len(arguments)} "
        element, *about = get_args(arguments[0]) if get_origin(arguments[0]) is Annotated else (arguments[0],)
        bounds = _bounds([constraint for field in about for constraint in field.metadata])
        return f"list of {count}{_NOUNS[element][1]} {', '.join(bounds)}".rstrip()
    return "mapping" if _is_model(annotation) else _NOUNS[annotation][0]


def _is_union(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, types.UnionType)


def _is_model(annotation: Any) -> TypeGuard[type[BaseModel]]:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _as_yaml(field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True, validated_data={})
    text = yaml.safe_dump(to_jsonable_python(default), default_flow_style=True, width=10_000)
    return text.removesuffix("...\n").strip()


def _section(title: str, prefix: str, model: type[BaseModel]) -> str:
    summary = " ".join((model.__doc__ or "").split())
    return f"## {title}\n\n{summary}\n\n" + table(
        ("key", "allowed values", "default", "meaning"),
        [(f"`{key}`", *others) for key, *others in rows(model, prefix)],
    )


def _methods() -> str:
    """One table of the keys of all methods, with those that read each."""
    read_by: dict[tuple[str, ...], list[str]] = {}
    for name, model in methods.BUILT_IN.items():
        for row in rows(model, "method"):
            if row[0] != "method.name":
                read_by.setdefault(row, []).append(name)
    keys = list(dict.fromkeys(key for key, *_ in read_by))
    name_means = " ".join((methods.Method.model_fields["name"].description or "").split())
    names = ", ".join(f"`{name}`" for name in methods.BUILT_IN)
    body = [("`method.name`", "all", f"{names}, or text of the form `module:name`", f"`{methods.DEFAULT}`", name_means)]
    for (key, values, default, meaning), read in sorted(read_by.items(), key=lambda item: keys.index(item[0][0])):
        who = "all" if len(read) == len(methods.BUILT_IN) else ", ".join(f"`{name}`" for name in read)
        body.append((f"`{key}`", who, values, default, meaning))
    summary = " ".join((methods.Method.__doc__ or "").split())
    return f"## `method`\n\n{summary}\n\n" + table(("key", "read by", "allowed values", "default", "meaning"), body)


def _presets() -> str:
    names = list(PRESETS)
    keys = [(section, key) for section, values in PRESETS[names[0]].items() for key in values]
    introduction = (
        "## Presets\n\n"
        "What `preset` sets: the numbers in which the paper's text and its released code differ. "
        "A value written in the file wins.\n\n"
    )
    by_method = [
        (f"`{name}`", f"`learner.{key}`", f"`{value}`")
        for name, method in methods.BUILT_IN.items()
        for key, value in method.learner_defaults.items()
    ]
    return (
        introduction
        + table(
            ("key", *(f"`{name}`" for name in names)),
            [(f"`{section}.{key}`", *(f"`{PRESETS[name][section][key]}`" for name in names)) for section, key in keys],
        )
        + "\nWhat a preset sets otherwise for one environment:\n\n"
        + table(
            ("preset", "`environment.name`", "key", "value"),
            [
                (f"`{preset}`", f"`{environment}`", f"`{section}.{key}`", f"`{value}`")
                for (preset, environment), sections in PRESETS_BY_ENVIRONMENT.items()
                for section, values in sections.items()
                for key, value in values.items()
            ],
        )
        + "\nWhat `method.name` sets; here too a value written in the file wins.\n\n"
        + table(("method", "key", "value"), by_method)
    )


def table(header: tuple[str, ...], body: list[tuple[str, ...]]) -> str:
    """A table in Markdown."""
    rows = [[cell.replace("|", "\\|") for cell in row] for row in body]
    return "\n".join([*markdown_table(header, rows), ""])


if __name__ == "__main__":
    print(reference(), end="")
