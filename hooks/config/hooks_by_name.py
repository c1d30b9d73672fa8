"""Hooks by name, as a configuration file lists them, and all that a configuration says of a run."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import hooks
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
from trainer.host.escaping import escape_text
from trainer.host.redaction import redact_settings
from trainer.runs import Run

NESTED = {"hook": "hook", "hooks": "hook", "writer": "writer", "writers": "writer"}
"""Arguments that are built themselves, and of what kind they are."""

RECORDS = "metrics.jsonl"
"""Where in its directory a run's metrics are."""


def from_config(spec: Iterable[Any], *, given: Mapping[str, Any] = {}) -> Chain:
    """Build hooks from names and arguments, by the same public functions that a script calls.

    An entry is a name, `stop_on_nan`; or one name with its arguments, `{every: {n: 5, hook: ...}}`;
    what is no mapping is the first argument, `{average_params: 0.99}`, or all of several alike,
    `{log_metrics: [Console, {JsonLines: {path: run.jsonl}}]}`. Names are those of `hooks`, of entry
    points of other packages in the group `entracte.hooks`, and of what is given. Arguments called
    `hook`, `hooks`, `writer` and `writers` are entries themselves.

    Args:
        spec: the entries, plain data as YAML holds it.
        given: objects that a file cannot hold, by the name that it has for them: phases and
            functions as arguments, `{evaluate: {phase: val}}`, and hooks as entries of their own.

    Raises:
        ValueError: an entry is none, names nothing that there is, or has arguments that do not fit.

    >>> print(from_config([{"stop_early": {"metric": "train/loss", "patience": 3}}, "stop_on_nan"]))
    event  stage    hook                   reads       writes
    epoch  control  stop_early/train/loss  train/loss
    epoch  control  stop_on_nan
    """
    if taken := next((name for name in given if name in list_factories("hook", hooks)), None):
        raise ValueError(f"given has {taken!r}, which names a hook already; give it another name")
    return chain(*_build_entries(spec, "hook", "hooks", given))


def build_hooks(
    config: TrainingConfig,
    *,
    writers: Sequence[Writer] | None = None,
    given: Mapping[str, Any] = {},
) -> Chain:
    """Build what a configuration says of a run: its hooks, its logging, its checkpoints.

    The configuration itself is written to `config.yaml` in the run directory when the run begins,
    and into every commit. Hooks whose scores its own hooks read, such as `evaluate`, stand before.

    Args:
        config: of the run.
        writers: for its metrics, where other hooks write to them too: those that
            `build_writers(config)` made. Made here if absent.
        given: for `from_config`.

    Raises:
        FileExistsError: it is to be a fresh run, and the directory holds one.
        ValueError: a hook of its list does not fit.
    """
    listed = from_config(config.hooks, given=given)
    writers = build_writers(config) if writers is None else writers
    run = to_absolute_path(config.run, "configured")
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
    """Make the writers that a configuration names, for `build_hooks`, `record` and others to share.

    Raises:
        FileExistsError: it is to be a fresh run, and the directory holds one.
        OSError: the directory cannot be written to.
    """
    check_fresh(config)
    plan = config.logging
    made: list[Writer] = [Console()] if plan.console else []
    if plan.tensorboard:
        made.append(TensorBoard(config.run))
    if plan.json_lines:
        made.append(JsonLines(config.run / RECORDS))
    if plan.store != "off":
        store = None if plan.store == "beside" else plan.store
        made.append(Database(Run(config.run, store=store, config=to_comparable(config))))
    for tracker, wanted in ((WandB, plan.wandb), (MLflow, plan.mlflow)):
        if wanted:
            made.append(tracker(config.run, config=to_comparable(config), artifacts=config.run))
    return made


def write_config(config: TrainingConfig) -> Hook:
    """Write the configuration to `config.yaml` in the run directory when a run begins or goes on.

    By then the run's commits are restored, so that one which does not fit has left the file as it
    was. `fresh` is of the call and not of the run, and is not written.
    """

    path = to_absolute_path(config.run, "write_config") / "config.yaml"

    def write(state: TrainState, metrics: Mapping[str, float]) -> TrainState:
        save_config(dataclasses.replace(config, fresh=False), path)
        return state

    def nothing(state: TrainState, metrics: Mapping[str, float]) -> TrainState:
        return state

    return Hook(write, "write_config", event="start", stage="observe", dry_run=nothing)


