"""Training what was frozen."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hooks
import trainer
from hooks import testing
from trainer import TrainState
from trainer.supervised import optimizers

GROUPS = optax.multi_transform(
    {
        "body": optimizers.frozen(optax.inject_hyperparams(optax.adam)(learning_rate=0.1)),
        "head": optax.sgd(0.1),
    },
    optimizers.labels({"head": "^b"}, default="body"),
)
BARE = optax.chain(optax.clip(1.0), optimizers.frozen(optax.sgd(0.1)))


def make_state(optimizer):
    params = {"w": jnp.array([1.0, -2.0]), "b": jnp.zeros(())}
    opt_state = optimizer.init(params)
    return TrainState.create(params=params, opt_state=opt_state, rng=jax.random.key(0))


def descend(state, data):
    """A phase: gradient descent with the optimizer of groups."""
    grads = jax.grad(lambda p: ((p["w"] - 3) ** 2).sum() + (p["b"] - 3) ** 2)(state.params)
    updates, opt_state = GROUPS.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    after = state.replace(step=state.step + 1, params=params, opt_state=opt_state)
    return after, None, {"loss": jnp.abs(state.params["w"]).sum()}


@pytest.fixture(scope="module")
def groups():
    return trainer.Phase("train", descend)


def test_it_trains_frozen_parameters_from_that_epoch_on(groups):
    seen = [make_state(GROUPS)]

    def note(state, metrics):
        seen.append(jax.tree.map(np.asarray, state.params))
        return state

    chain = [hooks.unfreeze_at(3, "body"), hooks.observe(note)]
    end, _ = trainer.fit(make_state(GROUPS), groups, epochs=4, hooks=chain)
    body, head = ([float(p[name].ravel()[0]) for p in seen[1:]] for name in ("w", "b"))
    assert body[:2] == [1.0, 1.0]
    assert body[2] == pytest.approx(1.1)  # Adam's first step equals its rate
    assert body[3] > body[2]
    assert 0 < head[0] < head[1] < head[2]
    assert len(groups._shared.compiled) == 1
    chex.assert_trees_all_equal_shapes_and_dtypes(make_state(GROUPS).opt_state, end.opt_state)


def test_unfreezing_at_the_first_epoch_trains_in_it(groups):
    live, _ = trainer.fit(make_state(GROUPS), groups, epochs=1, hooks=hooks.unfreeze_at(1, "body"))
    still, _ = trainer.fit(make_state(GROUPS), groups, epochs=1)
    assert float(live.params["w"][0]) == pytest.approx(1.1)
    assert float(still.params["w"][0]) == 1.0


def test_it_leaves_other_labels_and_unfrozen_groups_alone():
    optimizer = optax.multi_transform(
        {name: optimizers.frozen(optax.sgd(0.1)) for name in ("w", "b")}, {"w": "w", "b": "b"}
    )
    hook = hooks.unfreeze_at(1, "w")
    after = hook(make_state(optimizer), {})
    live = {name: bool(inner.inner_state.live) for name, inner in after.opt_state[0].items()}
    assert live == {"w": True, "b": False}
    assert hook(after, {}) is after


def test_a_frozen_optimizer_without_a_label_needs_none():
    state = make_state(BARE)
    after = hooks.unfreeze_at(1)(state, {})
    assert bool(after.opt_state[1].live)
    assert hooks.unfreeze_at(2)(state, {}) is state


@pytest.mark.parametrize(
    ("optimizer", "label", "said"),
    [
        (GROUPS, "trunk", r"under the label 'trunk' \(there is: 'body'\)"),
        (GROUPS, "head", r"under the label 'head' \(there is: 'body'\)"),
        (GROUPS, None, r"under the label None \(there is: 'body'\)"),
        (BARE, "body", r"under the label 'body' \(there is: None\)"),
        (optax.sgd(0.1), None, r"under the label None \(there is: nothing\)"),
    ],
)
def test_an_unknown_label_is_refused_before_training(phase, optimizer, label, said):
    with pytest.raises(ValueError, match=said):
        trainer.fit(make_state(optimizer), phase, epochs=1, hooks=hooks.unfreeze_at(1, label))


def test_an_epoch_below_the_first_is_refused():
    with pytest.raises(ValueError, match="epoch must be a whole number of at least 1; got 0"):
        hooks.unfreeze_at(0)


def test_unfreezing_resumes(groups, check_resumes):
    check_resumes(lambda: hooks.unfreeze_at(3, "body"), make_state(GROUPS), groups, epochs=4)


def test_it_keeps_the_laws():
    after = testing.check_hook(hooks.unfreeze_at(1, "body"), make_state(GROUPS), {})
    assert bool(after.opt_state[0]["body"].inner_state.live)
