"""Checks of hooks before training, and of what they return."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hooks
import trainer
from trainer import Hook
from trainer.loop.events import HookRunner


def nothing(state, metrics):
    return state


def test_a_metric_that_nothing_writes_is_an_error_that_lists_the_known_ones(state, phase):
    with pytest.raises(
        ValueError,
        match="'stop_early/val/loss' at 'epoch' reads 'val/loss', which "
        "nothing writes before it .there is: train/loss.. Place evaluate",
    ):
        trainer.fit(state, phase, epochs=1, hooks=hooks.stop_early("val/loss", patience=1))


def test_a_metric_that_is_written_too_late_is_an_error(state, phase):
    @hooks.writes("gap")
    def write(state, metrics):
        return state.replace(scores={"gap": 1.0})

    read = hooks.reads("gap")(nothing)
    with pytest.raises(ValueError, match="The control hook 'write' writes it at 'epoch', after"):
        trainer.fit(state, phase, epochs=1, hooks=[read, write])
    trainer.fit(state, phase, epochs=1, hooks=[write, read])
    with pytest.raises(ValueError, match="The observe hook 'write' writes it"):  # they come later
        trainer.fit(state, phase, epochs=1, hooks=[hooks.observe(write), read])


def test_overwriting_another_metric_is_an_error(state, phase):
    @hooks.writes("train/loss")
    def write(state, metrics):
        return state.replace(scores={"train/loss": 1.0})

    with pytest.raises(ValueError, match="'write' writes 'train/loss', which phase 'train' meas"):
        trainer.fit(state, phase, epochs=1, hooks=write)
    smooth = hooks.reads("train/loss")(write)
    assert trainer.fit(state, phase, epochs=1, hooks=smooth)[1][0]["train/loss"] == 1.0
    gap = hooks.writes("gap")(lambda state, metrics: state.replace(scores={"gap": 1.0}))
    with pytest.raises(ValueError, match="two hooks are called '<lambda>' and write 'gap'"):
        trainer.fit(state, phase, epochs=1, hooks=[gap, hooks.every(2, gap)])
    trainer.fit(state, phase, epochs=1, hooks=[hooks.every(3, gap), hooks.every(2, gap)])


def test_the_metric_that_was_meant_is_named(state, phase):
    hook = hooks.stop_early("train_loss", patience=1)
    with pytest.raises(ValueError, match=r"reads 'train_loss'.* Did you mean 'train/loss'\?"):
        trainer.fit(state, phase, epochs=1, hooks=hook)


def test_metrics_are_known_by_event(state, phase):
    read = hooks.reads("train/loss")(nothing)
    with pytest.raises(ValueError, match="at 'start' reads 'train/loss'.*there is: nothing"):
        trainer.fit(state, phase, epochs=1, hooks=hooks.on("start", read))
    for event in ("train", "epoch", "end"):
        trainer.fit(state, phase, epochs=1, hooks=hooks.on(event, read))
    trainer.fit(state, phase, epochs=1, hooks=hooks.reads("time/epoch_seconds")(nothing))


def test_an_unknown_event_is_refused_with_the_known_ones(state, phase):
    with pytest.raises(ValueError, match="'validation', which is no event .*start, train, epoch"):
        trainer.fit(state, phase, epochs=1, hooks=hooks.on("validation", nothing))


def test_an_unknown_stage_is_refused():
    with pytest.raises(ValueError, match="of stage 'late'"):
        HookRunner(Hook(nothing, "nothing", stage="late"), ["train"])


def test_two_hook_states_of_one_name_are_refused(state, phase):
    twice = [hooks.stateful("count", lambda state: 0, lambda m, s, _: (m + 1, s))] * 2
    with pytest.raises(ValueError, match="two hooks keep a hook state named 'count'"):
        trainer.fit(state, phase, epochs=1, hooks=twice)
    trainer.fit(state, phase, epochs=1, hooks=[nothing, nothing])


@pytest.mark.parametrize("hook", [3, "stop", {"a": 1}, hooks.Hook, None])
def test_other_objects_than_hooks_are_refused(state, phase, hook):
    with pytest.raises(TypeError, match="a hook is a function"):
        trainer.fit(state, phase, epochs=1, hooks=[hook])


@pytest.mark.parametrize(
    ("result", "said"), [(None, "got None"), (3, "got 3"), ({}, "got a dict of nothing")]
)
def test_a_hook_that_returns_no_state_is_named(state, phase, result, said):
    def forgetful(state, metrics):
        return result

    with pytest.raises(TypeError, match=f"'forgetful' must return a TrainState.*{said}") as raised:
        trainer.fit(state, phase, epochs=2, hooks=forgetful)
    assert raised.value.__notes__ == ["in hook 'forgetful' at 'epoch' of epoch 1"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.replace(params={"w": s.params["w"]}), r"params/b: float32\[\] is missing"),
        (
            lambda s: s.replace(params={**s.params, "w": jnp.ones(3)}),
            r"params/w: float32\[2\] became float32\[3\]",
        ),
        (
            lambda s: s.replace(params=jax.tree.map(lambda w: w.astype(jnp.bfloat16), s.params)),
            r"params/b: float32\[\] became bfloat16\[\]",
        ),
        (lambda s: s.replace(carry={"new": jnp.ones(1)}), r"carry/new: float32\[1\] is new"),
        (lambda s: s.replace(step=s.step + 0.5), r"step: int32\[\] became float32\[\]"),
        (lambda s: s.replace(params={**s.params, "b": 1.0}), r"params/b: float32\[\] became float"),
    ],
)
def test_a_control_hook_that_changes_a_shape_or_dtype_is_named(state, phase, change, said):
    def reshape(state, metrics):
        return change(state)

    with pytest.raises(ValueError, match=f"(?s)'reshape' must keep.*{said}"):
        trainer.fit(state, phase, epochs=1, hooks=reshape)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.replace(params=jax.tree.map(lambda w: w + 1, s.params)), "changed params"),
        (lambda s: s.replace(step=s.step + 1), "changed step"),
        (lambda s: s.replace(stop=True), "changed stop"),
        (lambda s: s.replace(hook_state={"count": 5}), "changed 'count'"),
    ],
)
@pytest.mark.parametrize("stage", ["observe", "save"])
def test_an_observer_that_changes_the_state_is_named(state, phase, change, said, stage):
    count = hooks.stateful("count", lambda state: 0, lambda m, s, _: (m + 1, s))
    meddler = Hook(lambda state, metrics: change(state), "meddler", stage=stage)
    with pytest.raises(ValueError, match="'meddler' of stage|'meddler' is of stage") as raised:
        trainer.fit(state, phase, epochs=1, hooks=[count, meddler])
    assert said in str(raised.value)


def test_only_the_loop_counts_epochs(state, phase):
    def skip(state, metrics):
        return state.replace(epoch=state.epoch + 1)

    with pytest.raises(ValueError, match="'skip' changed epoch, which fit alone counts"):
        trainer.fit(state, phase, epochs=3, hooks=skip)


def test_an_observer_may_write_scores_and_its_hook_state_and_return_an_equal_state(state, phase):
    def update(count, state, metrics):
        return count + 1, state.replace(scores={"seen": float(count)})

    count = hooks.observe(hooks.stateful("count", lambda state: 0, update))
    copy = hooks.observe(lambda s, m: s.replace(params=dict(s.params)))
    final, history = trainer.fit(state, phase, epochs=3, hooks=[count, copy])
    assert final.hook_state == {"count": 3}
    assert [epoch["seen"] for epoch in history] == [0.0, 1.0, 2.0]


@pytest.mark.parametrize(
    ("first", "then", "said"),
    [
        (0, 0.5, "became float"),
        (None, 1, "is new"),
        ({"a": 1}, {"b": 1}, "a: int is missing"),
        (np.zeros(2), np.zeros(3), r"float64\[2\] became float64\[3\]"),
        (0.5, np.float32(0.5), "became float32"),
    ],
)
def test_a_hook_state_that_changes_its_type_is_named(state, phase, first, then, said):
    fickle = hooks.stateful("fickle", lambda state: first, lambda m, s, _: (then, s))
    with pytest.raises(
        ValueError, match=f"(?s)'fickle' must return a hook state of the structure.*{said}"
    ):
        trainer.fit(state, phase, epochs=1, hooks=fickle)


def test_a_hook_cannot_add_a_hook_state_that_it_did_not_declare(state, phase):
    def sneak(state, metrics):
        return state.replace(hook_state={"sneaked": 1})

    with pytest.raises(ValueError, match="added 'sneaked': make it with hooks.stateful"):
        trainer.fit(state, phase, epochs=1, hooks=sneak)


def test_a_score_that_is_not_a_number_is_named(state, phase):
    def score(state, metrics):
        return state.replace(scores={"name": "high"})

    said = "hook 'score' wrote the score 'name', which must be a number; got 'high'"
    with pytest.raises(TypeError, match=said):
        trainer.fit(state, phase, epochs=1, hooks=score)


def test_stages_run_in_order_and_at_the_end_saves_first(state, phase):
    seen = []

    def noting(name, stage, event=None):
        def note(state, metrics):
            seen.append(name)
            return state

        return Hook(note, name, stage=stage, event=event)

    chain = [
        noting(f"{stage}{number}{event or ''}", stage, event)
        for event in (None, "end")
        for number in (1, 2)
        for stage in ("save", "observe", "control")
    ]
    trainer.fit(state, phase, epochs=1, hooks=chain)
    assert seen == [
        *("control1", "control2", "observe1", "observe2", "save1", "save2"),
        *("save1end", "save2end", "control1end", "control2end", "observe1end", "observe2end"),
    ]


def test_records_are_flushed_before_a_save_that_fires(state, phase):
    seen = []

    def note(name):
        def note(state, metrics):
            seen.append(name)
            return state

        return note

    writer = Hook(note("write"), "write", stage="observe", flush=lambda: seen.append("flush"))
    save = hooks.every(2, Hook(note("save"), "save", stage="save"))
    trainer.fit(state, phase, epochs=2, hooks=[save, writer])
    # Before the save; at the end, for hooks that read all records; and after the run.
    assert seen == ["write", "write", "flush", "save", "flush", "flush"]


def test_a_hook_added_later_starts_with_its_first_hook_state(state, phase):
    count = hooks.stateful("count", lambda s: int(s.epoch), lambda m, s, _: (m + 1, s))
    state, _ = trainer.fit(state, phase, epochs=2)
    state, _ = trainer.fit(state, phase, epochs=3, hooks=count)
    assert state.hook_state == {"count": 3}
    state, _ = trainer.fit(state, phase, epochs=4)
    assert state.hook_state == {}


def test_only_observers_see_scores_of_observers(state, phase):
    seen = {}

    def look(name, stage, event=None):
        def look(state, metrics):
            seen[name] = "looked" in metrics
            return state

        return Hook(look, name, stage=stage, event=event)

    @hooks.writes("looked")
    @hooks.observe
    def score(state, metrics):
        return state.replace(scores={**state.scores, "looked": 1.0})

    asked = []
    gated = hooks.when(
        lambda state, metrics: asked.append("looked" in metrics) or True,
        hooks.chain(look("gated observer", "observe"), look("gated save", "save")),
    )
    chain = [
        score,
        look("observer", "observe"),
        look("save", "save"),
        look("control at end", "control", "end"),
        look("observer at end", "observe", "end"),
        gated,
    ]
    _, history = trainer.fit(state, phase, epochs=2, hooks=chain)
    assert seen == {
        "observer": True,
        "save": False,
        "control at end": False,
        "observer at end": True,
        "gated observer": True,
        "gated save": False,
    }
    assert asked == [True, False] * 2  # of what the save hooks see it is asked again
    assert history[0]["looked"] == 1.0
    with pytest.raises(ValueError, match="'save' at 'epoch' reads 'looked', which nothing"):
        trainer.fit(
            state, phase, epochs=1, hooks=[score, hooks.reads("looked")(look("save", "save"))]
        )


def test_an_observer_adds_scores_and_changes_none(state, phase):
    @hooks.writes("found")
    def find(state, metrics):
        return state.replace(scores={"found": 0.5})

    @hooks.observe
    def change(state, metrics):
        return state.replace(scores={**state.scores, "found": 0.7})

    with pytest.raises(ValueError, match="it changed the score 'found' of another hook"):
        trainer.fit(state, phase, epochs=1, hooks=[find, change])
