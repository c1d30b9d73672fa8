"""The table of `guarantees`: a row for each promise, a column for each trainer."""

import collections
import re

import numpy as np

ROWS = {
    "resume": "killed within an epoch and resumed: same final bits",
    "memory": "early stopping after a kill: patience and best value",
    "flipped": "a bit of the newest checkpoint flipped, at random places",
    "truncated": "its largest file cut in half",
    "misspelt": "a misspelt metric of early stopping is noticed",
    "logger": "a logger listed first sees what a later callback changed",
    "checkpoint": "a checkpoint listed first holds it",
    "test": "the smallest test of a callback of one's own",
    "callbacks": "five callbacks that do nothing, per epoch",
    "rate": "steps/s, Entracte = 1",
}


def describe_resume(same, kills, off):
    """Say how many runs ended with the same bits, and how far the others were off.

    >>> describe_resume(3, 3, 0.0), describe_resume(0, 3, 0.123)
    ('3 of 3', '0 of 3: 12% off')
    """
    share = f"{off:.0%}" if off >= 0.01 else f"{off:.1g}"
    return f"{same} of {kills}" + (f": {share} off" if same < kills else "")


def describe_memory(wanted, got):
    """Say whether killed runs stopped after the same epoch.

    >>> describe_memory(5, [5, 5]), describe_memory(5, [6, 7])
    ('kept', 'lost: stops after 6 or 7 epochs instead of 5')
    """
    if set(got) == {wanted}:
        return "kept"
    epochs = " or ".join(f"{epoch:g}" for epoch in sorted(set(got)))
    return f"lost: stops after {epochs} epochs instead of {wanted:g}"


def describe_damage(outcomes):
    """Count what became of damaged checkpoints.

    >>> describe_damage(["error"]), describe_damage(["error", "silently wrong", "error"])
    ('error', 'error: 2 of 3; silently wrong: 1 of 3')
    """
    if len(outcomes) == 1:
        return outcomes[0]
    counts = collections.Counter(outcomes).most_common()
    return "; ".join(f"{what}: {count} of {len(outcomes)}" for what, count in counts)


def describe_misspelt(answer, printed, name, steps_per_epoch):
    """Say when a trainer noticed a metric that does not exist.

    >>> describe_misspelt({"error": "no los", "steps": 0}, "", "los", 22)
    'error before training'
    >>> describe_misspelt({"steps": 44}, "Warning: no los", "los", 22)
    'warning after an epoch, never stops'
    """
    if "error" not in answer:
        warned = re.search(rf"{name}\b", printed)
        return "warning after an epoch, never stops" if warned else "never"
    epochs = answer["steps"] / steps_per_epoch
    return f"error after epoch {epochs:g}" if epochs else "error before training"


def describe_test(lines, stand_ins):
    """Count lines of a test, and what it fakes.

    >>> describe_test(1, 0), describe_test(4, 1)
    ('1 line', '4 lines, a stand-in')
    """
    return f"{lines} line{'s' * (lines > 1)}" + (", a stand-in" if stand_ins else "")


def describe_callbacks(seconds):
    """Write the cost of callbacks, unless noise hides it.

    Args:
        seconds: of an epoch, with them less without, one figure a round.

    >>> describe_callbacks([2e-5, 3e-5, 4e-5]), describe_callbacks([-1e-5, 1e-5, 2e-5])
    ('30 us', 'below the noise')
    """
    low, median = np.percentile(seconds, (25, 50))
    if low <= 0:
        return "below the noise"
    micros = float(f"{1e6 * median:.2g}")
    return f"{micros:,.0f} us" if micros < 1000 else f"{micros / 1000:.2g} ms"


def render(record):
    """Write the table, and what is said below it, as Markdown.

    Args:
        record: what `guarantees.json` holds: `cells` by trainer and row, `means` by trainer,
            `tried`, `left_out`, and what `_measuring.environment` gives.
    """
    trainers = list(record["cells"])
    lines = ["| | " + " | ".join(trainers) + " |", "|---" * (len(trainers) + 1) + "|"]
    for row, title in ROWS.items():
        cells = [record["cells"][trainer].get(row, "") for trainer in trainers]
        if any(cells):
            lines.append(f"| {' | '.join([title, *cells])} |")
    lines += [f"\n{trainer}: {record['means'][trainer]}." for trainer in trainers]
    kills, stopping = (
        " and ".join(str(step) for step in record["tried"][name]) for name in ("kills", "stopping")
    )
    lines.append(
        f"\nSteps after which runs were killed: {kills}; with early stopping: {stopping}."
        f" Bits flipped: {record['tried']['flips']}, each in a checkpoint of its own."
    )
    lines += [f"\nLeft out: {name}: {why}." for name, why in record["left_out"].items()]
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    machine = f"{record['processor']}, {record['cores']} cores"
    lines.append(f"\n{record['date'][:10]}, {machine}; {versions}.")
    return "\n".join(lines)
