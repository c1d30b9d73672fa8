"""How many evaluations per second do evaluators reach, and how soon are scores there after a save?

Baseline: the same evaluations in one loop in one process, `trainer.restore` and `trainer.evaluate`,
without a store, requests and leases. Contestants: 1, 2 and 4 worker processes, which receive
requests for all checkpoints of a run at once. A figure is the number of checkpoints over the
seconds until the last one is answered; everything is compiled before. An MLP on scikit-learn's
digits, in SQLite; workers share the machine's cores, with each other and with XLA's threads.

Then a run trains, saves every epoch and requests an evaluation of each checkpoint, while one worker
answers: the seconds from a complete checkpoint to its request, which the run makes at its next
event, and to its scores in the store; with the default pause of 1 s between two polls for requests,
and with one of 0.05 s.
"""

import itertools
import tempfile
import time
from pathlib import Path

import _evaluators
import _measuring

import hooks
import trainer
from trainer.runs import Run, Store
from trainer.runs.requests import list_requests

LOOP = "one loop, one process"

PAUSES = (1.0, 0.05)

EPOCH = 0.2
"""Seconds that an epoch of the run takes, so that one worker keeps up."""


def in_one_loop(folder):
    """Build a function that returns the evaluations per second of the loop."""
    _, start, val = _evaluators.made()
    run = folder / _evaluators.RUN
    with Store(folder) as store:
        epochs = [checkpoint.epoch for checkpoint in store.checkpoints(_evaluators.RUN)]

    def loop():
        for epoch in epochs:
            trainer.evaluate(trainer.restore(run, start, epoch=epoch), val)

    return lambda: len(epochs) / _measuring.timed(loop)


def by_workers(folder, workers):
    """Build a function that returns the requests per second that so many workers answer.

    Each time it asks for another suite, since what was answered is not answered again.
    """
    numbers = itertools.count()

    def rate():
        suite = f"{workers} workers, {next(numbers)}"
        with _evaluators.Workers(folder, suite=suite, pause=0.01) as pool:
            pool.start(workers)
            asked = _evaluators.ask_for(folder, suite)
            done = answered(folder, suite)
        return len(done) / (max(request.finished for request in done) - asked)

    return rate


def answered(folder, suite):
    """Wait until all requests for a suite are answered, and give them."""
    with Store(folder) as store:
        while True:
            asked = [request for request in list_requests(store) if request.suite == suite]
            assert all(request.state != "failed" for request in asked)
            if all(request.state == "done" for request in asked):
                return asked
            time.sleep(0.05)


def delays(folder, pause, epochs):
    """Train; return the seconds from each checkpoint to its request, and to its scores."""
    task, start, _ = _evaluators.made()
    train, _ = trainer.data.digits(batch_size=64)
    directory = folder / _evaluators.RUN
    with _evaluators.Workers(folder, pause=pause) as pool:
        Store(folder).close()
        pool.start(1)
        run = Run(directory)
        trainer.fit(
            start,
            trainer.training(task.step, train),
            epochs=epochs,
            hooks=hooks.chain(
                hooks.observe(wait_a_while),
                hooks.request_evaluation(run, _evaluators.SUITE),
                hooks.save_checkpoints(directory, keep=epochs, max_cost=None),
            ),
        )
        done = answered(folder, _evaluators.SUITE)
    assert len(done) == epochs
    whole = [
        (directory / "checkpoints" / str(request.epoch) / "manifest.json").stat().st_mtime
        for request in done
    ]
    return (
        [request.asked - complete for request, complete in zip(done, whole, strict=True)],
        [request.finished - complete for request, complete in zip(done, whole, strict=True)],
    )


def wait_a_while(state, metrics):
    time.sleep(EPOCH)
    return state


def main():
    options = _measuring.arguments(__doc__).parse_args()
    checkpoints, counts = (3, (1, 2)) if options.quick else (100, (1, 2, 4))
    rounds, epochs = (1, 3) if options.quick else (5, 30)
    measured = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "many")
        _evaluators.saved(folder, checkpoints)
        contestants = {LOOP: in_one_loop(folder)}
        contestants |= {named(n): by_workers(folder, n) for n in counts}
        samples = _measuring.interleaved(contestants, rounds=rounds)
        for pause in PAUSES:
            asked, finished = delays(Path(place, f"{pause}"), pause, epochs)
            measured[f"s from checkpoint to request, pause {pause:g} s"] = _measuring.spread(asked)
            measured[f"s from checkpoint to scores, pause {pause:g} s"] = _measuring.spread(
                finished
            )
    measured = {name: _measuring.spread(figures) for name, figures in samples.items()} | measured
    ratios = {
        f"{named(n)} / {LOOP}": _measuring.ratio(samples[named(n)], samples[LOOP]) for n in counts
    }
    _measuring.show(
        "Evaluations of an MLP's checkpoints",
        ("", "evaluations/s", "quartiles", "over the loop"),
        [(name, *_measuring.columns(measured[name]), _over(ratios, name)) for name in samples],
    )
    _measuring.show(
        "While a run trains, one worker",
        ("", "s", "quartiles"),
        [(name, *_measuring.columns(measured[name])) for name in measured if name not in samples],
    )
    _measuring.finish(
        options,
        "evaluators",
        unit="evaluations/s; seconds where that is said",
        warm_up=1,
        repeats=rounds,
        measured=measured,
        ratios=ratios,
        bars=[],
        checkpoints=checkpoints,
    )


def named(workers):
    return f"{workers} worker{'s' if workers > 1 else ''}"


def _over(ratios, name):
    found = ratios.get(f"{name} / {LOOP}")
    return _measuring.text(found["median"]) if found else "1"


if __name__ == "__main__":
    main()
