"""Build hooks from names, and everything that a configuration specifies of a run."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any

from hooks.checkpointing import save_checkpoints
from hooks.combining import Chain, chain
from hooks.config.allowed_names import Factory, find_factory, list_factories, read_type_hints
from hooks.metric_logging import log_metrics
from hooks.monitoring.system import heartbeat
from hooks.reports.writing_report import write_report
from hooks.writers.console import Console
from hooks.writers.database import Database
from hooks.writers.json_lines import JsonLines
from hooks.writers.mlflow import MLflow
from hooks.writers.tensorboard import TensorBoard
from hooks.writers.wandb import WandB
from hooks.writers.writer import Writer
from trainer import Hook, TrainState
from trainer.checks.paths import to_absolute_path
from trainer.checks.suggestions import suggest_and_list
from trainer.configuration import TrainingConfig, check_fresh, save_config, to_comparable
from trainer.configuration.typed_values import convert_value, is_supported_type
from trainer.hook import SKIP
from trainer.host.escaping import escape_text
from trainer.host.redaction import redact_settings
from trainer.runs import Run

NESTED = {"hook": "hook", "hooks": "hook", "writer": "writer", "writers": "writer"}
"""Arguments that are entries themselves, and their kind."""

RECORDS = "metrics.jsonl"
"""File of a run's metrics in its directory."""


def from_config(spec: Iterable[Any], *, given: Mapping[str, Any] = {}) -> Chain:
    """Build hooks from names and arguments, with the same public functions that a script calls.

    An entry is a name, `stop_on_nan`; or one name with its arguments, `{every: {n: 5, hook: ...}}`.
    An argument list that is no mapping is the first argument, `{average_params: 0.99}`, or all
    positional ones, `{log_metrics: [Console, {JsonLines: {path: run.jsonl}}]}`. Names are those of
    `hooks`, of entry points of other packages in the group `entracte.hooks`, and of `given`.
    Arguments called `hook`, `hooks`, `writer` and `writers` are entries themselves.

    Args:
        spec: the entries, plain data as in YAML.
        given: objects that a file cannot hold, by the name that it uses for them: phases and
            functions as arguments, `{evaluate: {phase: val}}`, and hooks as separate entries.

    Raises:
        ValueError: an entry is malformed, its name is unknown, or its arguments do not fit.

    >>> print(from_config([{"stop_early": {"metric": "train/loss", "patience": 3}}, "stop_on_nan"]))
    event  stage    hook                   reads       writes
    epoch  control  stop_early/train/loss  train/loss
    epoch  control  stop_on_nan
    """
    if taken := next((name for name in given if name in list_factories("hook", _package())), None):
        raise ValueError(f"given has {taken!r}, which already names a hook; choose another name")
    return chain(*_build_entries(spec, "hook", "hooks", given))


def build_hooks(
    config: TrainingConfig,
    *,
    writers: Sequence[Writer] | None = None,
    given: Mapping[str, Any] = {},
) -> Chain:
    """Build all hooks that a configuration specifies: its list, its logging, its checkpoints.

    The configuration itself is written to `config.yaml` in the run directory when the run starts,
    and into every checkpoint. Hooks whose scores it reads, such as `evaluate`, must come before it.

    Args:
        config: of the run.
        writers: for its metrics, from `build_writers(config)`, if other hooks write to them too;
            built here if absent.
        given: for `from_config`.

    Raises:
        FileExistsError: a fresh run is required, and the directory holds one.
        ValueError: a hook of its list does not fit.
    """
    listed = from_config(config.hooks, given=given)
    writers = build_writers(config) if writers is None else writers
    run = to_absolute_path(config.run, "build_hooks")
    records, page = run / RECORDS, run / "report.html"
    saving = config.checkpointing
    return chain(
        listed,
        log_metrics(*writers) if writers else (),
        [heartbeat(writer.run) for writer in writers if isinstance(writer, Database)],
        write_report(page, records=records, config=config) if config.logging.report else (),
        write_config(config),
        save_checkpoints(
            config.run,
            keep=saving.keep,
            best=saving.best,
            mode=saving.mode,
            max_cost=saving.max_cost,
            config=to_comparable(config),
        ),
    )


def build_writers(config: TrainingConfig) -> list[Writer]:
    """Build the writers that a configuration names, to share by `build_hooks`, `record` and others.

    Raises:
        FileExistsError: a fresh run is required, and the directory holds one.
        OSError: the directory cannot be written to.
    """
    check_fresh(config)
    logging = config.logging
    writers: list[Writer] = [Console()] if logging.console else []
    if logging.tensorboard:
        writers.append(TensorBoard(config.run))
    if logging.json_lines:
        writers.append(JsonLines(config.run / RECORDS))
    if logging.store != "off":
        store = None if logging.store == "beside" else logging.store
        writers.append(Database(Run(config.run, store=store, config=to_comparable(config))))
    for tracker, enabled in ((WandB, logging.wandb), (MLflow, logging.mlflow)):
        if enabled:
            kept = to_comparable(config)
            writers.append(tracker(config.run, config=kept, artifacts=config.run))
    return writers


