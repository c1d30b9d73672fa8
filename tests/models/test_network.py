"""The laws of the contract, for a network of each library."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen

import models
from models.network import named_key, shapes_of

pytestmark = pytest.mark.usefixtures("compiled_quickly")

IMAGES = jax.random.uniform(jax.random.key(7), (6, 4, 4, 1))
LABELS = jnp.arange(6) % 4
KEY = jax.random.key(1)


class Linen(linen.Module):
    @linen.compact
    def __call__(self, x, *, train):
        x = linen.Dense(16)(x.reshape(len(x), -1))
        x = linen.BatchNorm(use_running_average=not train)(x)
        x = linen.Dropout(0.2, deterministic=not train)(linen.relu(x))
        return linen.Dense(4)(x)


def from_equinox(build):
    """Two closures make a network of an Equinox model; `build` is `key -> model` of one example."""
    abstract = eqx.filter_eval_shape(build, KEY)
    arrays, rest = eqx.partition(abstract, lambda x: isinstance(x, jax.ShapeDtypeStruct))
    paths, treedef = jax.tree_util.tree_flatten_with_path(arrays)
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in paths]

    def init(key, example):
        leaves = jax.tree.leaves(eqx.filter(build(key), eqx.is_array))
        return dict(zip(names, leaves, strict=True)), {}

    def apply(params, model_state, inputs, *, key, train):
        model = eqx.combine(jax.tree.unflatten(treedef, [params[name] for name in names]), rest)
        if not train:
            return jax.vmap(eqx.nn.inference_mode(model))(inputs), model_state
        return jax.vmap(model)(inputs, key=jax.random.split(key, len(inputs))), model_state

    return models.Network(init, apply)


def equinox_mlp(key):
    first, second = jax.random.split(key)
    return eqx.nn.Sequential(
        [
            eqx.nn.Lambda(jnp.ravel),
            eqx.nn.Linear(16, 16, key=first),
            eqx.nn.Lambda(jax.nn.relu),
            eqx.nn.Dropout(0.2),
            eqx.nn.Linear(16, 4, key=second),
        ]
    )


PLAIN = {
    "mlp": models.mlp(classes=4, hidden=(8,)),
    "cnn": models.cnn(classes=4, channels=(2, 2), hidden=16, batch_norm=True, dropout=0.2),
    "linen": models.from_linen(Linen()),
    "equinox": from_equinox(equinox_mlp),
}
JITTED = {
    name: models.Network(jax.jit(init), jax.jit(apply, static_argnames="train"))
    for name, (init, apply) in PLAIN.items()
}
RANDOM = ["cnn", "linen", "equinox"]
NORMALISED = ["cnn", "linen"]


@pytest.fixture(scope="module", params=PLAIN)
def name(request):
    return request.param


@pytest.fixture
def case(name):
    return variables(name)


def variables(name):
    """A jitted network with its variables."""
    return JITTED[name], *JITTED[name].init(jax.random.key(0), IMAGES)


def bits(tree):
    return [(str(path), np.array(leaf)) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def assert_same(one, two):
    assert jax.tree.structure(one) == jax.tree.structure(two)
    for (path, a), (_, b) in zip(bits(one), bits(two), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=path, strict=True)


def assert_close(one, two):
    assert jax.tree.structure(one) == jax.tree.structure(two)
    for (path, a), (_, b) in zip(bits(one), bits(two), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5, err_msg=path)


def assert_plain(tree):
    assert type(tree) is dict
    for name, value in tree.items():
        assert type(name) is str
        if not isinstance(value, jax.Array):
            assert_plain(value)


@pytest.mark.parametrize("train", [False, True])
def test_returns_outputs_and_keeps_the_structure_of_the_model_state(case, train):
    network, params, model_state = case
    outputs, updated = network.apply(params, model_state, IMAGES, key=KEY, train=train)
    assert outputs.shape == (6, 4)
    assert outputs.dtype == jnp.float32
    assert shapes_of(updated) == shapes_of(model_state)


def test_params_and_model_state_are_plain_dicts_of_arrays_without_random_state(case):
    _, params, model_state = case
    for tree in (params, model_state):
        assert_plain(tree)
        for path, leaf in bits(tree):
            assert leaf.dtype == np.float32, path


def test_init_depends_only_on_the_key_and_shapes(case):
    network, params, model_state = case
    assert_same(network.init(jax.random.key(0), IMAGES * 0), (params, model_state))
    other, _ = network.init(jax.random.key(2), IMAGES)
    assert any((a != b).any() for (_, a), (_, b) in zip(bits(other), bits(params), strict=True))


def test_init_takes_shapes_for_an_example(case, name):
    _, params, model_state = case
    example = jax.ShapeDtypeStruct((1, 4, 4, 1), jnp.float32)
    shapes = jax.eval_shape(lambda key: PLAIN[name].init(key, example), KEY)
    assert shapes_of(shapes) == shapes_of((params, model_state))


@pytest.mark.parametrize("train", [False, True])
def test_apply_is_pure(case, train):
    network, params, model_state = case
    before = bits((params, model_state))
    one = network.apply(params, model_state, IMAGES, key=KEY, train=train)
    two = network.apply(params, model_state, IMAGES, key=KEY, train=train)
    assert_same(one, two)
    assert_same(dict(bits((params, model_state))), dict(before))


def test_evaluation_needs_no_key_and_leaves_the_model_state(case):
    network, params, model_state = case
    outputs, after = network.apply(params, model_state, IMAGES, key=None, train=False)
    assert_same(after, model_state)
    with_key, _ = network.apply(params, model_state, IMAGES, key=KEY, train=False)
    assert_same(outputs, with_key)


@pytest.mark.parametrize("name", RANDOM)
def test_dropout_differs_by_key_and_is_off_in_evaluation(name):
    network, params, model_state = variables(name)

    def outputs(key, train):
        return network.apply(params, model_state, IMAGES, key=key, train=train)[0]

    assert (outputs(KEY, True) != outputs(jax.random.key(3), True)).any()
    assert_same(outputs(KEY, False), outputs(jax.random.key(3), False))


@pytest.mark.parametrize("name", NORMALISED)
def test_batch_statistics_change_only_in_training_and_only_in_the_result(name):
    network, params, model_state = variables(name)
    before = bits(model_state)
    _, updated = network.apply(params, model_state, IMAGES, key=KEY, train=True)
    assert_same(dict(bits(model_state)), dict(before))
    assert all((a != b).any() for (_, a), (_, b) in zip(bits(updated), before, strict=True))


@pytest.mark.parametrize("train", [False, True])
def test_jit_changes_nothing_and_leaks_nothing(case, name, train):
    network, params, model_state = case
    one = network.apply(params, model_state, IMAGES, key=KEY, train=train)
    two = PLAIN[name].apply(params, model_state, IMAGES, key=KEY, train=train)
    assert_close(one, two)
    with jax.check_tracer_leaks():
        jax.eval_shape(lambda key: PLAIN[name].init(key, IMAGES), KEY)
        jax.eval_shape(lambda x: PLAIN[name].apply(*case[1:], x, key=KEY, train=train), IMAGES)


@pytest.mark.parametrize("name", ["mlp", "linen"])
def test_init_maps_over_keys(name):
    network, params, model_state = variables(name)
    keys = jnp.stack([jax.random.key(0), jax.random.key(5)])
    members = jax.jit(jax.vmap(network.init, in_axes=(0, None)))(keys, IMAGES)
    assert_close(jax.tree.map(lambda x: x[0], members), (params, model_state))
    assert any((leaf[0] != leaf[1]).any() for _, leaf in bits(members[0]))


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_members_of_a_population_run_as_single_networks(name):
    network, params, model_state = variables(name)
    both = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), (params, model_state))

    def run(params, model_state):
        return network.apply(params, model_state, IMAGES, key=KEY, train=True)[0]

    assert_close(jax.jit(jax.vmap(run))(*both)[0], run(params, model_state))


@pytest.mark.usefixtures("compiled_fully")
def test_trains_in_a_scan_and_the_loss_goes_down(case):
    network, params, model_state = case
    optimizer = optax.adam(3e-2)

    def loss(params, model_state, key, train):
        outputs, model_state = network.apply(params, model_state, IMAGES, key=key, train=train)
        values = optax.softmax_cross_entropy_with_integer_labels(outputs, LABELS)
        return values.mean(), model_state

    def step(carry, key):
        params, model_state, opt_state = carry
        grads, model_state = jax.grad(loss, has_aux=True)(params, model_state, key, True)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), model_state, opt_state), None

    carry = (params, model_state, optimizer.init(params))
    keys = jax.random.split(KEY, 100)
    after, _ = jax.jit(lambda carry: jax.lax.scan(step, carry, keys))(carry)
    before = loss(params, model_state, None, False)[0]
    assert loss(*after[:2], None, False)[0] < 0.5 * before


def test_named_keys_differ_by_name_and_by_key():
    keys = [named_key(key, name) for key in (KEY, jax.random.key(2)) for name in ("a", "b")]
    assert len({tuple(np.array(jax.random.key_data(key))) for key in keys}) == 4


def test_named_keys_are_the_same_in_every_process():
    data = jax.random.key_data(named_key(jax.random.key(0), "dropout"))
    assert np.array(data).tolist() == [2482015863, 2646594687]


@pytest.mark.parametrize(
    "key", [0, np.zeros(2, np.uint32), jnp.zeros(2, jnp.uint32), jax.random.split(KEY)]
)
def test_a_key_must_be_a_single_typed_one(key):
    with pytest.raises(TypeError, match=r"key must be a (single|typed) key"):
        named_key(key, "dropout")
