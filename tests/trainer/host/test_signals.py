"""Signals end a real process in the usual way, after a checkpoint."""

import ctypes
import os
import signal
import subprocess
import sys

import pytest

from trainer.host.signals import catch_signals

CHILD = """
import sys, time
import jax, jax.numpy as jnp
import hooks, trainer

def step(state, data):
    return state.replace(step=state.step + 1, params=state.params + 1), None, {"w": state.params}

def linger(state, metrics):
    print(int(state.epoch), flush=True)
    time.sleep(0.2)
    return state

state = trainer.TrainState.create(params=jnp.zeros(()), rng=jax.random.key(0))
chain = [linger, hooks.save_checkpoints(sys.argv[1], max_cost=None)]
trainer.fit(state, trainer.Phase("train", step), epochs=1000, hooks=chain)
"""


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, -signal.SIGINT)]
)
def test_a_signal_saves_the_current_epoch(tmp_path, number, status):
    command = [sys.executable, "-c", CHILD, str(tmp_path)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        seen = [int(child.stdout.readline()) for _ in range(2)]
        os.kill(child.pid, number)
        rest, said = child.communicate(timeout=60)
    finally:
        child.kill()
        child.wait(10)
    assert child.returncode == status, said
    last = [*seen, *map(int, rest.split())][-1]
    assert last < 100  # of 1000; a busy machine delivers the signal late
    assert str(last) in os.listdir(tmp_path / "checkpoints")
    assert f"{number.name}: ending after this epoch" in said


LONG = """
import os, signal, sys, threading, time
import jax, jax.numpy as jnp
import hooks, trainer

def long(state, data):
    turns = jnp.where(state.epoch == 0, 1, 1_000_000)
    params = jax.lax.fori_loop(0, turns, lambda i, w: jnp.tanh(w @ w), state.params)
    return state.replace(step=state.step + 1, params=params), None, {"w": params.sum()}

def interrupt_twice():
    while "1" not in os.listdir(sys.argv[1] + "/checkpoints"):
        time.sleep(0.01)
    for _ in range(2):
        time.sleep(0.3)
        os.kill(os.getpid(), int(sys.argv[2]))

state = trainer.TrainState.create(params=jnp.eye(300) + 0.1, rng=jax.random.key(0))
phase, saving = trainer.Phase("train", long), hooks.save_checkpoints(sys.argv[1], max_cost=None)
threading.Thread(target=interrupt_twice, daemon=True).start()
trainer.fit(state, phase, epochs=2, hooks=[saving, hooks.on("error", print)])
"""


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.soak)],
)
def test_a_second_signal_does_not_wait_for_the_device(tmp_path, number, status):
    command = [sys.executable, "-c", LONG, str(tmp_path), str(int(number))]
    child = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert child.returncode == status, child.stderr
    assert f"{number.name}: ending after this epoch" in child.stderr
    assert os.listdir(tmp_path / "checkpoints") == ["1"]


def action(number):
    """What the system does on a signal: the address of its handler, which comes first."""
    content = ctypes.create_string_buffer(1024)
    ctypes.CDLL(None).sigaction(number, None, content)
    return content.raw[:8]


def test_a_handler_unknown_to_python_is_restored():
    """As a C library would install one: JAX does, for its notice of preemption."""
    before = action(signal.SIGTERM)
    seen = []
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(seen.append)
    ctypes.CDLL(None).signal(signal.SIGTERM, handler)
    theirs = action(signal.SIGTERM)
    try:
        with catch_signals() as received:
            os.kill(os.getpid(), signal.SIGTERM)
            assert received.number == signal.SIGTERM
        assert action(signal.SIGTERM) == theirs
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        assert seen == []
        os.kill(os.getpid(), signal.SIGTERM)
        assert seen == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    assert action(signal.SIGTERM) == before


def test_a_python_handler_is_restored():
    before = signal.getsignal(signal.SIGINT)
    with catch_signals():
        assert signal.getsignal(signal.SIGINT) != before
    assert signal.getsignal(signal.SIGINT) == before
