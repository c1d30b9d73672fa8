"""What people get wrong, one row each: who says it, what is required, what was got, what to do.

Each row is a mistake, the type of its error, and words that its message must contain, notes
included. None of them comes from deep inside: nothing is compiled, but where a hook has to run.
"""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

import hooks
import models
import trainer
from trainer import data, losses

RNG = np.random.default_rng(0)
X = RNG.normal(size=(90, 5)).astype("float32")
Y = (X[:, 0] > 0).astype("int32")
KEY = jax.random.key(0)
ADAM = optax.adam(0.01)


def linear():
    """A network of one layer, which is quickly traced."""
    return models.Network(
        lambda key, x: ({"w": jnp.zeros((x.shape[-1], 2))}, {}),
        lambda params, model_state, x, *, key, train: (x @ params["w"], model_state),
    )


SOURCE = data.Arrays({"inputs": X, "labels": Y}, batch_size=40)
NET = linear()
TASK = trainer.supervised(NET, losses.classification, ADAM)
STATE = TASK.init(KEY, SOURCE.example)
TRAIN = trainer.training(TASK.step, SOURCE)
VAL = trainer.evaluation(TASK.measure, SOURCE)
NOOP = trainer.Phase("noop", lambda state, data: (state, None, {"loss": jnp.float32(1)}))
"""A phase that is compiled once, for the hooks that have to run."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of one number."""

    rate: float = 0.1


class Writer:
    """A user's own, whose class is given where one of them is meant."""

    def write(self, step, values): ...
    def flush(self): ...
    def close(self): ...


def nothing(state, metrics):
    return state


def fit(program=NOOP, *, state=STATE, epochs=1, **settings):
    return trainer.fit(state, program, epochs=epochs, **settings)


def arrays(inputs=X, labels=Y, size=40, **others):
    return data.Arrays({"inputs": inputs, "labels": labels, **others}, size)


def training(inputs=X, labels=Y):
    return fit(trainer.training(TASK.step, arrays(inputs, labels)))


def stream(*batches):
    return [*data.Stream([*batches], superbatch=1).training().pieces(STATE, None, None)]


class Made(nnx.Module):
    """A module that is made of random numbers alone."""

    def __init__(self, rngs): ...


class Inheriting(Made):
    """One that is made as another is."""


def with_loss(loss):
    task = trainer.supervised(NET, loss, ADAM)
    return fit(trainer.training(task.step, SOURCE))


def with_state(**changes):
    """Fit with a hook that changes fields of the state."""

    def change(state, metrics):
        return state.replace(**{name: of(state) for name, of in changes.items()})

    return fit(hooks=change)


def evaluated(inputs=X, labels=Y, under="labels"):
    held = data.Arrays({"inputs": inputs, under: labels}, 40)
    return fit(hooks=hooks.evaluate(trainer.evaluation(TASK.measure, held, name="test")))


def configured(text, cls=Config):
    def load(folder):
        (folder / "c.yaml").write_text(text)
        return trainer.load_config(folder / "c.yaml", cls)

    return load


def occupied(make):
    """Give a path at which there is a file already."""

    def call(folder):
        (folder / "taken").write_text("x")
        return make(folder / "taken")

    return call


T, V = TypeError, ValueError

