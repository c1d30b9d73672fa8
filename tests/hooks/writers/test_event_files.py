"""Event files: every reader finds each point once, after a resume or a fresh start."""

from __future__ import annotations

import errno
import itertools
import logging
import os
import shutil
import subprocess
import time

import pytest
from tensorboard import context
from tensorboard.backend.event_processing.data_ingester import LocalDataIngester
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.data.server_ingester import ExistingServerDataIngester
from tensorboard.util import grpc_util, tensor_util
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary

import hooks
import trainer
from hooks.writers import event_files
from hooks.writers.tensorboard import TensorBoard
from hooks.writers.values import Progress, Text

SAID = "said/text_summary"


class Flags:
    """Command line of the page if it reads the files itself."""

    path_prefix = window_title = logdir_spec = db = ""
    purge_orphaned_data = True
    reload_interval = 0
    reload_multifile = detect_file_replacement = False
    max_reload_threads = 1
    reload_task = "blocking"
    reload_multifile_inactive_secs = 0
    generic_data = "auto"

    def __init__(self, logdir):
        self.logdir = logdir
        self.samples_per_plugin = {"scalars": 0, "text": 0}


def by_script(logs):
    """Read like a script."""
    return {run: accumulated(logs / run) for run in ("resumed", "fresh")}


def accumulated(directory):
    found = EventAccumulator(str(directory), size_guidance={"scalars": 0, "tensors": 0}).Reload()
    tags = found.Tags()
    shown = {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in tags["scalars"]}
    for tag in tags["tensors"]:
        texts = [(e.step, tensor_util.make_ndarray(e.tensor_proto)) for e in found.Tensors(tag)]
        shown[tag] = [(step, text[0].decode()) for step, text in texts]
    return {tag: points for tag, points in shown.items() if points}


def provided(ingester):
    """Send the requests of the page."""
    ingester.start()
    provider, ctx = ingester.data_provider, context.RequestContext()
    asked = {"experiment_id": "", "downsample": 10**6}
    scalars = provider.read_scalars(ctx, plugin_name="scalars", **asked)
    texts = provider.read_tensors(ctx, plugin_name="text", **asked)
    shown = {run: {} for run in (*scalars, *texts)}
    for run, tags in scalars.items():
        shown[run] |= {tag: [(p.step, p.value) for p in tags[tag]] for tag in tags}
    for run, tags in texts.items():
        shown[run] |= {tag: [(p.step, p.numpy[0].decode()) for p in tags[tag]] for tag in tags}
    return {
        run: {tag: points for tag, points in tags.items() if points} for run, tags in shown.items()
    }


def by_data_server(logs):
    """Read like the page on most machines."""
    binary = pytest.importorskip("tensorboard_data_server").server_binary()
    if binary is None:
        pytest.skip("there is no data server for this machine")
    told = logs.parent / "port"
    options = ["--reload=once", "--port=0", "--die-after-stdin", "--samples-per-plugin="]
    command = [binary, f"--logdir={logs}", f"--port-file={told}", *options]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as server:
        try:
            until = time.monotonic() + 60
            while not (told.exists() and told.read_text().endswith("\n")):
                assert time.monotonic() < until
                time.sleep(0.01)
            where = f"localhost:{int(told.read_text())}"
            local = grpc_util.ChannelCredsType.LOCAL
            return provided(ExistingServerDataIngester(where, channel_creds_type=local))
        finally:
            server.kill()


def by_page(logs):
    """Read like the page on other machines."""
    return provided(LocalDataIngester(Flags(str(logs))))


def fill(board, epochs, value, extra=None):
    for epoch in epochs:
        values = {"epoch": Progress(epoch, 4), "loss": value, "said": Text(f"{value} at {epoch}")}
        board.write(10 * epoch, values | ({extra: value} if extra else {}))


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    """Two runs.

    One was killed after epoch 3 and resumed from 1, from 2, and from 2 once more; the other started
    fresh, although an earlier one had come further.
    """
    logs = tmp_path_factory.mktemp("logs") / "runs"
    board = TensorBoard(logs / "resumed")
    board.resume(0, 0)
    fill(board, (1, 2, 3), 1.0, "old")
    board.close()
    for at, value in ((1, 2.0), (2, 3.0), (2, 4.0)):
        board = TensorBoard(board.directory)
        board.resume(10 * at, at)
        fill(board, range(at + 1, 5), value)
        board.close()
    board = TensorBoard(logs / "fresh")
    for epochs, value, extra in ((4, 1.0, "old"), (2, 2.0, None)):
        board.resume(0, 0)
        board.write(0, {"loss": value})  # before training
        fill(board, range(1, epochs + 1), value, extra)
        board.close()
    return logs


