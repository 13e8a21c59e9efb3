"""Expectations of the user's own: those that a config lists, and those that a plugin's function returns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from opid_core.config import GatesConfig
from opid_core.errors import ConfigError
from opid_core.sections import imported
from tasks.gates.expectations import Expectation
from tasks.gates.frame import Frame


def user_expectations(
    name: str, table: pa.Table, related: Mapping[str, pa.Table], settings: GatesConfig
) -> list[tuple[str, Expectation | Frame]]:
    """What the user's config and plugins expect of table `name`, each with the config key that it is from. A plugin is
    called with the name, the table, and the tables that its gate compares it with; it returns expectations of the
    table's own frame, and frames of its own.

    Raises ConfigError for a plugin that cannot be imported or returns anything else.
    """
    found: list[tuple[str, Expectation | Frame]] = [
        (f"gates.expectations.{n}", Expectation(own.expectation, dict(own.arguments), own.severity))
        for n, own in enumerate(settings.expectations)
        if own.table == name
    ]
    for n, plugin in enumerate(settings.plugins):
        where = f"gates.plugins.{n}"
        returned = _function(plugin, where)(name, table, related)
        if not isinstance(returned, list | tuple) or not all(isinstance(r, Expectation | Frame) for r in returned):
            raise ConfigError(f"{where}: {plugin} must return a list of tasks.gates.Expectation and Frame for {name}")
        found += [(where, one) for one in returned]
    return found


def with_user_expectations(frames: Sequence[Frame], own: Sequence[tuple[str, Expectation | Frame]]) -> list[Frame]:
    """`frames` of a table with the user's own: single expectations are of the first frame, the table's own rows."""

    def alone(suite: Iterable[Expectation]) -> tuple[Expectation, ...]:
        return tuple(replace(one, broken_in=None) for one in suite)  # what Great Expectations says of a wrong column

    first = replace(frames[0], suite=(*frames[0].suite, *alone(one for _, one in own if isinstance(one, Expectation))))
    own_frames = [one for _, one in own if isinstance(one, Frame)]
    return [
        first,
        *frames[1:],
        *(Frame(one.rows.reset_index(drop=True), one.key, alone(one.suite)) for one in own_frames),
    ]


def _function(plugin: str, where: str) -> Callable[..., Any]:
    found = imported(plugin, where)
    if not callable(found):
        module, _, name = plugin.partition(":")
        raise ConfigError(f"{where}: module {module!r} has no function {name!r}")
    return found