MISTAKES = {
    # losses
    "a loss that averages": (
        lambda: with_loss(lambda o, b: {"loss": o.mean()}),
        (V, "must return 'loss' per example, [40]; got []", "do not average", "phase 'train'"),
    ),
    "a loss that is an array": (
        lambda: with_loss(lambda o, b: o[:, 0]),
        (T, "must return a dict of values [batch]", '{"loss": values}', "got [40]"),
    ),
    "a loss without 'loss'": (
        lambda: with_loss(lambda o, b: {"error": o[:, 0]}),
        (V, "must return 'loss' to minimise", "['error']"),
    ),
    "a loss that broadcasts": (
        lambda: with_loss(lambda o, b: {"loss": o[:, 0] - b["labels"][:, None]}),
        (V, "got [40, 40]", "broadcast", "array[:, 0]"),
    ),
    "a loss that reads another name": (
        lambda: with_loss(lambda o, b: {"loss": o[:, 0] - b["label"]}),
        (V, "reads 'label'", "Did you mean 'labels'?"),
    ),
    "a loss of optax as it is": (
        lambda: with_loss(optax.softmax_cross_entropy),
        (T, "in the loss 'softmax_cross_entropy', which is called with (outputs, batch)"),
    ),
    "a loss that was called": (
        lambda: trainer.supervised(NET, {"loss": Y}, ADAM),
        (T, "takes a loss", "(outputs, batch)", "a dict of", "without calling it"),
    ),
    "a loss by name": (
        lambda: trainer.supervised(NET, "classification", ADAM),
        (T, "supervised takes a loss", "(outputs, batch) -> {name: values}", "'classification'"),
    ),
    "labels that are floats": (
        lambda: training(labels=Y.astype("float32")),
        (V, "classification needs integer labels [batch]", "float32[40]", "phase 'train'"),
    ),
    "labels of one column": (
        lambda: training(labels=Y[:, None]),
        (V, "needs integer labels [batch]", "int32[40, 1]", "labels[:, 0]"),
    ),
    "one-hot labels that are integers": (
        lambda: training(labels=np.eye(2, dtype="int32")[Y]),
        (V, "needs integer labels [batch]", "int32[40, 2]", "labels.argmax(-1)"),
    ),
    "images without a channel": (
        lambda: models.cnn(classes=2).init(KEY, jnp.ones((4, 8, 8))),
        (V, "cnn takes inputs [batch, height, width, channels]", "(4, 8, 8)", "images[..., None]"),
    ),
    "images whose channels come first": (
        lambda: models.cnn(classes=2).init(KEY, jnp.ones((4, 3, 32, 32))),
        (V, "images of at least 4x4", "(4, 3, 32, 32)", "np.moveaxis(images, 1, -1)"),
    ),
    "a source in the place of a batch": (
        lambda: TASK.step(STATE, SOURCE),
        (T, "reads batch['inputs']", "a dict of arrays", "an Arrays", "of a source"),
    ),
    "a state in the place of a network": (
        lambda: trainer.predict(NET, STATE, SOURCE),
        (T, "predict needs", "got a TrainState"),
    ),
    "fit within jit": (
        lambda: jax.jit(lambda state: fit(state=state)[0])(STATE),
        (T, "fit runs on the host", "being traced", "outside of jax.jit"),
    ),
    "metrics that a hook adds to": (
        lambda: fit(hooks=lambda state, metrics: metrics.update(mine=1.0) or state),
        (AttributeError, "metrics are frozen", "update", "state.replace(scores="),
    ),
    "a metric by a short name": (
        lambda: fit(hooks=[hooks.evaluate(VAL), hooks.stop_early("val/acc", patience=1)]),
        (V, "reads 'val/acc'", "Did you mean 'val/accuracy'?"),
    ),
    "a metric that evaluation does not give": (
        lambda: fit(hooks=[hooks.evaluate(VAL), hooks.stop_early("val/f1", patience=1)]),
        (V, "reads 'val/f1'", "writes no other: name one of these"),
    ),
    "a hyperparameter by a short name": (
        lambda: fit(
            state=trainer.supervised(
                NET, losses.classification, optax.inject_hyperparams(optax.adam)(0.1)
            ).init(KEY, SOURCE.example),
            hooks=hooks.set_hyperparams(lr=0.1),
        ),
        (V, "whose lr can be set", "Did you mean 'learning_rate'?"),
    ),
    "a network without a value as a policy": (
        lambda: trainer.rl.ppo(NET, trainer.rl.environments.cartpole(), ADAM).init(KEY),
        (T, "a policy must return a dict of outputs", "returned an array float32[", "actor_critic"),
    ),
    "labels that begin at 1": (
        lambda: training(labels=Y + 1),
        (V, "between 0 and 1", "2 classes", "between 1 and 2", "phase 'train'"),
    ),
    "a batch without inputs": (
        lambda: fit(trainer.training(TASK.step, data.Arrays({"input": X, "labels": Y}, 40))),
        (V, "batch['inputs']", "Did you mean 'input'?", "phase 'train'"),
    ),
    "a batch without labels": (
        lambda: fit(trainer.training(TASK.step, data.Arrays({"inputs": X, "label": Y}, 40))),
        (V, "classification reads batch['labels']", "Did you mean 'label'?"),
    ),
    # networks and optimizers
    "an NNX module that is built": (
        lambda: models.from_nnx(nnx.Linear(5, 2, rngs=nnx.Rngs(0))),
        (T, "from_nnx takes a function that builds", "got a module, of class", "lambda rngs"),
    ),
    "an NNX class that inherits how it is made": (
        lambda: models.from_nnx(Inheriting),
        (T, "from_nnx calls build(rngs, example)", "from_nnx(lambda rngs, example:"),
    ),
    "an NNX class": (
        lambda: models.from_nnx(nnx.Linear),
        (T, "from_nnx calls build(rngs, example)", "from_nnx(lambda rngs, example:"),
    ),
    "a Linen module": (
        lambda: trainer.supervised(linen.Dense(2), losses.classification, ADAM),
        (T, "supervised needs a network", "Dense", "models.from_linen(module)"),
    ),
    "a Linen class": (
        lambda: models.from_linen(linen.Dense),
        (T, "from_linen takes a flax.linen module", "got the class Dense"),
    ),
    "a bare function as network": (
        lambda: trainer.supervised(lambda x: x, losses.classification, ADAM),
        (T, "(init, apply)", "got a function", "models.Network(init, apply)"),
    ),
    "models.mlp that is not called": (
        lambda: trainer.supervised(models.mlp, losses.classification, ADAM),
        (T, "supervised needs a network", "mlp", "call it, mlp(...)"),
    ),
    "network and loss in the other order": (
        lambda: trainer.supervised(losses.classification, NET, ADAM),
        (T, "supervised needs a network", "classification"),
    ),
    "an optimizer that is not called": (
        lambda: trainer.supervised(NET, losses.classification, optax.adam),
        (T, "supervised needs an optimizer", "adam", "call it, adam(1e-3)"),
    ),
    "a schedule as optimizer": (
        lambda: trainer.supervised(NET, losses.classification, optax.constant_schedule(0.1)),
        (T, "supervised needs an optimizer", "a schedule of the step", "optax.adam(schedule)"),
    ),
    "a learning rate as optimizer": (
        lambda: trainer.supervised(NET, losses.classification, 1e-3),
        (T, "supervised needs an optimizer", "float 0.001"),
    ),
    "a state of another optimizer": (
        lambda: fit(TRAIN, state=STATE.replace(opt_state=optax.sgd(0.1).init(STATE.params))),
        (V, "state.opt_state", "another's", "task.init(key, example)"),
    ),
    "micro-batches that are no whole number": (
        lambda: trainer.supervised(NET, losses.classification, ADAM, accumulate=2.0),
        (T, "accumulate must be a whole number of at least 1", "got 2.0"),
    ),
    "an unknown precision": (
        lambda: trainer.supervised(NET, losses.classification, ADAM, precision="bf16"),
        (V, "precision must be one of float32, bfloat16, float16", "got 'bf16'"),
    ),
    "sizes that are no sequence": (
        lambda: models.mlp(classes=2, hidden=4),
        (T, "hidden must be a sequence of sizes, such as (128,)", "got 4"),
    ),
    "a norm as text": (
        lambda: trainer.supervised(NET, losses.classification, ADAM, clip_norm="1"),
        (T, "clip_norm must be a number", "got '1'"),
    ),
    "an augmentation without key": (
        lambda: trainer.supervised(NET, losses.classification, ADAM, augment=lambda batch: batch),
        (T, "supervised takes augment", "(key, batch) -> batch", "got <lambda>(batch)"),
    ),
    "rules that are a text": (
        lambda: trainer.optimizers.labels("^head/", "slow"),
        (T, "labels takes rules, a dict", "'^head/'"),
    ),
    "a frozen optimizer that is not called": (
        lambda: trainer.optimizers.frozen(optax.adam),
        (T, "frozen needs an optimizer", "call it, adam(1e-3)"),
    ),
    # keys, states and batches
    "an old key": (
        lambda: TASK.init(jax.random.PRNGKey(0), SOURCE.example),
        (T, "key must be a typed key, jax.random.key(seed)", "an array uint32[2]"),
    ),
    "a seed as key": (
        lambda: TASK.init(0, SOURCE.example),
        (T, "key must be a typed key, jax.random.key(seed)", "got 0"),
    ),
    "several keys": (
        lambda: TASK.init(jax.random.split(KEY), SOURCE.example),
        (T, "key must be a single key", "got shape (2,)"),
    ),
    "init with a bare array": (
        lambda: TASK.init(KEY, X),
        (T, "task.init takes a key and an example batch", "float32[90, 5]", "{'inputs': x}"),
    ),
    "init with a source": (
        lambda: TASK.init(KEY, SOURCE),
        (T, "task.init takes a key and an example batch", "source.example"),
    ),
    "init in the other order": (
        lambda: TASK.init(SOURCE.example, KEY),
        (T, "key must be a typed key", "a dict of inputs, labels"),
    ),
    "an old key in a state": (
        lambda: trainer.TrainState.create(params={}, rng=jax.random.PRNGKey(0)),
        (T, "rng must be a typed key", "uint32[2]"),
    ),
    # sources of data
    "a list as source": (
        lambda: trainer.training(TASK.step, [{"inputs": X}]),
        (T, "training reads a source of data", "got list", "data.Stream(batches)"),
    ),
    "a dict as source": (
        lambda: trainer.training(TASK.step, {"inputs": X, "labels": Y}),
        (T, "training reads a source of data", "got dict", "data.Arrays(arrays, batch_size=64)"),
    ),
    "a generator as source": (
        lambda: trainer.training(TASK.step, (batch for batch in ())),
        (T, "training reads a source of data", "got generator", "data.Stream(factory)"),
    ),
    "the class of a source": (
        lambda: trainer.training(TASK.step, data.Arrays),
        (T, "training reads a source of data", "got Arrays", "construct one, Arrays(...)"),
    ),
    "labels that are words": (
        lambda: arrays(labels=np.array(["cat"] * 90)),
        (T, "arrays['labels'] must hold numbers", "'cat'", "np.unique"),
    ),
    "labels that are objects": (
        lambda: arrays(labels=np.array([None] * 90, object)),
        (T, "arrays['labels'] must hold numbers", "None"),
    ),
    "dates": (
        lambda: arrays(days=np.array(["2020-01-01"] * 90, "datetime64[D]")),
        (T, "arrays['days'] must hold numbers", "datetime64", "subtract a date"),
    ),
    "arrays of unequal length": (
        lambda: arrays(labels=Y[:50]),
        (V, "of equal length", "'inputs': 90", "'labels': 50"),
    ),
    "a tuple of arrays": (
        lambda: data.Arrays((X, Y), 40),
        (V, "must be a dict of named arrays", "got a tuple"),
    ),
    "a batch size of a float": (
        lambda: arrays(size=32.0),
        (T, "batch_size must be a whole number of at least 1", "got 32.0"),
    ),
    "batches larger than the data": (
        lambda: trainer.training(TASK.step, arrays(size=400)),
        (V, "at least one whole batch", "90 examples", "at most 90"),
    ),
    "a batch of another width in a stream": (
        lambda: stream(
            {"inputs": X[:40], "labels": Y[:40]}, {"inputs": X[40:80, :3], "labels": Y[:40]}
        ),
        (V, "batch 2 of epoch 1", "inputs"),
    ),
    "a batch of another size in the middle of a stream": (
        lambda: stream(*({"inputs": X[:n], "labels": Y[:n]} for n in (40, 10, 40))),
        (V, "batch 2 of epoch 1 has 10 examples"),
    ),
    "a factory that takes no seed": (
        lambda: data.Stream(lambda: iter(())),
        (T, "a seed and an epoch", "lambda seed, epoch"),
    ),
    # phases
    "a measure to train with": (
        lambda: fit(trainer.training(TASK.measure, SOURCE)),
        (T, "the step of phase 'train'", "(state, metrics)", "a dict of", "task.step"),
    ),
    "a step to evaluate with": (
        lambda: trainer.evaluate(STATE, trainer.evaluation(TASK.step, SOURCE)),
        (T, "the measure of phase 'val'", "{name: values}", "a tuple", "task.measure"),
    ),
    "a task to train with": (
        lambda: trainer.training(TASK, SOURCE),
        (T, "training takes a step", "(state, batch)", "got a Task", "task.step"),
    ),
    "step and source in the other order": (
        lambda: trainer.training(SOURCE, TASK.step),
        (T, "training takes a step", "got an Arrays", "comes first", "(step, source)"),
    ),
    "a step of one argument": (
        lambda: trainer.training(lambda state: state, SOURCE),
        (T, "(state, batch) -> (state, metrics)", "got <lambda>(state)"),
    ),
    "a step that returns a state alone": (
        lambda: fit(trainer.training(lambda state, batch: state, SOURCE)),
        (T, "the step of phase 'train' must return (state, metrics)", "got a TrainState"),
    ),
    "a phase of a name alone": (
        lambda: trainer.Phase("train", None),
        (T, "phase 'train'", "(state, data) -> (state, output, metrics)", "got None"),
    ),
    "function and name in the other order": (
        lambda: trainer.Phase(lambda state, data: (state, None, {}), "train"),
        (T, "Phase(name, run) needs a text as name", "<lambda>(state, data)"),
    ),
    "a phase that returns a state alone": (
        lambda: fit(trainer.Phase("p", lambda state, data: state)),
        (T, "phase 'p' must return (state, output, metrics)", "got a TrainState"),
    ),
    "a metric that is a text": (
        lambda: fit(trainer.Phase("p", lambda state, data: (state, None, {"kind": "a"}))),
        (T, "metric 'kind' of phase 'p'", "must be a number", "got 'a'"),
    ),
    "metrics that are None": (
        lambda: fit(trainer.Phase("p", lambda state, data: (state, None, None))),
        (T, "phase 'p' must report a dict of metrics", "got None"),
    ),
    "a reduction for all": (
        lambda: trainer.training(TASK.step, SOURCE, reduce="sum"),
        (T, "reduce as a dict", '{"tokens": "sum"}', "got 'sum'"),
    ),
    "a fractional number of members": (
        lambda: trainer.population(TRAIN, 2.0),
        (T, "members must be a whole number of at least 1", "got 2.0"),
    ),
    "a task to make a population of": (
        lambda: trainer.population(TASK, 2),
        (T, "a population is made of phases", "init("),
    ),
    "a single state as a population": (
        lambda: trainer.stack_states(STATE),
        (T, "stack_states takes a list of states", "a single TrainState"),
    ),
    "a reduction of a metric that is not there": (
        lambda: fit(trainer.training(TASK.step, SOURCE, reduce={"los": "sum"})),
        (V, "phase 'train' reduces 'los'", "Did you mean 'loss'?"),
    ),
    "an unknown reduction": (
        lambda: fit(trainer.training(TASK.step, SOURCE, reduce={"loss": "average"})),
        (V, "reduces 'loss' by 'average'", "mean, sum, first, last, max"),
    ),
    "an unknown executor": (
        lambda: trainer.training(TASK.step, SOURCE, executor="scna"),
        (V, "executor must be auto, scan or step", "Did you mean 'scan'?"),
    ),
    "a phase named as an event": (
        lambda: fit(trainer.Phase("epoch", NOOP.run)),
        (V, "phases need names of their own", "['epoch']"),
    ),
    # fit
    "a step in the place of a phase": (
        lambda: fit(TASK.step),
        (T, "fit trains a Phase", "got a Step", "trainer.training(task.step, source)"),
    ),
    "a task in the place of a phase": (
        lambda: fit(TASK),
        (T, "fit trains a Phase", "got a Task", "trainer.training(task.step, source)"),
    ),
    "a source in the place of a phase": (
        lambda: fit(SOURCE),
        (T, "fit trains a Phase", "got an Arrays", "trainer.training(task.step, source)"),
    ),
    "state and phase in the other order": (
        lambda: trainer.fit(NOOP, STATE, epochs=1),
        (T, "fit needs a TrainState first", "got a Phase", "task.init"),
    ),
    "parameters in the place of a state": (
        lambda: fit(state=STATE.params),
        (T, "fit needs a TrainState", "got a dict of w", "TrainState.create"),
    ),
    "what fit returned in the place of a state": (
        lambda: fit(state=(STATE, [])),
        (T, "fit needs a TrainState", "a tuple", "the first of the two"),
    ),
    "a program that only measures": (
        lambda: fit(VAL),
        (V, "fit needs a phase that trains", "['val']", "trainer.evaluate(state, phase)"),
    ),
    "a program of no phase": (lambda: fit([]), (T, "fit trains a Phase", "got []")),
    "one phase twice": (
        lambda: fit([NOOP, NOOP]),
        (V, "phases need names of their own", "['noop', 'noop']"),
    ),
    "a negative number of epochs": (
        lambda: fit(epochs=-3),
        (V, "epochs must be a whole number of at least 0", "got -3"),
    ),
    "a fractional number of epochs": (
        lambda: fit(epochs=2.0),
        (T, "epochs must be a whole number of at least 0", "got 2.0"),
    ),
    "a number of epochs as text": (
        lambda: fit(epochs="2"),
        (T, "epochs must be a whole number", "got '2'"),
    ),
    "a split in the place of a state": (
        lambda: trainer.evaluate(VAL, STATE),
        (T, "evaluate needs a TrainState first", "got a Phase"),
    ),
    "a measure in the place of an evaluation": (
        lambda: trainer.evaluate(STATE, TASK.measure),
        (T, "trainer.evaluation", "got a Measure", "(task.measure, source)"),
    ),
    "a source to overfit": (
        lambda: trainer.overfit(TASK, SOURCE),
        (T, "overfit needs a batch, a dict of arrays", "an Arrays", "source.example"),
    ),
    # hooks
    "a hook that is not called": (
        lambda: hooks.chain(hooks.stop_on_nan),
        (T, "(state, metrics) -> state", "makes a hook", "call it, stop_on_nan(...)"),
    ),
    "a combinator that is not called": (
        lambda: fit(hooks=[hooks.every]),
        (T, "'every'", "makes a hook", "call it, every(...)"),
    ),
    "a hook of one argument, due later": (
        lambda: hooks.every(3, lambda state: state),
        (T, "(state, metrics) -> state", "got <lambda>(state)"),
    ),
    "a hook of one argument, at the end": (
        lambda: fit(hooks=hooks.on("end", lambda state: state)),
        (T, "(state, metrics) -> state", "got <lambda>(state)"),
    ),
    "an error hook that takes the error": (
        lambda: hooks.on("error", lambda state, metrics, error: state),
        (T, "(state, metrics) -> state", "got <lambda>(state, metrics, error)"),
    ),
    "a guarded hook of one argument": (
        lambda: hooks.guard(lambda state: state),
        (T, "(state, metrics) -> state", "got <lambda>(state)"),
    ),
    "every with hook and number swapped": (
        lambda: hooks.every(nothing, 3),
        (T, "every(n, hook): n", "whole number", "nothing(state, metrics)"),
    ),
    "every 0 epochs": (
        lambda: hooks.every(0, nothing),
        (V, "every(n, hook): n must be a whole number of at least 1", "got 0"),
    ),
    "on with hook and event swapped": (
        lambda: hooks.on(nothing, "end"),
        (T, "on(event, hook)", "such as 'end'", "nothing(state, metrics)"),
    ),
    "an event that does not exist": (
        lambda: fit(hooks=hooks.on("epochs", nothing)),
        (V, "'nothing' runs at 'epochs'", "Did you mean 'epoch'?"),
    ),
    "when with a truth": (
        lambda: hooks.when(True, nothing),
        (T, "when(predicate, hook)", "(state, metrics) -> bool", "got True"),
    ),
    "when with hook and predicate swapped": (
        lambda: fit(hooks=hooks.when(nothing, lambda state, metrics: True)),
        (T, "when(predicate, hook)", "returned a TrainState", "the predicate comes first"),
    ),
    "once of a hook that was called": (
        lambda: hooks.once(nothing(STATE, {})),
        (T, "a hook is a function", "got a TrainState", "without calling it"),
    ),
    "a chain of a dict": (
        lambda: hooks.chain({"mine": nothing}),
        (T, "a hook is a function", "a dict of mine", "chain(*hooks.values())"),
    ),
    "a chain of a name": (
        lambda: hooks.chain("stop_on_nan"),
        (T, "a hook is a function", "'stop_on_nan'", "hooks.from_config"),
    ),
    "a chain of None": (
        lambda: hooks.chain(None),
        (T, "a hook is a function", "got None", "leave it out"),
    ),
    "a writer as hook": (
        lambda: fit(hooks=[hooks.Console()]),
        (T, "a hook is a function", "a Console", "log_metrics(writer)"),
    ),
    "an evaluation as hook": (
        lambda: fit(hooks=[VAL]),
        (T, "a hook is a function", "a Phase", "hooks.evaluate(phase)"),
    ),
    "a hook that returns nothing": (
        lambda: fit(hooks=lambda state, metrics: None),
        (T, "'<lambda>' must return a TrainState", "got None", "`return state`", "'epoch'"),
    ),
    "a hook that returns state and hook state": (
        lambda: fit(hooks=lambda state, metrics: (state, 0)),
        (T, "must return a TrainState", "got a tuple", "hooks.stateful"),
    ),
    "an init that is a value": (
        lambda: hooks.stateful("count", 0, lambda hook_state, state, metrics: (hook_state, state)),
        (T, "init of hook 'count'", "(state) -> hook_state", "got 0"),
    ),
    "an update that takes no hook state": (
        lambda: hooks.stateful("count", lambda state: 0, nothing),
        (T, "update of hook 'count'", "(hook_state, state, metrics)", "nothing(state, metrics)"),
    ),
    "reads of a list": (
        lambda: hooks.reads(["val/loss"]),
        (T, "reads takes the names of metrics one by one", "got a list"),
    ),
    "reads that is not called": (
        lambda: hooks.reads(nothing),
        (T, "@hooks.reads('train/loss')", "nothing(state, metrics)"),
    ),
    "a control hook in the background": (
        lambda: hooks.background(nothing),
        (V, "background takes observers", "'nothing'", "hooks.observe(...)"),
    ),
    # what a hook does to a state
    "a hook that splits the root key": (
        lambda: with_state(rng=lambda state: jax.random.split(state.rng)[0]),
        (V, "replaced state.rng", "only folded", "state.key('hook/change')", "hooks.rekeys"),
    ),
    "a field that a state does not have": (
        lambda: with_state(param=lambda state: 0),
        (T, "a state has no field 'param'", "Did you mean 'params'?"),
    ),
    "a hook that assigns to a field": (
        lambda: fit(hooks=lambda state, metrics: setattr(state, "stop", True)),
        (AttributeError, "'stop'", "return state.replace(stop=...)"),
    ),
    "a stop of several": (
        lambda: with_state(stop=lambda state: np.ones(3, bool)),
        (T, "'change' must set stop to True or False", "bool[3]", "bool(array.all())"),
    ),
    "a score of several": (
        lambda: with_state(scores=lambda state: {"x": np.ones(3)}),
        (T, "'change' wrote the score 'x'", "a number", "float64[3]", "float(array.mean())"),
    ),
    "a hook state of nobody": (
        lambda: with_state(hook_state=lambda state: {"x": 1}),
        (V, "'change' must keep the names of state.hook_state", "'x'", "hooks.stateful"),
    ),
    "a hook that counts epochs": (
        lambda: with_state(epoch=lambda state: state.epoch + 1),
        (V, "'change' changed epoch, which fit alone counts"),
    ),
    "a score that is written in place": (
        lambda: fit(hooks=lambda state, metrics: state.scores.update(x=1.0) or state),
        (V, "changed in place", "scores/x", "state.replace(scores="),
    ),
    "a metric that does not exist": (
        lambda: fit(hooks=lambda state, metrics: metrics["noop_loss"]),
        (KeyError, "noop_loss", "Did you mean", "noop/loss"),
    ),
    "a metric as an attribute": (
        lambda: fit(hooks=lambda state, metrics: metrics.loss),
        (AttributeError, "metrics['loss']", "Did you mean 'noop/loss'?"),
    ),
    # bundled hooks
    "an early stop by a metric of another spelling": (
        lambda: fit(
            hooks=[hooks.evaluate(VAL), hooks.stop_early("val_loss", patience=3, mode="min")]
        ),
        (V, "'stop_early/val_loss' at 'epoch' reads 'val_loss'", "Did you mean 'val/loss'?"),
    ),
    "an early stop before the evaluation": (
        lambda: fit(hooks=[hooks.stop_early("val/loss", patience=3), hooks.evaluate(VAL)]),
        (
            V,
            "reads 'val/loss'",
            "'evaluate/val' writes it at 'epoch', after",
            "list the writer before it",
        ),
    ),
    "an early stop without evaluation": (
        lambda: fit(hooks=hooks.stop_early("val/loss", patience=3)),
        (V, "reads 'val/loss'", "noop/loss", "Place evaluate(...) before"),
    ),
    "a fractional patience": (
        lambda: hooks.stop_early("val/loss", patience=2.5),
        (T, "patience must be a whole number of at least 1", "got 2.5"),
    ),
    "a metric that is a number": (
        lambda: hooks.stop_early(3, patience=3),
        (T, "stop_early needs the name of a metric", "got 3"),
    ),
    "an unknown mode": (
        lambda: hooks.keep_best("val/loss", mode="minimum"),
        (V, "mode must be 'min' or 'max'", "got 'minimum'"),
    ),
    "a measure to evaluate": (
        lambda: hooks.evaluate(TASK.measure),
        (T, "evaluate takes a phase", "got a Measure", "trainer.evaluation(task.measure"),
    ),
    "a training phase to evaluate": (
        lambda: hooks.evaluate(TRAIN),
        (V, "leaves the state as it is", "phase 'train'", "trainer.evaluation"),
    ),
    "an evaluation of other inputs": (
        lambda: evaluated(inputs=X[:, :3]),
        (T, "in checking phase 'test'"),
    ),
    "an evaluation without labels": (
        lambda: evaluated(under="label"),
        (V, "reads batch['labels']", "Did you mean 'label'?", "in checking phase 'test'"),
    ),
    "an evaluation of other classes": (
        lambda: evaluated(labels=Y + 1),
        (V, "2 classes", "between 1 and 2", "in checking phase 'test'"),
    ),
    "two evaluations of one name": (
        lambda: fit(TRAIN, hooks=[hooks.evaluate(VAL), hooks.evaluate(VAL)]),
        (V, "two hooks are called 'evaluate/val'", "'val/accuracy'", "name='test'"),
    ),
    "an evaluation named as the training": (
        lambda: fit(
            TRAIN, hooks=hooks.evaluate(trainer.evaluation(TASK.measure, SOURCE, name="train"))
        ),
        (V, "'evaluate/train' writes", "which phase 'train' measures", "another name"),
    ),
    "a decay as text": (
        lambda: hooks.average_params(decay="0.9"),
        (T, "decay must be a number", "'0.9'"),
    ),
    "a first epoch to average as text": (
        lambda: hooks.swa(start="2"),
        (T, "start", "whole number of at least 1", "'2'"),
    ),
    "an average over steps as text": (
        lambda: trainer.supervised(NET, losses.classification, ADAM, average="0.9"),
        (T, "average must be a number", "'0.9'"),
    ),
    "more epochs than are counted": (
        lambda: trainer.fit(STATE, TRAIN, epochs=2**31),
        (V, "epochs must be at most 2,147,483,647", "2,147,483,648"),
    ),
    "a path to log to": (
        lambda: hooks.log_metrics("runs/digits"),
        (T, "log_metrics takes writers", "'runs/digits'", "TensorBoard('runs/digits')"),
    ),
    "the class of a writer": (
        lambda: hooks.log_metrics(Writer),
        (T, "log_metrics takes writers", "the class Writer", "Writer(...)"),
    ),
    "a list of writers": (
        lambda: hooks.log_metrics([hooks.Console()]),
        (T, "log_metrics takes writers", "a list", "log_metrics(*writers)"),
    ),
    "a writer to None": (
        lambda: hooks.JsonLines(None),
        (T, "JsonLines needs a path", "got None"),
    ),
    "a rate that nothing keeps": (
        lambda: fit(hooks=hooks.set_hyperparams(learning_rate=0.1)),
        (V, "set_hyperparams/learning_rate", "optax.inject_hyperparams", "there is: nothing"),
    ),
    "a rate as text": (
        lambda: hooks.set_hyperparams(learning_rate="1e-3"),
        (T, "set_hyperparams sets numbers", "learning_rate must be one", "got '1e-3'"),
    ),
    "an unknown group": (
        lambda: fit(hooks=hooks.set_hyperparams(trunk={"learning_rate": 0.1})),
        (V, "set_hyperparams/trunk/learning_rate", "there is"),
    ),
    "a time limit as text": (
        lambda: hooks.time_limit("1h"),
        (T, "seconds must be a number", "got '1h'"),
    ),
    "retries of a float": (
        lambda: hooks.guard(nothing, retries=1.5),
        (T, "retries must be a whole number of at least 0", "got 1.5"),
    ),
    "an epoch as text": (
        lambda: hooks.unfreeze_at("2"),
        (T, "epoch must be a whole number of at least 1", "got '2'"),
    ),
    "keep a negative number": (
        lambda: hooks.save_checkpoints("unused", keep=-1),
        (V, "keep must be a whole number of at least 1", "got -1"),
    ),
    "checkpoints to a server": (
        lambda: hooks.save_checkpoints("https://server/run"),
        (V, "local file system", "the URL 'https://server/run'", "mount it"),
    ),
    "checkpoints to a bucket without a path": (
        lambda: hooks.save_checkpoints("s3://bucket"),
        (V, "a run in a bucket is named by s3://BUCKET/PATH", "got 's3://bucket'"),
    ),
    "records to a bucket": (
        lambda: hooks.JsonLines("s3://bucket/run/metrics.jsonl"),
        (V, "only checkpoints may lie in a bucket", "mount it"),
    ),
    "a best metric that nothing writes": (
        lambda: fit(hooks=hooks.save_checkpoints("unused", best="noop_loss", mode="min")),
        (V, "'save_checkpoints' at 'epoch' reads 'noop_loss'", "Did you mean 'noop/loss'?"),
    ),
    # parameters, configurations
    "an export under another name": (
        lambda: trainer.export_params(STATE.params, "x.bin"),
        (V, "a .safetensors or a .npz file", "got x.bin"),
    ),
    "an export in the other order": (
        lambda: trainer.export_params("x.safetensors", STATE.params),
        (T, "export_params(params, path)", "parameters first", "'x.safetensors'"),
    ),
    "a whole state as the parameters of an export": (
        lambda: trainer.export(NET, STATE, SOURCE.example, "unused"),
        (T, "export takes parameters", "got a TrainState", "model_state=state.model_state"),
    ),
    "a platform that JAX does not know": (
        lambda: trainer.export(NET, STATE.params, SOURCE.example, "unused", platforms=["gpu"]),
        (V, "platforms are cpu, cuda, rocm, tpu", "got 'gpu'"),
    ),
    "an export of a source in place of its example": (
        lambda: trainer.export(NET, STATE.params, SOURCE, "unused"),
        (T, "an example batch", "call export(network, params, source.example, path)"),
    ),
    "parameters into a whole state": (
        lambda: trainer.load_params("unused", STATE),
        (T, "load_params fills parameters", "got a TrainState", "state.params"),
    ),
    "parameters from nowhere": (
        lambda: trainer.load_params("nowhere", STATE.params),
        (FileNotFoundError, "neither a run directory nor a file", "nowhere"),
    ),
    "a hook in a file by another name": (
        lambda: hooks.from_config([{"stop_erly": {"metric": "val/loss"}}]),
        (V, "hooks[0].stop_erly", "Did you mean 'stop_early'?"),
    ),
    "a setting of a hook by another name": (
        lambda: hooks.from_config([{"stop_early": {"metrc": "val/loss"}}]),
        (V, "has no argument 'metrc'", "Did you mean 'metric'?"),
    ),
}

