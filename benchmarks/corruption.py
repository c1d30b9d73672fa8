"""Is a damaged checkpoint ever restored as if it were intact, and what does verification cost?

Trials: a real run saves three checkpoints. Each trial damages a copy of them at random, in one way,
anywhere in any file of the newest checkpoint, in one of four trials also in the one before. Then
`Checkpoints.restore` reads it into a state of other numbers. Fingerprint and scores show the
outcome: the newest checkpoint all the same (the damage changed nothing, such as zeros zeroed); the
exact state of an older checkpoint; an error; or silently something else, which must never happen.
Exits with 1 if it did.

Cost: the time until a save is durable, and the share of checksums in the time of a restore, for the
digits CNN and for a state of 16 arrays. The baseline is a restore without checksums; all take
turns. Files are in the page cache, where reading is fastest and the share largest.
"""

import logging
import shutil
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import _measuring
import jax
import numpy as np
import optax

import hooks
import models
import trainer
from trainer import data, losses
from trainer.checkpoints import DamagedCheckpoint
from trainer.checkpoints.arrays import host_snapshot

CHECKPOINTS = 3
OUTCOMES = ("harmless", "walked back", "refused", "passed over", "silently wrong")
WRONG = ("passed over", "silently wrong")
BLOCK = 4096
MEGABYTES, ROUNDS = 400, 9
SAVE, WITH = "a save, until it is durable", "restoring"
WITHOUT, CHECKING = "restoring without checksums", "of it checksums"


def files_of(checkpoint):
    return sorted(path for path in checkpoint.rglob("*") if path.is_file())


def any_file(checkpoint, random):
    """A file that has bytes: half of the time the arrays', since all others are small."""
    arrays = checkpoint / "arrays/process_0"
    files = [path for path in files_of(checkpoint) if path.stat().st_size]
    return (
        arrays if random.random() < 0.5 and arrays in files else files[random.integers(len(files))]
    )


def rewritten(change):
    """Build a damage of a function of a file's bytes (a bytearray, changed in place)."""

    def damage(checkpoint, random):
        path = any_file(checkpoint, random)
        content = bytearray(path.read_bytes())
        change(content, random)
        path.write_bytes(content)

    return damage


def flip_bit(content, random):
    content[random.integers(len(content))] ^= 1 << random.integers(8)


def flip_byte(content, random):
    content[random.integers(len(content))] ^= random.integers(1, 256)


