"""YAML as a configuration needs it: plain data, no key twice, and no surprises in what is read."""

from __future__ import annotations

import functools
import re
from typing import Any, ClassVar, NamedTuple

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
"""What is no text although it stands without quotes, and its first characters: the core schema of
YAML 1.2, but for hexadecimal and octal numbers. PyYAML's own is that of 1.1, where `1e-3` is text,
`on` true, `010` eight, `1:30` 90."""


class _Yaml(NamedTuple):
    module: Any
    loader: Any
    dumper: Any


@functools.cache
def _yaml() -> _Yaml:
    try:
        import yaml
    except ImportError as error:
        error.add_note('configuration files need PyYAML: pip install "entracte[config]"')
        raise

    class Loader(yaml.SafeLoader):
        yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            names = [str(key.value) for key, _ in node.value]
            for number, (key, _) in enumerate(node.value):
                if names[number] in names[:number]:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value!r} stands here twice", key.start_mark
                    )
            return dict(super().construct_mapping(node, deep=deep))

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    for name, (pattern, first) in _PLAIN.items():
        expression = re.compile(f"^(?:{pattern})$")
        for kind in (Loader, Dumper):  # the latter quotes text that either schema takes for more
            kind.add_implicit_resolver(f"tag:yaml.org,2002:{name}", expression, first)
    return _Yaml(yaml, Loader, Dumper)


def parsed(text: str) -> Any:
    """Give what a YAML document holds: mappings, lists, text, numbers, true, false, null.

    Raises:
        ValueError: it is no YAML, a key stands in a mapping twice, or a tag asks for more.

    >>> parsed("{optimizer: {learning_rate: 1e-3}, on: 'yes'}")
    {'optimizer': {'learning_rate': 0.001}, 'on': 'yes'}
    """
    yaml, loader, _ = _yaml()
    try:
        return yaml.load(text, loader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"it is no YAML of plain data: {error}") from error


def printed(data: Any) -> str:
    """Give plain data as a YAML document that `parsed` reads back as it is.

    >>> print(printed({"epochs": 2, "optimizer": {"betas": [0.9, 0.999]}}), end="")
    epochs: 2
    optimizer:
      betas: [0.9, 0.999]
    """
    yaml, _, dumper = _yaml()
    return str(yaml.dump(data, Dumper=dumper, sort_keys=False, default_flow_style=None, width=100))
