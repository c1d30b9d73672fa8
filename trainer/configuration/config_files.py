"""Configurations in files and on the command line."""

from __future__ import annotations

import argparse
import dataclasses
import os
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from trainer.checks.arguments import describe_value
from trainer.checks.paths import to_absolute_path
from trainer.checks.suggestions import suggest_and_list
from trainer.configuration.dataclasses import TrainingConfig
from trainer.configuration.typed_values import convert_value
from trainer.configuration.yaml import dump_yaml, parse_yaml
from trainer.host.atomic_files import atomic_replace
from trainer.host.escaping import escape_lines
from trainer.host.extras import require_extra
from trainer.host.redaction import redact_settings, redact_text
from trainer.host.safe_open import UnsafeFile, read_bytes

Config = TypeVar("Config", bound=TrainingConfig)

FREE = ("run", "fresh", "checkpointing", "logging", "hooks")
"""Settings that may differ where a run goes on: where results go, and hooks, which come and go."""


def load_config(path: str | os.PathLike[str], cls: type[Config]) -> Config:
    """Read a configuration from a YAML file; what it does not name keeps the class's default.

    Args:
        path: of the file.
        cls: `TrainingConfig`, or a subclass that adds settings, all of them with defaults.

    Raises:
        ValueError: it is no YAML, or has an unknown key, a value of a wrong type or one out of
            range: all of them are listed.
        OSError: the file cannot be read.
        ImportError: PyYAML is not installed.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder, "small.yaml")
    ...     _ = file.write_text("epochs: 2\\noptimizer: {learning_rate: 1e-4}")
    ...     config = load_config(file, TrainingConfig)
    >>> config.epochs, config.optimizer.learning_rate
    (2, 0.0001)
    """
    if not isinstance(cls, type):
        raise TypeError(
            f"load_config takes the class of a configuration; got {describe_value(cls)}: give its "
            "class, "
            f"{type(cls).__name__}"
        )
    problems, file = list[str](), to_absolute_path(path, "load_config")
    try:
        content = parse_yaml(read_bytes(file, follow=True).decode())
    except (ValueError, UnsafeFile) as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from error
    config = cls()
    config = _with(config, {} if content is None else content, "", list(_paths(config)), problems)
    if problems:
        listed = "\n  ".join(problems)
        told = redact_text(escape_lines(listed))
        raise ValueError(f"{os.fspath(path)} does not fit {cls.__name__}:\n  {told}")
    return config


def _with(default: Any, content: Any, where: str, known: list[str], problems: list[str]) -> Any:
    """Give a dataclass with a mapping's values in the place of its own; note what is wrong."""
    if not isinstance(content, Mapping):
        got = redact_settings(content, where)
        problems.append(f"{where or 'it'}: wanted settings by name; got {got!r:.100}")
        return default
    hints = typing.get_type_hints(type(default), include_extras=True)
    names = [field.name for field in dataclasses.fields(default) if field.init]
    values, before = {}, len(problems)
    for key, value in content.items():
        path = f"{where}.{key}" if where else str(key)
        if key not in names:
            elsewhere = [name for name in known if name.rpartition(".")[2] == key]
            hint = (
                f". Did you mean '{elsewhere[0]}'?" if elsewhere else suggest_and_list(key, names)
            )
            problems.append(f"{path}: there is no such setting{hint}")
        elif dataclasses.is_dataclass(section := getattr(default, key)):
            values[key] = _with(section, value, path, known, problems)
        else:
            try:
                values[key] = convert_value(value, hints[key], path)
            except ValueError as error:
                problems.append(str(error))
    if len(problems) > before:
        return default
    try:
        return dataclasses.replace(default, **values)
    except ValueError as error:
        problems.append(f"{where}: {error}" if where else str(error))
        return default


