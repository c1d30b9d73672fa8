"""Checks of single values of a `config.json`, which a stranger wrote."""

from __future__ import annotations

import math
from typing import Any

LARGEST = 1 << 31
"""No size in a configuration is as large."""


def check_size(name: str, value: Any, faults: list[str]) -> None:
    """Add to the faults if a value is no whole number from 1 on.

    >>> faults = []
    >>> check_size("hidden_size", 0.5, faults)
    >>> faults
    ['hidden_size must be a whole number of at least 1; got 0.5']
    """
    if type(value) is not int or not 1 <= value < LARGEST:
        faults.append(f"{name} must be a whole number of at least 1; got {value!r:.100}")


def check_number(name: str, value: Any, faults: list[str]) -> None:
    """Add to the faults if a value is no finite number above 0.

    >>> faults = []
    >>> check_number("factor", "8", faults)
    >>> faults
    ["factor must be a number above 0; got '8'"]
    """
    if type(value) not in (int, float) or not 0 < value < math.inf:
        faults.append(f"{name} must be a number above 0; got {value!r:.100}")


def check_flag(name: str, value: Any, faults: list[str]) -> None:
    """Add to the faults if a value is neither true nor false.

    >>> faults = []
    >>> check_flag("attention_bias", None, faults)
    >>> faults
    ['attention_bias must be true or false; got None']
    """
    if type(value) is not bool:
        faults.append(f"{name} must be true or false; got {value!r:.100}")
