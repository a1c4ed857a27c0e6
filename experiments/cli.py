"""What the command lines share: tuned defaults that depend on other arguments, and one-line errors."""

from __future__ import annotations

import sys
from collections.abc import Callable

from pairgrpo_jax.training import CheckpointError, NonFiniteError


def peek(name: str, default: str) -> str:
    """The value of `--name` on the command line before it is parsed as a whole."""
    for i, word in enumerate(sys.argv[1:], start=1):
        if word == f"--{name}" and i + 1 < len(sys.argv):
            return sys.argv[i + 1]
        if word.startswith(f"--{name}="):
            return word.split("=", 1)[1]
    return default


def run_main(main: Callable[[], int | None]) -> None:
    """Runs a program; bad input becomes one line on stderr and exit code 2."""
    try:
        code = main()
    except ModuleNotFoundError as error:
        _fail(f"package {error.name!r} is missing; install it with: pip install {error.name}")
    except (ValueError, OSError, CheckpointError) as error:
        _fail(str(error))
    except NonFiniteError as error:
        _fail(str(error), code=1)
    except KeyboardInterrupt:
        _fail("interrupted", code=130)
    else:
        sys.exit(code or 0)


def _fail(message: str, code: int = 2) -> None:
    print("error: " + "; ".join(message.splitlines()), file=sys.stderr)
    sys.exit(code)
