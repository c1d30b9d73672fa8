"""What benchmarks write into documents, between two markers."""

from pathlib import Path

ROOT = Path(__file__).parents[1]


def get_markers(name):
    """Return the comments around what a benchmark writes.

    >>> get_markers("peers")
    ('<!-- peers: written by benchmarks/peers.py -->', '<!-- peers end -->')
    """
    return f"<!-- {name}: written by benchmarks/{name}.py -->", f"<!-- {name} end -->"


def insert(document, name, text):
    """Write a text into a document, in place of what is between the markers of a benchmark.

    Raises:
        ValueError: the document has not each marker once, in order.
    """
    first, last = get_markers(name)
    whole = document.read_text()
    before, begin, rest = whole.partition(first)
    _, end, after = rest.partition(last)
    if not begin or not end or first in rest or last in after:
        raise ValueError(f"{document} must have {first!r} and {last!r} once each, in this order")
    document.write_text(f"{before}{first}\n{text}\n{last}{after}")
