"""Which of two values is better, in everything that compares."""

import jax
import jax.numpy as jnp
import pytest

import hooks
import trainer
from trainer import Checkpoints, TrainState
from trainer.checkpoints.load import read_params, read_part
from trainer.checks.modes import infer_mode
from trainer.configuration import Checkpointing
from trainer.phases.metrics import Members

MIN = """loss val/loss train/policy_loss val/cross_entropy val/perplexity val/mse val/WER
    val/mean_absolute_error val/bits_per_character val/negative_log_likelihood val/accuracy_loss
    val/brier_score update/kl_to_teacher val/loss/class_3"""
MAX = """accuracy val/accuracy val/top5_accuracy held_out/exact_match rollout/return
    val/return/maze val/f1_macro val/F1 val/mAP val/valAUC val/rougeL val/bleu4 val/hits@10
    val/reward val/score val/log_likelihood rollout/success_rate val/mIoU loss/accuracy"""
NEITHER = """val/length gap update/entropy train/learning_rate train/loss_scale val/return_std
    gradients/norm time/hook/stop_at_return/val/return accuracy_gap train/skipped score/length"""


@pytest.mark.parametrize(
    ("names", "mode"), [(MIN, "min"), (MAX, "max"), (NEITHER, None)], ids=["min", "max", "neither"]
)
def test_names_tell_the_mode(names, mode):
    assert {name: infer_mode(name) for name in names.split()} == dict.fromkeys(names.split(), mode)


@pytest.fixture(scope="module")
def state():
    return TrainState.create(params={"w": jnp.zeros(2)}, rng=jax.random.key(0))


def feed(hook, state, name, values):
    for epoch, value in enumerate(values, 1):
        state = state.replace(
            epoch=jnp.int32(epoch), params={"w": jnp.full(2, float(epoch))}, stop=False
        )
        state = hook(state, {name: value})
    return state


NAMES = [("val/accuracy", None, 2), ("val/loss", None, 3), ("val/loss", "max", 2), ("x", "min", 3)]
"""Metric, mode, and the epoch of the best of the values 0.5, 0.9, 0.1."""
VALUES = (0.5, 0.9, 0.1)


@pytest.fixture(scope="module")
def run(state, tmp_path_factory):
    """Make a run whose three checkpoints have the values under each name."""
    directory = tmp_path_factory.mktemp("run")
    with Checkpoints(directory) as checkpoints:
        for epoch, value in enumerate(VALUES, 1):
            at = state.replace(epoch=jnp.int32(epoch), params={"w": jnp.full(2, float(epoch))})
            checkpoints.save(at, scores={name: value for name, _, _ in NAMES})
    return directory


@pytest.mark.parametrize(("name", "mode", "epoch"), NAMES)
def test_everything_that_compares_finds_the_best(state, run, tmp_path, name, mode, epoch):
    mode = {} if mode is None else {"mode": mode}
    kept = hooks.keep_best(name, **mode)
    assert feed(kept, state, name, VALUES).hook_state[f"keep_best/{name}"]["epoch"] == epoch
    stop = hooks.stop_early(name, patience=1, **mode)
    assert feed(stop, state, name, VALUES[:2]).stop == (epoch == 3)

    assert trainer.restore(run, state, best=name, **mode).params["w"][0] == epoch
    assert read_part(run, {"params": state.params}, best=name, **mode)[1] == epoch
    assert read_params(run, best=name, **mode)[0]["w"][0] == epoch
    assert trainer.load_params(run, state.params, best=name, **mode)["w"][0] == epoch
    with Checkpoints(tmp_path, keep=1, best=name, **mode) as checkpoints:
        for number, value in enumerate((*VALUES, None), 1):
            scores = {} if value is None else {name: value}
            checkpoints.save(state.replace(epoch=jnp.int32(number)), scores=scores)
        checkpoints.wait()
        assert checkpoints.epochs() == [epoch, 4]


def test_the_best_member_follows_from_the_name(state):
    states = [state.replace(params={"w": jnp.full(2, float(n))}) for n in (1, 2, 3)]
    scores = {"val/accuracy": Members(list(VALUES), live=[True] * 3)}
    best = trainer.best_member(trainer.stack_states(states), scores, "val/accuracy")
    assert best.params["w"][0] == 2


TAKERS = {
    "keep_best": hooks.keep_best,
    "stop_early": lambda name, **mode: hooks.stop_early(name, patience=1, **mode),
    "reduce_on_plateau": hooks.reduce_on_plateau,
    "roll_back_on_spike": hooks.roll_back_on_spike,
    "best": lambda name, **mode: hooks.save_checkpoints("unused", best=name, **mode),
    "checkpointing.best": lambda name, **mode: Checkpointing(best=name, **mode),
    "best_member": lambda name, **mode: trainer.best_member(None, {}, name, **mode),
}


@pytest.mark.parametrize("who", TAKERS)
def test_a_name_that_does_not_tell_the_mode_is_refused(who, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=rf"{who} compares values of 'val/length', .* give mode="):
        TAKERS[who]("val/length")
    with pytest.raises(ValueError, match="'min' or 'max', or None .* got 'most'"):
        TAKERS[who]("val/loss", mode="most")


@pytest.mark.parametrize("who", [who for who in TAKERS if "best" not in who.split(".")])
def test_a_metric_is_required(who):
    with pytest.raises(TypeError, match=f"{who} needs the name of a metric.*; got None"):
        TAKERS[who](None)


def test_a_score_that_does_not_tell_the_mode_is_refused_in_restore(state, run):
    with pytest.raises(ValueError, match=r"best compares values of 'y', .* give mode="):
        trainer.restore(run, state, best="y")


def test_without_a_metric_no_mode_is_needed(tmp_path):
    hooks.save_checkpoints(tmp_path)
    Checkpointing()
