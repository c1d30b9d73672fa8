"""YAML for configurations: plain data, no duplicate keys, and the scalars of YAML 1.2."""

from __future__ import annotations

import functools
import math
import re
from typing import Any, ClassVar

import jax

from trainer.host.escaping import escape_lines
from trainer.host.extras import require_extra

_PLAIN = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?(0|[1-9][0-9]*)", list("-+0123456789")),
    "float": (
        r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
}
"""Unquoted scalars that are not text, and their first characters: the core schema of YAML 1.2,
without hexadecimal and octal numbers. PyYAML has that of 1.1, where `1e-3` is text, `on` true,
`010` eight, `1:30` 90."""


MOST_NODES = 10_000
"""The most values and keys of a document, with aliases expanded: ten lines, each with ten aliases
of the line before, expand to ten thousand million."""


@functools.cache
def _yaml() -> tuple[Any, Any, Any]:
    """Return PyYAML, its loader and its dumper."""
    with require_extra("config", "configuration files", "PyYAML"):
        import yaml

    class Loader(yaml.SafeLoader):
        yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}

        def get_single_node(self) -> Any:
            node = super().get_single_node()
            counts: dict[int, float] = {}
            size = 0 if node is None else _size(node, counts)
            if size > max(MOST_NODES, len(counts)):
                raise yaml.composer.ComposerError(
                    None,
                    None,
                    f"with its aliases (*) expanded it has {size:.0f} values, and may have "
                    f"{MOST_NODES}: write out what is meant",
                    node.start_mark,
                )
            return node

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            names: set[str] = set()
            for key, _ in node.value:
                if str(key.value) in names:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value!r} is here twice", key.start_mark
                    )
                names.add(str(key.value))
            return dict(super().construct_mapping(node, deep=deep))

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    for name, (pattern, first) in _PLAIN.items():
        expression = re.compile(f"^(?:{pattern})$")
        for kind in (Loader, Dumper):  # the latter quotes text that either schema would convert
            kind.add_implicit_resolver(f"tag:yaml.org,2002:{name}", expression, first)
    return yaml, Loader, Dumper


def _size(node: Any, counts: dict[int, float]) -> float:
    """Count the nodes of a node with aliases expanded; infinite if it contains itself.

    Counts are kept by the identity of nodes, so that each is visited once.
    """
    if id(node) not in counts:
        counts[id(node)] = math.inf  # until it is counted: a node that meets itself is infinite
        inner = (one for one in jax.tree.leaves(node.value) if not isinstance(one, str))
        counts[id(node)] = 1 + sum(_size(one, counts) for one in inner)
    return counts[id(node)]


def parse_yaml(text: str) -> Any:
    """Return the data of a YAML document: mappings, lists, text, numbers, true, false, null.

    Raises:
        ValueError: it is no YAML, a mapping has a key twice, a tag asks for other types, or it has
            more than 10,000 values with aliases expanded.

    >>> parse_yaml("{optimizer: {learning_rate: 1e-3}, on: 'yes'}")
    {'optimizer': {'learning_rate': 0.001}, 'on': 'yes'}
    """
    yaml, loader, _ = _yaml()
    try:
        return yaml.load(text, loader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"it is no YAML of plain data: {escape_lines(error)}") from error


def dump_yaml(data: Any) -> str:
    """Return plain data as a YAML document that `parse_yaml` reads back unchanged.

    >>> print(dump_yaml({"epochs": 2, "optimizer": {"betas": [0.9, 0.999]}}), end="")
    epochs: 2
    optimizer:
      betas: [0.9, 0.999]
    """
    yaml, _, dumper = _yaml()
    return str(yaml.dump(data, Dumper=dumper, sort_keys=False, default_flow_style=None, width=100))
