"""The learning-rate finder."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import trainer
from trainer import TrainState, data, losses
from trainer.supervised.learning_rate_finder import (
    _longest_fall,
    _mask_before_divergence,
    _smooth,
)

pytestmark = pytest.mark.usefixtures("compiled_quickly")

SGD = optax.inject_hyperparams(optax.sgd)(learning_rate=1.0)
ONES = data.Arrays({"inputs": np.ones(40, np.float32)}, 4)


def bowl(state, batch):
    """One step down `w**2 / 2`, which diverges at rates above 2."""
    updates, opt_state = SGD.update(state.params, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    after = state.replace(step=state.step + 1, params=params, opt_state=opt_state)
    return after, {"loss": state.params**2 / 2 * batch["inputs"].mean()}


def begun(optimizer=SGD):
    params = jnp.float32(1)
    opt_state = optimizer.init(params)
    return TrainState.create(params=params, opt_state=opt_state, rng=jax.random.key(0))


@pytest.fixture(scope="module")
def found():
    return trainer.find_learning_rate(bowl, begun(), ONES, low=1e-4, high=100.0, steps=60)


def test_each_rate_trains_one_step(found):
    rates = np.geomspace(1e-4, 100.0, 60)
    assert found.rates == pytest.approx(rates)
    w = np.cumprod([1.0, *(1 - rates[:-1])])
    assert found.losses == pytest.approx(w**2 / 2, rel=1e-3)


def test_a_batch_without_weights_has_not_diverged(found):
    def sparse(state, batch):
        after, metrics = bowl(state, batch)
        weighs = state.step % 4 != 3
        loss = jnp.where(weighs, metrics["loss"], jnp.nan)
        return after, {"loss": loss, "loss.weight": weighs.astype(jnp.float32)}

    other = trainer.find_learning_rate(sparse, begun(), ONES, low=1e-4, high=100.0, steps=60)
    assert abs(other.before_divergence.sum() - found.before_divergence.sum()) <= 1
    assert other.losses[3] == other.losses[2] == found.losses[2]


def test_suggested_rates_are_where_the_loss_falls(found):
    assert 1e-2 < found.valley <= found.steepest < 1.0


def test_diverged_steps_do_not_count(found):
    last = found.before_divergence.sum()
    assert found.before_divergence[:last].all()
    assert found.rates[last] > 2
    assert np.isfinite(found.smoothed[:last]).all()
    assert np.isnan(found.smoothed[last:]).all()


@pytest.mark.parametrize(
    ("values", "counted"),
    [
        ([2.0, 1.0, 1.0], 3),
        ([2.0, 1.0, np.nan, 1.0], 2),  # what comes after does not count, however good
        ([2.0, np.inf], 1),
        ([1.0, 1.0, 30.0, 1.0], 2),
        ([-1.0, -1.0, -1.5, -1.0], 4),
        ([-1.0, -1.0, 30.0], 2),
    ],
)
def test_the_running_mean_detects_divergence(values, counted):
    assert _mask_before_divergence(np.array(values)).tolist() == [
        n < counted for n in range(len(values))
    ]


def test_smoothing_keeps_lines_and_has_no_lag():
    line = np.arange(100.0)
    smooth = _smooth(line, np.ones(100, bool))
    assert smooth[20:80] == pytest.approx(line[20:80])
    dip = -np.exp(-0.5 * ((line - 50) / 5) ** 2)
    assert np.argmin(_smooth(dip, np.ones(100, bool))) == 50


@pytest.mark.parametrize(
    ("values", "places"),
    [
        ([], []),
        ([1.0], [0]),
        ([1.0, 2.0, 3.0], [0]),
        ([3.0, 2.0, 1.0], [0, 1, 2]),
        ([5.0, 9.0, 4.0, 4.0, 3.0, 8.0], [0, 2, 4]),
    ],
)
def test_the_longest_fall_by_hand(values, places):
    assert _longest_fall(np.array(values)).tolist() == places


def test_the_state_is_unchanged(digits, linear):
    optimizer = optax.inject_hyperparams(optax.adam)(learning_rate=1e-3)
    task = trainer.supervised(linear, losses.classification, optimizer)
    state = task.init(jax.random.key(0), digits[0].example)
    before = trainer.fingerprint(state)
    found = trainer.find_learning_rate(task.step, state, digits[0], steps=40)  # 6 batches an epoch
    assert trainer.fingerprint(state) == before
    assert found.losses[0] == pytest.approx(np.log(10), rel=0.05)
    assert 1e-4 < found.valley < 1


def test_a_convolution_runs_one_dispatch_per_step_with_equal_results():
    def convolved(state, batch):
        after, metrics = bowl(state, batch)
        ones = jnp.convolve(batch["inputs"], jnp.ones(1))
        return after, {"loss": metrics["loss"] * ones.mean()}

    plain, stepwise = (
        trainer.find_learning_rate(step, begun(), ONES, high=1.0, steps=15)
        for step in (bowl, convolved)
    )
    assert stepwise.losses == pytest.approx(plain.losses)


def test_a_long_stream_is_not_read_to_its_end():
    given = []

    def batches(seed, epoch):
        for number in range(10**6):
            given.append(number)
            yield {"inputs": np.ones(4, np.float32)}

    source = data.Stream(batches, superbatch=8)
    found = trainer.find_learning_rate(bowl, begun(), source, high=1.0, steps=20)
    assert len(found.losses) == 20
    assert len(given) <= 32
    stretches = data.Stream(batches, superbatch=8, steps_per_epoch=12)
    again = trainer.find_learning_rate(bowl, begun(), stretches, high=1.0, steps=20)
    assert again.losses.tolist() == found.losses.tolist()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"low": 0.0}, "0 < low < high"),
        ({"low": 1.0, "high": 0.1}, "0 < low < high"),
        ({"steps": 9}, "at least 10"),
    ],
)
def test_settings_out_of_range_are_errors(settings, said):
    with pytest.raises(ValueError, match=said):
        trainer.find_learning_rate(bowl, begun(), ONES, **settings)


def test_an_optimizer_or_step_that_cannot_be_tested_is_an_error():
    with pytest.raises(ValueError, match="find_learning_rate needs an optimizer whose learning_ra"):
        trainer.find_learning_rate(bowl, begun(optax.sgd(0.1)), ONES)
    silent = lambda state, batch: (bowl(state, batch)[0], {"error": jnp.zeros(())})  # noqa: E731
    with pytest.raises(ValueError, match=r"must report a 'loss'; it reports \['error'\]"):
        trainer.find_learning_rate(silent, begun(), ONES)


def test_a_loss_that_never_falls_is_an_error_with_its_values():
    with pytest.raises(
        ValueError, match="never fell .* from 5 to 10: it was 0.5 at first, and div"
    ):
        trainer.find_learning_rate(bowl, begun(), ONES, low=5.0, steps=20)


def test_the_plot_is_a_png_file(found, tmp_path):
    from PIL import Image

    found.plot(tmp_path / "range.png")
    with Image.open(tmp_path / "range.png") as image:
        assert image.format == "PNG"
        assert image.width > image.height > 400


def test_without_matplotlib_the_error_names_the_extra(found, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError) as error:
        found.plot(tmp_path / "range.png")
    assert "entracte[plots]" in error.value.__notes__[0]
