"""Notices: seen without any set-up, once, and where the user's logging puts them."""

import contextlib
import logging
import re
import sys

import jax
import pytest

import hooks
import trainer
from trainer.host.notices import show_notices


@contextlib.contextmanager
def unconfigured():
    """Log as a script does that set nothing up; pytest has handlers at the root."""
    log, handlers = logging.getLogger("entracte"), logging.root.handlers
    log.setLevel(logging.NOTSET)
    log.handlers.clear()
    show_notices()
    show_notices()  # as another import would
    logging.root.handlers = []
    try:
        yield log
    finally:
        logging.root.handlers = handlers
        logging.root.setLevel("WARNING")


def test_a_finished_script_that_runs_again_prints_a_notice(capsys, state, phase, tmp_path):
    def run():
        trainer.fit(state, phase, epochs=1, hooks=hooks.save_checkpoints(tmp_path))
        lines = capsys.readouterr().err.splitlines()
        return [re.sub(r"\d+\.\d s", "0.1 s", line) for line in lines]

    where = f"entracte: checkpoints are in {tmp_path.resolve() / 'checkpoints'}"
    with unconfigured() as log:
        assert run() == [where, "entracte: compiled train in 0.1 s"]
        assert run() == [
            where,
            "entracte: resuming from epoch 1, restored by save_checkpoints/restore",
            "entracte: nothing to train: 1 of 1 epochs are completed",
        ]
        log.setLevel("WARNING")
        assert run() == []


def test_warnings_are_labelled_and_debug_messages_are_hidden(capsys):
    with unconfigured() as log:
        log.warning("the bits will differ")
        log.debug("compiled in 3 s")
    assert capsys.readouterr().err == "entracte: warning: the bits will differ\n"


def test_a_library_s_root_handler_does_not_repeat_notices(capsys):
    with unconfigured() as log:
        logging.basicConfig()  # as absl does at its first record
        log.info("resuming")
        logging.getLogger("another").warning("theirs")
        assert capsys.readouterr().err == "entracte: resuming\nWARNING:another:theirs\n"
        logging.root.setLevel("INFO")  # by the user
        log.info("resuming")
    assert capsys.readouterr().err == "INFO:entracte:resuming\n"


@pytest.mark.parametrize("logger", [None, "entracte"])
def test_the_user_s_own_handlers_replace_ours(capsys, logger):
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("mine: %(message)s"))
    with unconfigured() as log:
        logging.getLogger(logger).addHandler(handler)
        log.info("resuming")
    assert capsys.readouterr() == ("mine: resuming\n", "")


def test_only_the_main_process_prints_notices(capsys, monkeypatch):
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    with unconfigured() as log:
        for number in (0, 1):
            monkeypatch.setattr(jax, "process_index", lambda number=number: number)
            log.info("resuming")
            log.warning("SIGTERM")
    assert capsys.readouterr().err.splitlines() == [
        "entracte: resuming",
        "entracte: warning: SIGTERM",
        "entracte, process 1: warning: SIGTERM",
    ]
