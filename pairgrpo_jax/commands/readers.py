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

    A server's connection breaks with the same error, which is passed on.
    """
    try:
        try:
            yield
        finally:
            sys.stdout.flush()  # a few lines would only be missed while Python ends
    except BrokenPipeError:
        output = select.poll()
        output.register(sys.stdout, 0)
        if not output.poll(0):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
