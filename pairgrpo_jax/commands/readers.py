"""Whoever reads standard output may leave before its end: `pairgrpo ... | head`."""

from __future__ import annotations

import contextlib
import os
import select
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def free_to_leave() -> Iterator[None]:
    """Ends the program without a word, with the code of one that SIGPIPE ended, if what it writes is read no more.

    Errors of its own are still told, and a server's connection, which breaks with the same error, is one.
    """
    try:
        try:
            yield
        except SystemExit as end:
            if not end.code:
                _flush()
            raise
        _flush()  # a few lines would only be missed while Python ends
    except BrokenPipeError:
        if not _left():
            raise
        sys.exit(141)
    finally:
        if _left():  # what is still to be written while Python ends goes nowhere
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _flush() -> None:
    if sys.stdout is not None and not sys.stdout.closed:
        sys.stdout.flush()


def _left() -> bool:
    """Whether standard output is a pipe that nobody reads."""
    try:
        number = sys.stdout.fileno()
    except (AttributeError, OSError, ValueError):  # none, one in memory, or closed
        return False
    output = select.poll()
    output.register(number, 0)
    return bool(output.poll(0))
