"""States on a mesh of eight virtual devices train as on one, and resume bit for bit."""

import re
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import hooks
import models
import trainer
from trainer import data, fingerprint, losses, rl
from trainer.rl.environments import cartpole

pytestmark = pytest.mark.usefixtures("compiled_quickly")

DEVICES = 8
FSDP = [("^params/", trainer.fsdp())]
COLLECTIVES = r"(all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)(?:-start)?\("


@pytest.fixture(scope="module")
def source():
    """Digits in batches that eight devices share."""
    train, _ = data.digits(batch_size=32)
    return data.Arrays({name: np.asarray(x)[:130] for name, x in train.arrays.items()}, 32)


@pytest.fixture(scope="module")
def task():
    """A network whose kernels are large enough to be split."""
    network = models.mlp(hidden=(32,))
    return trainer.supervised(network, losses.classification, optax.sgd(0.1, momentum=0.9))


@pytest.fixture(scope="module")
def start(task, source):
    return task.init(jax.random.key(0), source.example)


def close(one, other, *, by=1e-6):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=by, atol=by)


def count_collectives(phase):
    """Count the collectives in the compiled functions of a phase that were traced on a mesh."""
    (traced,) = (t for t, _ in phase._shared.traces.values())
    return Counter(re.findall(COLLECTIVES, traced.lower().compile().as_text()))


def fit_both(start, make_program, *, rules=(), epochs=3):
    """Train on one device and spread over all; return ((state, history), (state, history))."""
    alone = trainer.fit(start, make_program(), epochs=epochs)
    return alone, trainer.fit(trainer.spread(start, rules=rules), make_program(), epochs=epochs)


def test_a_mesh_takes_all_devices_and_data_comes_first():
    assert dict(trainer.mesh().shape) == {"data": DEVICES}
    assert list(trainer.mesh(model=2, data=4).shape) == ["data", "model"]
    with pytest.raises(ValueError, match=r"data=3 \* model=2 makes 6, and there are 8"):
        trainer.mesh(data=3, model=2)


