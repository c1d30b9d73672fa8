"""Notebooks: whether this process runs the cells of one."""

from __future__ import annotations

import sys


def in_notebook() -> bool:
    """Return whether this process is a kernel of IPython, as in Jupyter, Colab and VS Code.

    IPython on a terminal is none. Nothing is imported to find out.

    >>> in_notebook()
    False
    """
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return getattr(shell, "kernel", None) is not None
