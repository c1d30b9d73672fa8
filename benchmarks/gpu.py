"""What does the library do on this GPU, and how fast is it beside bare JAX?

Baseline: bare JAX, as each benchmark has it. Sections, the most telling first: the limits of the
device, the tests that need a GPU, language model, PPO, supervised epochs, populations, the laws of
determinism, overlap of hooks, saves of 4 GB, supervised epochs with loops in CUDA graphs. Each is a
process of its own with a time limit of its own, within what is left of the total; its results are
kept as soon as it ends. One that fails or exceeds its limit is reported with its last lines, and
the others go on.

Written to the folder: `gpu.json` with all results, `table.txt`, and the output of each section in
`logs`. The exit status is 1 if a section did not pass. `--quick` runs all of it on small sizes,
also on a CPU.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import _gpu_table

ROOT = Path(__file__).parents[1]
TOTAL = 480.0
"""Seconds for all sections together."""
LEAST = 5.0
"""Seconds below which a section is not started."""
GRACE = 5.0
"""Seconds from a section's interrupt to its end by force."""
LAST_LINES = 25
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
LOOPS_RECORDED = "--xla_gpu_enable_command_buffer=+WHILE"
"""Loops in CUDA graphs too, which XLA leaves out by default."""
PASSED, FAILED, LATE, MISSED = "passed", "failed", "out of time", "not started"


class Section(NamedTuple):
    """A process to run."""

    name: str
    arguments: tuple[str, ...]
    """Of the Python interpreter; `{results}` stands for the folder of the section's results."""
    limit: float
    """In seconds."""
    flags: str = ""
    """Added to `XLA_FLAGS`."""
    required: bool = False
    """Whether no later section can run without it."""


def make_sections(*, quick):
    """Build the sections, the most telling first."""

    def benchmark(name, limit, **options):
        size = ("--quick",) if quick else ()
        script = f"benchmarks/{name}.py"
        return Section(
            name.strip("_"), (script, "--gpu", *size, "--results", "{results}"), limit, **options
        )

    def tests(name, limit, *chosen, **options):
        settings = ("-p", "no:xdist", "-W", "default", "-o", "addopts=--import-mode=importlib")
        report = "--junitxml={results}/tests.xml"
        return Section(
            name, ("-m", "pytest", "-v", "-ra", *settings, report, *chosen), limit, **options
        )

    laws = "tests/gpu/test_determinism.py"
    return [
        benchmark("_device_limits", 45, required=True),
        tests("tests", 110, "tests/gpu", f"--ignore={laws}"),
        benchmark("language_model", 150),
        benchmark("ppo_throughput", 75),
        benchmark("epoch_throughput", 60),
        benchmark("population_scaling", 75),
        tests("determinism", 75, laws, flags=DETERMINISTIC),
        benchmark("overlap", 45),
        benchmark("checkpoint_stall", 60),
        benchmark("epoch_throughput", 60, flags=LOOPS_RECORDED)._replace(name="command_buffers"),
    ]


def run_sections(sections, folder, *, seconds, quick):
    """Run one section after the other, and keep what there is after each.

    Args:
        sections: in order.
        folder: for the results.
        seconds: for all together.
        quick: whether the sizes are small; said in the results.

    Returns:
        What `gpu.json` holds.
    """
    began = time.monotonic()
    record = {"benchmark": "gpu", "quick": quick, "seconds": 0.0, "sections": {}}
    missing = None
    for section in sections:
        left = seconds - (time.monotonic() - began) - GRACE
        limit = min(section.limit, left)
        print(f"== {section.name}: {max(limit, 0):.0f} s at most", flush=True)
        if missing or left < LEAST:
            found = {"status": MISSED, "why": missing or "no time was left"}
        else:
            found = run_section(section, folder, limit)
        if section.required and found["status"] != PASSED:
            missing = f"it needs {section.name}, which {found['status']}"
        record["sections"][section.name] = found
        record["seconds"] = round(time.monotonic() - began, 1)
        print(f"   {found['status']}", *found.get("last_lines", ()), sep="\n   ", flush=True)
        keep(record, folder)
    return record


def run_section(section, folder, limit):
    """Run a section for at most `limit` seconds; return its status, seconds and results."""
    results, log = folder / "sections" / section.name, folder / "logs" / f"{section.name}.txt"
    for place in (results, log.parent):
        place.mkdir(parents=True, exist_ok=True)
    for stale in results.iterdir():
        stale.unlink()
    arguments = [part.replace("{results}", str(results)) for part in section.arguments]
    began = time.monotonic()
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=make_environment(section),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = PASSED if process.wait(limit) == 0 else FAILED
        except subprocess.TimeoutExpired:
            status = LATE
        finally:
            end(process)
    found = {
        "status": status,
        "seconds": round(time.monotonic() - began, 1),
        "limit": round(limit, 1),
        "command": " ".join(("python", *arguments)),
        "results": [read(file) for file in sorted(results.iterdir())],
    }
    if status != PASSED:
        found["last_lines"] = log.read_text(errors="replace").splitlines()[-LAST_LINES:]
    return found


def make_environment(section):
    """Return the variables of a section's process."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    flags = [os.environ.get("XLA_FLAGS", ""), section.flags]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PYTHONUNBUFFERED": "1",
        "XLA_FLAGS": " ".join(filter(None, flags)),
    }


def end(process):
    """Interrupt a process that still runs, so that pytest reports what it has; then kill it and its
    children."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def read(file):
    """Return the record of a benchmark, or the counts of a report of tests."""
    try:
        if file.suffix == ".json":
            return json.loads(file.read_text())
        suites = list(ElementTree.parse(file).getroot().iter("testsuite"))
    except (ValueError, ElementTree.ParseError) as error:  # killed while it was written
        return {"benchmark": file.stem, "unreadable": str(error)}
    counts = {
        name: sum(int(suite.get(name, 0)) for suite in suites)
        for name in ("tests", "failures", "errors", "skipped")
    }
    return {"benchmark": "tests", **counts}


def keep(record, folder):
    """Write all results, whole at any instant."""
    contents = {"gpu.json": json.dumps(record, indent=2), "table.txt": _gpu_table.render(record)}
    for name, content in contents.items():
        fresh = folder / f"{name}.new"
        fresh.write_text(content + "\n")
        fresh.replace(folder / name)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where the results go")
    parser.add_argument("--quick", action="store_true", help="small and few: a check that it runs")
    parser.add_argument("--seconds", type=float, default=TOTAL, help="for all sections together")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # which ends the section too
    folder = options.folder.resolve()
    record = run_sections(
        make_sections(quick=options.quick), folder, seconds=options.seconds, quick=options.quick
    )
    print((folder / "table.txt").read_text())
    sys.exit(any(found["status"] != PASSED for found in record["sections"].values()))


if __name__ == "__main__":
    main()
