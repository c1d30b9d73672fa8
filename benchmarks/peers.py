"""How fast do other trainers train, with their usual settings and with their fastest?

Baseline: this library, with `fit` alone and with `trainer.repeated`. The others take part where
they are installed; those that are not are named. `contestants/` has each, in a module for each
library, and `contestants/entrants.py` the list.

Measured: scikit-learn's digits, an MLP and a CNN, batches of 64; a transformer of nanoGPT's shape
(4 layers, width 128, context 64, batches of 12) on characters of the standard library's help texts;
PPO on CartPole with 8, 16 and 128 environments: steps, tokens or environment steps per second. Each
contestant is a process of its own with all cores, which waits while another one trains: a figure is
one call that trains for about a second, all its fixed costs included. Contestants take turns;
ratios are taken round by round.

Also: the seconds from the start of a process to the end of its first epoch, with an empty
compilation cache and again with what the first start left there; and 2,000 steps of the
transformer with the optimizer that nanoGPT's README proposes for a CPU, with the loss on held-out
text.

A full run writes its table into docs/explanation/performance.md.
"""

import functools
import math
import statistics
import tempfile

import _documents
import _measuring
import _peer_table
from _starting import Contestant, ContestantError
from contestants import workloads
from contestants.entrants import ENTRANTS, LIBRARY
from contestants.workloads import PPO, TWO_THOUSAND, UNITS

PAGE = _documents.ROOT / "docs" / "explanation" / "performance.md"
STARTED = ("MLP", next(iter(PPO)))
"""Races in which starts are measured."""
QUICK = (workloads.TEXT, STARTED[1])
"""Races in which each module takes part."""
BARS = {
    ("MLP", "Keras on JAX, defaults"): 3,
    ("MLP", "Keras on JAX, `steps_per_execution` of an epoch"): 1.5,
    ("MLP", "Lightning, no logger, bar, checkpoints"): 20,
    ("CNN", "Keras on JAX, defaults"): 1.35,
    ("CNN", "Keras on JAX, `steps_per_execution` of an epoch"): 1.35,
    ("CNN", "Lightning, no logger, bar, checkpoints"): 1.8,
    **dict(zip(((race, "Stable-Baselines3, defaults") for race in PPO), (15, 12, 6), strict=True)),
    **{(race, "Rejax, no evaluation"): 1.0 for race in PPO},
    **{(race, "PureJaxRL's design, one function"): 1.0 for race in PPO},
}
"""What the library's fastest over a peer must reach."""


class Race:
    """The contestants of a workload, each in its process.

    Args:
        name: of the workload.
        quick: whether the workload is small.
        left_out: contestant to why; those that fail are added.
    """

    def __init__(self, name, *, quick, left_out):
        self.name, self.quick, self.left_out = name, quick, left_out
        self.entrants = [one for one in ENTRANTS if name in one.races and not one.missing]
        self.starts = {}
        """Contestant to kind of start to seconds, one figure a round."""
        self.samples = {}

    def start(self, entrant, cache):
        """Start a contestant; None where it fails."""
        arguments = [self.name, entrant.place, *(["quick"] if self.quick else [])]
        environment = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"} if self.quick else {}
        return self.attempt(entrant, functools.partial(Contestant, arguments, cache, environment))

    def attempt(self, entrant, act):
        """Return what an act gives; None, and the contestant is left out, where it fails."""
        if entrant.name in self.left_out:
            return None
        try:
            return act()
        except ContestantError as error:
            self.left_out[entrant.name] = f"{self.name}: {error}"
            return None

    def run(self, *, starts, rounds, seconds):
        """Measure starts, and then rates, in rounds."""
        running = []
        try:
            with tempfile.TemporaryDirectory() as caches:
                for number in range(max(starts, 1)):
                    for contestant in running:
                        contestant[1].close()
                    running = [
                        (entrant, contestant)
                        for entrant in self.entrants
                        if (contestant := self.start_twice(entrant, f"{caches}/{number}", starts))
                    ]
                self.take_turns(running, rounds=rounds, seconds=seconds)
        finally:
            for _, contestant in running:
                contestant.close()

    def start_twice(self, entrant, caches, starts):
        """Start with an empty cache, and again, where starts are measured; return the last one."""
        cache, contestant = f"{caches}/{entrant.place}", None
        for kind in _peer_table.STARTS if starts else _peer_table.STARTS[:1]:
            if contestant:
                contestant.close()
            contestant = self.start(entrant, cache)
            if contestant and starts:
                kinds = self.starts.setdefault(entrant.name, {})
                kinds.setdefault(kind, []).append(contestant.start)
        return contestant

    def take_turns(self, running, *, rounds, seconds):
        """Train in rounds, after one that finds how long each takes and one that warms up."""
        units = workloads.count(self.name, workloads.load(self.name, quick=self.quick))
        epochs = {}
        for entrant, contestant in running:
            for _ in range(2 if seconds else 1):  # the first may compile
                answer = self.attempt(entrant, functools.partial(contestant.train, 5))
            if answer:
                passes = math.ceil(seconds / answer["seconds"]) if seconds else 1
                epochs[entrant.name] = 5 * max(1, passes)
        for number in range(rounds + 1):
            for entrant, contestant in running:
                train = functools.partial(contestant.train, epochs.get(entrant.name))
                if (answer := self.attempt(entrant, train)) and number:
                    rate = epochs[entrant.name] * units / answer["seconds"]
                    self.samples.setdefault(entrant.name, []).append(rate)


