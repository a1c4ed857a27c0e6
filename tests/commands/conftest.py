"""Command lines without a process of their own, where none is needed: a process imports jax for seconds."""

import inspect
import sys
from typing import NamedTuple

import pytest

from pairgrpo_jax.commands.cli import run_main


class Done(NamedTuple):
    """What a command line left."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def run_here(monkeypatch, capsys):
    """`run_here(main, *words)`: the program `main` with these arguments."""

    def run(main, *words) -> Done:
        words = [str(word) for word in words]
        monkeypatch.setattr(sys, "argv", ["program", *words])
        monkeypatch.setattr(sys, "path", sys.path.copy())
        with pytest.raises(SystemExit) as end:
            run_main((lambda: main(words)) if inspect.signature(main).parameters else main, "program")
        return Done(int(end.value.code or 0), *capsys.readouterr())

    return run
