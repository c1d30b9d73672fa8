"""The language model."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import models

pytestmark = pytest.mark.usefixtures("compiled_quickly")

KEY = jax.random.key(1)
SETTINGS = {"vocabulary": 11, "context": 12, "layers": 3, "heads": 2, "width": 8}
TOKENS = jax.random.randint(KEY, (2, 7), 0, 11)
FORMS = {
    "loop": {},
    "scan": {"scan": True},
    "remat": {"remat": True},
    "scan_remat": {"scan": True, "remat": True},
}
DECODERS = {name: models.transformer(**SETTINGS, **form) for name, form in FORMS.items()}
PARAMS, _ = jax.jit(DECODERS["loop"].init)(jax.random.key(0), TOKENS)


def restacked(params):
    """Turn the parameters of a loop into those of a scan."""
    blocks = [params["blocks"][str(i)] for i in range(len(params["blocks"]))]
    return params | {"blocks": jax.tree.map(lambda *x: jnp.stack(x), *blocks)}


@jax.jit
def logits(params, tokens):
    return DECODERS["loop"].apply(params, {}, tokens, key=None, train=False)[0]


def test_a_later_token_changes_no_earlier_logit():
    before = logits(PARAMS, TOKENS)
    after = logits(PARAMS, TOKENS.at[:, 4].add(1) % 11)
    np.testing.assert_array_equal(before[:, :4], after[:, :4])
    assert (before[:, 4:] != after[:, 4:]).any(-1).all()


def test_the_order_of_the_tokens_matters():
    swapped = TOKENS.at[:, 0].set(TOKENS[:, 1]).at[:, 1].set(TOKENS[:, 0])
    assert abs(logits(PARAMS, TOKENS) - logits(PARAMS, swapped))[:, -1].max() > 1e-3


def test_logits_are_float32_of_unit_size():
    outputs = logits(PARAMS, TOKENS)
    assert (outputs.shape, outputs.dtype) == ((2, 7, 11), jnp.float32)
    assert 0.3 < outputs.std() < 3


@pytest.fixture(scope="module", params=FORMS)
def gradients(request):
    """A form's name, and the logits and gradients of the same loss under the same parameters."""
    form = request.param

    def loss(params):
        outputs, _ = DECODERS[form].apply(params, {}, TOKENS, key=None, train=True)
        return jnp.square(outputs).mean(), outputs

    params = restacked(PARAMS) if "scan" in form else PARAMS
    return form, *jax.jit(jax.grad(loss, has_aux=True))(params)


@pytest.fixture(scope="module")
def expected():
    def loss(params):
        outputs, _ = DECODERS["loop"].apply(params, {}, TOKENS, key=None, train=True)
        return jnp.square(outputs).mean(), outputs

    return jax.jit(jax.grad(loss, has_aux=True))(PARAMS)


