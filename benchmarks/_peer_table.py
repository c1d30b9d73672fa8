"""The table of `peers`: a row for each contestant."""

from contestants.entrants import ENTRANTS, LIBRARY
from contestants.workloads import TWO_THOUSAND, UNITS

HEADER = ("trainer", "settings", *(f"{race}, {unit}" for race, unit in UNITS.items()))
STARTS = ("first start", "later start")


def render(record):
    """Write the table, and what is said below it, as Markdown.

    Args:
        record: what `peers.json` holds: `measured` by race and contestant, `starts` by contestant,
            `left_out`, and what `_measuring.environment` gives.
    """
    rows = [[*HEADER, *STARTS], ["---"] * 2 + ["---:"] * (len(UNITS) + 2)]
    for entrant in ENTRANTS:
        cells = [describe(record, race, entrant) for race in UNITS]
        starts = [describe_start(record, entrant, kind) for kind in STARTS]
        if any((*cells, *starts)):
            rows.append([entrant.trainer, entrant.settings, *cells, *starts])
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([*lines, "", *say_more(record)])


def describe(record, race, entrant):
    """Write a rate, and how many times as fast the library's fastest is, by medians of ratios."""
    found = record["measured"].get(race, {}).get(entrant.name)
    if found is None:
        return ""
    ratio = record["ratios"].get(race, {}).get(entrant.name)
    if entrant.trainer == LIBRARY or ratio is None:
        return round_rate(found["median"])
    return f"{round_rate(found['median'])} ({ratio['median']:.2g})"


def describe_start(record, entrant, kind):
    found = record["starts"].get(entrant.name, {}).get(kind)
    return f"{found['median']:.1f} s" if found else ""


def round_rate(rate):
    """Write a rate with three digits.

    >>> round_rate(12345.6), round_rate(987.6), round_rate(1234567)
    ('12,300', '988', '1,230,000')
    """
    return f"{float(f'{rate:.3g}'):,.0f}"


def say_more(record):
    """Return the lines below the table."""
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    lines = [
        "In brackets: how many times as fast Entracte is, with its fastest settings. A start is a"
        " new process until the end of its first epoch, of the MLP or of PPO with 8 environments:"
        " the first has no compilation cache, a later one has what the first compiled."
    ]
    for name, found in record["measured"].get(TWO_THOUSAND, {}).items():
        lines.append(
            f"2,000 steps of the transformer as nanoGPT's README proposes for a CPU, {name}:"
            f" {found['seconds']:.0f} s with start and compilation,"
            f" loss {found['held-out loss']:.2f} on held-out text."
        )
    lines += [f"Left out: {name}: {why}." for name, why in record["left_out"].items()]
    machine = f"{record['processor']}, {record['cores']} cores"
    lines.append(f"{record['date'][:10]}, {machine}; {versions}.")
    return [line for text in lines for line in (text, "")][:-1]
