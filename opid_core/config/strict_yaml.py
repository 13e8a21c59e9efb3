"""YAML as people read it: what stands twice and what means another number than it shows is refused."""

from __future__ import annotations

import re
from typing import Any

import yaml
from yaml.constructor import ConstructorError
from yaml.scanner import ScannerError

MAX_YAML_BYTES = 1 << 18
"""Of a config file (256 KiB): the longest that come with OPID have 3."""
MAX_NODES = 10_000

_OCTAL = re.compile(r"[-+]?0[0-9_]+")
_SEXAGESIMAL = re.compile(r"[-+]?[0-9][0-9_]*(:[0-9]+)+(\.[0-9_]*)?")


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader (YAML 1.1) without that version's surprises: `on`, `off`, `yes` and `no` are texts."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - as PyYAML has it
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool" or first in "tTfF"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: dict[str, Any] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and seen.setdefault(key.value, key) is not key:
                first = seen[key.value].start_mark.line + 1
                raise ConstructorError(None, None, f"{key.value}: stands twice, first on line {first}", key.start_mark)
        return node

    def compose_scalar_node(self, anchor: Any) -> yaml.ScalarNode:
        node = super().compose_scalar_node(anchor)
        if node.style is None:
            for pattern, base in ((_OCTAL, 8), (_SEXAGESIMAL, 60)):
                if pattern.fullmatch(node.value):
                    problem = (
                        f"{node.value}: YAML reads this as a number of base {base}; write it in base 10, or quote it"
                    )
                    raise ConstructorError(None, None, problem, node.start_mark)
        return node


def parse_yaml(text: str) -> Any:
    """The plain data of a YAML text. Raises yaml.YAMLError that tells the line, also where aliases stand for more than
    `MAX_NODES` values, or values are nested too deeply."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _count(node, {})
        return loader.construct_document(node)
    except ScannerError as error:
        if error.problem_mark and "'\\t'" in (error.problem or ""):
            raise yaml.YAMLError(f"line {error.problem_mark.line + 1}: a tab; indent with spaces") from None
        raise
    except RecursionError:
        raise yaml.YAMLError("nested too deeply") from None
    finally:
        loader.dispose()


def _count(node: yaml.Node, counts: dict[int, int]) -> int:
    """How many values `node` stands for, aliases counted as often as they are used; `counts` are those known already.

    Twenty lines of lists that name each other can stand for more than any memory holds.
    """
    if id(node) not in counts:
        counts[id(node)] = MAX_NODES  # of an alias that is part of what it stands for: without end
        inner = () if isinstance(node, yaml.ScalarNode) else node.value
        parts = (part for entry in inner for part in (entry if isinstance(entry, tuple) else (entry,)))
        counts[id(node)] = 1 + sum(_count(part, counts) for part in parts)
        if counts[id(node)] > MAX_NODES:
            raise ConstructorError(None, None, f"stands for more than {MAX_NODES} values", node.start_mark)
    return counts[id(node)]