def _paths(config: Any, where: str = "") -> Iterator[str]:
    """Name every setting, those of sections dotted."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from _paths(value, f"{where}{field.name}.")
        else:
            yield f"{where}{field.name}"


def parse_config(
    cls: type[Config],
    arguments: Sequence[str] | None = None,
    *,
    description: str | None = None,
) -> Config:
    """Read a configuration from the command line: `--config file.yaml`, and flags that override it.

    Settings in sections are dotted, `--optimizer.learning-rate 3e-4`; `--help` lists all. A mistake
    ends the program with what is wrong.

    Args:
        cls: `TrainingConfig`, or a subclass that adds settings, all of them with defaults.
        arguments: of the command line; those of the program if absent.
        description: of the program, for `--help`.

    Raises:
        SystemExit: help was asked for, or something is wrong.
        ImportError: tyro is not installed.

    >>> config = parse_config(TrainingConfig, ["--epochs", "3", "--optimizer.name", "sgd"])
    >>> config.epochs, config.optimizer.name
    (3, 'sgd')
    """
    with require_extra("config", "the command line", "tyro"):
        import tyro
    file = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    file.add_argument("--config", type=Path)
    known, flags = file.parse_known_args(arguments)
    try:
        config = cls() if known.config is None else load_config(known.config, cls)
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from error
    hooks = config.hooks  # of any depth, and no matter for flags
    text = f"{(description or '').strip()}\n\nSettings are taken from --config FILE and from flags."
    config = tyro.cli(
        cls, default=dataclasses.replace(config, hooks=()), args=flags, description=text.strip()
    )
    try:
        check_fresh(config)
    except FileExistsError as error:
        raise SystemExit(str(error)) from error
    return dataclasses.replace(config, hooks=hooks)


def check_fresh(config: TrainingConfig) -> None:
    """Check that a run which is to be fresh has a directory that is empty or absent.

    Empty files and folders do not count: a run that was refused before it began leaves them.

    Raises:
        FileExistsError: there is something in it.
    """
    if config.fresh and any(
        file.stat().st_size
        for file in to_absolute_path(config.run, "run").rglob("*")
        if file.is_file()
    ):
        raise FileExistsError(
            f"a fresh run needs an empty or absent directory; {config.run} holds a run"
        )


def to_dict(config: TrainingConfig) -> dict[str, Any]:
    """Give a configuration as plain data: sections as mappings, tuples as lists, paths as text.

    >>> to_dict(TrainingConfig())["run"]
    'runs/default'
    """

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: plain(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [plain(inner) for inner in value]
        return os.fspath(value) if isinstance(value, os.PathLike) else value

    return typing.cast(dict[str, Any], plain(dataclasses.asdict(config)))


def save_config(config: TrainingConfig, path: str | os.PathLike[str]) -> None:
    """Write a configuration as the YAML file that `load_config` reads, or replace one as a whole.

    Passwords are left out: `***` stands for them, and a store's is looked for elsewhere then.

    Raises:
        OSError: it cannot be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_config(TrainingConfig(seed=3), f"{folder}/config.yaml")
    ...     load_config(f"{folder}/config.yaml", TrainingConfig).seed
    3
    """
    path, content = (
        to_absolute_path(path, "save_config"),
        dump_yaml(redact_settings(to_dict(config))),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_replace(path) as beside:
        beside.write_text(content, encoding="utf-8")


def to_comparable(config: TrainingConfig) -> dict[str, Any]:
    """Give what a commit keeps of a configuration, to be compared where the run goes on.

    Left out is what says nothing of the run (`FREE`). A schedule that is as long as the run depends
    on `epochs`, so they stand beside it.

    >>> from trainer.configuration.dataclasses import Schedule
    >>> kept = to_comparable(TrainingConfig(epochs=5, schedule=Schedule("cosine")))
    >>> "run" in kept, kept["schedule"]["epochs"]
    (False, 5)
    """
    kept: dict[str, Any] = redact_settings(to_dict(config))
    data = {name: value for name, value in kept.items() if name not in FREE}
    plan = config.schedule
    if plan.steps is None and (plan.name != "constant" or plan.warmup_share):
        data["schedule"]["epochs"] = config.epochs
    return data