def write_config(config: TrainingConfig) -> Hook:
    """Write the configuration to `config.yaml` in the run directory when a run starts or resumes.

    By then the run's checkpoint is restored: if it does not fit, the file stays as it was. `fresh`
    belongs to the call and not to the run, and is not written.
    """
    path = to_absolute_path(config.run, "write_config") / "config.yaml"

    def write(state: TrainState, metrics: Mapping[str, float]) -> TrainState:
        save_config(dataclasses.replace(config, fresh=False), path)
        return state

    return Hook(write, "write_config", event="start", stage="observe", dry_run=SKIP)


def _package() -> ModuleType:
    """Return the package `hooks`, whose public names are allowed; it imports this module."""
    return sys.modules[__name__.removesuffix(".config.hooks_by_name")]


def _build_entries(entries: Any, kind: str, where: str, given: Mapping[str, Any]) -> list[Any]:
    if isinstance(entries, str | Mapping) or not isinstance(entries, Iterable):
        return [_build_entry(entries, kind, where, given)]
    return [_build_entry(entry, kind, f"{where}[{n}]", given) for n, entry in enumerate(entries)]


def _build_entry(entry: Any, kind: str, where: str, given: Mapping[str, Any]) -> Any:
    """Build the hook or writer of an entry."""
    pairs = list(entry.items()) if isinstance(entry, Mapping) else [(entry, None)]
    if len(pairs) != 1 or not isinstance(pairs[0][0], str):
        raise ValueError(
            f"{where}: wanted the name of a {kind}, or one name with its arguments; "
            f"got {redact_settings(entry)!r:.100}"
        )
    ((name, content),) = pairs
    where = f"{where}.{escape_text(name)}"
    if name in given:
        if content is not None:
            raise ValueError(f"{where}: it is a given object, and takes no arguments")
        return given[name]
    make = find_factory(name, kind, where, _package())
    bound = _bind_arguments(make, content, where, given)
    try:
        return make(*bound.args, **bound.kwargs)
    except Exception as error:
        known = f" (given={{...}} has {', '.join(given)})" if given else ""
        error.add_note(f"in the configuration, at {where}{known}")
        raise


def _bind_arguments(
    make: Factory, content: Any, where: str, given: Mapping[str, Any]
) -> inspect.BoundArguments:
    """Build an entry's arguments, and bind them to the signature of its factory."""
    signature, hints = inspect.signature(make), read_type_hints(make)
    bound = signature.bind_partial()
    bound.apply_defaults()
    for name, value in _match_names(signature, content, where).items():
        path = f"{where}.{escape_text(name)}"
        parameter = signature.parameters.get(name) or _var_keyword(signature)
        assert parameter is not None
        hint = hints.get(parameter.name, Any)
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            items = value if isinstance(value, list | tuple) else [value]
            bound.arguments[name] = tuple(
                _build_argument(item, name, hint, f"{path}[{n}]", given)
                for n, item in enumerate(items)
            )
            continue
        keyword = parameter.kind is inspect.Parameter.VAR_KEYWORD
        target = bound.arguments[parameter.name] if keyword else bound.arguments
        target[name] = _build_argument(value, name, hint, path, given)
    return bound


def _match_names(signature: inspect.Signature, content: Any, where: str) -> Mapping[str, Any]:
    """Return an entry's arguments by name; refuse unknown and missing ones."""
    parameters = signature.parameters
    if content is None:
        content = {}
    elif not isinstance(content, Mapping):
        first = next(iter(parameters.values()), None)
        if first is None or first.kind is inspect.Parameter.VAR_KEYWORD:
            what = "needs names for its" if first else "takes no"
            raise ValueError(f"{where}: {what} arguments; got {redact_settings(content)!r:.100}")
        content = {first.name: content}
    known = [
        p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in parameters.values()
    ]
    unknown = next((name for name in content if name not in parameters), None)
    if unknown is not None and _var_keyword(signature) is None:
        raise ValueError(
            f"{where}: has no argument {unknown!r}{suggest_and_list(unknown, parameters, known)}"
        )
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    required = [p for p in parameters.values() if p.default is p.empty and p.kind not in variadic]
    if missing := [p.name for p in required if p.name not in content]:
        raise ValueError(f"{where}: needs {' and '.join(missing)}; there is: {', '.join(known)}")
    return content


def _var_keyword(signature: inspect.Signature) -> inspect.Parameter | None:
    """Return the parameter that takes arguments of any name, such as `**schedules`."""
    kinds = {parameter.kind: parameter for parameter in signature.parameters.values()}
    return kinds.get(inspect.Parameter.VAR_KEYWORD)


def _build_argument(value: Any, name: str, hint: Any, where: str, given: Mapping[str, Any]) -> Any:
    """Build one argument: a nested entry, an object of `given` by its name, or a plain value."""
    if name in NESTED:
        built = _build_entries(value, NESTED[name], where, given)
        return built[0] if len(built) == 1 else chain(*built)
    supported = is_supported_type(hint)
    if (hint is Any or not supported) and isinstance(value, str) and value in given:
        return given[value]
    try:
        return convert_value(value, hint, where)
    except ValueError as error:
        if supported:
            raise
        raise ValueError(
            f"{error}; if a file cannot hold it, use a name, and pass the object under that name: "
            f"given={{...}} has {', '.join(given) or 'nothing'}"
        ) from error