def _build_entries(entries: Any, kind: str, where: str, given: Mapping[str, Any]) -> list[Any]:
    if isinstance(entries, str | Mapping) or not isinstance(entries, Iterable):
        return [_build_entry(entries, kind, where, given)]
    return [_build_entry(entry, kind, f"{where}[{n}]", given) for n, entry in enumerate(entries)]


def _build_entry(entry: Any, kind: str, where: str, given: Mapping[str, Any]) -> Any:
    """Build a hook or a writer of an entry."""
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
            raise ValueError(f"{where}: it is given as it is, and takes no arguments")
        return given[name]
    make = find_factory(name, kind, where, hooks)
    bound = _bound(make, content, where, given)
    try:
        return make(*bound.args, **bound.kwargs)
    except Exception as error:
        known = f" (given={{...}} has {', '.join(given)})" if given else ""
        error.add_note(f"in the configuration, at {where}{known}")
        raise


def _bound(
    make: Factory, content: Any, where: str, given: Mapping[str, Any]
) -> inspect.BoundArguments:
    """Build an entry's arguments, each as the signature of what it names has it."""
    signature, hints = inspect.signature(make), read_type_hints(make)
    bound = signature.bind_partial()
    bound.apply_defaults()
    for name, value in _matched(signature, content, where).items():
        path = f"{where}.{escape_text(name)}"
        parameter = signature.parameters.get(name) or _open_ended(signature)
        assert parameter is not None
        hint = hints.get(parameter.name, Any)
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            several = value if isinstance(value, list | tuple) else [value]
            bound.arguments[name] = tuple(
                _value(one, name, hint, f"{path}[{n}]", given) for n, one in enumerate(several)
            )
        elif parameter.kind is inspect.Parameter.VAR_KEYWORD:
            bound.arguments[parameter.name][name] = _value(value, name, hint, path, given)
        else:
            bound.arguments[name] = _value(value, name, hint, path, given)
    return bound


def _matched(signature: inspect.Signature, content: Any, where: str) -> Mapping[str, Any]:
    """Give an entry's arguments by name, and hold the names to a signature.

    Raises:
        ValueError: there is no such argument, or one is missing.
    """
    parameters = signature.parameters
    if content is None:
        content = {}
    elif not isinstance(content, Mapping):
        if not parameters:
            raise ValueError(f"{where}: takes no arguments; got {redact_settings(content)!r:.100}")
        if next(iter(parameters.values())).kind is inspect.Parameter.VAR_KEYWORD:
            raise ValueError(
                f"{where}: needs names for its arguments; got {redact_settings(content)!r:.100}"
            )
        content = {next(iter(parameters)): content}
    known = [
        p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in parameters.values()
    ]
    unknown = next((name for name in content if name not in parameters), None)
    if unknown is not None and _open_ended(signature) is None:
        raise ValueError(
            f"{where}: has no argument {unknown!r}{suggest_and_list(unknown, parameters, known)}"
        )
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    missing = [
        p.name
        for p in parameters.values()
        if p.default is p.empty and p.kind not in several and p.name not in content
    ]
    if missing:
        raise ValueError(f"{where}: needs {' and '.join(missing)}; there is: {', '.join(known)}")
    return content


def _open_ended(signature: inspect.Signature) -> inspect.Parameter | None:
    """Give the parameter that takes arguments of any name, `**schedules`."""
    kinds = {parameter.kind: parameter for parameter in signature.parameters.values()}
    return kinds.get(inspect.Parameter.VAR_KEYWORD)


def _value(value: Any, name: str, hint: Any, where: str, given: Mapping[str, Any]) -> Any:
    """Give one argument: nested entries built, names of what a file cannot hold looked up."""
    if name in NESTED:
        built = _build_entries(value, NESTED[name], where, given)
        return built[0] if len(built) == 1 else chain(*built)
    if (hint is Any or not is_supported_type(hint)) and isinstance(value, str) and value in given:
        return given[value]
    if is_supported_type(hint):
        return convert_value(value, hint, where)
    try:
        return convert_value(value, hint, where)
    except ValueError as error:
        raise ValueError(
            f"{error}; what a file cannot hold it names, and the script gives it under that name: "
            f"given={{...}} has {', '.join(given) or 'nothing'}"
        ) from error