def test_truncation_on_a_full_disk_changes_nothing(tmp_path, monkeypatch):
    file = tmp_path / "events.out.tfevents.1.vm"
    file.write_bytes(b"old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=f"2 bytes are needed and .* are free: '{file}'"):
        event_files._replace(file, b"old", [(0, 2)])
    assert (os.listdir(tmp_path), file.read_bytes()) == ([file.name], b"old")


@pytest.mark.parametrize("read", [by_script, by_data_server, by_page])
def test_every_reader_finds_each_point_once(logs, read):
    values = {1: 1.0, 2: 2.0, 3: 4.0, 4: 4.0}
    assert read(logs) == {
        "resumed": {
            "epoch": [(10 * n, n) for n in values],
            "loss": [(10 * n, value) for n, value in values.items()],
            "old": [(10, 1.0)],
            SAID: [(10 * n, f"{value} at {n}") for n, value in values.items()],
        },
        "fresh": {
            "epoch": [(10, 1), (20, 2)],
            "loss": [(0, 2.0), (10, 2.0), (20, 2.0)],
            SAID: [(10, "2.0 at 1"), (20, "2.0 at 2")],
        },
    }


def test_files_of_an_earlier_run_are_set_aside_and_readable(logs, tmp_path):
    (left,) = (logs / "fresh").glob("superseded.events.*")
    (tmp_path / "earlier").mkdir()
    name = left.name.replace("superseded.events", "events.out.tfevents")
    shutil.copy(left, tmp_path / "earlier" / name)
    found = accumulated(tmp_path / "earlier")
    assert found["loss"] == [(step, 1.0) for step in (0, 10, 20, 30, 40)]
    assert found["old"] == [(step, 1.0) for step in (10, 20, 30, 40)]


@pytest.fixture
def board(tmp_path):
    board = TensorBoard(tmp_path / "run")
    board.resume(0, 0)
    yield board
    board.close()


def test_dropped_and_archived_records_are_logged(board, caplog):
    fill(board, (1, 2, 3), 1.0)
    board.resume(10, 1)
    (said,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "dropping 2 records beyond step 10 of epoch 1" in said.getMessage()
    board.resume(0, 0)
    assert "the 2 event files of an earlier one are set aside" in caplog.messages[-1]


def test_without_steps_epochs_decide_what_is_dropped(board):
    for epoch in (1, 2, 3):
        board.write(0, {"epoch": Progress(epoch, 3), "loss": float(epoch)})
        board.write(0, {"epoch": Progress(epoch, 3), "more": float(epoch)})  # of another hook
    board.resume(0, 2)
    board.close()
    assert accumulated(board.directory) == {
        "epoch": [(0, 1), (0, 2)],
        "loss": [(0, 1), (0, 2)],
        "more": [(0, 1), (0, 2)],
    }


@pytest.mark.parametrize("at", ["length", "checksum", "message", "nothing"])
def test_a_torn_record_is_dropped_and_everything_before_it_stays(board, at):
    fill(board, (1, 2), 1.0)
    board.close()
    (file,) = board.directory.iterdir()
    whole = file.read_bytes()
    record = event_files.encode_records([Event(step=30, summary=Summary())])
    file.write_bytes(
        whole + record[: {"length": 5, "checksum": 10, "message": 14, "nothing": 0}[at]]
    )
    board.resume(20, 2)
    assert file.read_bytes() == whole


def test_a_damaged_file_is_copied(board, caplog):
    fill(board, (1, 2, 3), 1.0)
    board.close()
    (file,) = board.directory.iterdir()
    damaged = bytearray(file.read_bytes())
    begin = damaged.rindex(b"brain.Event:2") + 13 + 4
    damaged[begin + 9] ^= 1  # of the first length's checksum
    file.write_bytes(damaged)
    board.resume(30, 3)
    board.close()
    (aside,) = board.directory.glob("damaged.events.*")
    assert aside.read_bytes() == damaged
    assert f"is damaged from byte {begin} on: it is kept as {aside.name}" in caplog.messages[0]
    assert accumulated(board.directory) == {}


def test_files_of_others_and_of_open_writers_are_unchanged(board, tmp_path):
    fill(board, (1, 2), 1.0)
    board.flush()
    theirs = board.directory / "events.out.tfevents.1700000000.host.123.0"
    theirs.write_bytes(b"theirs")
    beside = TensorBoard(board.directory)
    beside.resume(0, 0)
    beside.resume(10, 1)
    beside.close()
    assert theirs.read_bytes() == b"theirs"
    assert not list(board.directory.glob("superseded.events.*"))
    theirs.unlink()
    assert accumulated(board.directory)["loss"] == [(10, 1.0), (20, 1.0)]


def test_a_clock_that_was_set_back_changes_no_order(board, monkeypatch):
    fill(board, (1,), 1.0)
    monkeypatch.setattr(event_files.time, "time", lambda: 10.0**9)
    board.resume(10, 1)
    fill(board, (2,), 2.0)
    board.close()
    assert accumulated(board.directory)["loss"] == [(10, 1.0), (20, 2.0)]


@pytest.mark.parametrize("instant", range(6))
@pytest.mark.parametrize("fresh", [False, True], ids=["resumed", "fresh"])
def test_after_a_kill_at_any_instant_of_a_start_the_next_start_succeeds(
    board, monkeypatch, instant, fresh
):
    """Kill between any two changes of the folder: records stay, and appear once."""
    fill(board, (1, 2, 3), 1.0)
    board.resume(20, 2)
    fill(board, (3,), 2.0)
    board.close()
    left = [instant]

    def stopping(change):
        def changed(*arguments, **more):
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            return change(*arguments, **more)

        return changed

    with monkeypatch.context() as patch:
        patch.setattr(type(board.directory), "rename", stopping(type(board.directory).rename))
        patch.setattr(os, "fsync", stopping(os.fsync))
        try:
            board.resume(*((0, 0) if fresh else (10, 1)))
        except KeyboardInterrupt:
            pass
        finally:
            board.close()
    board.resume(*((0, 0) if fresh else (10, 1)))
    fill(board, (2,) if not fresh else (1, 2), 3.0)
    board.close()
    kept = [] if fresh else [(10, 1.0)]
    rest = [(10, 3.0), (20, 3.0)] if fresh else [(20, 3.0)]
    assert accumulated(board.directory)["loss"] == kept + rest


@pytest.mark.parametrize(
    ("writer", "how"),
    [
        *itertools.product(["TensorBoard", "JsonLines"], ["deleted", "replaced", "cut short"]),
        ("WandB", "replaced"),  # its journal is a JsonLines
    ],
)
def test_before_a_checkpoint_a_writer_notices_that_its_file_is_missing(
    writer, how, state, phase, tmp_path, caplog
):
    if writer == "WandB":
        pytest.importorskip("wandb")
    place = tmp_path / "records"
    made = {
        "TensorBoard": lambda: TensorBoard(place),
        "JsonLines": lambda: hooks.JsonLines(place / "metrics.jsonl"),
        "WandB": lambda: hooks.WandB(place),
    }[writer]()
    pattern = {"TensorBoard": "events.*", "JsonLines": "*.jsonl", "WandB": "wandb/*.jsonl"}[writer]
    content = []

    def interfere(state, metrics):
        if int(state.epoch) == 2:
            (file,) = place.glob(pattern)
            content.append(file.read_bytes())
            if how != "cut short":
                file.unlink()
            if how != "deleted":
                file.write_bytes(b"")
        return state

    saving = hooks.save_checkpoints(tmp_path, max_cost=None)
    chain = [hooks.observe(interfere), hooks.log_metrics(made), saving]
    if how != "deleted":
        with pytest.raises(OSError, match=how) as raised:
            trainer.fit(state, phase, epochs=4, hooks=chain)
        (file,) = place.glob(pattern)
        assert str(file) in str(raised.value)
        with trainer.Checkpoints(tmp_path, read_only=True) as checkpoints:
            assert checkpoints.epochs() == [1]
        return
    trainer.fit(state, phase, epochs=4, hooks=chain)
    (file,) = place.glob(pattern)
    assert file.read_bytes().startswith(content[0])
    assert f"was deleted while {writer} was writing it: it was written again" in caplog.text
    if writer == "TensorBoard":
        assert [epoch for _, epoch in accumulated(place)["epoch"]] == [1, 2, 3, 4]
    else:
        assert len(file.read_text().splitlines()) == 4


@pytest.mark.parametrize("kind", ["TensorBoard", "JsonLines"])
def test_missing_records_of_earlier_epochs_are_logged(kind, tmp_path, caplog):
    caplog.set_level(logging.INFO, "entracte")
    for expected in (1, 0):
        file = tmp_path / "metrics.jsonl"
        writer = TensorBoard(tmp_path) if kind == "TensorBoard" else hooks.JsonLines(file)
        writer.resume(20, 2)
        said = [line for line in caplog.messages if "no records of the 2 epochs" in line]
        assert len(said) == expected
        caplog.clear()
        writer.write(20, {"epoch": Progress(2, 4), "loss": 1.0})
        writer.close()
