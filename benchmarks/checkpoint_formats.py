"""What does writing arrays cost in the format of this library, in Orbax's, and in TensorStore's?

Baselines: Orbax's own save of the same arrays, with OCDBT or with zarr files, with and without
compression, with and without array metadata; TensorStore alone, which writes uncompressed zarr
arrays, all at once. This library writes packed bytes, checksums, and an index of OCDBT over them.

Measured, for 16, 60 and 300 arrays of 10 MB and 400 MB in all: CPU-milliseconds of the process
(`time.process_time`, all threads) and milliseconds from the call of save until the checkpoint is
durable and the one before it is removed. One saver of each kind saves again and again; in each
round all take turns, in another order. Afterwards each reads its last checkpoint, which must be bit
for bit what was saved.

Then the same with two processes on loopback, each holding half of every array. CPU is the sum of
both, time that of the slower one; a transaction of TensorStore spans one process, and is left out.
"""

import gc
import json
import logging
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import _measuring

ARRAYS, SIZES = (16, 60, 300), (10.0, 400.0)
"""Numbers of arrays, and MB in all."""

LARGE = 1000
"""MB from which each checkpoint is removed before the next saver's turn."""


def rounds_of(megabytes):
    """Return how often to save a state of that size."""
    return 15 if megabytes <= 10 else 5 if megabytes < LARGE else 3


def child(settings):
    """Be one process: measure every saver, and write the figures of each round to a file."""
    import jax

    rank, count = settings["rank"], settings["count"]
    jax.config.update("jax_num_cpu_devices", 1)
    import trainer

    if count > 1:
        trainer.distributed(f"127.0.0.1:{settings['port']}", count, rank)
    import _savers

    for name in ("absl", "jax", "orbax"):
        logging.getLogger(name).setLevel(logging.ERROR)
    state = jax.block_until_ready(
        _savers.state_of(settings["megabytes"], settings["arrays"], count)
    )
    folder = Path(settings["directory"])
    made = {
        name: make(folder / str(number))
        for number, (name, make) in enumerate(_savers.SAVERS.items())
        if count == 1 or name != _savers.STORE_OCDBT
    }
    figures = {name: {"cpu_ms": [], "ms": []} for name in made}
    order = random.Random(0)

    def advance(number):
        """Return the state that is saved at a number: what does not change is not written again."""
        params = jax.tree.map(lambda w: w + number, state.params)
        return jax.block_until_ready(state.replace(params=params))

    def measure(name, number):
        now = advance(number)
        gc.collect()
        _savers.barrier(f"{name} {number}")
        cpu, began = time.process_time(), time.perf_counter()
        made[name].save(now, number)
        found = {"cpu_ms": time.process_time() - cpu, "ms": time.perf_counter() - began}
        for what, seconds in found.items():
            figures[name][what].append(seconds * 1e3)

    def finish(name, number):
        _savers.check(made[name].read(state, number), advance(number))
        made[name].close()
        _savers.barrier(f"{name} done")
        if rank == 0:
            shutil.rmtree(folder / str([*_savers.SAVERS].index(name)))
        _savers.barrier(f"{name} removed")

    large = settings["megabytes"] >= LARGE
    for number in range(1, 1 if large else 2 + settings["rounds"]):  # the first is the warm-up
        for name in order.sample([*made], len(made)):
            measure(name, number)
    for name in made:
        for number in range(1, 2 + settings["rounds"] if large else 1):
            measure(name, number)
        finish(name, 1 + settings["rounds"])
    _savers.save_json(folder / f"figures_{rank}.json", figures)


def measure_size(megabytes, arrays, count, rounds, directory):
    """Return contestant to the figures of each round, of so many processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(dir=directory) as folder:
        settings = {"megabytes": megabytes, "arrays": arrays, "count": count, "rounds": rounds}
        settings |= {"port": port, "directory": folder}
        children = []
        for rank in range(count):
            command = [sys.executable, __file__, "--child", json.dumps({**settings, "rank": rank})]
            with Path(folder, f"errors_{rank}").open("w") as errors:
                children.append(subprocess.Popen(command, stderr=errors))
        try:
            codes = [process.wait(3000) for process in children]
            if any(codes):
                said = "\n".join(
                    Path(folder, f"errors_{rank}").read_text()[-3000:] for rank in range(count)
                )
                raise RuntimeError(f"a process failed:\n{said}")
        finally:
            for process in children:
                process.kill()
                process.wait()
        found = [json.loads(Path(folder, f"figures_{r}.json").read_text()) for r in range(count)]
    return {
        name: {
            "cpu_ms": [sum(x) for x in zip(*(each[name]["cpu_ms"] for each in found), strict=True)],
            "ms": [max(x) for x in zip(*(each[name]["ms"] for each in found), strict=True)],
        }
        for name in found[0]
    }


def main():
    if sys.argv[1:2] == ["--child"]:
        child(json.loads(sys.argv[2]))
        return
    parser = _measuring.arguments(__doc__)
    parser.add_argument("--directory", type=Path, help="where to save; a temporary one if absent")
    parser.add_argument("--sizes", type=float, nargs="+", default=SIZES, help="MB in all arrays")
    parser.add_argument("--arrays", type=int, nargs="+", default=ARRAYS, help="numbers of arrays")
    parser.add_argument("--processes", type=int, nargs="+", default=(1, 2), help="how many")
    options = parser.parse_args()
    if options.quick:
        options.sizes, options.arrays = (0.1,), (3,)
    measured, ratios, bars = {}, {}, []
    for count in options.processes:
        for megabytes in options.sizes:
            for arrays in options.arrays:
                rounds = 1 if options.quick else rounds_of(megabytes)
                many = "one process" if count == 1 else f"{count} processes"
                title = f"{megabytes:g} MB, {arrays} arrays, {many}"
                found = measure_size(megabytes, arrays, count, rounds, options.directory)
                samples = {
                    name: {what: figures[1:] for what, figures in each.items()}
                    for name, each in found.items()
                }
                report(title, samples, measured, ratios, bars)
    _measuring.finish(
        options,
        "checkpoint_formats",
        unit="CPU-milliseconds and milliseconds of a save",
        warm_up="the first save of each",
        repeats={f"{size:g} MB": rounds_of(size) for size in options.sizes},
        measured=measured,
        ratios=ratios,
        bars=bars,
    )


def report(title, samples, measured, ratios, bars):
    """Print the figures of a size, and add them to what is measured."""
    ours, *others = samples
    measured[title] = {
        name: {what: _measuring.spread(figures) for what, figures in each.items()}
        for name, each in samples.items()
    }
    ratios[title] = {
        f"{name} / {ours}, CPU": _measuring.ratio(samples[name]["cpu_ms"], samples[ours]["cpu_ms"])
        for name in others
    }
    fastest = min(others, key=lambda name: measured[title][name]["cpu_ms"]["median"])
    most = measured[title][fastest]["cpu_ms"]["median"]
    mine = measured[title][ours]["cpu_ms"]["median"]
    bars.append(_measuring.bar(f"{title}: CPU / the least other, {fastest}", mine / most, most=1))
    rows = [
        (
            name,
            *_measuring.columns(each["cpu_ms"]),
            *_measuring.columns(each["ms"]),
            ""
            if name == ours
            else _measuring.text(ratios[title][f"{name} / {ours}, CPU"]["median"]),
        )
        for name, each in measured[title].items()
    ]
    header = ("", "CPU-ms", "quartiles", "ms", "quartiles", "CPU over ours")
    _measuring.show(title, header, rows)


if __name__ == "__main__":
    main()