def test_scan_and_remat_equal_the_loop_in_logits_and_gradients(gradients, expected):
    form, grads, outputs = gradients
    np.testing.assert_allclose(outputs, expected[1], rtol=1e-5, atol=1e-6)
    wanted = restacked(expected[0]) if "scan" in form else expected[0]
    assert jax.tree.structure(grads) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_a_scan_has_the_initial_values_of_a_loop():
    params, model_state = jax.jit(DECODERS["scan"].init)(jax.random.key(0), TOKENS)
    assert model_state == {}
    assert jax.tree.structure(params) == jax.tree.structure(restacked(PARAMS))
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(restacked(PARAMS)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_initial_layers_differ_and_have_their_scale():
    blocks = PARAMS["blocks"]
    assert (blocks["0"]["up"]["kernel"] != blocks["1"]["up"]["kernel"]).all()
    params, _ = jax.jit(
        models.transformer(vocabulary=50, context=4, layers=2, heads=2, width=64).init
    )(KEY, TOKENS[:, :4])
    deviations = {
        "embed": params["embed"]["embedding"].std(),
        "up": params["blocks"]["0"]["up"]["kernel"].std(),
        "down": params["blocks"]["1"]["down"]["kernel"].std(),
    }
    expected = {"embed": 64**-0.5, "up": 64**-0.5, "down": 256**-0.5 / 2}
    assert deviations == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("scan", [False, True])
def test_the_compiled_scan_does_not_grow_with_the_depth(scan):
    def size(layers):
        decoder = models.transformer(**SETTINGS | {"layers": layers, "scan": scan})
        params = jax.eval_shape(lambda key: decoder.init(key, TOKENS)[0], KEY)
        run = jax.make_jaxpr(lambda p: decoder.apply(p, {}, TOKENS, key=None, train=True)[0])
        return len(str(run(params)).splitlines())

    assert (size(2) == size(6)) == scan


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("hidden", [None, 5])
def test_the_number_of_parameters_by_hand(tied, hidden):
    decoder = models.transformer(**SETTINGS, tied=tied, hidden=hidden)
    params = jax.eval_shape(lambda key: decoder.init(key, TOKENS)[0], KEY)
    block = 4 * 8 * 8 + 2 * 8 * (hidden or 32) + 2 * 8  # attention, dense branch, norms
    assert sum(x.size for x in jax.tree.leaves(params)) == (
        11 * 8 * (1 if tied else 2) + 3 * block + 8
    )
    assert ("head" in params) != tied


def test_bfloat16_parameters_compute_in_bfloat16_with_float32_logits():
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
    outputs = logits(low, TOKENS)
    assert outputs.dtype == jnp.float32
    np.testing.assert_allclose(outputs, logits(PARAMS, TOKENS), atol=0.2)
    program = str(jax.make_jaxpr(logits)(low, TOKENS))
    dots = [line for line in program.splitlines() if "dot_general" in line and ":f32[14," in line]
    assert len(dots) == 1  # the logits alone: [batch * time, vocabulary]


def test_dropout_differs_by_key_and_is_off_in_evaluation():
    for form in (FORMS["loop"], FORMS["scan_remat"]):
        decoder = models.transformer(**SETTINGS, **form, dropout=0.5)
        params = restacked(PARAMS) if form else PARAMS
        run = jax.jit(
            lambda key, of=decoder, p=params: of.apply(p, {}, TOKENS, key=key, train=True)
        )
        one, two, other = (run(jax.random.key(seed))[0] for seed in (0, 0, 1))
        np.testing.assert_array_equal(one, two)
        assert (one != other).any()
        with pytest.raises(ValueError, match="key is None"):
            jax.eval_shape(
                lambda of=decoder, p=params: of.apply(p, {}, TOKENS, key=None, train=True)
            )
    evaluated = jax.jit(lambda: decoder.apply(params, {}, TOKENS, key=KEY, train=False))()[0]
    np.testing.assert_allclose(evaluated, logits(PARAMS, TOKENS), rtol=1e-5, atol=1e-6)


def test_memorises_a_sentence():
    text = jnp.array([[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8]])  # 1, 3 and 5 have two successors
    decoder = models.transformer(**SETTINGS | {"layers": 2, "width": 16})
    optimizer = optax.adam(1e-2)

    def loss(params):
        outputs, _ = decoder.apply(params, {}, text[:, :-1], key=None, train=True)
        return optax.softmax_cross_entropy_with_integer_labels(outputs, text[:, 1:]).mean()

    def step(carry, _):
        params, opt_state = carry
        value, grads = jax.value_and_grad(loss)(params)
        updates, opt_state = optimizer.update(grads, opt_state)
        return (optax.apply_updates(params, updates), opt_state), value

    @jax.jit
    def train(key):
        params, _ = decoder.init(key, text)
        return jax.lax.scan(step, (params, optimizer.init(params)), length=80)

    (params, _), values = train(KEY)
    assert values[0] > 1.5
    assert values[-1] < 0.05
    written = models.generate(decoder, params, text[:, :3], length=9, key=KEY, temperature=0)
    np.testing.assert_array_equal(written.tokens, text[:, 3:])


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"vocabulary": 0}, ValueError, "vocabulary must be at least 1; got 0"),
        ({"context": 0}, ValueError, "context must be at least 1; got 0"),
        ({"layers": 1.5}, TypeError, "layers must be a whole number; got 1.5"),
        ({"hidden": 0}, ValueError, "hidden must be at least 1; got 0"),
        ({"heads": 3}, ValueError, "heads must divide width into even .* got width 8 / heads 3"),
        ({"heads": 8}, ValueError, "heads must divide width into even .* got width 8 / heads 8"),
        ({"dropout": 1.0}, ValueError, "dropout must be at least 0 and less than 1; got 1.0"),
    ],
)
def test_settings_out_of_range_are_errors_at_once(settings, error, message):
    with pytest.raises(error, match=f"transformer: {message}"):
        models.transformer(**SETTINGS | settings)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (jnp.ones((2, 13), int), "13 tokens are more than the limit of 12"),
        (jnp.ones((2, 3)), r"takes integer tokens \[batch, time\]; got float32\[2, 3\]"),
        (jnp.ones(3, int), r"takes integer tokens \[batch, time\]; got int32\[3\]"),
        ({}, "takes tokens, or a dict of .*; got an empty dict"),
        ({"image": TOKENS, "tokens": TOKENS}, "takes tokens, or a dict .*; got 'image', 'tokens'"),
        (
            {"tokens": TOKENS, "segments": TOKENS},
            "takes segments and positions together; positions are missing",
        ),
        (
            {"tokens": TOKENS, "positions": TOKENS},
            "takes segments and positions together; segments are missing",
        ),
        (
            {"tokens": TOKENS, "segments": TOKENS, "positions": TOKENS[:, :3]},
            r"positions must have the shape of the tokens, \[2, 7\]; got \[2, 3\]",
        ),
        (
            {"tokens": TOKENS, "segments": TOKENS > 0, "positions": TOKENS},
            r"takes integer segments \[batch, time\]; got bool\[2, 7\]",
        ),
    ],
)
def test_wrong_tokens_are_errors(tokens, message):
    with pytest.raises(ValueError, match=f"transformer:? {message}"):
        DECODERS["loop"].init(KEY, tokens)
    with pytest.raises(ValueError, match=f"transformer:? {message}"):
        DECODERS["loop"].apply(PARAMS, {}, tokens, key=None, train=False)


def test_a_token_outside_the_vocabulary_has_nan_logits():
    for token in (11, -1):
        assert jnp.isnan(logits(PARAMS, TOKENS.at[0, 3].set(token))[0, 3:]).all()


def test_computes_and_generates_in_float16_on_cpu():
    decoder = models.transformer(vocabulary=5, context=8, layers=1, heads=2, width=8)
    tokens = jnp.array([[0, 1, 2, 3]])
    params, _ = decoder.init(jax.random.key(0), tokens)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.float16), params)
    whole, _ = decoder.apply(params, {}, tokens, key=None, train=False)
    lower, _ = decoder.apply(half, {}, tokens, key=None, train=False)
    np.testing.assert_allclose(lower, whole, atol=2e-2)
    cache = decoder.init_cache(half, {}, tokens, 4)
    np.testing.assert_allclose(decoder.decode_step(half, {}, cache, tokens)[0], lower, atol=2e-2)
