"""A run that is killed with SIGKILL within a pass over tar files, and resumed.

`benchmarks/crash_survival.py` kills runs of all sources, at random instants.
"""

import os
import signal

import _crashing
import jax
from _killed_programs import PROGRAMS

import hooks
import trainer

KILLED, EPOCHS = 5, 7
"""The epoch after whose updates the process kills itself, and all. Two are about a pass."""


def train(directory, killed=None):
    """Train, or resume, and return the end; its process is killed in an epoch."""

    def kill(state, metrics):
        if state.epoch + 1 == killed:
            os.kill(os.getpid(), signal.SIGKILL)
        return state

    begin, phase, _ = PROGRAMS["tar_shards"](directory)
    saves = hooks.save_checkpoints(directory, keep=2, max_cost=None)
    return trainer.fit(begin, phase, epochs=EPOCHS, hooks=[hooks.on("train", kill), saves])[0]


def test_law_5_killed_within_a_pass_it_ends_with_the_same_bits(tmp_path):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    whole.mkdir()
    resumed.mkdir()
    wanted = train(whole)
    process = _crashing.nursery().Process(target=train, args=(resumed, KILLED))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert _crashing.newest(resumed) in (KILLED - 2, KILLED - 1)  # a save may be under way
    places = jax.device_get(wanted.carry["position/train"]["place"]).tolist()
    assert places == [3, 9]  # within a pass, as after most epochs
    assert trainer.fingerprint(train(resumed)) == trainer.fingerprint(wanted)