def train_two_thousand(*, left_out):
    """Train 2,000 steps at once; return contestant to seconds and loss."""
    race, found = Race(TWO_THOUSAND, quick=False, left_out=left_out), {}
    for entrant in race.entrants:
        with tempfile.TemporaryDirectory() as cache:
            if contestant := race.start(entrant, cache):
                contestant.close()
                found[entrant.name] = {**contestant.first_answer, "seconds": contestant.start}
    return found


def compare(race):
    """Return the ratios of the library's fastest over each, and its bars."""
    own = [one.name for one in race.entrants if one.trainer == LIBRARY and one.name in race.samples]
    if not own:
        return {}, []
    fastest = max(own, key=lambda name: statistics.median(race.samples[name]))
    ratios = {
        name: _measuring.ratio(race.samples[fastest], figures)
        for name, figures in race.samples.items()
    }
    bars = [
        _measuring.bar(f"{race.name}: {fastest} / {name}", ratios[name]["median"], least=least)
        for (where, name), least in BARS.items()
        if where == race.name and name in ratios
    ]
    return ratios, bars


def main():
    options = _measuring.arguments(__doc__).parse_args()
    rounds, seconds = (1, 0.0) if options.quick else (5, 1.0)
    left_out = {
        one.name: f"{', '.join(one.missing)} is not installed" for one in ENTRANTS if one.missing
    }
    record = {"measured": {}, "starts": {}, "ratios": {}, "bars": []}
    for name in QUICK if options.quick else UNITS:
        race = Race(name, quick=options.quick, left_out=left_out)
        starts = 2 if name in STARTED and not options.quick else 0
        race.run(starts=starts, rounds=rounds, seconds=seconds)
        record["measured"][name] = {
            one: _measuring.spread(figures) for one, figures in race.samples.items()
        }
        record["starts"] |= {
            one: {kind: _measuring.spread(figures) for kind, figures in kinds.items()}
            for one, kinds in race.starts.items()
        }
        record["ratios"][name], bars = compare(race)
        record["bars"] += bars
        rows = [
            (one, *_measuring.columns(found), *_measuring.columns(record["ratios"][name][one]))
            for one, found in record["measured"][name].items()
        ]
        columns = ("", "median", "quartiles", "times as fast is the library", "quartiles")
        _measuring.show(f"{name}: {UNITS[name]}", columns, rows)
    if not options.quick:
        record["measured"][TWO_THOUSAND] = train_two_thousand(left_out=left_out)
    record["left_out"] = left_out
    table = _peer_table.render({**_measuring.environment(), **record})
    _measuring.CONSOLE.print(table)
    if not options.quick:
        _documents.insert(PAGE, "peers", table)
    _measuring.finish(
        options,
        "peers",
        unit="steps, tokens or environment steps per second; seconds",
        warm_up="compilation, ten epochs, and a round",
        repeats=rounds,
        seconds_a_call=seconds,
        **record,
    )


if __name__ == "__main__":
    main()
