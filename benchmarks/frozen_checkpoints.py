"""What does a checkpoint take of a state of which a part never changes?

Baseline: the same state, all of which changes.

Measured, for 10 MB and 400 MB in 16 arrays of equal size, of which none, half or 95% of the bytes
never change: the bytes that each checkpoint after the first adds to the disk, over those of the
first; and CPU-milliseconds of all threads, and milliseconds, of a save until it is durable and the
checkpoint before is removed. Contestants take turns; every save follows an update of all arrays
that change. The first save of each, and the second, which may write what did not change into a file
of its own, are no samples of the time.
"""

import functools
import tempfile
import time
from pathlib import Path

import _measuring
import jax
import jax.numpy as jnp

import trainer

FROZEN = {"none": 0.0, "half": 0.5, "95%": 0.95}
"""The part of the bytes that never changes."""
SIZES, QUICK_SIZES = ((10, 15), (400, 5)), ((2, 1),)
"""MB of a state, and rounds."""
ARRAYS = 16
BAR = 0.06


def state_of(megabytes, frozen):
    """Build a state of random numbers, in arrays that change and arrays that never do."""
    sizes = {"params": 1 - frozen, "model_state": frozen}
    trees = {name: {} for name in sizes}
    for number, (name, part) in enumerate(sizes.items()):
        for array in range(ARRAYS) if part else ():
            key = jax.random.key(ARRAYS * number + array)
            count = max(1, round(part * megabytes * 1e6 / 4 / ARRAYS))
            trees[name][f"layer_{array}"] = jax.random.uniform(key, (count,))
    return trainer.TrainState.create(**trees, rng=jax.random.key(0))


@functools.partial(jax.jit, donate_argnums=0)
def advance(params):
    """Update every array in its own buffer."""
    return jax.tree.map(lambda w: w * 0.999, params)


class Contestant:
    """A run that saves a state again and again, and keeps the newest checkpoint."""

    def __init__(self, folder, megabytes, frozen):
        self._state, self._epoch = state_of(megabytes, frozen), 0
        self._folder, self._checkpoints = folder, trainer.Checkpoints(folder, keep=1)
        self._known = set()
        self.added = []
        """The bytes that each checkpoint added to the disk."""
        self.milliseconds = []
        """Of each save, waits included."""

    def save(self):
        """Change the state and save it; return the CPU-milliseconds of the save."""
        self._epoch += 1
        params = jax.block_until_ready(advance(self._state.params))
        self._state = self._state.replace(params=params, epoch=jnp.int32(self._epoch))
        cpu, began = time.process_time(), time.perf_counter()
        self._checkpoints.save(self._state)
        self._checkpoints.wait()
        self.milliseconds.append((time.perf_counter() - began) * 1e3)
        cpu = (time.process_time() - cpu) * 1e3
        folder = Path(self._folder, "checkpoints", str(self._epoch))
        files = [file.stat() for file in folder.rglob("*") if file.is_file()]
        self.added.append(sum(x.st_size for x in files if x.st_ino not in self._known))
        self._known = {file.st_ino for file in files}
        return cpu

    def close(self):
        self._checkpoints.close()


def compare(megabytes, rounds, directory):
    """Measure a size, print it, and give (measured, ratios, bars)."""
    made = {
        name: Contestant(Path(directory, f"{megabytes}-{name}"), megabytes, frozen)
        for name, frozen in FROZEN.items()
    }
    contestants = {name: contestant.save for name, contestant in made.items()}
    samples = _measuring.interleaved(contestants, rounds=rounds, warm_up=2)
    title = f"{megabytes:g} MB, the part that never changes"
    measured, ratios, rows, bars = {}, {}, [], []
    for name, contestant in made.items():
        contestant.close()
        first, second, *later = contestant.added
        share = max(later) / first
        times, usual = contestant.milliseconds[2:], made["none"].milliseconds[2:]
        measured[name] = {
            "bytes of the first": first,
            "of the second": second,
            "of a later one, at most": max(later),
            "cpu_ms": _measuring.spread(samples[name]),
            "ms": _measuring.spread(times),
        }
        ratios[name] = {
            "bytes, over the first": share,
            "cpu_ms, over none": _measuring.ratio(samples[name], samples["none"]),
            "ms, over none": _measuring.ratio(times, usual),
        }
        medians = [measured[name][what]["median"] for what in ("cpu_ms", "ms")]
        shares = [second / first, share]
        rows.append((name, *map(_measuring.text, (first / 1e6, *shares, *medians))))
        if name == "95%":
            highest = max(second, *later) / first
            what = f"{megabytes:g} MB, 95%: bytes of a checkpoint after the first / of the first"
            bars.append(_measuring.bar(what, highest, most=BAR))
    header = ("", "MB of the first", "second / first", "later / first", "CPU-ms of a save", "ms")
    _measuring.show(title, header, rows)
    return {title: measured}, {title: ratios}, bars


def main():
    parser = _measuring.arguments(__doc__)
    parser.add_argument("--directory", type=Path, help="where to save; a temporary one if absent")
    options = parser.parse_args()
    sizes = QUICK_SIZES if options.quick else SIZES
    measured, ratios, bars = {}, {}, []
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        for megabytes, rounds in sizes:
            found = compare(megabytes, rounds, directory)
            measured |= found[0]
            ratios |= found[1]
            bars += found[2]
    _measuring.finish(
        options,
        "frozen_checkpoints",
        unit="bytes; milliseconds of a save",
        warm_up="the first two saves of each",
        repeats=[rounds for _, rounds in sizes],
        measured=measured,
        ratios=ratios,
        bars=bars,
    )


if __name__ == "__main__":
    main()
