"""Loaders of PyTorch: by their protocol, and where PyTorch is installed, real ones."""

import json
import logging
import random
from types import SimpleNamespace

import numpy as np
import pytest

from trainer import data
from trainer.data.adapters.torch_states import from_json, to_json

EXAMPLES = 14


def torch_loader(kind="torch.utils.data", name="DataLoader", **settings):
    """Build a loader of examples that hold random numbers of all three libraries."""
    torch = pytest.importorskip("torch")
    loaders = pytest.importorskip(kind)

    class Noisy(torch.utils.data.Dataset):
        def __len__(self):
            return EXAMPLES

        def __getitem__(self, index):
            noise = [random.random(), np.random.rand(), torch.rand(()).item()]
            return {"inputs": torch.tensor(noise), "labels": index}

    return getattr(loaders, name)(Noisy(), batch_size=3, shuffle=True, **settings)


def test_what_is_no_loader_is_an_error():
    with pytest.raises(TypeError, match=r"DataLoader; got a list: torch\.utils"):
        data.from_torch([1])


@pytest.mark.parametrize(
    ("more", "steps", "said"),
    [
        ({}, 2, ["a DataLoader cannot return to a place"]),
        ({}, None, []),
        ({"load_state_dict": None}, 2, []),
        ({"load_state_dict": None, "num_workers": 1}, 2, ["new random states when a run resumes"]),
        ({"persistent_workers": True}, None, ["keep random states that a resumed run"]),
    ],
)
def test_what_a_resumed_run_cannot_repeat_is_said_before_training(caplog, more, steps, said):
    loader = SimpleNamespace(**{"dataset": [], "sampler": [], "num_workers": 0, **more})
    with caplog.at_level(logging.INFO, "entracte"):
        data.from_torch(loader, steps_per_epoch=steps)
    assert len(caplog.messages) == len(said)
    assert all(part in message for part, message in zip(said, caplog.messages, strict=True))


def test_states_are_json_data():
    state = {"yielded": 3, 4: (1.5, None), "random": b"\xff", "list": [True, {"inner": "text"}]}
    assert from_json(json.loads(json.dumps(to_json(state)))) == state
    with pytest.raises(TypeError, match="got an? object: let state_dict of the dataset"):
        to_json({"place": object()})


@pytest.mark.parametrize("steps", [None, 3], ids=["passes", "stretches"])
def test_law_5_a_loader_resumes_at_the_next_batch(resumed_labels, steps):
    together, apart = resumed_labels(lambda: data.from_torch(torch_loader(), steps_per_epoch=steps))
    assert together == apart
    assert sorted(set(together)) == list(range(EXAMPLES))


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # by torchdata 0.11
def test_law_5_a_stateful_loader_resumes_without_reading_again(resumed_labels):
    kind = "torchdata.stateful_dataloader"

    def make():
        loader = torch_loader(kind, "StatefulDataLoader")
        return data.from_torch(loader, steps_per_epoch=3)

    together, apart = resumed_labels(make)
    assert together == apart
    batches = make().batches(0, 0)
    iterator = iter(batches)
    first = [next(iterator) for _ in range(3)]
    state = json.loads(json.dumps(iterator.get_state()))
    again = iter(make().batches(0, 0))
    again.set_state(state)
    np.testing.assert_array_equal(next(again)["inputs"], next(iterator)["inputs"])
    assert len(first) == 3


def test_random_transforms_repeat_and_the_users_states_stay(epoch_of):
    torch = pytest.importorskip("torch")

    def states():
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    before = states()
    one, two = (epoch_of(data.from_torch(torch_loader()).training())[0] for _ in range(2))
    assert states() == before
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a["inputs"], b["inputs"])
    assert len({float(batch["inputs"].sum()) for batch in one}) == len(one)
