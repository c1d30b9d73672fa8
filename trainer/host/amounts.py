"""Format amounts for people: durations, ages, bytes, and how far a run is."""

from __future__ import annotations

import time

UNITS = (
    (172_800.0, 86_400.0, "d"),
    (7200.0, 3600.0, "h"),
    (120.0, 60.0, "min"),
    (0.9995, 1.0, "s"),
    (0.9995e-3, 1e-3, "ms"),
    (0.0, 1e-6, "us"),
)
"""Units of durations: from how many seconds on, a unit's seconds, its name."""


def format_duration(seconds: float, *, digits: int = 2) -> str:
    """Format a duration in the unit that suits it, with so many significant digits at most.

    Whole units are never rounded.

    >>> [format_duration(seconds) for seconds in (0.0042, 0.5, 42, 300, 9000, 400_000)]
    ['4.2 ms', '500 ms', '42 s', '5 min', '2.5 h', '4.6 d']
    >>> [format_duration(seconds, digits=3) for seconds in (7.8e-6, 0.00456, 0.99999, 7265.2)]
    ['7.8 us', '4.56 ms', '1 s', '2.02 h']
    """
    size, unit = next((size, unit) for least, size, unit in UNITS if seconds >= least)
    count = seconds / size
    text = f"{count:,.{max(digits - len(f'{count:.0f}'), 0)}f}"
    return f"{text.rstrip('0').rstrip('.') if '.' in text else text} {unit}"


def format_age(seconds: float) -> str:
    """Format how long ago something was; clocks of machines may differ a little."""
    return f"{format_duration(seconds)} ago" if seconds >= 1 else "now"


def format_time(seconds: float) -> str:
    """Format unix seconds as the local time, with its zone.

    >>> len(format_time(0.0)) > len("1970-01-01 00:00:00")
    True
    """
    return time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(seconds))


def format_bytes(count: float) -> str:
    """Format a number of bytes.

    >>> format_bytes(512), format_bytes(2_500_000), format_bytes(3e9)
    ('512 B', '2.5 MB', '3.0 GB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def format_progress(epoch: int, epochs: int | None) -> str:
    """Format how far a run is: `7/20`."""
    return f"{epoch:,}" if epochs is None else f"{epoch:>{len(f'{epochs:,}')},}/{epochs:,}"
