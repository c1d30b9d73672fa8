"""Losses of preferences, against hand-worked numbers."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from trainer import losses
from trainer.losses.pairs import compute_pair_log_probs
from trainer.losses.weighing import check_weights_read

pytestmark = pytest.mark.usefixtures("compiled_quickly")

LOG2, LOG3 = math.log(2), math.log(3)


def make_logits(probabilities):
    """Return logits of two tokens, of which the first has these probabilities `[batch, time]`."""
    first = np.array(probabilities, "float32")
    return jnp.log(jnp.stack([first, 1 - first], axis=-1))


LOGITS = make_logits([[0.9, 0.5, 0.25, 0.9, 0.5, 0.125, 0.9]])
"""The answers have the probabilities 1/8, of two tokens, and 1/16."""

BATCH = {
    "inputs": {"segments": jnp.array([[1, 1, 1, 2, 2, 2, 0]])},
    "labels": jnp.array([[-1, 0, 0, -1, 0, 0, -1]]),
    "mask": jnp.array([[False, True, True, False, True, True, False]]),
}


def with_reference(chosen, rejected):
    return {**BATCH, "reference": jnp.log(jnp.array([[chosen, rejected]]))}


# beta, label_smoothing, the reference's probabilities of the answers; the rewards; the loss
DPO = {
    "preferred": (0.5, 0.0, (1 / 16, 1 / 8), (LOG2 / 2, -LOG2 / 2), math.log(1.5)),
    "smoothed": (0.5, 0.1, (1 / 16, 1 / 8), (LOG2 / 2, -LOG2 / 2), 0.9 * math.log(1.5) + LOG3 / 10),
    "as the reference": (0.1, 0.0, (1 / 8, 1 / 16), (0.0, 0.0), LOG2),
    "less preferred": (1.0, 0.0, (1 / 4, 1 / 16), (-LOG2, 0.0), LOG3),
    "a small beta": (
        0.1,
        0.25,
        (1 / 16, 1 / 16),
        (LOG2 / 10, 0.0),
        math.log(1 + 2**-0.1) + LOG2 / 40,
    ),
}


@pytest.mark.parametrize("case", DPO)
def test_dpo_by_hand(case):
    beta, label_smoothing, reference, rewards, loss = DPO[case]
    measured = losses.dpo(beta=beta, label_smoothing=label_smoothing)(
        LOGITS, with_reference(*reference)
    )
    wanted = {
        "loss": loss,
        "accuracy": float(rewards[0] > rewards[1]),
        "chosen_reward": rewards[0],
        "rejected_reward": rewards[1],
        "reward_margin": rewards[0] - rewards[1],
        "chosen_log_prob": -3 * LOG2,
        "rejected_log_prob": -4 * LOG2,
    }
    assert {name: float(value[0]) for name, (value, _) in measured.items()} == pytest.approx(
        wanted, abs=2e-6
    )
    assert {float(weight[0]) for _, weight in measured.values()} == {1.0}


def test_a_reference_in_the_step_equals_one_that_is_kept():
    inside = {"logits": LOGITS, "reference_logits": make_logits([[0.5] * 7])}
    kept = losses.dpo()(LOGITS, with_reference(1 / 4, 1 / 4))
    chex.assert_trees_all_close(losses.dpo()(inside, BATCH), kept, atol=1e-6)
    gradient = jax.grad(lambda outputs: losses.dpo()(outputs, BATCH)["loss"][0].sum())(inside)
    assert np.asarray(gradient["logits"]).any()
    assert not np.asarray(gradient["reference_logits"]).any()


def test_orpo_by_hand():
    # Means of the log-probabilities: of 8**-0.5 and 1/4, whose odds are 1 / (8**0.5 - 1) and 1/3.
    measured = losses.orpo(beta=0.5)(LOGITS, BATCH)
    ratio = math.log(3 / (math.sqrt(8) - 1))
    wanted = {
        "loss": 1.5 * LOG2 + 0.5 * math.log1p(math.exp(-ratio)),
        "accuracy": 1.0,
        "chosen_reward": -0.75 * LOG2,
        "rejected_reward": -LOG2,
        "reward_margin": 0.25 * LOG2,
        "chosen_log_prob": -1.5 * LOG2,
        "rejected_log_prob": -2 * LOG2,
        "cross_entropy": 1.5 * LOG2,
        "log_odds_ratio": ratio,
    }
    assert {name: float(value[0]) for name, (value, _) in measured.items()} == pytest.approx(
        wanted, abs=2e-6
    )


def test_orpo_of_certain_answers_has_finite_gradients():
    def total(logits):
        return losses.orpo()(logits, BATCH)["loss"][0].sum()

    gradient = jax.grad(total)(jnp.stack([jnp.full((1, 7), 60.0), jnp.zeros((1, 7))], axis=-1))
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("loss", [losses.dpo(), losses.orpo()])
def test_padding_weighs_nothing_and_weights_count(loss):
    rows = {
        name: jnp.concatenate([jnp.zeros_like(entry), entry, entry])
        for name, entry in {**BATCH, **BATCH["inputs"]}.items()
        if name != "inputs"
    }
    batch = {**rows, "inputs": {"segments": rows.pop("segments")}, "weights": jnp.array([3, 2, 1])}
    if loss.name == "dpo":
        batch["reference"] = jnp.zeros((3, 2))
    logits = jnp.concatenate([jnp.full_like(LOGITS, jnp.nan), LOGITS, LOGITS])
    values, weights = loss(logits, batch)["loss"]
    assert weights.tolist() == [0.0, 2.0, 1.0]
    assert values[1] == values[2]
    check_weights_read(loss, 0, logits, batch)
    loss.check(jax.ShapeDtypeStruct((1, 7, 2), "float32"), jax.tree.map(np.asarray, batch))


def test_a_prompt_changes_no_log_probability():
    found = compute_pair_log_probs("dpo", LOGITS.at[0, jnp.array([0, 3, 6])].set(jnp.nan), BATCH)
    assert found.total.tolist() == [pytest.approx([-3 * LOG2, -4 * LOG2])]
    assert found.tokens.tolist() == [[2, 2]]


WRONG = {
    "no reference": (LOGITS, BATCH, "dpo needs one reference.*there is neither"),
    "two references": (
        {"logits": LOGITS, "reference_logits": LOGITS},
        with_reference(0.5, 0.5),
        "there is both",
    ),
    "a reference of one answer": (
        LOGITS,
        {**BATCH, "reference": jnp.zeros(1)},
        r"dpo needs reference \[batch, 2\] = \[1, 2\].*got float32\[1\]",
    ),
    "no segments": (
        LOGITS,
        {**with_reference(0.5, 0.5), "inputs": jnp.zeros((1, 7), int)},
        r"dpo reads pairs: inputs with `segments`.*got int32\[1, 7\]",
    ),
    "a mask of rows": (
        LOGITS,
        {**with_reference(0.5, 0.5), "mask": jnp.ones(1)},
        r"dpo needs mask, true or not 0, \[batch, time\] = \[1, 7\]; got float32\[1\]",
    ),
    "no mask": (
        LOGITS,
        {name: entry for name, entry in with_reference(0.5, 0.5).items() if name != "mask"},
        r"dpo reads batch\['mask'\]",
    ),
    "outputs of one token": (
        LOGITS[:, 0],
        with_reference(0.5, 0.5),
        r"dpo needs logits \[batch, time, vocabulary\]",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_pair_is_an_error(case):
    outputs, batch, said = WRONG[case]
    with pytest.raises(ValueError, match=said):
        losses.dpo()(outputs, batch)


def test_orpo_refuses_a_reference():
    with pytest.raises(ValueError, match="orpo compares the answers without a reference"):
        losses.orpo()(LOGITS, with_reference(0.5, 0.5))


@pytest.mark.parametrize(
    ("segments", "labels", "said"),
    [
        ([1, 1, 1, 1, 1, 1, 0], 0, "1 of 1 have only one, such as row 0, without a rejected one"),
        ([2, 2, 2, 2, 2, 2, 0], 0, "without a chosen one.*and segments is 1"),
        ([1, 1, 1, 2, 2, 2, 0], 2, "labels must be between 0 and 1"),
    ],
)
def test_host_pairs_are_checked(segments, labels, said):
    batch = {
        **BATCH,
        "inputs": {"segments": np.array([segments])},
        "labels": np.full((1, 7), labels),
    }
    with pytest.raises(ValueError, match=said):
        losses.dpo().check(jax.ShapeDtypeStruct((1, 7, 2), "float32"), batch)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: losses.dpo(beta=0.0), "dpo: beta must be above 0"),
        (lambda: losses.dpo(label_smoothing=0.5), r"must be in\s+\[0, 0.5\)"),
        (lambda: losses.orpo(beta=-1.0), "orpo: beta must be above 0"),
    ],
)
def test_settings_out_of_range_are_an_error(make, said):
    with pytest.raises(ValueError, match=said):
        make()
