"""Hooks by name are those that a script would build, and a configuration is a complete run."""

import dataclasses
import json
import sys

import pytest

import hooks
import trainer
from hooks.config.hooks_by_name import build_hooks, build_writers, from_config, write_config
from hooks.testing import check_hook
from trainer.configuration import (
    Checkpointing,
    Logging,
    Optimizer,
    TrainingConfig,
    load_config,
)


def halve_when_fitted(state, metrics):
    """A custom hook."""
    return state


GIVEN = {"mine": halve_when_fitted, "fitted": lambda state, metrics: True}


@pytest.mark.parametrize(
    ("entry", "made"),
    [
        ("stop_on_nan", hooks.stop_on_nan()),
        ({"stop_on_nan": None}, hooks.stop_on_nan()),
        ({"average_params": 0.5}, hooks.average_params(0.5)),
        ({"average_params": {"decay": 0, "name": "ema"}}, hooks.average_params(0.0, name="ema")),
        (
            {"stop_early": {"metric": "val/loss", "patience": 3}},
            hooks.stop_early("val/loss", patience=3),
        ),
        (
            {"roll_back_on_nan": ["train/loss", "train/grad_norm"]},
            hooks.roll_back_on_nan("train/loss", "train/grad_norm"),
        ),
        (
            {"roll_back_on_nan": {"metrics": "train/loss", "max_rollbacks": 2}},
            hooks.roll_back_on_nan("train/loss", max_rollbacks=2),
        ),
        ({"every": {"n": 5, "hook": "stop_on_nan"}}, hooks.every(5, hooks.stop_on_nan())),
        (
            {"once": {"hook": [{"every": {"n": 5, "hook": "mine"}}, "stop_on_nan"]}},
            hooks.once(hooks.chain(hooks.every(5, halve_when_fitted), hooks.stop_on_nan())),
        ),
        ({"guard": {"hook": "mine", "retries": 2}}, hooks.guard(halve_when_fitted, retries=2)),
        ({"background": {"hook": {"observe": "mine"}}}, hooks.observe(halve_when_fitted)),
        ({"when": {"predicate": "fitted", "hook": "mine"}}, halve_when_fitted),
        ({"on": {"event": "start", "hook": "mine"}}, hooks.on("start", halve_when_fitted)),
        ({"chain": ["mine", "stop_on_nan"]}, [halve_when_fitted, hooks.stop_on_nan()]),
        ("mine", halve_when_fitted),
    ],
)
def test_an_entry_builds_the_hook_that_a_script_builds(entry, made):
    built = from_config([entry], given=GIVEN)
    assert str(built) == str(hooks.chain(made))
    for part, other in zip(built.parts, hooks.chain(made).parts, strict=True):
        assert [one.name for one in part.hook_states] == [one.name for one in other.hook_states]


def test_arguments_are_passed(state):
    hook = from_config([{"stop_early": {"metric": "loss", "patience": 1, "mode": "max"}}])
    after = hook(hook(state, {"loss": 1.0}), {"loss": 0.5})
    assert after.stop
    assert check_hook(hook, state, {"loss": 1.0}).hook_state.keys() == {"stop_early/loss"}


def test_triggers_govern_what_nests(state):
    hook = from_config([{"every": {"n": 2, "hook": "flag"}}], given={"flag": _stopping})
    assert hook(state.replace(epoch=state.epoch + 1), {}).stop is False
    assert hook(state.replace(epoch=state.epoch + 2), {}).stop is True


def _stopping(state, metrics):
    return state.replace(stop=True)


def test_phases_are_given_by_name(start, train, val):
    spec = [{"every": {"n": 2, "hook": {"evaluate": {"phase": "val"}}}}]
    _, history = trainer.fit(start, train, epochs=2, hooks=from_config(spec, given={"val": val}))
    assert "val/loss" not in history[0]
    assert history[1]["val/accuracy"] > 0


