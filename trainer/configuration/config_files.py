"""Read configurations from files and the command line, and write them."""

from __future__ import annotations

import argparse
import dataclasses
import os
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from trainer.checks.arguments import describe_value
from trainer.checks.paths import to_absolute_path
from trainer.checks.suggestions import suggest_and_list
from trainer.configuration.dataclasses import TrainingConfig
from trainer.configuration.setting_rows import flatten_settings
from trainer.configuration.typed_values import convert_value
from trainer.configuration.yaml import dump_yaml, parse_yaml
from trainer.host.atomic_files import atomic_replace
from trainer.host.escaping import escape_lines
from trainer.host.extras import require_extra
from trainer.host.redaction import redact_settings, redact_text
from trainer.host.safe_open import UnsafeFile, read_bytes

Config = TypeVar("Config", bound=TrainingConfig)

UNCOMPARED = ("run", "fresh", "checkpointing", "logging", "hooks")
"""Settings that may differ on resume: where results go, and hooks, which may come and go."""


def load_config(path: str | os.PathLike[str], cls: type[Config]) -> Config:
    """Read a configuration from a YAML file; settings it does not name keep the class's default.

    Args:
        path: of the file.
        cls: `TrainingConfig`, or a subclass that adds settings, all of them with defaults.

    Raises:
        ValueError: it is no YAML, or has unknown keys, values of a wrong type or out of range: all
            of them are listed.
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
            f"class, {type(cls).__name__}"
        )
    problems, file = list[str](), to_absolute_path(path, "load_config")
    try:
        content = parse_yaml(read_bytes(file, follow=True).decode())
    except (ValueError, UnsafeFile) as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from error
    default, content = cls(), {} if content is None else content
    config = _replace_settings(default, content, "", [*flatten_settings(default)], problems)
    if problems:
        listed = redact_text(escape_lines("\n  ".join(problems)))
        raise ValueError(f"{os.fspath(path)} does not fit {cls.__name__}:\n  {listed}")
    return config


def _replace_settings(
    default: Any, content: Any, where: str, known: list[str], problems: list[str]
) -> Any:
    """Return a dataclass with its values replaced by a mapping's; add what is wrong to problems."""
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
            values[key] = _replace_settings(section, value, path, known, problems)
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


def parse_config(
    cls: type[Config],
    arguments: Sequence[str] | None = None,
    *,
    description: str | None = None,
) -> Config:
    """Read a configuration from the command line: `--config file.yaml`, and flags that override it.

    Settings in sections have dots, `--optimizer.learning-rate 3e-4`; `--help` lists all. A mistake
    ends the program with a message.

    Args:
        cls: `TrainingConfig`, or a subclass that adds settings, all of them with defaults.
        arguments: of the command line; None: those of the program.
        description: of the program, for `--help`.

    Raises:
        SystemExit: help was requested, or a setting is wrong.
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
    text = f"{(description or '').strip()}\n\nSettings are taken from --config FILE and from flags."
    try:
        config = cls() if known.config is None else load_config(known.config, cls)
        hooks = config.hooks  # of any depth, and not for flags
        bare = dataclasses.replace(config, hooks=())
        config = tyro.cli(cls, default=bare, args=flags, description=text.strip())
        check_fresh(config)
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from error
    return dataclasses.replace(config, hooks=hooks)


def check_fresh(config: TrainingConfig) -> None:
    """Check that a fresh run has an empty or absent directory.

    Empty files and folders do not count: a run that was refused before it began leaves them.

    Raises:
        FileExistsError: there are files in it.
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
    """Return a configuration as plain data: sections as mappings, tuples as lists, paths as text.

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
    """Save a configuration as the YAML file that `load_config` reads, replacing it as a whole.

    Passwords are replaced by `***`; a store's is then taken from elsewhere.

    Raises:
        OSError: it cannot be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_config(TrainingConfig(seed=3), f"{folder}/config.yaml")
    ...     load_config(f"{folder}/config.yaml", TrainingConfig).seed
    3
    """
    path, content = to_absolute_path(path, "save_config"), redact_settings(to_dict(config))
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_replace(path) as beside:
        beside.write_text(dump_yaml(content), encoding="utf-8")


def to_comparable(config: TrainingConfig) -> dict[str, Any]:
    """Return the part of a configuration that checkpoints save, to be compared on resume.

    Settings in `UNCOMPARED` are left out. A schedule as long as the run depends on `epochs`, so
    its section includes them.

    >>> from trainer.configuration.dataclasses import Schedule
    >>> kept = to_comparable(TrainingConfig(epochs=5, schedule=Schedule("cosine")))
    >>> "run" in kept, kept["schedule"]["epochs"]
    (False, 5)
    """
    kept: dict[str, Any] = redact_settings(to_dict(config))
    data = {name: value for name, value in kept.items() if name not in UNCOMPARED}
    plan = config.schedule
    if plan.steps is None and (plan.name != "constant" or plan.warmup_share):
        data["schedule"]["epochs"] = config.epochs
    return data
