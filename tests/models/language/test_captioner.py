"""The network that writes captions of images."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import models
from models.language.captioner import patches, positions

pytestmark = pytest.mark.usefixtures("compiled_quickly")

KEY = jax.random.key(1)
SETTINGS = {
    "vocabulary": 7,
    "context": 8,
    "channels": 1,
    "patch": 2,
    "encoder_layers": 1,
    "layers": 2,
    "heads": 2,
    "width": 8,
}
INPUTS = {
    "image": jax.random.normal(KEY, (3, 4, 6, 1)),
    "tokens": jax.random.randint(KEY, (3, 5), 0, 7),
}
DECODERS = {scan: models.captioner(**SETTINGS, scan=scan) for scan in (False, True)}
PARAMS = {
    scan: jax.jit(decoder.init)(jax.random.key(0), INPUTS)[0] for scan, decoder in DECODERS.items()
}


@jax.jit
def logits(image, tokens):
    inputs = {"image": image, "tokens": tokens}
    return DECODERS[False].apply(PARAMS[False], {}, inputs, key=None, train=False)[0]


def test_every_logit_depends_on_the_image_and_on_no_later_token():
    image, tokens = INPUTS["image"], INPUTS["tokens"]
    before = logits(image, tokens)
    assert (before.shape, before.dtype) == ((3, 5, 7), jnp.float32)
    seen = logits(image.at[:, -1, -1].add(1.0), tokens)
    assert (seen != before).any(-1).all()
    after = logits(image, tokens.at[:, 3].add(1) % 7)
    np.testing.assert_array_equal(before[:, :3], after[:, :3])
    assert (before[:, 3:] != after[:, 3:]).any(-1).all()


def test_an_example_depends_only_on_its_own_image():
    image, tokens = INPUTS["image"], INPUTS["tokens"]
    changed = logits(image.at[0].add(1.0), tokens)
    np.testing.assert_array_equal(changed[1:], logits(image, tokens)[1:])


def test_the_position_of_a_patch_matters():
    image = INPUTS["image"]
    moved = jnp.roll(image, 2, axis=2)
    assert abs(logits(moved, INPUTS["tokens"]) - logits(image, INPUTS["tokens"])).max() > 1e-4
    grid = positions(3, 4, 8)
    assert len(np.unique(np.round(grid, 5), axis=0)) == 12


def test_patches_are_cut_row_by_row():
    image = np.array(INPUTS["image"])
    cut = patches(INPUTS["image"], 2)
    assert cut.shape == (3, 6, 4)
    np.testing.assert_array_equal(cut[1, 4], image[1, 2:4, 2:4].ravel())


@pytest.mark.parametrize("scan", [False, True])
def test_reading_piece_by_piece_computes_the_logits_of_the_whole(scan):
    decoder, params = DECODERS[scan], PARAMS[scan]

    @jax.jit
    def both(params):
        whole, _ = decoder.apply(params, {}, INPUTS, key=None, train=False)
        cache = decoder.init_cache(params, {}, {"image": INPUTS["image"]}, 5)
        pieces = []
        for piece in jnp.split(INPUTS["tokens"], [3, 4], axis=1):
            outputs, cache = decoder.decode_step(params, {}, cache, piece)
            pieces.append(outputs)
        return whole, jnp.concatenate(pieces, axis=1)

    whole, pieces = both(params)
    np.testing.assert_allclose(pieces, whole, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(whole, logits(**INPUTS), rtol=1e-5, atol=1e-6)


def test_the_number_of_parameters_by_hand():
    block = 8 * 24 + 8 * 8 + 2 * 8 * 32 + 2 * 8
    cross = 8 * 8 + 8 * 16 + 8 * 8 + 8
    image = 4 * 8 + block + 8
    text = 7 * 8 + 2 * (block + cross) + 8
    sizes = {
        name: sum(x.size for x in jax.tree.leaves(tree)) for name, tree in PARAMS[False].items()
    }
    assert sizes == {"image": image, "text": text}


def test_bfloat16_parameters_compute_in_bfloat16():
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS[False])
    outputs = jax.jit(lambda p: DECODERS[False].apply(p, {}, INPUTS, key=None, train=False)[0])(low)
    assert outputs.dtype == jnp.float32
    np.testing.assert_allclose(outputs, logits(**INPUTS), atol=0.2)
    cache = jax.eval_shape(lambda p: DECODERS[False].init_cache(p, {}, INPUTS, 4), low)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(cache)} == {"bfloat16", "int32"}


def test_learns_to_describe_images():
    images = jax.random.normal(KEY, (4, 4, 4, 1))
    texts = jnp.array([[0, 1, 2, 6], [0, 3, 1, 6], [0, 2, 2, 6], [0, 5, 4, 6]])
    decoder = models.captioner(**SETTINGS | {"layers": 1, "width": 16})
    inputs = {"image": images, "tokens": texts[:, :-1]}
    optimizer = optax.adam(1e-2)

    def loss(params):
        outputs, _ = decoder.apply(params, {}, inputs, key=None, train=True)
        return optax.softmax_cross_entropy_with_integer_labels(outputs, texts[:, 1:]).mean()

    def step(carry, _):
        params, opt_state = carry
        updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state)
        return (optax.apply_updates(params, updates), opt_state), None

    @jax.jit
    def train(key):
        params, _ = decoder.init(key, inputs)
        return jax.lax.scan(step, (params, optimizer.init(params)), length=120)

    (params, _), _ = train(KEY)
    prompt = {"image": images, "tokens": texts[:, :1]}
    written = models.generate(decoder, params, prompt, length=3, key=KEY, temperature=0)
    np.testing.assert_array_equal(written.tokens, texts[:, 1:])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patch": 0}, "patch must be at least 1; got 0"),
        ({"encoder_layers": 0}, "encoder_layers must be at least 1; got 0"),
        ({"heads": 3}, "heads must divide width into even sizes"),
        ({"width": 6, "heads": 1}, "width must be a multiple of 4; got 6"),
    ],
)
def test_settings_out_of_range_are_errors_at_once(settings, message):
    with pytest.raises(ValueError, match=f"captioner: {message}"):
        models.captioner(**SETTINGS | settings)


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        (INPUTS["tokens"], TypeError, 'inputs {"image": ..., "tokens": ...}; got'),
        ({"image": INPUTS["image"]}, TypeError, r"got \['image'\]"),
        (INPUTS | {"image": jnp.ones((3, 4, 5, 1))}, ValueError, "patches of 2x2 must tile"),
        (INPUTS | {"image": jnp.ones((3, 4, 4, 3))}, ValueError, "of 1 channels; got shape"),
        (INPUTS | {"image": jnp.ones((3, 4, 4))}, ValueError, r"\[batch, height, width, chan"),
        (INPUTS | {"tokens": jnp.ones((3, 9), int)}, ValueError, "9 tokens are .* limit of 8"),
        (INPUTS | {"tokens": jnp.ones((3, 4))}, ValueError, "takes integer tokens"),
    ],
)
def test_wrong_inputs_are_errors(inputs, error, message):
    with pytest.raises(error, match=message):
        DECODERS[False].apply(PARAMS[False], {}, inputs, key=None, train=False)
