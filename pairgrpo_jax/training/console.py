"""Where runs and commands say what they do."""

from __future__ import annotations

from typing import NoReturn

from rich import console


class LineConsole(console.Console):
    """Rich's, whose lines are not wrapped unless a width is given: a pipe has none. It is quiet once nobody reads."""

    def __init__(self, width: int | None = None, quiet: bool = False):
        super().__init__(width=width, quiet=quiet, soft_wrap=width is None, highlight=False)

    def on_broken_pipe(self) -> NoReturn:
        """Passes on that a reader left (rich would end the program, with code 1): a run stops then, and is saved."""
        self.quiet = True
        raise BrokenPipeError("standard output is read no more")
