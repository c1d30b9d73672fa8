"""The command `generate`: what is streamed to the terminal is what the model writes."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import pytest

import hooks
import models
import trainer
from trainer.__main__ import main
from trainer.evaluators.suite_loading import load_named
from trainer.host.escaping import escape_lines

pytestmark = pytest.mark.usefixtures("compiled_quickly")

FILE = """
import types
import jax, jax.numpy as jnp
import tokenizers
import models, trainer
from trainer import data

bytewise = types.SimpleNamespace(
    encode=lambda text: list(text.encode()),
    decode=lambda ids: bytes(ids).decode(errors="replace"),
)
decoder = models.transformer(vocabulary=256, context=16, layers=1, heads=2, width=8)

def start():
    params, _ = decoder.init(jax.random.key(5), jnp.zeros((1, 2), jnp.int32))
    return trainer.TrainState.create(params=params, rng=jax.random.key(0))

def language(checkpoint):
    return decoder, checkpoint.restore(start()), bytewise

def network(checkpoint):
    return models.mlp(classes=2), checkpoint.restore(start()), bytewise

def untokenized(checkpoint):
    return decoder, checkpoint.restore(start()), "words.json"

def chatting(checkpoint):
    letters = tokenizers.models.BPE({chr(33 + n): n for n in range(90)}, [])
    made = tokenizers.Tokenizer(letters)
    made.add_special_tokens(["<end>"])
    made.decoder = tokenizers.decoders.Fuse()
    template = "{% for m in messages %}{{ m.role + m.content + '<end>' }}{% endfor %}>"
    return decoder, checkpoint.restore(start()), data.open_tokenizer(made, template=template)

def alone(checkpoint):
    return checkpoint.restore(start())

def stateless(checkpoint):
    return decoder, {}, bytewise

small = models.transformer(vocabulary=100, context=16, layers=1, heads=2, width=8)

def narrow(checkpoint):
    params, _ = small.init(jax.random.key(5), jnp.zeros((1, 2), jnp.int32))
    state = trainer.TrainState.create(params=params, rng=jax.random.key(0))
    return small, state, bytewise
"""

PROMPTS = ["\u20ac", "to be"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a run of two epochs, which double the parameters, and a file beside it."""
    folder = tmp_path_factory.mktemp("generating")
    (folder / "mine.py").write_text(FILE)
    state = load_named(f"{folder}/mine.py:start")()
    saving = hooks.save_checkpoints(folder / "run", keep=2, max_cost=None)

    def double(state, data):
        return state.replace(params=jax.tree.map(lambda x: 2 * x, state.params)), None, {}

    state, _ = trainer.fit(state, trainer.Phase("train", double), epochs=2, hooks=saving)
    return folder, state


@pytest.fixture
def run(trained, monkeypatch):
    """In that folder; returns the state."""
    monkeypatch.chdir(trained[0])
    monkeypatch.delenv("ENTRACTE_STORE", raising=False)
    return trained[1]


def expected(state, number, *, stop=(), temperature=1.0, seed=0, length=6):
    """Return what follows one of the prompts, tokens without the one that stops it."""
    decoder = load_named("mine.py:decoder")
    written = models.generate(
        decoder,
        state.params,
        _padded(number),
        length=length,
        key=jax.random.fold_in(jax.random.key(seed), number),
        temperature=temperature,
        stop=stop,
    )
    tokens = written.tokens[0, : written.lengths[0]].tolist()
    return bytes(token for token in tokens if token not in stop)


def _padded(number):
    """Return a prompt as long as the longest."""
    tokens = PROMPTS[number].encode()
    longest = max(len(prompt.encode()) for prompt in PROMPTS)
    places = jnp.arange(longest) - (longest - len(tokens))
    return {
        "tokens": jnp.array([[*bytes(longest - len(tokens)), *tokens]]),
        "segments": (places >= 0).astype(jnp.int32)[None],
        "positions": jnp.maximum(places, 0)[None],
    }


def generated(*words):
    return main(["generate", "run", "--with", "mine.py:language", "--length", "6", *words])


def shown(prompt, written):
    return escape_lines((prompt.encode() + written).decode(errors="replace")) + "\n"