def test_a_state_keeps_its_values_and_the_optimizer_follows_the_parameters(start, task, source):
    made = trainer.spread(lambda: task.init(jax.random.key(0), source.example), rules=FSDP)
    assert fingerprint(made) == fingerprint(trainer.spread(start, rules=FSDP)) == fingerprint(start)
    kernel = made.params["hidden"]["0"]["kernel"]
    assert kernel.sharding.spec == P("data")
    (trace,) = (
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(made.opt_state)
        if jax.tree_util.keystr(path).endswith("['hidden']['0']['kernel']")
    )
    assert trace.sharding == kernel.sharding
    assert {s.data.shape for s in kernel.addressable_shards} == {(kernel.shape[0] // DEVICES, 32)}
    assert made.step.sharding.is_fully_replicated


def test_split_parameters_and_optimizer_state_take_their_share_of_memory():
    network = models.transformer(vocabulary=64, context=16, width=64, layers=1, heads=2)
    task = trainer.supervised(network, losses.language_modeling, optax.adam(1e-3))
    example = {"inputs": np.zeros((8, 16), np.int32), "labels": np.zeros((8, 16), np.int32)}
    state = trainer.spread(lambda: task.init(jax.random.key(0), example), rules=FSDP)
    assert f"{trainer.summary(state)}\n" == Path(__file__).with_name("summary.txt").read_text()
    leaves = jax.tree.leaves((state.params, state.opt_state))
    here = sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves)
    assert here / sum(leaf.nbytes for leaf in leaves) < 0.15


@pytest.mark.parametrize(
    ("executor", "rules"),
    [("scan", ()), ("scan", FSDP), ("step", FSDP)],
    ids=["data_parallel", "fsdp", "fsdp by steps"],
)
def test_training_equals_one_device(start, task, source, rules, executor):
    val = data.Arrays(source.arrays, batch_size=32)  # ends in a batch of 2

    def program():
        train = trainer.training(task.step, source, executor=executor)
        return train, trainer.evaluation(task.measure, val)

    (alone, wanted), (state, history) = fit_both(start, program, rules=rules)
    close(alone.params, state.params)
    for one, other in zip(wanted, history, strict=True):
        names = [name for name in one if not name.startswith("time/")]
        assert [other[name] for name in names] == pytest.approx([one[n] for n in names], rel=1e-5)


def _stream(source):
    return data.Stream([{n: np.asarray(x) for n, x in batch.items()} for batch in source][:4])


SOURCES = {
    "window": lambda source: data.Arrays(source.arrays, 32, steps_per_epoch=3),
    "stream": _stream,
}


@pytest.mark.parametrize("kind", SOURCES)
def test_every_source_gives_the_same_batches(start, task, source, kind):
    read = SOURCES[kind](source)
    (alone, _), (state, _) = fit_both(start, lambda: trainer.training(task.step, read))
    close(alone.params, state.params)


@pytest.mark.parametrize("settings", [{"accumulate": 2}, {"precision": "bfloat16", "average": 0.9}])
def test_settings_of_a_task_hold(source, settings):
    network = models.mlp(hidden=(32,))
    task = trainer.supervised(network, losses.classification, optax.sgd(0.1), **settings)
    start = task.init(jax.random.key(0), source.example)
    program = lambda: trainer.training(task.step, source)  # noqa: E731
    (alone, _), (state, _) = fit_both(start, program, rules=FSDP)
    close(alone.params, state.params, by=1e-6 if "accumulate" in settings else 2e-2)


def test_an_update_takes_one_all_reduce_and_a_gather_of_each_split_leaf(start, task, source):
    for rules, gathers in ((), 0), (FSDP, 1):
        train = trainer.training(task.step, source)
        train._shared.traces.clear()
        train.infer_shapes(trainer.spread(start, rules=rules))
        found = count_collectives(train)
        assert found == {"all-reduce": 1} | ({"all-gather": gathers} if gathers else {})


@pytest.mark.parametrize("settings", [{}, {"precision": "bfloat16", "clip_norm": 1.0}])
def test_an_update_by_weighted_examples_takes_one_all_reduce_too(source, settings):
    """The sum of the weights travels with the gradients."""
    weights = np.linspace(0, 1, len(source.arrays["labels"]), dtype=np.float32)
    weighted = data.Arrays(source.arrays | {"weights": weights}, 32)
    network = models.mlp(hidden=(32,))
    task = trainer.supervised(network, losses.classification, optax.sgd(0.1), **settings)
    start = task.init(jax.random.key(0), weighted.example)
    train = trainer.training(task.step, weighted)
    train.infer_shapes(trainer.spread(start))
    assert count_collectives(train) == {"all-reduce": 1}


@pytest.mark.parametrize("accumulate", [1, 2])
def test_weighted_examples_train_as_on_one_device(source, accumulate):
    weights = np.linspace(0, 1, len(source.arrays["labels"]), dtype=np.float32)
    weights[:70] = 0  # some batches have devices without any
    weighted = data.Arrays(source.arrays | {"weights": weights}, 32)
    network = models.mlp(hidden=(32,))
    task = trainer.supervised(network, losses.classification, optax.sgd(0.1), accumulate=accumulate)
    start = task.init(jax.random.key(0), weighted.example)
    program = lambda: trainer.training(task.step, weighted)  # noqa: E731
    (alone, wanted), (state, history) = fit_both(start, program)
    close(alone.params, state.params)
    assert history[-1]["train/loss"] == pytest.approx(wanted[-1]["train/loss"], rel=1e-5)


def test_an_interrupted_run_resumes_bit_for_bit_and_compiles_once(
    start, task, source, tmp_path, counting_compilations
):
    spread = trainer.spread(start, rules=FSDP)
    train = trainer.training(task.step, source)
    straight, _ = trainer.fit(spread, train, epochs=4)
    saving = hooks.save_checkpoints(tmp_path, max_cost=None)
    trainer.fit(spread, train, epochs=2, hooks=saving)
    with counting_compilations() as compiled:
        state, history = trainer.fit(spread, train, epochs=4, hooks=saving)
    assert len(history) == 2
    assert fingerprint(state.replace(hook_state={})) == fingerprint(straight)
    assert state.params["hidden"]["0"]["kernel"].sharding.spec == P("data")
    assert len(train._shared.compiled) == 1
    assert len(compiled) < 5


def test_any_topology_restores_any_checkpoint(start, task, source, tmp_path):
    train = trainer.training(task.step, source)
    saving = hooks.save_checkpoints(tmp_path, max_cost=None)
    places = [start, trainer.spread(start, rules=FSDP), trainer.spread(start), start]
    for epochs, place in enumerate(places, 1):
        state, _ = trainer.fit(place, train, epochs=epochs, hooks=saving)
        assert state.step.sharding == place.step.sharding
    close(state.params, trainer.fit(start, train, epochs=4)[0].params)


def test_a_population_is_split_over_members_and_exchanges_nothing(task, source):
    keys = jax.random.split(jax.random.key(0), DEVICES)
    start = trainer.population_of(lambda key: task.init(key, source.example), keys)

    def program():
        return trainer.population(trainer.training(task.step, source), DEVICES)

    (alone, wanted), (state, history) = fit_both(start, program)
    close(alone.params, state.params)
    assert jax.tree.leaves(state.params)[0].sharding.spec == P("members")
    assert history[-1]["train/loss"].values == pytest.approx(wanted[-1]["train/loss"].values)
    each = hooks.each(hooks.stop_early("train/loss", patience=9))
    hooked, _ = trainer.fit(trainer.spread(start), program(), epochs=3, hooks=each)
    assert fingerprint(hooked.replace(hook_state={})) == fingerprint(state)
    train = program()
    train.infer_shapes(trainer.spread(start))
    loop = count_collectives(train)
    assert set(loop) <= {"all-gather"}  # of the metrics, after the loop


@pytest.mark.usefixtures("compiled_fully")
def test_a_population_is_made_in_place_with_the_same_values(task, source):
    keys = jax.random.split(jax.random.key(0), 2 * DEVICES)

    def make():
        return trainer.population_of(lambda key: task.init(key, source.example), keys)

    made = trainer.spread(make)
    assert fingerprint(made) == fingerprint(make())
    kernel = made.params["head"]["kernel"]
    assert kernel.shape == (2 * DEVICES, 32, 10)
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(2, 32, 10)}
    assert made.epoch.sharding.is_fully_replicated