WITH_FOLDER = {
    "checkpoints where a file is": (
        occupied(lambda path: fit(hooks=hooks.save_checkpoints(path))),
        (OSError, "cannot write checkpoints", "taken", "choose a directory"),
    ),
    "a learning rate as text": (
        configured("rate: 'fast'"),
        (V, "does not fit Config", "rate: wanted a number", "got 'fast'"),
    ),
    "a setting by another name": (
        configured("rat: 0.1"),
        (V, "rat: there is no such setting", "Did you mean 'rate'?"),
    ),
    "a configuration in the place of its class": (
        configured("rate: 0.1", Config()),
        (T, "load_config takes the class", "got a Config"),
    ),
}


def told(call):
    """Make a mistake, and give the error with all that is noted on it."""
    with pytest.raises(Exception) as raised:  # noqa: PT011 - its type is compared
        call()
    error = raised.value
    return error, "\n".join([str(error), *getattr(error, "__notes__", ())])


def check(call, expected):
    kind, *words = expected
    error, message = told(call)
    assert isinstance(error, kind), message
    missing = [word for word in words if word not in message]
    assert not missing, f"{missing} is not in: {message}"
    assert len(str(error)) < 1500  # no arrays are printed


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told(mistake):
    call, expected = MISTAKES[mistake]
    check(call, expected)


@pytest.mark.parametrize("mistake", WITH_FOLDER)
def test_a_mistake_with_files_is_told(mistake, tmp_path):
    call, expected = WITH_FOLDER[mistake]
    check(lambda: call(tmp_path), expected)


def test_there_are_many():
    assert len(MISTAKES) + len(WITH_FOLDER) >= 60


def test_what_is_right_is_not_refused():
    """The rows above would pass as well if everything were refused."""

    def observe_all(*arguments, **settings):
        return arguments[0]

    reseed = hooks.rekeys(lambda state, metrics: state.replace(rng=jax.random.key(7)))
    measure = trainer.Phase("p", lambda state, data: (state, None, {"rate": 0.5, "steps": 2}))
    state, history = fit(
        [measure],
        epochs=np.int64(1),
        hooks=[reseed, SimpleNamespace(parts=hooks.chain(nothing).parts), observe_all],
    )
    assert history[0]["p/rate"] == 0.5
    assert history[0]["p/steps"] == 2
    assert state.rng == jax.random.key(7)
