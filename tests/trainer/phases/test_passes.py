"""Several passes in one phase: the bits, the metrics and the data of as many single epochs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

import hooks
import models
import trainer
from trainer import Phase, TrainState, data, losses, repeated
from trainer.rl import PPOConfig, ppo
from trainer.rl.environments import cartpole
from trainer.rl.experience import finalize_rollout_metrics as finalize
from trainer.rl.experience import reduce_rollouts

PASSES = 3


@pytest.fixture(scope="module")
def digits():
    train, _ = data.digits(batch_size=128)
    arrays = {name: np.asarray(array)[:640] for name, array in train.arrays.items()}
    source = data.Arrays(arrays, batch_size=128)
    task = trainer.supervised(models.mlp(hidden=(16,)), losses.classification, optax.adam(1e-2))
    return task, source


@pytest.fixture(scope="module")
def agent():
    config = PPOConfig(envs=4, steps=16, epochs=2, minibatches=2)
    network = models.actor_critic(actions=2, hidden=(8,))
    return ppo(network, cartpole(), optax.adam(1e-3), config)


def assert_same_bits(one, other):
    """Assert that two states are equal but for the epoch."""
    at = jnp.int32(0)
    assert trainer.fingerprint(one.replace(epoch=at)) == trainer.fingerprint(
        other.replace(epoch=at)
    )


def train_both(state, program, epochs=2, **options):
    """Train as single epochs, and as repeated passes; return both results."""
    single = trainer.fit(state, program, epochs=epochs * PASSES, **options)
    several = trainer.fit(state, repeated(program, PASSES), epochs=epochs, **options)
    assert int(several[0].epoch) == epochs
    return single, several


def test_supervised_passes_are_single_epochs(digits):
    task, source = digits
    state = task.init(jax.random.key(0), source.example)
    single, several = train_both(state, trainer.training(task.step, source))
    assert_same_bits(single[0], several[0])
    losses_ = [epoch["train/loss"] for epoch in single[1]]
    want = [np.mean(losses_[:PASSES]), np.mean(losses_[PASSES:])]
    np.testing.assert_allclose([epoch["train/loss"] for epoch in several[1]], want, rtol=1e-6)


def test_ppo_passes_are_single_epochs_and_counts_add_up(agent):
    state = agent.init(jax.random.key(1))
    single, several = train_both(state, agent.program)
    assert_same_bits(single[0], several[0])
    for number, epoch in enumerate(several[1]):
        rows = single[1][number * PASSES : (number + 1) * PASSES]
        assert epoch["rollout/steps"] == sum(row["rollout/steps"] for row in rows)
        episodes = [row["rollout/episodes"] for row in rows]
        assert epoch["rollout/episodes"] == sum(episodes) > 0
        returns = [
            row.get("rollout/return", 0.0) * n for row, n in zip(rows, episodes, strict=True)
        ]
        assert epoch["rollout/return"] == pytest.approx(sum(returns) / sum(episodes), rel=1e-6)
        for name in ("update/loss", "update/entropy", "update/explained_variance"):
            mean = np.mean([row[name] for row in rows])
            assert epoch[name] == pytest.approx(mean, rel=1e-5)


@pytest.mark.emitters
@pytest.mark.usefixtures("compiled_quickly")
def test_a_population_of_agents(agent):
    members = 2
    state = trainer.population_of(agent.init, jax.random.split(jax.random.key(2), members))
    program = trainer.population(agent.program, members)
    single, several = train_both(state, program, epochs=1)
    assert_same_bits(single[0], several[0])
    losses_ = np.array([row["update/loss"].values for row in single[1]])
    np.testing.assert_allclose(several[1][0]["update/loss"].values, losses_.mean(axis=0), rtol=1e-5)
    steps = several[1][0]["rollout/steps"]
    assert steps.values.tolist() == [4 * 16 * PASSES] * members


def test_a_phase_of_a_population_beside_one_of_all_members():
    def init(key):
        return TrainState.create(params=jax.random.uniform(key), rng=key)

    def count(state, _):
        return state, None, {"epoch": state.epoch, "each": state.params}

    def total(state, _):
        return state, None, {"sum": state.params.sum(), "trace": state.params}

    state = trainer.population_of(init, jax.random.split(jax.random.key(0), 2))
    program = [trainer.population(Phase("count", count), 2), Phase("total", total)]
    single, several = train_both(state, program, epochs=1)
    assert_same_bits(single[0], several[0])
    assert several[1][0]["count/each"].values.tolist() == state.params.tolist()
    assert type(several[1][0]["total/sum"]) is float
    assert several[1][0]["total/sum"] == pytest.approx(single[1][0]["total/sum"])
    assert several[1][0]["total/trace"] == pytest.approx(single[1][0]["total/trace"])


@pytest.mark.usefixtures("compiled_quickly")
def test_on_a_mesh(digits):
    task, source = digits
    state = trainer.spread(
        task.init(jax.random.key(0), source.example),
        trainer.mesh(data=8),
        rules=[("kernel$", PartitionSpec("data"))],
    )
    single, several = train_both(state, trainer.training(task.step, source), epochs=1)
    alike = jax.tree.map(
        lambda a, b: np.allclose(a, b, rtol=1e-6, atol=1e-7), single[0].params, several[0].params
    )
    assert all(jax.tree.leaves(alike))
    kernel = jax.tree.leaves(several[0].params)[-1]
    assert not kernel.sharding.is_fully_replicated


def shrink(state, _):
    size = jnp.abs(state.params["w"]).sum()
    params = jax.tree.map(lambda w: w / 2, state.params)
    metrics = {
        "epoch": state.epoch,
        "size": size,
        "trace": jnp.stack([size, size + 1]),
        "pair": (size, jnp.int32(2)),
        "odd": jnp.where(state.epoch % 2 == 1, size, jnp.nan),
        "odd.weight": state.epoch % 2,
    }
    return state.replace(params=params, step=state.step + 1), None, metrics


def test_each_pass_is_a_row_and_sees_its_own_epoch(state):
    phase = Phase("shrink", shrink, reduce={"epoch": "last", "size": "sum"})
    seen = []
    keep = hooks.observe(lambda state, metrics: seen.append(metrics) or state)
    _, history = trainer.fit(state, repeated(phase, 4, name="many"), epochs=2, hooks=keep)
    assert [metrics.steps["shrink/epoch"].tolist() for metrics in seen] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
    ]
    assert [epoch["shrink/epoch"] for epoch in history] == [3, 7]
    assert history[0]["shrink/size"] == 3 * (1 + 1 / 2 + 1 / 4 + 1 / 8)
    assert seen[0].steps["shrink/trace"].tolist() == [3, 4, 1.5, 2.5, 0.75, 1.75, 0.375, 1.375]
    assert history[0]["shrink/pair"] == 3 * (1 + 1 / 2 + 1 / 4 + 1 / 8) / 8
    assert history[0]["shrink/odd"] == (1.5 + 0.375) / 2
    assert "shrink/odd.weight" not in history[0]


@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_the_first_broken_rollout_is_reported(state, epoch):
    def act(state, _):
        broken = (state.epoch >= epoch) & (state.epoch < 3)
        numbers = {"env": state.epoch, "step": 10 * state.epoch, "from_policy": jnp.int32(0)}
        metrics = {f"diagnostics/{name}": value for name, value in numbers.items()}
        metrics |= {f"{name}.weight": broken for name in metrics} | {"diagnostics/envs": 9}
        finite = (~broken).astype(jnp.int32)
        return state, None, {**metrics, "diagnostics/finite": finite, "episodes": 1, "steps": 8}

    reduce = reduce_rollouts(())
    phase = Phase("rollout", act, reduce=reduce, finalize=lambda means: finalize(means, "broken"))
    with pytest.raises(
        ValueError, match=rf"environment {epoch} of 9 .* at step {10 * epoch} of the"
    ):
        trainer.fit(state, repeated(phase, 4), epochs=1)


def test_a_run_resumes_between_passes_to_the_same_bits(digits, tmp_path):
    task, source = digits
    state = task.init(jax.random.key(0), source.example)
    program = [
        repeated(trainer.training(task.step, source), 2),
        trainer.evaluation(task.measure, source),
    ]
    whole, _ = trainer.fit(state, program, epochs=3)
    for epochs in (1, 3):
        hook = hooks.save_checkpoints(tmp_path, max_cost=None)
        resumed, _ = trainer.fit(state, program, epochs=epochs, hooks=hook)
    assert_same_bits(whole, resumed)


def test_hooks_inside_are_refused(state):
    program = repeated(Phase("shrink", shrink), 2)
    hook = hooks.on("shrink", lambda state, metrics: state)
    with pytest.raises(ValueError, match=r"runs at 'shrink', inside 'repeated', whose passes"):
        trainer.fit(state, program, epochs=1, hooks=hook)
    asked = []
    hook = hooks.on("repeated", lambda state, metrics: asked.append(dict(metrics)) or state)
    trainer.fit(state, program, epochs=1, hooks=hook)
    assert asked[0]["shrink/epoch"] == 0.5


def test_names_are_of_one_phase(state):
    phase = Phase("shrink", shrink)
    with pytest.raises(ValueError, match="names of their own"):
        trainer.fit(state, [repeated(phase, 2), phase], epochs=1)
    with pytest.raises(ValueError, match="names of their own"):
        repeated(phase, 2, name="shrink")


def test_what_cannot_be_repeated_is_refused(digits):
    task, source = digits
    stream = data.Stream([dict(source.example)])
    windows = data.Arrays(source.arrays, 128, steps_per_epoch=2)
    phase = Phase("shrink", shrink)
    for program, reason in (
        (trainer.training(task.step, stream), "reads a Stream on the host between the passes"),
        (trainer.training(task.step, windows), "position in the data is counted on the host"),
        (trainer.evaluation(task.measure, source), "only measures, .* list it beside"),
        (trainer.training(task.step, source, executor="step"), "the host dispatches each"),
        (repeated(phase, 2), "several passes already"),
        ([], "needs a phase"),
    ):
        with pytest.raises(ValueError, match=reason):
            repeated(program, 2)
    with pytest.raises(TypeError, match="takes a phase, or several; got"):
        repeated([shrink], 2)
    with pytest.raises(ValueError, match="count must be"):
        repeated(phase, 0)
    with pytest.raises(ValueError, match="repeat the population"):
        trainer.population(repeated(phase, 2), 3)


def test_a_convolution_on_a_cpu_is_refused():
    train, _ = data.digits(batch_size=64)
    task = trainer.supervised(models.cnn(), losses.classification, optax.adam(1e-3))
    state = task.init(jax.random.key(0), train.example)
    with pytest.raises(ValueError, match="repeats a convolution in one program, where on cpu"):
        trainer.fit(state, repeated(trainer.training(task.step, train), 2), epochs=1)


@pytest.mark.usefixtures("compiled_quickly")
def test_a_dry_run_and_the_cost_of_a_pass(digits):
    task, source = digits
    state = task.init(jax.random.key(0), source.example)
    phase = repeated(trainer.training(task.step, source), PASSES)
    trained, _ = trainer.fit(state, phase, epochs=1, dry_run=True)
    assert int(trained.step) == 5 * PASSES == phase.steps_per_epoch
    single = trainer.cost(trainer.training(task.step, source), state)["train"]
    assert trainer.cost(phase, state)["repeated"].flops == pytest.approx(
        PASSES * single.flops, rel=0.1
    )


def test_other_passes_are_other_settings(digits):
    task, source = digits
    state = TrainState.create(params={}, rng=jax.random.key(0))
    phase = trainer.training(task.step, source)
    rows = [describe(state, repeated(phase, count)) for count in (2, 2, 3)]
    assert rows[0] == rows[1] != rows[2]
    assert any("train: " in name for name in rows[0])


def describe(state, phase):
    from trainer.loop.run_description import describe_run

    return describe_run(state, [phase], [])["phase repeated"]
