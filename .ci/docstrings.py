"""An extension of griffe, which reads the packages for the site: docstrings, and imported names."""

import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import griffe

EXAMPLE = re.compile(r"^>>> .*(?:\n(?!\n).*)*", re.MULTILINE)
ARGUMENTS = re.compile(r"^    (\w+(?:, \w+)+)(: .*(?:\n {8}.*)*)", re.MULTILINE)


class Docstrings(griffe.Extension):
    """Writes examples as fenced code, and arguments that share a line as one line each.

    A name that a package imports from a module of the same name means what is imported, as in
    Python: `models.mlp` is a function, and not the file that defines it.
    """

    def on_package(self, *, pkg: griffe.Module, loader: griffe.GriffeLoader, **_: Any) -> None:
        """Change docstrings and names of a package that was read."""
        members = list(_walk(pkg))
        for member in members:
            if isinstance(member, griffe.Alias):  # found while its module is found by its path
                with suppress(griffe.AliasResolutionError, griffe.CyclicAliasError):
                    member.resolve_target()
            elif member.docstring:
                text = EXAMPLE.sub(r"```pycon\n\g<0>\n```", member.docstring.value)
                member.docstring.value = ARGUMENTS.sub(_write_each, text)
        hidden = [
            (module, name, loader.modules_collection[source])
            for module in members
            if isinstance(module, griffe.Module)
            for name, source in module.imports.items()
            if name in module.modules and source != f"{module.path}.{name}"
        ]
        for module, name, imported in hidden:
            module.members[name] = griffe.Alias(name, imported, parent=module)


def _walk(member: griffe.Object | griffe.Alias) -> Iterator[griffe.Object | griffe.Alias]:
    """Yield an object and all within it."""
    yield member
    if not isinstance(member, griffe.Alias):
        for inner in member.members.values():
            yield from _walk(inner)


def _write_each(match: re.Match[str]) -> str:
    return "\n".join(f"    {name}{match[2]}" for name in match[1].split(", "))