def test_each_prompt_is_continued_from_the_seed_also_in_the_middle_of_a_character(run, capsys):
    assert generated("--prompt", *PROMPTS, "--seed", "3") == 0
    texts = [shown(prompt, expected(run, n, seed=3)) for n, prompt in enumerate(PROMPTS)]
    assert capsys.readouterr().out == "\n".join(texts)


def test_settings_of_sampling_reach_the_sampler(run, capsys):
    assert generated("--prompt", *PROMPTS, "--temperature", "0") == 0
    texts = [shown(prompt, expected(run, n, temperature=0)) for n, prompt in enumerate(PROMPTS)]
    assert capsys.readouterr().out == "\n".join(texts)
    assert generated("--prompt", *PROMPTS, "--top-k", "1") == 0
    assert capsys.readouterr().out == "\n".join(texts)
    assert generated("--prompt", *PROMPTS, "--top-p", "1e-6") == 0
    assert capsys.readouterr().out == "\n".join(texts)


def test_the_epoch_is_chosen_and_a_stop_token_ends_a_text(run, capsys):
    state = run.replace(params=jax.tree.map(lambda x: x / 2, run.params))
    texts = ((seed, expected(state, 0, seed=seed)) for seed in range(20))
    seed, whole, stop = next((n, x, byte) for n, x in texts for byte in x[1:] if 32 < byte < 127)
    assert whole != expected(run, 0, seed=seed)
    words = ["--epoch", "1", "--seed", str(seed), "--stop", chr(stop)]
    assert generated("--prompt", *PROMPTS, *words) == 0
    wanted = shown(PROMPTS[0], whole[: whole.index(stop)])
    assert capsys.readouterr().out.startswith(f"{wanted}\n{PROMPTS[1]}")


def test_a_message_is_asked_by_the_chat_template(run, capsys):
    words = ["--with", "mine.py:chatting", "--length", "6", "--temperature", "0"]
    assert main(["generate", "run", *words, "--chat", "--prompt", "hi"]) == 0
    tokens = [*(ord(x) - 33 for x in "userhi"), 90, ord(">") - 33]
    decoder, key = load_named("mine.py:decoder"), jax.random.key(0)
    answer = models.generate(
        decoder, run.params, [tokens], length=6, key=key, temperature=0, stop=(90,)
    )
    written = [token for token in answer.tokens[0, : answer.lengths[0]].tolist() if token < 90]
    assert capsys.readouterr().out == "userhi<end>>" + "".join(chr(33 + n) for n in written) + "\n"
    assert main(["generate", "run", "--with", "mine.py:language", "--chat", "--prompt", "hi"]) == 2
    assert "needs a tokenizer with a chat template" in capsys.readouterr().err.replace("\n", " ")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--with", "mine.py:network"],
            "must return a language model first.*got a Network.*simulate",
        ),
        (
            ["--with", "mine.py:untokenized"],
            "untokenized needs a tokenizer.json, or .* there is no .*words.json",
        ),
        (["--with", "mine.py:alone"], "must be a function .checkpoint. -> .network, state, token"),
        (["--with", "mine.py:stateless"], "must return the restored state second"),
        (["--with", "mine.py:narrow"], "tokens of prompts must be between 0 and 99"),
        (["--with", "mine.py:decoder"], "must be a function"),
        (["--with", "mine.py:languag"], "Did you mean 'language'"),
        (["--prompt", ""], "needs at least one token"),
        (["--length", "99"], "a text of 104 tokens exceeds the network's context of 16"),
        (["--top-p", "0"], "top_p must be above 0"),
        (["--stop", "to"], "--stop must be one token of the tokenizer; 'to' is 2"),
        (["--epoch", "9"], "no checkpoint of epoch 9"),
    ],
)
def test_a_mistake_is_an_error(run, words, said, capsys):
    given = {"--with": "mine.py:language", "--prompt": "to be", "--length": "6"} | dict([words])
    assert main(["generate", "run", *(word for pair in given.items() for word in pair)]) == 2
    out, printed = capsys.readouterr()
    assert out == ""
    assert re.search(said, printed.replace("\n", " ")), printed
    assert "Traceback" not in printed
