"""Every setting of an architecture, against the equations written out in numpy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from models import Architecture, LinearScaling, Llama3Scaling

pytestmark = pytest.mark.usefixtures("compiled_quickly")

FAMILIES = {
    "llama": Architecture(
        kv_heads=2,
        gated=True,
        activation="silu",
        norm_epsilon=1e-2,
        rotary_base=50.0,
        rotary_scaling=Llama3Scaling(4.0, 1.0, 4.0, original_context=12),
        window=3,
        embedding_scale=1.0,
    ),
    "gemma": Architecture(
        kv_heads=2,
        head_size=6,
        gated=True,
        activation="gelu_tanh",
        norm_offset=True,
        post_norms=True,
        qk_norm=True,
        rotary_base=100.0,
        rotary_scaling=LinearScaling(2.0),
        local_rotary_base=20.0,
        window=3,
        global_every=2,
        attention_softcap=0.5,
        logit_softcap=2.0,
        query_scale=0.7,
        embedding_scale=3.0,
    ),
    "gpt2": Architecture(
        norm="layer",
        activation="gelu",
        positions="learned",
        attention_bias=True,
        out_bias=True,
        dense_bias=True,
    ),
}
SIZES = {"vocabulary": 11, "context": 8, "layers": 2, "heads": 4, "width": 8, "hidden": 10}
TEXTS = [[3, 1, 4, 1, 5, 9, 2], [6, 5, 3, 5, 8]]
PACKED = {
    "tokens": jnp.array([TEXTS[0] + TEXTS[1]]),
    "segments": jnp.array([[1] * 7 + [2] * 5]),
    "positions": jnp.array([[*range(7), *range(5)]]),
}
PADDED = {  # the first four tokens of one, the first two of the other
    "tokens": jnp.array([TEXTS[0][:4], [0, 0, *TEXTS[1][:2]]]),
    "segments": jnp.array([[1, 1, 1, 1], [0, 0, 1, 1]]),
    "positions": jnp.array([[0, 1, 2, 3], [0, 0, 0, 1]]),
}
NEXT = jnp.array([TEXTS[0][4:], TEXTS[1][2:]])


def normalise(x, weights, settings):
    x = x - x.mean(-1, keepdims=True) if settings.norm == "layer" else x
    x = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + settings.norm_epsilon)
    return x * (weights["scale"] + settings.norm_offset) + weights.get("bias", 0)


def project(x, weights):
    return x @ weights["kernel"] + weights.get("bias", 0)


def activate(x, settings):
    if settings.activation == "silu":
        return x / (1 + np.exp(-x))
    if settings.activation == "gelu":
        return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2
    return x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2


def find_frequency(index, size, windowed, settings):
    local = windowed and settings.local_rotary_base is not None
    base = settings.local_rotary_base if local else settings.rotary_base
    frequency, scaling = base ** (-2 * index / size), settings.rotary_scaling
    if local or scaling is None:
        return frequency
    if isinstance(scaling, LinearScaling):
        return frequency / scaling.factor
    wavelength = 2 * math.pi / frequency
    if wavelength > scaling.original_context / scaling.low_frequency_factor:
        return frequency / scaling.factor
    if wavelength < scaling.original_context / scaling.high_frequency_factor:
        return frequency
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    smooth = (scaling.original_context / wavelength - low) / (high - low)
    return (1 - smooth) * frequency / scaling.factor + smooth * frequency


def rotate(x, windowed, settings):
    """Rotate heads `[time, size]`."""
    half = x.shape[1] // 2
    turned = np.zeros_like(x)
    for place in range(len(x)):
        for i in range(half):
            angle = place * find_frequency(i, x.shape[1], windowed, settings)
            a, b = x[place, i], x[place, i + half]
            turned[place, i] = a * math.cos(angle) - b * math.sin(angle)
            turned[place, i + half] = b * math.cos(angle) + a * math.sin(angle)
    return turned


def attend(x, weights, windowed, settings):
    heads, size = SIZES["heads"], settings.head_size or SIZES["width"] // SIZES["heads"]
    groups = heads // (settings.kv_heads or heads)
    query, key, value = (
        project(x, weights[name]).reshape(len(x), -1, size) for name in ("query", "key", "value")
    )
    if settings.qk_norm:
        query = normalise(query, weights["query_norm"], settings)
        key = normalise(key, weights["key_norm"], settings)
    mixed = np.zeros((len(x), heads, size))
    for head in range(heads):
        q, k = query[:, head], key[:, head // groups]
        if settings.positions == "rotary":
            q, k = rotate(q, windowed, settings), rotate(k, windowed, settings)
        scores = q @ k.T * (settings.query_scale or size**-0.5)
        if settings.attention_softcap:
            scores = settings.attention_softcap * np.tanh(scores / settings.attention_softcap)
        for place in range(len(x)):
            first = max(0, place + 1 - settings.window) if windowed else 0
            exps = np.exp(scores[place, first : place + 1])
            seen = value[first : place + 1, head // groups]
            mixed[place, head] = exps / exps.sum() @ seen
    return project(mixed.reshape(len(x), -1), weights["out"])


def read(params, tokens, settings):
    """Compute the logits `[time, vocabulary]` of one text."""
    x = params["embed"]["embedding"][tokens] * (settings.embedding_scale or math.sqrt(8))
    if settings.positions == "learned":
        x = x + params["positions"]["embedding"][: len(x)]
    for layer in range(SIZES["layers"]):
        block = params["blocks"][str(layer)]
        globally = settings.global_every and (layer + 1) % settings.global_every == 0
        windowed = settings.window is not None and not globally
        mixed = attend(
            normalise(x, block["attention_norm"], settings),
            block["attention"],
            windowed,
            settings,
        )
        if settings.post_norms:
            mixed = normalise(mixed, block["attention_post_norm"], settings)
        x = x + mixed
        inputs = normalise(x, block["dense_norm"], settings)
        hidden = project(inputs, block["up"])
        if settings.gated:
            hidden = activate(project(inputs, block["gate"]), settings) * hidden
        else:
            hidden = activate(hidden, settings)
        result = project(hidden, block["down"])
        if settings.post_norms:
            result = normalise(result, block["dense_post_norm"], settings)
        x = x + result
    logits = normalise(x, params["norm"], settings) @ params["embed"]["embedding"].T
    if settings.logit_softcap:
        return settings.logit_softcap * np.tanh(logits / settings.logit_softcap)
    return logits


@pytest.fixture(scope="module", params=[*FAMILIES, "gemma_scan"])
def computed(request):
    """The logits of each text by the equations, of both in one row, and decoded after padding."""
    family, _, scan = request.param.partition("_")
    settings = FAMILIES[family]
    decoder = models.transformer(**SIZES, scan=bool(scan), architecture=settings)
    shapes = jax.eval_shape(decoder.init, jax.random.key(0), PACKED)[0]
    drawn = np.random.default_rng(0)
    params = jax.tree.map(lambda x: drawn.normal(0.2, 0.6, x.shape).astype(np.float32), shapes)

    @jax.jit
    def run(params):
        whole, _ = decoder.apply(params, {}, PACKED, key=None, train=False)
        cache = decoder.init_cache(params, {}, PADDED, 7)
        begun, cache = decoder.decode_step(params, {}, cache, PADDED)
        more, cache = decoder.decode_step(params, {}, cache, NEXT[:, :1])
        rest, _ = decoder.decode_step(params, {}, cache, NEXT[:, 1:])
        return whole[0], jnp.concatenate([begun, more, rest], axis=1)

    packed, decoded = run(params)
    if scan:
        layers = {str(i): jax.tree.map(lambda x, i=i: x[i], params["blocks"]) for i in range(2)}
        params = params | {"blocks": layers}
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    return [read(params, text, settings) for text in TEXTS], packed, decoded


def test_texts_in_a_row_have_the_logits_of_the_equations(computed):
    expected, packed, _ = computed
    np.testing.assert_allclose(packed[:7], expected[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(packed[7:], expected[1], rtol=1e-4, atol=1e-4)


def test_decoding_after_padding_has_the_logits_of_the_equations(computed):
    expected, _, decoded = computed
    np.testing.assert_allclose(decoded[0], expected[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(decoded[1, 2:], expected[1], rtol=1e-4, atol=1e-4)


def test_a_setting_of_every_field_is_checked_against_the_equations():
    default = Architecture()
    changed = {
        name
        for settings in FAMILIES.values()
        for name, value in vars(settings).items()
        if value != getattr(default, name)
    }
    assert changed == vars(default).keys()


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"activation": "relu"}, ValueError, "one of gelu, gelu_tanh, silu; got 'relu'"),
        ({"norm": "batch"}, ValueError, "norm must be one of rms, layer; got 'batch'"),
        ({"positions": None}, ValueError, "positions must be one of rotary, learned; got None"),
        ({"kv_heads": 0}, ValueError, "kv_heads must be at least 1; got 0"),
        ({"window": 2.5}, TypeError, "window must be a whole number; got 2.5"),
        ({"query_scale": 0.0}, ValueError, "query_scale must be above 0, and finite; got 0.0"),
        ({"global_every": 2}, ValueError, "global_every has no effect without a window"),
        ({"kv_heads": 3}, ValueError, "kv_heads must divide heads; got kv_heads 3 and heads 4"),
        ({"head_size": 3}, ValueError, "head_size must be even; got 3"),
    ],
)
def test_settings_out_of_range_are_errors_at_once(settings, error, message):
    with pytest.raises(error, match=message):
        models.transformer(**SIZES, architecture=Architecture(**settings))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LinearScaling(0.0), "LinearScaling: factor must be above 0, and finite; got 0.0"),
        (lambda: Llama3Scaling(8.0, 4.0, 1.0, 100), "must be below high_freq.*; got 4.0 and 1.0"),
    ],
)
def test_scalings_out_of_range_are_errors_at_once(make, message):
    with pytest.raises(ValueError, match=message):
        make()