def test_an_agent_trains_as_on_one_device():
    config = rl.PPOConfig(envs=DEVICES, steps=8, epochs=2, minibatches=2, normalize_rewards=True)
    agent = rl.ppo(models.actor_critic(actions=2), cartpole(), optax.sgd(1e-2), config)
    start = agent.init(jax.random.key(0))
    (alone, wanted), (state, history) = fit_both(start, lambda: agent.program, epochs=2)
    close(alone.params, state.params, by=1e-5)
    assert history[-1]["rollout/steps"] == wanted[-1]["rollout/steps"]
    assert jax.tree.leaves(state.carry["environment"])[0].sharding.spec == P("data")
    *_, (traced, _) = agent.rollout._shared.traces.values()
    lines = traced.lower().compile().as_text().splitlines()
    exchanges = [line for line in lines if re.search(COLLECTIVES, line)]
    assert exchanges
    assert not any("while/body" in line for line in exchanges)  # each device plays alone


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ([("(", P())], r"sought in paths, .*; '\(' is no regular expression: missing \)"),
        (
            [("^params/heed/kernel$", P())],
            r"no path of the state matches \['\^params/heed/kernel\$'\].* "
            r"Did you mean .*'params/head/kernel'\? Change",
        ),
        (
            [("head/kernel", P(None, "dta"))],
            r"spread: params/head/kernel \[32, 10\] cannot be split by P\w*\(None, 'dta'\)"
            r" over data=8: the mesh has no axis 'dta'\. Did you mean 'data'\? \(there is: data\); "
            r"name one of these in the rule, or .* trainer.mesh\(data=8, dta=...\)",
        ),
        (
            [("^step$", trainer.fsdp("model"))],
            r"step \[\] cannot be split by P\w*\('model',\) .* no axis 'model' \(there is",
        ),
        ([("head/bias", P(("data", "data")))], r"head/bias \[10\] .* the axis 'data' twice; name"),
        (
            [("head/kernel", P(None, "data"))],
            r"head/kernel \[32, 10\] .* 10 is not a multiple of 8; leave this dimension whole",
        ),
        (
            [("head/bias", P(None, "data"))],
            r"head/bias \[10\] .* 1 dimensions, and the spec is for 2; shorten the spec",
        ),
    ],
)
def test_rules_that_do_not_fit_are_refused(start, rules, said):
    with pytest.raises(ValueError, match=said):
        trainer.spread(start, rules=rules)


