"""Processes that compile as a user's do, with a compilation cache that they share."""

import _crashing
import jax

import trainer


def starter(target, cache):
    """Return a function that starts a process, which calls `target`.

    The server off which the processes are forked may have been started by another test, in an
    environment of its own: what is to hold in them is said to each.

    Args:
        target: what a process calls, by a name that it can import.
        cache: directory in which the processes keep what they compile.
    """

    def start(*arguments):
        process = _crashing.nursery().Process(target=_begin, args=(target, str(cache), arguments))
        process.start()
        return process

    return start


def _begin(target, cache, arguments):
    jax.config.update("jax_disable_most_optimizations", False)
    trainer.cache_compilations(cache)
    target(*arguments)
