"""Low-rank adapters: the same function, few trained parameters, a base that never changes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import hooks
import models
import trainer
from trainer import data, losses
from trainer.phases.jaxprs import count_flops

pytestmark = pytest.mark.usefixtures("compiled_quickly")

KEY = jax.random.key(0)
TOKENS = np.random.default_rng(0).integers(0, 11, (12, 9)).astype("int32")
SOURCE = data.Arrays({"inputs": TOKENS[:, :-1], "labels": TOKENS[:, 1:]}, batch_size=4)


@functools.cache
def make(*, scan=False, dtype="float32"):
    """Return a network and its parameters."""
    network = models.transformer(
        vocabulary=11, context=8, layers=1 + scan, heads=2, width=8, scan=scan
    )
    params, _ = jax.jit(network.init)(KEY, SOURCE.example["inputs"])
    return network, jax.tree.map(lambda leaf: leaf.astype(dtype), params)


def fill(adapters):
    """Return adapters with second factors that change something."""
    leaves, structure = jax.tree.flatten(adapters)
    keys = jax.random.split(KEY, len(leaves))
    drawn = [jax.random.normal(k, leaf.shape) / 4 for k, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, drawn)


@functools.cache
def compile_apply(network):
    return jax.jit(functools.partial(network.apply, key=None, train=False))


def run(network, params, model_state):
    """Return logits for all tokens."""
    return compile_apply(network)(params, model_state, TOKENS[:, :-1])[0]


def test_merged_parameters_compute_what_the_adapters_compute():
    network, params = make(scan=True)
    adapted = models.lora(network, params, rank=3, alpha=6.0)
    adapters, model_state = adapted.init(KEY, TOKENS[:, :-1])
    before = run(network, params, {})
    np.testing.assert_array_equal(run(adapted, adapters, model_state), before)
    adapters = fill(adapters)
    changed = run(adapted, adapters, model_state)
    assert np.abs(changed - before).max() > 0.1
    merged = models.merge_lora(adapted, adapters, model_state)
    assert jax.tree.structure(merged) == jax.tree.structure(params)
    np.testing.assert_allclose(run(network, merged, {}), changed, rtol=1e-5, atol=1e-5)
    layer, base, factors = (tree["blocks"]["up"] for tree in (merged, params, adapters))
    kernel = base["kernel"] + 2 * factors["lora_a"] @ factors["lora_b"]
    np.testing.assert_allclose(layer["kernel"], kernel, rtol=1e-5, atol=1e-6)


def test_the_first_factor_is_uniform_and_the_second_zero():
    network, params = make()
    adapters, model_state = models.lora(network, params).init(KEY, TOKENS[:, :-1])
    block = adapters["blocks"]["0"]
    assert sorted(block) == ["attention", "down", "up"]
    assert sorted(block["attention"]) == ["key", "out", "query", "value"]
    a, b = block["down"].values()
    assert (a.shape, b.shape, a.dtype, b.dtype) == ((32, 8), (8, 8), "float32", "float32")
    assert 0.16 < np.abs(a).max() <= 32**-0.5
    assert not b.any()
    assert (a[:8] != block["up"]["lora_a"]).all()
    assert all(map(lambda x, y: x is y, *map(jax.tree.leaves, (model_state["base"], params))))


def test_adapters_generate_what_merged_parameters_generate():
    network, params = make()
    adapted = models.lora(network, params)
    adapters, model_state = adapted.init(KEY, TOKENS[:, :-1])
    adapters = fill(adapters)
    settings = {"length": 4, "key": KEY, "temperature": 0.0}
    found = models.generate(
        adapted, adapters, [[1, 2, 3], [4]], model_state=model_state, **settings
    )
    merged = models.merge_lora(adapted, adapters, model_state)
    wanted = models.generate(network, merged, [[1, 2, 3], [4]], **settings)
    np.testing.assert_array_equal(found.tokens, wanted.tokens)
    np.testing.assert_allclose(found.log_probs, wanted.log_probs, rtol=1e-4, atol=1e-5)


def make_task(network):
    return trainer.supervised(network, losses.language_modeling, optax.adam(0.01))


def test_no_gradient_of_a_kernel_is_computed():
    network, params = make()
    adapted = models.lora(network, params, rank=1)
    flops = []
    for one in network, adapted:
        task = make_task(one)
        state = jax.eval_shape(lambda task=task: task.init(KEY, SOURCE.example))
        jaxpr = jax.make_jaxpr(task.step)(state.replace(stop=False), SOURCE.example)
        flops.append(count_flops(jaxpr))
        products = [leaf.shape for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim == 2]
    rows, width, hidden, ranks = 4 * 8, 8, 32, 8 + 8
    kernels = 4 * width * width + 2 * width * hidden
    # Without the kernels' gradients, with three products of each of the two factors.
    spared = 2 * rows * kernels
    more = 3 * 2 * rows * (4 * ranks + 2 * (width + hidden))
    # The inputs of the first block need no gradient, but their products with the adapters do.
    assert flops[1] <= flops[0] - spared + more
    assert flops[0] - spared < flops[1]
    assert {min(shape) for shape in products} == {1}


def test_a_run_resumes_bit_for_bit_and_never_changes_its_base(tmp_path):
    network, params = make(dtype="bfloat16")
    task = make_task(models.lora(network, params, rank=2))
    train = trainer.training(task.step, SOURCE)
    start = task.init(KEY, SOURCE.example)
    whole, history = trainer.fit(start, train, epochs=3)
    for epochs in 2, 3:
        save = hooks.save_checkpoints(tmp_path)
        state, _ = trainer.fit(start, train, epochs=epochs, hooks=[save])
    assert trainer.fingerprint(state.replace(hook_state={})) == trainer.fingerprint(whole)
    for one, other in zip(*map(jax.tree.leaves, (state.model_state["base"], params)), strict=True):
        assert one.dtype == "bfloat16"
        np.testing.assert_array_equal(one, other)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    assert history[2]["train/loss"] < history[0]["train/loss"]
    weights = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert sum(leaf.size for leaf in jax.tree.leaves(state.opt_state)) == 2 * weights + 1


def test_adapters_and_base_are_split_by_the_rules():
    network, params = make()
    task = make_task(models.lora(network, params))
    mesh = trainer.mesh(data=4, model=2)
    state = trainer.spread(
        lambda: task.init(KEY, SOURCE.example), mesh, rules=models.transformer_rules("fsdp+tensor")
    )
    blocks = state.model_state["base"]["blocks"], state.params["blocks"]
    layer, adapter = (one["0"]["up"] for one in blocks)
    assert layer["kernel"].sharding.spec[-2:] == ("data", "model")
    assert adapter["lora_a"].sharding.spec[-2:] == ("data", "model")
    batch = jax.tree.map(lambda x: x[:4], SOURCE.example)
    alone, _ = jax.jit(task.step)(task.init(KEY, SOURCE.example), batch)
    moved, _ = jax.jit(task.step)(state, batch)
    for one, other in zip(*map(jax.tree.leaves, (alone.params, moved.params)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_the_base_is_the_reference_without_a_second_copy():
    network, params = make()
    both = models.with_reference(models.lora(network, params), network)
    adapters, model_state = both.init(KEY, TOKENS[:, :-1])
    assert sorted(model_state) == ["network"]
    apply = jax.jit(functools.partial(both.apply, key=None, train=True))
    outputs, after = apply(fill(adapters), model_state, TOKENS[:, :-1])
    np.testing.assert_array_equal(outputs["reference_logits"], run(network, params, {}))
    assert np.abs(outputs["logits"] - outputs["reference_logits"]).max() > 0.1
    assert jax.tree.structure(after) == jax.tree.structure(model_state)


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"targets": ("atention",)}, ValueError, "'atention' matches no layer; there are .*query"),
        ({"targets": "attention"}, TypeError, "lora takes targets as texts"),
        ({"targets": ()}, ValueError, "needs at least one target"),
        ({"targets": ("(",)}, ValueError, "no regular expression"),
        ({"rank": 9}, ValueError, r"rank must be at most the smaller .*got 9, and .* is \[8, 8\]"),
        ({"rank": 0}, ValueError, "rank must be at least 1"),
        ({"alpha": 0.0}, ValueError, "alpha must be above 0"),
    ],
)
def test_settings_that_do_not_suit_are_an_error(settings, error, said):
    with pytest.raises(error, match=said):
        models.lora(*make(), **settings)


def test_targets_are_parts_of_paths():
    network, params = make()
    found = models.lora(network, params, targets=("query", "blocks/0/u.*")).lora.layers
    wanted = {"blocks/0/attention/query", "blocks/0/up"}
    assert set(found) == wanted


def test_networks_that_do_not_suit_are_an_error():
    network, params = make()
    with pytest.raises(TypeError, match=r"lora adapts a decoder of models.transformer"):
        models.lora(models.mlp(), params)
    with pytest.raises(TypeError, match="merge_lora takes a network of models.lora"):
        models.merge_lora(network, params, {})
    adapted = models.lora(network, params)
    with pytest.raises(TypeError, match="a network without adapters"):
        models.lora(adapted, params)
    wider = models.transformer(vocabulary=11, context=8, layers=1, heads=2, width=16)
    with pytest.raises(ValueError, match="lora params: the arrays do not fit"):
        models.lora(wider, params).init(KEY, TOKENS[:, :-1])
