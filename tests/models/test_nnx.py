"""Modules of Flax NNX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import models

pytestmark = pytest.mark.usefixtures("compiled_quickly")

INPUTS = jax.random.normal(jax.random.key(7), (4, 3))
KEY = jax.random.key(1)


class Count(nnx.Variable):
    pass


class Counting(nnx.Module):
    """Keeps variables of other kinds, and bare arrays."""

    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(3, 3, rngs=rngs) for _ in range(3)])
        self.calls = Count(0)
        self.mask = jnp.array([1.0, 0.0, 1.0])
        self.scale = np.full(3, 2.0)
        self.rngs = rngs

    def __call__(self, inputs):
        self.calls[...] += 1
        for layer in self.layers:
            inputs = layer(inputs)
        return inputs * (self.mask * self.scale)[None]


class Noisy(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Dropout(0.5, rngs=rngs)
        self.second = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, inputs):
        return self.first(inputs), self.second(inputs), self.second(inputs)


class Growing(nnx.Module):
    def __call__(self, inputs):
        self.extra = nnx.Variable(inputs)
        return inputs


def counting(rngs, example):
    return Counting(rngs)


def test_everything_but_params_and_random_state_is_model_state():
    params, model_state = models.from_nnx(counting).init(KEY, INPUTS)
    assert list(params) == ["layers"]
    assert sorted(model_state) == ["calls", "mask", "scale"]
    assert {name: str(leaf.aval) for name, leaf in model_state.items()} == {
        "calls": "int32[]",
        "mask": "float32[3]",
        "scale": "float32[3]",
    }


def test_bare_arrays_are_the_same_data_under_jit():
    init = models.from_nnx(counting).init
    eager, jitted = init(KEY, INPUTS), jax.jit(init)(KEY, INPUTS)
    assert jax.tree.structure(eager) == jax.tree.structure(jitted)


def test_lists_have_string_keys_and_keep_their_order():
    network = models.from_nnx(counting)
    params, model_state = network.init(KEY, INPUTS)
    assert set(params["layers"]) == {str(i) for i in range(3)}
    expected = INPUTS
    for i in range(3):
        layer = params["layers"][str(i)]
        expected = expected @ layer["kernel"] + layer["bias"][None]
    outputs, _ = network.apply(params, model_state, INPUTS, key=None, train=False)
    np.testing.assert_allclose(
        outputs, expected * np.array([[2.0, 0.0, 2.0]]), rtol=1e-5, atol=1e-6
    )


def test_variables_of_any_kind_change_only_in_training():
    network = models.from_nnx(counting)
    params, model_state = network.init(KEY, INPUTS)
    _, trained = network.apply(params, model_state, INPUTS, key=None, train=True)
    _, evaluated = network.apply(params, model_state, INPUTS, key=None, train=False)
    assert (int(trained["calls"]), int(evaluated["calls"])) == (1, 0)


def test_streams_differ_by_their_path_and_from_call_to_call():
    network = models.from_nnx(lambda rngs, example: Noisy(rngs))
    ones = jnp.ones((4, 32))
    (a, b, c), _ = network.apply(*network.init(KEY, ones), ones, key=KEY, train=True)
    assert (a != b).any()
    assert (b != c).any()
    np.testing.assert_array_equal(np.unique([a, b, c]), [0.0, 2.0])


def test_adding_dropout_does_not_change_the_initial_parameters():
    plain, random = (
        models.mlp(hidden=(4, 4), dropout=dropout).init(KEY, INPUTS)[0] for dropout in (0.0, 0.5)
    )
    np.testing.assert_array_equal(plain["head"]["kernel"], random["head"]["kernel"])


def test_streams_of_mapped_layers_are_seeded_apart():
    def build(rngs, example):
        @nnx.split_rngs(splits=3)
        @nnx.vmap(axis_size=3)
        def noisy(rngs):
            return nnx.Dropout(0.5, rngs=rngs)

        return Stack(noisy(rngs))

    class Stack(nnx.Module):
        def __init__(self, layers):
            self.layers = layers

        def __call__(self, inputs):
            return nnx.vmap(lambda layer, x: layer(x), in_axes=(0, None))(self.layers, inputs)

    network = models.from_nnx(build)
    ones = jnp.ones((4, 32))
    outputs, _ = network.apply(*network.init(KEY, ones), ones, key=KEY, train=True)
    assert outputs.shape == (3, 4, 32)
    assert (outputs[0] != outputs[1]).any()
    assert (outputs[1] != outputs[2]).any()


def test_inputs_may_be_a_pytree():
    class Sum(nnx.Module):
        def __call__(self, inputs):
            return inputs["a"] + inputs["b"]

    def build(rngs, example):
        assert example["a"].shape == (4, 3)
        return Sum()

    network = models.from_nnx(build)
    inputs = {"a": INPUTS, "b": INPUTS}
    assert network.init(KEY, inputs) == ({}, {})
    outputs, _ = network.apply({}, {}, inputs, key=None, train=True)
    np.testing.assert_array_equal(outputs, 2 * INPUTS)


def test_one_network_takes_inputs_of_several_shapes():
    network = models.mlp(hidden=(4,))
    for size in (3, 5, 3):
        inputs = jnp.ones((2, size))
        params, model_state = network.init(KEY, inputs)
        assert params["hidden"]["0"]["kernel"].shape == (size, 4)
        for batch in (1, 2, 7):
            inputs = jnp.ones((batch, size))
            outputs, _ = network.apply(params, model_state, inputs, key=None, train=True)
            assert outputs.shape == (batch, 10)


def test_a_module_made_before_provides_its_parameters_and_is_unchanged():
    module = Counting(nnx.Rngs(0))
    network = models.from_nnx(lambda rngs, example: module)
    params, model_state = network.init(KEY, INPUTS)
    _, updated = network.apply(params, model_state, INPUTS, key=None, train=True)
    np.testing.assert_array_equal(params["layers"]["0"]["kernel"], module.layers[0].kernel[...])
    assert (int(updated["calls"]), module.calls.get_value()) == (1, 0)


@pytest.mark.parametrize("train", [False, True])
def test_the_compiled_function_contains_only_the_modules_computation(train):
    network = models.mlp(hidden=(4,))
    params, model_state = network.init(KEY, INPUTS)

    def forward(params, key, inputs):
        return network.apply(params, model_state, inputs, key=key, train=train)

    def bare(params, key, inputs):
        x = inputs.reshape(4, -1)
        for layer in (params["hidden"]["0"], params["head"]):
            x = x @ layer["kernel"] + layer["bias"].reshape(1, -1)
            x = jax.nn.relu(x) if layer is not params["head"] else x
        return x, model_state

    programs = [jax.make_jaxpr(f)(params, KEY, INPUTS) for f in (forward, bare)]
    ours, theirs = ([eqn.primitive.name for eqn in program.eqns] for program in programs)
    assert ours == theirs


def test_a_module_with_random_numbers_needs_a_key_in_training():
    network = models.mlp(hidden=(4,), dropout=0.5)
    variables = network.init(KEY, INPUTS)
    network.apply(*variables, INPUTS, key=None, train=False)
    with pytest.raises(ValueError, match=r"draws random numbers .*dropout.* key is None; pass"):
        network.apply(*variables, INPUTS, key=None, train=True)
    with pytest.raises(ValueError, match="key is None"):
        jax.jit(lambda: network.apply(*variables, INPUTS, key=None, train=True))()


@pytest.mark.parametrize("build", [lambda rngs: Counting(rngs), Counting, 3])
def test_build_must_take_two_arguments(build):
    with pytest.raises(TypeError, match=r"calls build\(rngs, example\).*lambda rngs, example"):
        models.from_nnx(build)


@pytest.mark.parametrize("made", [None, "a module", models.mlp()])
def test_build_must_return_a_module(made):
    network = models.from_nnx(lambda rngs, example: made)
    with pytest.raises(TypeError, match=r"build must return an nnx\.Module; got"):
        network.init(KEY, INPUTS)


def test_variables_must_be_those_of_the_inputs():
    network = models.mlp(hidden=(4,))
    params, model_state = network.init(KEY, INPUTS)
    with pytest.raises(ValueError, match=r"hidden/0/kernel must be \(5, 4\), got \(3, 4\); pass"):
        network.apply(params, model_state, jnp.ones((4, 5)), key=None, train=False)
    with pytest.raises(ValueError, match=r"params: .*head/bias is missing"):
        network.apply({}, model_state, INPUTS, key=None, train=False)
    with pytest.raises(ValueError, match=r"model_state: .*mean is not expected"):
        network.apply(params, {"mean": jnp.ones(3)}, INPUTS, key=None, train=False)


def test_a_call_must_not_add_variables():
    network = models.from_nnx(lambda rngs, example: Growing())
    with pytest.raises(ValueError, match=r"after the call: .*extra is not expected"):
        network.apply({}, {}, INPUTS, key=None, train=True)


def test_a_module_instead_of_a_function_is_an_error():
    with pytest.raises(TypeError, match=r"got a module, of class Linear: write from_n"):
        models.from_nnx(nnx.Linear(5, 2, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize("flag", ["is_training", "deterministic", "not frozen"])
def test_a_flag_of_the_call_is_set(flag):
    class Dropping(nnx.Module):
        def __init__(self, rngs):
            self.dropout = nnx.Dropout(0.5, rngs=rngs)

        if flag == "is_training":

            def __call__(self, x, *, is_training=False):
                return self.dropout(x, deterministic=not is_training)

        elif flag == "deterministic":

            def __call__(self, x, deterministic=True):
                return self.dropout(x, deterministic=deterministic)

        else:

            def __call__(self, x, frozen=True):
                return self.dropout(x, deterministic=frozen)

    named = {"train_flag": flag} if flag == "not frozen" else {}
    network = models.from_nnx(lambda rngs, example: Dropping(rngs), **named)
    inputs = jnp.ones((8, 4))
    variables = network.init(jax.random.key(0), inputs)
    key = jax.random.key(1)
    assert (network.apply(*variables, inputs, key=key, train=True)[0] == 0).any()
    assert (network.apply(*variables, inputs, key=key, train=False)[0] == 1).all()
