"""The law of resuming, for a source, by numbers that depend on every batch."""

import jax
import numpy as np
import pytest

from trainer.state import TrainState


@pytest.fixture(scope="session")
def resumed_labels():
    """Labels of epochs, read by one source, and by a new source for each epoch.

    Both are at the same positions: the state of a resumed run is that of an undisturbed one.
    """

    def read(make, epochs=4):
        start = TrainState.create(params={}, rng=jax.random.key(0))
        together, apart = [], []
        whole, places = make().training(), []
        for feeds, labels in ((lambda: whole, together), (lambda: make().training(), apart)):
            position = whole.start
            for epoch in range(epochs):
                feed, state = feeds(), start.replace(epoch=start.epoch + epoch)
                for piece, after in feed.pieces(state, None, position):
                    labels += np.asarray(piece["labels"]).ravel().tolist()
                    position = after if after is not None else position
                places.append(position)
        jax.tree.map(np.testing.assert_array_equal, places[:epochs], places[epochs:])
        return together, apart

    return read
