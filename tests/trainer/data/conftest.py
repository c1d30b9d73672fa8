"""Reading a source as a phase does, without one."""

import jax
import numpy as np
import pytest

from trainer.state import TrainState, data_key


@pytest.fixture(scope="session")
def begun():
    """A state without parameters, at an epoch, of a seed."""

    def make(epoch=0, seed=0):
        state = TrainState.create(params={}, rng=jax.random.key(seed))
        return state.replace(epoch=state.epoch + epoch)

    return make


@pytest.fixture(scope="session")
def epoch_of(begun):
    """Reads an epoch: gives its batches on the host, or pairs with masks, and the next position."""

    def read(feed, position=None, state=None):
        state = begun() if state is None else state
        batches, after = [], None
        start = feed.start if position is None else position
        for piece, after in feed.pieces(state, None, start):  # noqa: B007
            piece = jax.device_get(piece)
            rows = np.asarray(feed.rows(piece, data_key(state)))
            batches += [feed.batch(piece, row) for row in rows]
        return batches, after

    return read
