"""How a notebook shows a state, hooks, a summary and recorded runs: as short tables."""

from __future__ import annotations

import html
import re

import jax
import jax.numpy as jnp

import hooks
import trainer
from trainer.runs import CheckpointRow, Run, Store


def read_cells(page):
    """Return the caption of a table, and the texts of the cells of each row."""
    (table,) = re.findall(r"<table .*</table>", page)
    rows = re.findall(r"<tr>(.*?)</tr>", table)
    caption = "".join(re.findall(r"<caption>(.*)</caption>", table))
    found = [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row) for row in rows]
    return html.unescape(caption), [[html.unescape(cell) for cell in row] for row in found]


def test_a_state_shows_its_parts():
    params = {"w": jnp.ones((30, 50)), "b": jnp.ones(50, jnp.bfloat16)}
    state = trainer.TrainState.create(params=params, rng=jax.random.key(0), carry={"place": 7})
    state = state.replace(epoch=jnp.int32(3), step=jnp.int32(1200), stop=True)
    assert read_cells(state._repr_html_()) == (
        "TrainState, epoch 3, step 1,200, stopped",
        [
            ["", "leaves", "elements", "bytes"],
            ["params", "2", "1,550", "6,100"],
            ["carry", "1", "1", "0"],
        ],
    )


def test_shapes_of_a_state_show_no_epoch():
    shapes = jax.eval_shape(
        lambda: trainer.TrainState.create(params={"w": jnp.ones(3)}, rng=jax.random.key(0))
    )
    assert read_cells(shapes._repr_html_()) == (
        "TrainState",
        [["", "leaves", "elements", "bytes"], ["params", "1", "3", "12"]],
    )


def test_hooks_show_what_runs_when():
    @hooks.reads("<val>/loss")
    def ends(state, metrics):
        return state

    def begins(state, metrics):
        return state

    heads = ["event", "stage", "hook", "reads", "writes"]
    row = ["epoch", "control", "ends", "<val>/loss", ""]
    assert read_cells(ends._repr_html_()) == ("", [heads, row])
    chain = hooks.chain(ends, hooks.on("start", begins))
    first = ["start", "control", "begins", "", ""]
    assert read_cells(chain._repr_html_()) == ("", [heads, first, row])


def test_a_summary_shows_the_table_that_it_prints():
    summary = trainer.summary({"w": jnp.ones((2, 3)), "b": jnp.ones(3)})
    _, rows = read_cells(summary._repr_html_())
    assert rows == [
        ["path", "shape", "dtype", "count", "bytes"],
        ["b", "[3]", "float32", "3", "12"],
        ["w", "[2, 3]", "float32", "6", "24"],
        ["parameters", "", "", "9", "36"],
    ]
    assert str(summary).splitlines()[0].split() == rows[0]


def test_a_recorded_run_and_its_rows_show_their_facts(tmp_path):
    with Store(tmp_path) as store:
        run = Run(tmp_path / "one")
        run.heartbeat(epoch=3, step=84, epochs=20)
        caption, facts = read_cells(run._repr_html_())
        assert (caption, dict(facts)["recording"]) == ("Run one", "yes")
        assert dict(facts)["directory"] == str(tmp_path / "one")
        run.end("failed", "<b>enough</b>")
        run.close()
        caption, facts = read_cells(store.run("one")._repr_html_())
    assert caption == "Run one"
    assert dict(facts)["state"] == "failed"
    assert dict(facts)["error"] == "<b>enough</b>"
    assert (dict(facts)["epoch"], dict(facts)["step"]) == ("3 of 20", "84")


def test_a_recorded_checkpoint_shows_its_scores():
    row = CheckpointRow(3, "/runs/one/3", 2_500_000, {"val/loss": 0.25}, "c", "2026-11-30")
    caption, facts = read_cells(row._repr_html_())
    assert caption == "Checkpoint of epoch 3"
    assert dict(facts) == {
        "bytes": "2.5 MB",
        "written": "2026-11-30",
        "path": "/runs/one/3",
        "val/loss": "0.2500",
    }
