"""A trainer of `guarantees` in a process, which a benchmark starts: `_trial_process.py MODULE`.

It imports the trainer's module once. Each line of the standard input is a task in JSON, done by a
child that is forked from it, so that libraries are imported once and each trial is a process of its
own. Each line of the standard output is the exit status of one: 0, or minus a signal.
"""

import importlib
import inspect
import json
import os
import sys
import time
import traceback
from pathlib import Path

import numpy as np
from guarantee_trials.trial import Steps, Trial


def train(module, folder, fatal=None, pause=0.0, **settings):
    """Train; the final parameters go to `final.npz`."""
    steps = Steps(fatal, pause)
    saved = folder / "saved"
    saved.mkdir(exist_ok=True)
    try:
        began, params = module.train(Trial(saved, steps, **settings))
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}", "steps": steps.count}
    np.savez(folder / "final.npz", *params)
    return {"began": began, "steps": steps.count}


def find_newest(module, folder):
    return {"path": str(module.find_newest(folder / "saved"))}


def show_order(module, folder):
    return module.show_order(folder)


def test_callback(module, folder):
    """Run the test of a callback; count its lines and its stand-ins for a trainer or a model."""
    module.test_callback()
    code = inspect.getsource(module.test_callback)
    return {"lines": len(code.splitlines()) - 1, "stand-ins": code.count("SimpleNamespace(")}


def time_epochs(module, folder, epochs, rounds, numbers):
    """Return for each number of callbacks the seconds of an epoch, one figure a round."""
    run = module.prepare_epochs(epochs)
    seconds = {number: [] for number in numbers}
    for turn in range(rounds + 1):
        for number in numbers:
            began = time.perf_counter()
            run(number)
            if turn:  # the first compiles
                seconds[number].append((time.perf_counter() - began) / epochs)
    return {"seconds": [seconds[number] for number in numbers]}


TASKS = (train, find_newest, show_order, test_callback, time_epochs)


def work(module, task, folder, arguments):
    """Do a task in this process, and leave its answer and what it printed in the folder."""
    folder = Path(folder)
    printed = os.open(folder / "printed.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(printed, stream)
    os.chdir(folder)
    act = next(act for act in TASKS if act.__name__ == task)
    answer = act(module, folder, **arguments)
    sys.stdout.flush()
    (folder / "answer.json").write_text(json.dumps(answer))


def main():
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    module = importlib.import_module(f"guarantee_trials.{sys.argv[1]}")
    for line in sys.stdin:
        child = os.fork()
        if not child:
            status = 1
            try:
                work(module, *json.loads(line))
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(status, file=answers, flush=True)


if __name__ == "__main__":
    main()
