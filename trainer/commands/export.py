"""The command `export`: write a recorded run to files for other programs."""

from __future__ import annotations

import contextlib
import csv
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from trainer.checkpoints.arrays.damage import DamagedCheckpoint
from trainer.checkpoints.load import read_params
from trainer.commands.lookup.checkpoint_choice import (
    NEWEST,
    CheckpointChoice,
    SelectionOptions,
    choose_checkpoint,
)
from trainer.commands.lookup.stores import RunName, StoreName, open_run
from trainer.commands.terminal.calling import CommandError, parse_local_path
from trainer.commands.terminal.output import make_console, print_json
from trainer.host.amounts import format_bytes
from trainer.host.atomic_files import atomic_replace
from trainer.host.escaping import escape_lines, escape_text
from trainer.host.extras import install_command
from trainer.host.rendering.rich_tables import safe_text
from trainer.parameters.transfer import export_params
from trainer.runs.requests import list_requests, list_results
from trainer.runs.rows import Record, RunRow
from trainer.runs.store import Store
from trainer.runs.text import to_file_name

Format = Literal["csv", "parquet", "json", "params"]

FORMULAS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""First characters of cells that spreadsheets run; some also run the full-width ones."""

COLUMNS = ("name", "epoch", "step", "value", "text")
"""Columns of the records; one of the last two is empty."""


def export(
    run: RunName,
    /,
    *,
    to: str | None = None,
    formats: tuple[Format, ...] = ("csv", "json"),
    selection: SelectionOptions = NEWEST,
    store: StoreName = None,
    raw: bool = False,
    json: bool = False,
) -> int:
    """Write a recorded run to files: CSV, Parquet, JSON, safetensors.

    Args:
        run: its name, or the path of its directory.
        to: folder for the files, which are replaced; by default NAME-export in this folder.
        formats: csv and parquet have the records, a row each; json has everything in the store;
            params has the parameters of a checkpoint, as safetensors.
        raw: write names and texts into CSV unchanged; by default those that a spreadsheet would run
            as formulas (=HYPERLINK...) get a ' before them.
        json: print JSON.
    """
    if "params" not in formats and selection != NEWEST:
        raise CommandError("--epoch, --best and --mode choose a checkpoint: add --formats params")
    if "parquet" in formats:
        _import_pyarrow()
    folder = None if to is None else parse_local_path(to, "--to")
    with open_run(run, store) as (opened, row):
        records = opened.records(row.name)
        data = _collect_data(opened, row, records)
    folder = folder or Path(f"{to_file_name(row.name)}-export")
    files: dict[str, tuple[str, Callable[[Path], None]]] = {
        "csv": ("records.csv", lambda path: _write_csv(path, records, raw=raw)),
        "parquet": ("records.parquet", lambda path: _write_parquet(path, records)),
        "json": ("run.json", lambda path: _write_json(path, data)),
    }
    written: dict[str, Path] = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for kind in dict.fromkeys(formats):
            if kind == "params":
                continue
            name, write = files[kind]
            written[kind] = folder / name
            with atomic_replace(written[kind].absolute()) as beside:
                write(beside)
        if "params" in formats:
            checkpoint = choose_checkpoint(run, store, selection)
            written["params"] = folder / "params.safetensors"
            _write_params(written["params"], checkpoint)
    except OSError as error:
        raise CommandError(
            f"{escape_text(folder)} cannot be written to: {escape_text(error)}"
        ) from error
    if json:
        print_json({kind: str(path.absolute()) for kind, path in written.items()})
        return 0
    console = make_console()
    for path in written.values():
        console.print(
            safe_text(path), safe_text(format_bytes(path.stat().st_size), "dim"), soft_wrap=True
        )
    return 0


def _collect_data(store: Store, row: RunRow, records: Sequence[Record]) -> dict[str, Any]:
    """Collect everything that a store has about a run."""
    present = {checkpoint.epoch for checkpoint in store.checkpoints(row.name, present=True)}
    results = list_results(store, row.name)
    return {
        "run": row._asdict() | {"status": row.status(store.connection.now())},
        "records": [record._asdict() for record in records],
        "commits": [
            checkpoint._asdict() | {"present": checkpoint.epoch in present}
            for checkpoint in store.checkpoints(row.name)
        ],
        "evaluations": [
            request._asdict() | {"scores": results.get((request.suite, request.epoch), {})}
            for request in list_requests(store, row.name)
        ],
        "artifacts": [artifact._asdict() for artifact in store.artifacts(row.name)],
        "exported": time.time(),
    }


def _make_rows(records: Sequence[Record]) -> list[tuple[str, int, int, float | None, str | None]]:
    return [
        (*record[:3], None, record.value)
        if isinstance(record.value, str)
        else (*record[:3], float(record.value), None)
        for record in records
    ]


def _write_csv(path: Path, records: Sequence[Record], *, raw: bool) -> None:
    escape = (lambda text: text) if raw else _escape_formula
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(
            (escape(name), epoch, step, value, text and escape(text))
            for name, epoch, step, value, text in _make_rows(records)
        )


def _escape_formula(text: str) -> str:
    """Escape a text that a spreadsheet would run as a formula.

    >>> _escape_formula("=HYPERLINK(1)"), _escape_formula("val/loss")
    ("'=HYPERLINK(1)", 'val/loss')
    """
    return f"'{text}" if text.startswith(FORMULAS) else text


def _write_parquet(path: Path, records: Sequence[Record]) -> None:
    arrow, parquet = _import_pyarrow()
    kinds = (arrow.string(), arrow.int64(), arrow.int64(), arrow.float64(), arrow.string())
    schema = arrow.schema(list(zip(COLUMNS, kinds, strict=True)))
    rows = _make_rows(records)
    columns = [[row[place] for row in rows] for place in range(len(COLUMNS))]
    parquet.write_table(arrow.table(columns, schema=schema), path)


def _import_pyarrow() -> tuple[Any, Any]:
    try:
        return import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError as error:
        raise CommandError(f"Parquet needs pyarrow: {install_command('parquet')}") from error


def _write_json(path: Path, data: dict[str, Any]) -> None:
    with path.open("w", encoding="utf-8") as file, contextlib.redirect_stdout(file):
        print_json(data)


def _write_params(path: Path, checkpoint: CheckpointChoice) -> None:
    try:
        arrays, *_ = read_params(
            checkpoint.directory,
            epoch=checkpoint.epoch,
            best=checkpoint.best,
            mode=checkpoint.mode,
        )
        export_params(arrays, path)
    except (FileNotFoundError, ValueError, DamagedCheckpoint, TypeError) as error:
        raise CommandError(escape_lines(error)) from error
    except ImportError as error:
        raise CommandError(
            f"parameters need safetensors: {install_command('safetensors')}"
        ) from error
