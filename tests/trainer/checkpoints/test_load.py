"""Reading another run's checkpoints: which one, what of it, and what damage does."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import trainer
from trainer import Checkpoints, TrainState, data, fingerprint
from trainer.checkpoints import DamagedCheckpoint, publishing
from trainer.checkpoints.arrays import array_storage
from trainer.checkpoints.load import read_params, read_part


def made(epoch):
    params = {"w": jnp.arange(4.0) + epoch, "half": jnp.full(3, epoch, jnp.bfloat16)}
    state = TrainState.create(params=params, rng=jax.random.key(epoch))
    return state.replace(epoch=jnp.int32(epoch), hook_state={"count": epoch})


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    run = tmp_path_factory.mktemp("original")
    with Checkpoints(run, keep=9) as checkpoints:
        for epoch, loss in ((1, 0.5), (2, 0.25), (3, float("nan"))):
            checkpoints.save(made(epoch), scores={"val/loss": loss})
    return run


@pytest.fixture
def run(original, tmp_path):
    import shutil

    return shutil.copytree(original, tmp_path / "run")


@pytest.fixture
def target():
    return made(0).replace(hook_state={})


def spoil(run, epoch):
    file = run / "checkpoints" / str(epoch) / "arrays" / "process_0"
    content = bytearray(file.read_bytes())
    rows = publishing.read_manifest(run / "checkpoints", epoch)["leaves"][""]
    (place,) = (row["pieces"][0]["offset"] for row in rows if row["path"] == "params/w")
    content[place + 5] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("choice", "epoch"),
    [
        ({}, 3),
        ({"epoch": 1}, 1),
        ({"best": "val/loss"}, 2),
        ({"best": "val/loss", "mode": "max"}, 1),
    ],
)
def test_the_newest_or_the_requested_checkpoint_is_restored(original, target, choice, epoch):
    state = trainer.restore(original, target, **choice)
    assert fingerprint(state) == fingerprint(made(epoch).replace(hook_state={}))


def test_a_hook_state_is_restored_if_the_target_names_it(original, target):
    assert trainer.restore(original, target.replace(hook_state={"count": 0})).hook_state == {
        "count": 3
    }
    assert trainer.restore(original, target.replace(hook_state={"other": 0})).hook_state == {}


@pytest.mark.parametrize(
    ("choice", "epoch"),
    [({}, 2), ({"best": "val/loss"}, 2), ({"best": "val/loss", "mode": "max"}, 2)],
)
def test_damaged_checkpoints_are_skipped_with_a_warning(run, target, choice, epoch, caplog):
    spoil(run, 3)
    spoil(run, 1)
    assert int(trainer.restore(run, target, **choice).epoch) == epoch
    arrays, where, _ = read_params(run, **choice)
    assert np.array_equal(arrays["w"], np.arange(4) + epoch)
    assert where.startswith(f"checkpoint {epoch} in ")
    if choice.get("best") is None or "mode" in choice:
        assert "skipped a damaged checkpoint: checkpoint" in caplog.text


def test_if_no_checkpoint_is_intact_all_are_listed(run, target):
    for epoch in (1, 2, 3):
        spoil(run, epoch)
    with pytest.raises(DamagedCheckpoint, match="(?s)no checkpoint is intact.*point 3.*point 1"):
        trainer.restore(run, target)
    with pytest.raises(DamagedCheckpoint, match="checkpoint 2.*checksums differ at params/w"):
        trainer.restore(run, target, epoch=2)
    with pytest.raises(DamagedCheckpoint, match="no checkpoint is intact"):
        read_params(run)
    with pytest.raises(DamagedCheckpoint, match="no checkpoint is intact"):
        read_part(run, {"params": target.params})
    assert read_part(run, {"step": target.step})[1] == 3  # its bytes are intact


def test_errors_list_what_exists(original, target, tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint in .*: give the directory of a run"):
        trainer.restore(tmp_path, target)
    with pytest.raises(FileNotFoundError, match=r"of epoch 7 .*there are: \[1, 2, 3\]"):
        trainer.restore(original, target, epoch=7)
    with pytest.raises(ValueError, match=r"score 'val/acc' .*\(there is: val/loss\)"):
        trainer.restore(original, target, best="val/acc")
    with pytest.raises(ValueError, match="not both"):
        trainer.restore(original, target, epoch=1, best="val/loss")
    with pytest.raises(ValueError, match="mode must be"):
        trainer.restore(original, target, best="val/loss", mode="least")
    wrong = target.replace(params={"w": jnp.zeros(5)})
    with pytest.raises(
        ValueError, match=r"(?s)params/half: saved bfloat16.*wanted nothing.*params/w: saved float"
    ):
        trainer.restore(original, wrong)


def test_nothing_is_written(original, target):
    before = sorted((p, p.stat().st_mtime_ns) for p in original.rglob("*"))
    trainer.restore(original, target)
    read_params(original)
    read_part(original, {"params": target.params})
    assert sorted((p, p.stat().st_mtime_ns) for p in original.rglob("*")) == before


def test_parameters_are_read_by_path_bit_for_bit(original):
    arrays, *_ = read_params(original, best="val/loss")
    assert {name: str(array.dtype) for name, array in arrays.items()} == {
        "w": "float32",
        "half": "bfloat16",
    }
    for name, array in arrays.items():
        assert array.tobytes() == np.asarray(made(2).params[name]).tobytes()


def test_the_position_of_a_stream_is_restored_only_if_the_target_reads_it(
    task, start, digits, tmp_path
):
    import hooks

    arrays = {name: np.asarray(array) for name, array in digits[0].arrays.items()}
    batches = [
        {name: array[i : i + 20] for name, array in arrays.items()} for i in range(0, 60, 20)
    ]
    phase = trainer.training(task.step, data.Stream(batches, steps_per_epoch=2))
    saving = hooks.save_checkpoints(tmp_path)
    final, _ = trainer.fit(start, phase, epochs=2, hooks=saving)
    restored = trainer.restore(tmp_path, start)
    assert restored.carry == {}
    assert fingerprint(restored) == fingerprint(final.replace(carry={}))
    whole = trainer.restore(tmp_path, phase.add_position(start))
    assert fingerprint(whole) == fingerprint(final)


def test_a_decision_to_stop_is_not_restored(state, tmp_path):
    with trainer.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state.replace(stop=True))
    assert trainer.restore(tmp_path, state).stop is False


@pytest.mark.parametrize(
    ("choice", "epoch"), [({}, 3), ({"epoch": 1}, 1), ({"best": "val/loss", "mode": "max"}, 1)]
)
def test_parts_are_read_by_path_without_knowing_the_rest(original, target, choice, epoch):
    wanted = {"params/half": target.params["half"], "rng": target.rng, "hook_state/count": 0}
    parts, number = read_part(original, wanted, **choice)
    saved = made(epoch)
    assert number == epoch
    assert parts["params/half"].tobytes() == saved.params["half"].tobytes()
    assert bool(parts["rng"] == saved.rng)
    assert parts["hook_state/count"] == epoch


def test_differences_are_listed(original):
    wanted = {
        "params": {"w": jnp.zeros(5), "new": jnp.zeros(1)},
        "step": jnp.float32(0),
        "carry/normalization": {"count": jnp.zeros(())},
    }
    with pytest.raises(ValueError, match="(?s)checkpoint 3 in .* does not fit") as error:
        read_part(original, wanted)
    assert str(error.value).splitlines()[1:-1] == [
        "  params/half: saved bfloat16[3], wanted nothing",
        "  params/w: saved float32[4], wanted float32[5]",
        "  params/new: saved nothing, wanted float32[1]",
        "  step: saved int32[], wanted float32[]",
        "  carry/normalization/count: saved nothing, wanted float32[]",
    ]


def test_an_optional_part_may_be_missing(original, target):
    wanted = {"params": target.params, "carry/x": jnp.zeros(2)}
    parts, _ = read_part(original, wanted, optional=["carry/x"])
    assert parts.keys() == {"params"}
    wrong = {"params/w": jnp.zeros(5)}
    with pytest.raises(ValueError, match="params/w: saved float32"):
        read_part(original, wrong, optional=["params/w"])


def test_damaged_checkpoints_are_skipped_for_parts_too(run, caplog):
    spoil(run, 3)
    parts, number = read_part(run, {"params/w": jnp.zeros(4)})
    assert number == 2
    assert np.array_equal(parts["params/w"], np.arange(4) + 2)
    assert "skipped a damaged checkpoint: checkpoint 3" in caplog.text


@pytest.mark.parametrize("read", ["restore", "params", "part"])
def test_a_checkpoint_that_the_run_removes_meanwhile_is_no_damage(
    run, target, read, monkeypatch, caplog
):
    """Between the listing and the reading, the run checkpoints another and removes those before."""
    reads = {
        "restore": lambda: float(trainer.restore(run, target).params["w"][0]),
        "params": lambda: float(read_params(run)[0]["w"][0]),
        "part": lambda: float(read_part(run, {"params": target.params})[0]["params"]["w"][0]),
    }
    calls = []
    verify = array_storage.load_arrays

    def overtaken(path, size, ranges):
        if not calls:
            with Checkpoints(run, keep=1) as checkpoints:
                checkpoints.save(made(7))
        calls.append(path.parent.parent.name)
        return verify(path, size, ranges)

    monkeypatch.setattr(array_storage, "load_arrays", overtaken)
    assert reads[read]() == 7.0
    assert calls == ["3", "7"]
    assert "damaged" not in caplog.text