def test_writers_are_named_too(state, tmp_path):
    path = tmp_path / "metrics.jsonl"
    spec = [{"log_metrics": ["Console", {"JsonLines": {"path": str(path)}}]}]
    hook = from_config(spec)
    hook(state, {"train/loss": 0.5})
    for part in reversed(hook.parts):
        if part.close:
            part.close(None)
    assert json.loads(path.read_text())["train/loss"] == 0.5


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ([{"stop_erly": {}}], r"hooks\[0\].stop_erly: there is no hook of this name. Did you mean"),
        (
            ["stop_on_nan", {"stop_early": {"metric": "a", "patiense": 3}}],
            r"hooks\[1\].stop_early: has no argument 'patiense'. Did you mean 'patience'\? "
            r"\(there is: metric, patience, mode=None, min_delta=0.0\)",
        ),
        ([{"stop_early": "a"}], "stop_early: needs patience; there is: metric, patience, mode="),
        ([{"every": {"n": 2, "hook": "stop"}}], r"hooks\[0\].every.hook.stop: there is no hook"),
        ([{"chain": ["mine", "mien"]}], r"hooks\[0\].chain.hooks\[1\].mien: .*no hook"),
        (
            [{"stop_early": {"metric": "a", "patience": "3"}}],
            "stop_early.patience: wanted a whole number; got '3'",
        ),
        ([{"roll_back_on_nan": ["a", 1]}], r"metrics\[1\]: wanted text; got 1"),
        (
            [{"when": {"predicate": "val", "hook": "mine"}}],
            "predicate: wanted Callable; got 'val'; .* given=.* has mine, fitted",
        ),
        (
            [{"log_metrics": "Consol"}],
            "Consol: there is no writer .* Did you mean 'Console'",
        ),
        ([{"log_metrics": [{"log_metrics": "Console"}]}], "there is no writer of this name"),
        ([{"background": {"observe": "mine"}}], "background: has no argument 'observe' .there is"),
        ([{"stop_on_nan": 1}], "stop_on_nan: takes no arguments; got 1"),
        ([{"mine": {"rate": 1}}], "mine: it is a given object, and takes no arguments"),
        ([{"once": {}, "every": {}}], "wanted the name of a hook, or one name with its arguments"),
        ([3], r"hooks\[0\]: wanted the name of a hook"),
        ([{True: {}}], r"hooks\[0\]: wanted the name of a hook"),
    ],
)
def test_a_mistake_is_named_with_its_place(spec, said):
    with pytest.raises(ValueError, match=said):
        from_config(spec, given=GIVEN)


def test_a_given_name_must_not_name_a_hook():
    with pytest.raises(ValueError, match="given has 'every', which already names a hook"):
        from_config([], given={"every": halve_when_fitted})


def test_an_error_of_a_hook_is_raised_with_its_place():
    with pytest.raises(ValueError, match="patience must be a whole number of at least 1") as raised:
        from_config([{"once": {"hook": {"stop_early": {"metric": "a", "patience": 0}}}}])
    (note,) = raised.value.__notes__
    assert note == "in the configuration, at hooks[0].once.hook.stop_early"


@pytest.fixture
def config(tmp_path):
    """A run that logs to a file and saves every epoch."""
    return TrainingConfig(
        run=tmp_path / "run",
        logging=Logging(console=False, tensorboard=False),
        checkpointing=Checkpointing(max_cost=None),
        hooks=({"evaluate": "val"}, {"stop_early": {"metric": "val/loss", "patience": 9}}),
    )


def test_a_configuration_is_a_complete_run_that_resumes(config, start, train, val):
    def fit(config, epochs):
        chain = build_hooks(dataclasses.replace(config, epochs=epochs), given={"val": val})
        return trainer.fit(start, train, epochs=epochs, hooks=chain)

    straight, _ = trainer.fit(
        start,
        train,
        epochs=3,
        hooks=[hooks.evaluate(val), hooks.stop_early("val/loss", patience=9)],
    )
    fit(config, 2)
    file = config.run / "config.yaml"
    assert load_config(file, TrainingConfig) == dataclasses.replace(config, epochs=2)
    with pytest.raises(ValueError, match="optimizer/learning_rate: saved 0.001, now 0.1"):
        fit(dataclasses.replace(config, optimizer=Optimizer(learning_rate=0.1)), 3)
    assert load_config(file, TrainingConfig).epochs == 2  # the refused one changed nothing

    with_board = Logging(console=False)
    resumed, history = fit(dataclasses.replace(config, logging=with_board), 3)
    assert len(history) == 1
    assert trainer.fingerprint(resumed) == trainer.fingerprint(straight)
    assert load_config(file, TrainingConfig).logging == with_board
    lines = (config.run / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3]
    assert "adamw" in (config.run / "report.html").read_text()
    with trainer.Checkpoints(config.run, read_only=True) as checkpoints:
        assert checkpoints.manifest(3)["config"]["optimizer"]["name"] == "adamw"
    with trainer.runs.Store(config.run.parent) as store:
        assert store.run("run").state == "finished"
        assert store.run("run").config["optimizer"]["name"] == "adamw"
        assert [record.epoch for record in store.records("run", ["val/loss"])] == [1, 2, 3]


