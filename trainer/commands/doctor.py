"""The command `doctor`: check this machine and its software, and say what to fix."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.table import Table

from trainer import Checkpoints, fingerprint, fit, restore, supervised, training
from trainer.commands.lookup import machine_checks
from trainer.commands.lookup.machine_checks import Finding
from trainer.commands.lookup.stores import StoreName
from trainer.commands.terminal.output import make_console, print_json
from trainer.data import Arrays
from trainer.host.amounts import format_duration
from trainer.host.rendering.rich_tables import safe_text
from trainer.losses import classification
from trainer.runs.run import Run
from trainer.runs.store import Store

MARKS = {"good": ("ok", "green"), "note": ("note", "yellow"), "wrong": ("WRONG", "bold red")}
"""Word and style of each verdict."""

EPOCHS = 4
EXAMPLES, FEATURES, CLASSES = 256, 16, 4
"""Size of the self-test."""


def doctor(*, store: StoreName = None, quick: bool = False, json: bool = False) -> int:
    """Check versions, devices, memory, cache, store and disk, and run a self-test.

    The self-test, of ten seconds at most, trains a tiny network, saves and restores it, continues,
    and compares the result bit for bit with an uninterrupted training. Exit status: 1 if something
    is wrong, else 0; a note is no fault.

    Args:
        quick: skip the self-test.
        json: print JSON.
    """
    checks: dict[str, Callable[[], Iterable[Finding]]] = {
        "versions": machine_checks.versions,
        "devices": machine_checks.devices,
        "memory": machine_checks.memory,
        "compilation cache": machine_checks.cache,
        "SQLite": machine_checks.sqlite,
        "store": lambda: machine_checks.store(store),
        "disk": lambda: machine_checks.disk(store),
    }
    if not quick:
        checks["self-test"] = _check_training
    console = make_console()
    findings: list[Finding] = []
    for subject, check in checks.items():
        for finding in _run_check(subject, check):
            findings.append(finding)
            if not json:
                console.print(_make_line(finding))
    wrong = [finding.subject for finding in findings if finding.verdict == "wrong"]
    if json:
        print_json([finding._asdict() for finding in findings])
    else:
        console.print()
        console.print(
            safe_text(f"wrong: {', '.join(wrong)}", "bold red")
            if wrong
            else safe_text("all is well", "green")
        )
    return 1 if wrong else 0


def _run_check(subject: str, check: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """Run a check; an exception becomes a finding too."""
    try:
        yield from check()
    except Exception as error:
        notes = " ".join(getattr(error, "__notes__", ()))
        message = f"{type(error).__name__}: {error}"
        yield Finding(subject, "wrong", message, notes or "see what this error says")


def _check_training() -> Iterator[Finding]:
    log = logging.getLogger("entracte")
    level = log.level
    log.setLevel(logging.ERROR)
    began = time.monotonic()
    try:
        result = _run_self_test()
    finally:
        log.setLevel(level)
    yield Finding("self-test", "good", f"{result}; {format_duration(time.monotonic() - began)}")


def _make_line(finding: Finding) -> Table:
    word, style = MARKS[finding.verdict]
    line = Table.grid(padding=(0, 2))
    line.add_column(width=5, style=style)
    line.add_column(width=17)
    line.add_column(overflow="fold")
    line.add_row(word, safe_text(finding.subject, "bold"), safe_text(finding.found))
    if finding.remedy:
        line.add_row("", "", safe_text(f"→ {finding.remedy}", style))
    return line


def _run_self_test() -> str:
    """Train, save, restore, continue, compare with an uninterrupted training, and record a loss."""
    task = supervised(_linear(), classification, optax.adam(3e-2))
    source = Arrays(_examples(), 32)
    phase = training(task.step, source)
    start = task.init(jax.random.key(0), source.example)
    whole, history = fit(start, phase, epochs=EPOCHS)
    with tempfile.TemporaryDirectory(prefix="entracte-doctor-") as folder:
        directory = f"{folder}/run"
        half, _ = fit(start, phase, epochs=EPOCHS // 2)
        with Checkpoints(directory) as checkpoints:
            checkpoints.save(half)
            checkpoints.wait()
        resumed, _ = fit(restore(directory, start), phase, epochs=EPOCHS)
        if fingerprint(resumed) != fingerprint(whole):
            raise RuntimeError(
                f"a training restored after {EPOCHS // 2} of {EPOCHS} epochs does not end with the "
                "bits of an uninterrupted one: do not rely on resumed runs here"
            )
        losses = [epoch["train/loss"] for epoch in history]
        if not losses[-1] < losses[0]:
            raise RuntimeError(f"nothing was learned in {EPOCHS} epochs: losses {losses}")
        _record(directory, folder, losses[-1])
    return (
        f"{EPOCHS} epochs, a checkpoint restored, the same bits; loss {losses[0]:.3f} to "
        f"{losses[-1]:.3f}; a loss recorded"
    )


def _record(directory: str, folder: str, loss: float) -> None:
    """Record a value, and read it back."""
    run = Run(directory)
    run.record(EPOCHS, 0, {"train/loss": loss})
    run.close()
    with Store(folder, create=False) as store:
        recorded = [record.value for record in store.records(run.name, ["train/loss"])]
    if recorded != [loss]:
        raise RuntimeError(f"a loss of {loss} was recorded, but the store has {recorded}")


def _linear() -> Any:
    def init(key: jax.Array, inputs: jax.Array) -> tuple[dict[str, jax.Array], dict[str, Any]]:
        return {"w": 0.1 * jax.random.normal(key, (FEATURES, CLASSES)), "b": jnp.zeros(CLASSES)}, {}

    def apply(params: Any, model_state: Any, inputs: jax.Array, *, key: Any, train: bool) -> Any:
        return inputs @ params["w"] + params["b"][None], model_state

    return SimpleNamespace(init=init, apply=apply)


def _examples() -> dict[str, np.ndarray]:
    """Draw clusters, one per class."""
    random = np.random.default_rng(0)
    labels = random.integers(0, CLASSES, EXAMPLES).astype(np.int32)
    centers = random.normal(size=(CLASSES, FEATURES))
    inputs = centers[labels] + 0.5 * random.normal(size=(EXAMPLES, FEATURES))
    return {"inputs": inputs.astype(np.float32), "labels": labels}
