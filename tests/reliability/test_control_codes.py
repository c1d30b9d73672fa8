"""Text from checkpoints, configurations and stores is shown without control codes."""

from __future__ import annotations

import csv
import logging
import re

import jax.numpy as jnp
import pytest
from forging import forge, make, read, restore

import hooks
import trainer
from hooks.writers.values import Text
from trainer.__main__ import main
from trainer.checkpoints import DamagedCheckpoint
from trainer.configuration import TrainingConfig, load_config
from trainer.runs import Store

CLEARS = "\x1b[2J\x9b31m\u202ex"
SPELLED = r"\x1b[2J\x9b31m\u202ex"


def plain(text):
    """Return whether a terminal shows a text unchanged."""
    return re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", text) is None


def test_paths_and_settings_of_a_checkpoint(run, caplog):
    checkpoint = run / "checkpoints" / "2"
    content = read(checkpoint)
    (leaf,) = (leaf for leaf in content["leaves"][""] if leaf["path"] == "params/w")
    leaf["path"] = f"params/{CLEARS}"
    content["config"] = {CLEARS: 1}
    forge(checkpoint, content)
    with pytest.raises(ValueError, match="does not fit this run") as raised:
        restore(run, config={"seed": 0})
    assert plain(str(raised.value))
    assert f"params/{SPELLED}: saved" in str(raised.value)
    assert f"{SPELLED}: saved 1, now nothing" in str(raised.value)
    with pytest.raises(ValueError, match="does not fit the parameters") as raised:
        trainer.load_params(run, {"w": jnp.zeros(100)})
    assert plain(str(raised.value))
    assert SPELLED in str(raised.value)


def test_names_of_scores_and_hook_states(run, caplog):
    caplog.set_level(logging.DEBUG, "entracte")
    checkpoint = run / "checkpoints" / "2"
    content = read(checkpoint)
    content["scores"] = {CLEARS: 0.5}
    content["leaves"][f"hook_state/{CLEARS}"] = []
    content["hooks"].append(CLEARS)
    forge(checkpoint, content)
    restore(run)
    assert SPELLED in caplog.text
    with pytest.raises(ValueError, match="that is a number") as raised:
        trainer.restore(run, make(0), best="loss", mode="min")
    assert plain(caplog.text + str(raised.value))


def test_a_damage_is_reported_with_its_place(run):
    content = read(run / "checkpoints" / "2")
    forge(run / "checkpoints" / "2", content | {"format": 99, "versions": CLEARS})
    with pytest.raises(ValueError, match="is of format 99") as raised:
        restore(run)
    assert plain(str(raised.value))
    assert str(DamagedCheckpoint(f"a {CLEARS}\n  b")) == f"a {SPELLED}\n  b"


@pytest.mark.parametrize(
    "text",
    [
        '"\\e[2J\\x9b31m\\u202ex": 1',
        'optimizer: {"\\e[2J\\x9b31m\\u202ex": 1}',
        'logging: {store: ["\\e[2J"]}\n"\\e[2J\\x9b31m\\u202ex": {}',
        "a: [\u202ex",
    ],
)
def test_keys_and_text_of_a_configuration(tmp_path, text):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"a\.yaml") as raised:
        load_config(tmp_path / "a.yaml", TrainingConfig)
    assert plain(str(raised.value))
    assert (SPELLED if "2J" in text else r"\u202e") in str(raised.value)


@pytest.mark.parametrize(
    "entry", [{CLEARS: 1}, {"stop_early": {CLEARS: 1}}, {"every": {"n": CLEARS}}]
)
def test_hooks_that_a_configuration_names(entry):
    with pytest.raises(ValueError, match="hooks") as raised:
        hooks.from_config([entry])
    assert plain("".join([str(raised.value), *getattr(raised.value, "__notes__", ())]))


def test_names_and_texts_that_are_printed_during_training(capsys):
    console = hooks.Console()
    console.write(1, {f"{CLEARS}/loss": 0.5, CLEARS: Text(CLEARS)})
    console.close()
    reported = capsys.readouterr().out
    assert plain(reported)
    assert reported.count(SPELLED) >= 3


def test_every_message_of_the_log_is_plain(caplog):
    log = logging.getLogger("entracte")
    log.warning("what %s says", CLEARS)
    log.error(f"{CLEARS}\n\tit says")
    assert [r.getMessage() for r in caplog.records] == [
        f"what {SPELLED} says",
        f"{SPELLED}\n\tit says",
    ]


# Spreadsheets


FORMULAS = ["=HYPERLINK(1)", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\uff1d1"]
TEXTS = ["Once upon a time", "a=1", "'", "", "1.5"]


@pytest.mark.parametrize("raw", [False, True])
def test_no_text_is_a_formula_in_a_spreadsheet_unless_asked_for(tmp_path, raw):
    with Store(tmp_path) as store:
        store.register("one", directory="/one", host="here", pid=1, time=0.0)
        store.write_records("one", 1, 1, {t or "empty": t for t in FORMULAS + TEXTS} | {"=x": -0.5})
    flags = ["--raw"] if raw else []
    words = ["export", "one", "--store", str(tmp_path), "--to", str(tmp_path / "out"), *flags]
    assert main(words) == 0
    with (tmp_path / "out" / "records.csv").open(newline="") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    mark = "" if raw else "'"
    assert {row["text"] for row in rows.values()} == {*(mark + f for f in FORMULAS), *TEXTS}
    assert rows[f"{mark}=x"]["value"] == "-0.5"


@pytest.mark.parametrize("odd", ["{", "[" * 900 + "]" * 900, "[" * 10**5, "7", '"text"'])
def test_an_odd_row_of_a_store_hides_no_other(tmp_path, capsys, odd):
    with Store(tmp_path) as store:
        for name in ("odd", "sound"):
            store.register(
                name, directory=f"/{name}", host="here", pid=1, time=0.0, config={"a": 1}
            )
        change = "UPDATE runs SET config = ?, environment = ? WHERE name = 'odd'"
        store.connection.execute(change, (odd, odd))
    for words in (
        ["runs"],
        ["runs", "--where", "a=1"],
        ["show", "odd"],
        ["compare", "odd", "sound"],
    ):
        assert main([*words, "--store", str(tmp_path)]) == 0
    assert "sound" in capsys.readouterr().out