@pytest.mark.parametrize(
    ("arguments", "rules", "said"),
    [
        ((3,), (), "spread needs a TrainState first; got 3"),
        ((lambda: 3,), (), "a function that makes a TrainState, .* it returned 3"),
        ((None, {"data": 8}), (), r"takes a mesh, trainer.mesh\(data=8\), second; got a dict"),
        ((None,), {"kernel": P()}, "takes rules as a list, .*; got a dict of kernel"),
        ((None,), [("kernel", "data")], r"is a pair of .* got \('kernel', 'data'\)"),
        ((None,), ("kernel", P("data")), "is a pair of .* got 'kernel'"),
    ],
)
def test_arguments_of_another_type_are_refused(start, arguments, rules, said):
    first, *others = arguments
    with pytest.raises(TypeError, match=said):
        trainer.spread(start if first is None else first, *others, rules=rules)


def test_a_rule_that_fails_or_gives_something_else_names_the_leaf(start):
    with pytest.raises(TypeError, match=r"head/bias \[10\] .* gives a .*PartitionSpec; got 'data'"):
        trainer.spread(start, rules=[("head/bias", lambda shape, mesh: "data")])
    with pytest.raises(ZeroDivisionError) as caught:
        trainer.spread(start, rules=[("head/bias", lambda shape, mesh: 1 // 0)])
    assert caught.value.__notes__ == ["in the rule 'head/bias' of spread for params/head/bias [10]"]


def test_a_missing_axis_is_named_in_a_prediction_too(start, task, source):
    rules = [("head/kernel$", P(None, "modle"))]
    train = trainer.training(task.step, source)
    with pytest.raises(ValueError, match=r"head/kernel \[32, 10\] .*Did you mean 'model'\?"):
        trainer.cost(train, start, mesh="data=4,model=2", rules=rules)


def test_a_batch_that_devices_cannot_share_is_refused_before_training(start, task, source):
    train = trainer.training(task.step, data.Arrays(source.arrays, batch_size=20))
    with pytest.raises(
        ValueError, match="a batch of 20 examples cannot be split over the 8 devices"
    ):
        trainer.fit(trainer.spread(start), train, epochs=1)


def test_members_and_environments_that_devices_cannot_share_are_refused(task, source):
    keys = jax.random.split(jax.random.key(0), 3)
    population = trainer.population_of(lambda key: task.init(key, source.example), keys)
    with pytest.raises(ValueError, match="3 is not a multiple of 8; take a number of members that"):
        trainer.spread(population)
    members = trainer.population_of(lambda key: task.init(key, source.example), [*keys] * 8)
    with pytest.raises(
        ValueError, match=r"each member lies whole .* got \['\^params/'\]: leave rul"
    ):
        trainer.spread(members, trainer.mesh(members=8), rules=FSDP)
    with pytest.raises(ValueError, match=r"the mesh members=8 .* of no population: make one with"):
        trainer.spread(task.init(jax.random.key(0), source.example), trainer.mesh(members=8))
    agent = rl.ppo(
        models.actor_critic(actions=2), cartpole(), optax.sgd(1e-2), rl.PPOConfig(envs=4, steps=8)
    )
    with pytest.raises(ValueError, match=r"carry/environment/.* 4 is not a multiple of 8; .*envs="):
        trainer.spread(agent.init(jax.random.key(0)))


def test_leaves_of_the_optimizer_follow_the_longest_path_and_stay_whole_in_another_shape():
    params = {"w": jnp.ones((8, 256)), "x": {"w": jnp.ones((8, 256))}}
    optimizer = optax.chain(optax.scale_by_factored_rms(min_dim_size_to_factor=8), optax.trace(0.9))
    state = trainer.TrainState.create(
        params=params, opt_state=optimizer.init(params), rng=jax.random.key(0)
    )
    factored, trace = trainer.spread(state, rules=[("^params/x/w", P("data"))]).opt_state
    assert trace.trace["w"].sharding.is_fully_replicated
    assert trace.trace["x"]["w"].sharding.spec == P("data")
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(factored))
