"""One table of all sections: what was measured, beside the baseline of each benchmark."""

BARE = "bare JAX"
BASELINES = ("one seed alone", "Orbax, save", "serial")
"""Of benchmarks without bare JAX."""
HEADER = ("section", "what", "median", "quartiles", "over baseline")


def render(record):
    """Write the statuses of sections, and their figures, as text.

    Args:
        record: what `gpu.json` holds.
    """
    sections = record["sections"]
    lines = ["A quick run: its figures say nothing.", ""] if record["quick"] else []
    lines += align([("section", "status", "seconds", ""), *map(describe, sections.items())])
    rows = [row for name, found in sections.items() for row in list_figures(name, found)]
    if rows:
        lines += ["", *align([HEADER, *rows])]
        lines += [
            "",
            "Over baseline: medians, over bare JAX, one seed alone, Orbax, or serial hooks.",
        ]
    return "\n".join(lines)


def describe(item):
    """Return a section's row: its status, its seconds, and what else there is to say."""
    name, found = item
    said = found.get("why", "")
    for result in found.get("results", ()):
        if result["benchmark"] == "tests":
            said = ", ".join(f"{result[key]} {key}" for key in list(result)[1:])
        elif "device" in result:
            said = result["device"]
    return name, found["status"], str(found.get("seconds", "")), said


def list_figures(name, found):
    """Return the rows of a section's figures."""
    rows = []
    for result in found.get("results", ()):
        medians = find_medians(result.get("measured", {}))
        for path, figure in medians.items():
            quartiles = "" if len(figure) < 3 else f"{shorten(figure[1])} to {shorten(figure[2])}"
            ratio = compare(path, medians)
            rows.append((name, ", ".join(path), shorten(figure[0]), quartiles, ratio))
    return rows


def find_medians(tree, path=()):
    """Return path to (median, lower and upper quartile), or to (figure,), of all in a tree."""
    if not isinstance(tree, dict):
        return {path: (tree,)}
    if "median" in tree:
        return {path: (tree["median"], *tree["quartiles"])}
    found = {}
    for name, part in tree.items():
        found |= find_medians(part, (*path, name))
    return found


def compare(path, medians):
    """Write a median over the baseline's: that of the path which differs in the contestant alone,
    the fastest where there are several; empty where there is none."""
    rivals = [
        figure[0]
        for other, figure in medians.items()
        for place, part in enumerate(other)
        if (part.startswith(BARE) or part in BASELINES)
        and (*path[:place], part, *path[place + 1 :]) == other
    ]
    return shorten(medians[path][0] / max(rivals)) if rivals and max(rivals) else ""


def shorten(figure):
    """Write a figure with three digits that matter.

    >>> shorten(0.98765), shorten(12345.6), shorten(3.1e13)
    ('0.988', '12,346', '3.1e+13')
    """
    return f"{figure:,.0f}" if 100 <= abs(figure) < 1e10 else f"{figure:.3g}"


def align(rows):
    """Pad the cells of each column to the same width."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