def test_without_writers_nothing_is_logged(config):
    quiet = Logging(False, False, json_lines=False, report=False, store="off")
    chain = build_hooks(dataclasses.replace(config, logging=quiet, hooks=()))
    names = [part.name for part in chain.parts]
    assert not [name for name in names if name.startswith(("log_metrics", "write_report"))]
    assert "write_config" in names


def test_trackers_are_built_if_the_configuration_says_so(config, monkeypatch):
    for package in ("wandb", "mlflow.tracking"):
        monkeypatch.setitem(sys.modules, package, None)
    plan = Logging(
        False, False, json_lines=False, report=False, store="off", wandb=True, mlflow=True
    )
    made = build_writers(dataclasses.replace(config, logging=plan))
    assert [type(writer) for writer in made] == [hooks.WandB, hooks.MLflow]


def test_writers_may_be_shared_with_other_hooks(config, start, train):
    config = dataclasses.replace(config, hooks=(), logging=Logging(console=False))
    writers = build_writers(config)
    assert [type(writer) for writer in writers] == [
        hooks.TensorBoard,
        hooks.JsonLines,
        hooks.Database,
    ]
    said = hooks.record("said", lambda state, metrics: hooks.Text("well"), *writers)
    chain = [said, build_hooks(config, writers=writers)]
    trainer.fit(start, train, epochs=2, hooks=chain)
    assert len(list(config.run.glob("events.out.tfevents.*"))) == 1
    lines = map(json.loads, (config.run / "metrics.jsonl").read_text().splitlines())
    assert sum("said" in line for line in lines) == 2


def test_a_fresh_run_refuses_a_directory_in_use(config):
    config.run.mkdir()
    fresh = dataclasses.replace(config, fresh=True, hooks=())
    build_hooks(fresh)
    build_hooks(fresh)  # an empty file of records is no run: it may be left from a refused one
    (config.run / "something").write_text("a run")
    with pytest.raises(FileExistsError, match="holds a run"):
        build_hooks(fresh)


def test_the_file_has_no_fresh_and_a_dry_run_writes_no_file(config, state, phase):
    hook = write_config(dataclasses.replace(config, fresh=True))
    check_hook(hook, state, {})
    assert load_config(config.run / "config.yaml", TrainingConfig) == config
    (config.run / "config.yaml").unlink()
    assert hook.dry_run(state, {}) is state
    assert not list(config.run.iterdir())


def test_untyped_arguments_are_looked_up_in_given(task, digits):
    spec = [{"watch_gradients": {"task": "mine", "batch": "first"}}]
    given = {"mine": task, "first": digits[0].example}
    assert from_config(spec, given=given).parts[0].name == "watch_gradients"


def test_an_unknown_phase_is_named_with_the_given_ones():
    with pytest.raises(TypeError, match="got 'val' without remote") as raised:
        from_config([{"evaluate": "val"}], given=GIVEN)
    (note,) = raised.value.__notes__
    assert note == "in the configuration, at hooks[0].evaluate (given={...} has mine, fitted)"


def test_a_recorded_run_is_given_by_name(tmp_path):
    spec = [
        {"log_metrics": [{"Database": {"run": "run"}}]},
        {"heartbeat": {"path": "run"}},
        {"every": {"n": 5, "hook": {"request_evaluation": {"run": "run", "suite": "quick"}}}},
        {"collect_scores": {"run": "run", "suite": "quick", "scores": ["quick/loss"]}},
        {"evaluate": {"phase": "full", "remote": "run", "wait": True}},
    ]
    chain = from_config(spec, given={"run": trainer.runs.Run(tmp_path / "run")})
    names = {part.name for part in chain.parts}
    assert {
        "log_metrics",
        "heartbeat/end",
        "request_evaluation/quick",
        "collect_scores/full",
    } <= names


def test_arguments_of_any_name_need_names():
    with pytest.raises(ValueError, match="set_hyperparams: needs names for its arguments; got 0.1"):
        from_config([{"set_hyperparams": 0.1}])


def test_a_file_can_name_a_group_of_an_optimizer():
    hook = from_config([{"set_hyperparams": {"trunk": {"learning_rate": 0.5}}}])
    assert hook.parts[-1].name == "set_hyperparams/trunk/learning_rate"