def zero_block(content, random):
    start = BLOCK * random.integers(-(-len(content) // BLOCK))
    content[start : start + BLOCK] = bytes(len(content[start : start + BLOCK]))


def truncate(content, random):
    del content[random.integers(len(content)) :]


def append(content, random):
    content.extend(random.bytes(random.integers(1, BLOCK)))


def delete_file(checkpoint, random):
    any_file(checkpoint, random).unlink()


def swap(checkpoint, random):
    """Exchange a file with its namesake of another checkpoint."""
    path = any_file(checkpoint, random)
    namesakes = [
        checkpoint.with_name(str(number)) / path.relative_to(checkpoint)
        for number in range(1, CHECKPOINTS + 1)
        if str(number) != checkpoint.name
    ]
    other = random.choice([namesake for namesake in namesakes if namesake.exists()])
    aside = checkpoint.parent / "aside"
    path.rename(aside)
    other.rename(path)
    aside.rename(other)


def any_folder(checkpoint, random):
    folders = [checkpoint, *(path for path in sorted(checkpoint.rglob("*")) if path.is_dir())]
    return folders[random.integers(len(folders))]


def delete_folder(checkpoint, random):
    shutil.rmtree(any_folder(checkpoint, random))


def empty_folder(checkpoint, random):
    folder = any_folder(checkpoint, random)
    shutil.rmtree(folder)
    folder.mkdir()


DAMAGES = {
    "flipped bit": rewritten(flip_bit),
    "flipped byte": rewritten(flip_byte),
    "zeroed block of 4 KB": rewritten(zero_block),
    "truncated file": rewritten(truncate),
    "emptied file": rewritten(lambda content, random: content.clear()),
    "garbage appended": rewritten(append),
    "deleted file": delete_file,
    "file swapped with another checkpoint's": swap,
    "deleted folder": delete_folder,
    "emptied folder": empty_folder,
}


def real_run(directory):
    """Leave three checkpoints of a real run, and give a state of other numbers to restore into."""
    train, _ = data.digits(batch_size=64)
    network = models.mlp(classes=10, hidden=(64,))
    task = trainer.supervised(network, losses.classification, optax.adam(1e-2))
    chain = [
        hooks.average_params(),
        hooks.stop_early("train/loss", patience=50),
        hooks.save_checkpoints(directory, keep=CHECKPOINTS, max_cost=None, config={"seed": 0}),
    ]
    phase = trainer.training(task.step, train)
    start = task.init(jax.random.key(0), train.example)
    trained, _ = trainer.fit(start, phase, epochs=CHECKPOINTS, hooks=chain)
    other = task.init(jax.random.key(1), train.example)
    return other.replace(hook_state=trained.hook_state)


def get_content(checkpoint):
    """Return what must be right about a restored checkpoint."""
    return trainer.fingerprint(checkpoint.state), checkpoint.scores, checkpoint.manifest["config"]


def restored(directory, target, **options):
    with trainer.Checkpoints(directory, read_only=True) as checkpoints:
        return checkpoints.restore(target, **options)


def newest_intact(directory, whole):
    """The newest checkpoint that is byte for byte what was written; 0 if none is."""

    def content(checkpoint):
        return {path.relative_to(checkpoint): path.read_bytes() for path in files_of(checkpoint)}

    pairs = [
        (n, *(content(folder / "checkpoints" / str(n)) for folder in (directory, whole)))
        for n in range(1, CHECKPOINTS + 1)
    ]
    return max((n for n, found, written in pairs if found == written), default=0)


def outcome(directory, whole, target, wanted):
    """Restore, and say what came back."""
    intact = newest_intact(directory, whole)
    try:
        checkpoint = restored(directory, target)
    except DamagedCheckpoint:
        return "passed over" if intact else "refused"
    if checkpoint is None or get_content(checkpoint) != wanted.get(checkpoint.epoch):
        return "silently wrong"
    if checkpoint.epoch < intact:
        return "passed over"
    return "harmless" if checkpoint.epoch == CHECKPOINTS else "walked back"


def try_damages(count, seed, directory):
    """Return how often each outcome was seen, by kind of damage."""
    whole, copy = Path(directory, "whole"), Path(directory, "copy")
    target = real_run(whole)
    wanted = {n: get_content(restored(whole, target, epoch=n)) for n in range(1, CHECKPOINTS + 1)}
    seen = {kind: dict.fromkeys(OUTCOMES, 0) for kind in DAMAGES}
    for number in range(count):
        random = np.random.default_rng((seed, number))
        shutil.copytree(whole, copy)
        kind = list(DAMAGES)[number % len(DAMAGES)]
        DAMAGES[kind](copy / "checkpoints" / str(CHECKPOINTS), random)
        before = copy / "checkpoints" / str(CHECKPOINTS - 1)
        if random.random() < 0.25 and (before / "arrays/process_0").exists():
            DAMAGES[random.choice(list(DAMAGES))](before, random)
        result = outcome(copy, whole, target, wanted)
        seen[kind][result] += 1
        if result in WRONG:
            print(f"{result}: seed {seed}, damage {number}, {kind}", file=sys.stderr)
        shutil.rmtree(copy)
    return seen


def large(megabytes):
    """A state of 16 arrays."""
    size = round(megabytes * 1e6 / 16 / 4)
    keys = jax.random.split(jax.random.key(0), 16)
    params = {f"layer_{n}": jax.random.uniform(key, (size,)) for n, key in enumerate(keys)}
    return trainer.TrainState.create(params=params, rng=jax.random.key(0))


def digits_run():
    """The state of `examples/digits.py`: a CNN and AdamW."""
    task = trainer.supervised(models.cnn(classes=10), losses.classification, optax.adamw(1e-3))
    return task.init(jax.random.key(0), data.digits()[0].example)


def costs(state, rounds, directory):
    """Return the seconds of a save, of a restore with and without checksums, and of these alone."""
    verify, checking = host_snapshot.verify_checksums, []

    def verified(leaves, buffer):
        checking.append(_measuring.timed(lambda: verify(leaves, buffer)))

    def restoring(check):
        with mock.patch.object(host_snapshot, "verify_checksums", check):
            return _measuring.timed(lambda: jax.block_until_ready(checkpoints.restore(state).state))

    def save():
        checkpoints.save(state)
        checkpoints.wait()

    with trainer.Checkpoints(directory) as checkpoints:
        samples = _measuring.interleaved(
            {
                SAVE: lambda: _measuring.timed(save),
                WITH: lambda: restoring(verified),
                WITHOUT: lambda: restoring(lambda *_: None),
            },
            rounds=rounds,
        )
    return samples | {CHECKING: checking[-rounds:]}


def main():
    parser = _measuring.arguments(__doc__)
    parser.add_argument("--damages", type=int, help="how many; 1000 if absent")
    parser.add_argument("--seed", type=int, default=0, help="of all that is random")
    parser.add_argument("--directory", type=Path, help="where to save; a temporary one if absent")
    options = parser.parse_args()
    damages = options.damages or (20 if options.quick else 1000)
    logging.getLogger("entracte").setLevel(logging.ERROR)
    print(f"seed {options.seed}, {damages} damages")
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=options.directory) as folder:
        seen = try_damages(damages, options.seed, folder)
    seconds = (time.perf_counter() - began) / damages
    rows = [
        (kind, str(sum(counts.values())), *(str(counts[name]) for name in OUTCOMES))
        for kind, counts in seen.items()
    ]
    total = {name: sum(counts[name] for counts in seen.values()) for name in OUTCOMES}
    rows.append(("all", str(damages), *(str(total[name]) for name in OUTCOMES)))
    _measuring.show("What became of damaged checkpoints", ("damage", "trials", *OUTCOMES), rows)

    megabytes, rounds = (4, 2) if options.quick else (MEGABYTES, ROUNDS)
    measured, ratios = {}, {}
    for name, state in {
        "the digits run": digits_run(),
        f"{megabytes} MB": large(megabytes),
    }.items():
        with tempfile.TemporaryDirectory(dir=options.directory) as folder:
            samples = costs(state, rounds, folder)
        measured[name] = {what: _measuring.spread(figures) for what, figures in samples.items()}
        ratios[name] = {
            f"{CHECKING} / {WITH}": _measuring.ratio(samples[CHECKING], samples[WITH]),
            f"{WITH} / {WITHOUT}": _measuring.ratio(samples[WITH], samples[WITHOUT]),
        }
        figures = (measured[name] | ratios[name]).items()
        lines = [(what, *_measuring.columns(figure)) for what, figure in figures]
        _measuring.show(f"{name}, seconds and ratios", ("", "median", "quartiles"), lines)
    share = ratios[f"{megabytes} MB"][f"{CHECKING} / {WITH}"]
    _measuring.finish(
        options,
        "corruption",
        unit="seconds",
        warm_up="one round",
        repeats=rounds,
        measured={**measured, "seconds a damage": seconds},
        ratios=ratios,
        counts={"seed": options.seed, "damages": damages, "by kind": seen, "total": total},
        bars=[
            *(_measuring.bar(name, total[name], most=0) for name in WRONG),
            _measuring.bar(f"share of checksums, {megabytes} MB", share["median"], most=0.1),
        ],
    )
    sys.exit(1 if any(total[name] for name in WRONG) else 0)


if __name__ == "__main__":
    main()
