"""Where the seconds of an iteration go."""

from __future__ import annotations

import time
from typing import Any

import jax

PARTS = ("sampling", "judging", "reference", "updates", "host")


class Laps:
    """A clock that gives the time since the last lap to one of `PARTS`."""

    def __init__(self):
        self._since, self._seconds = time.perf_counter(), {str(part): 0.0 for part in PARTS}

    def end(self, part: str, arrays: Any = None) -> None:
        """Ends a lap of `part`, once `arrays` (any pytree) are computed."""
        jax.block_until_ready(arrays)
        now = time.perf_counter()
        self._seconds[part] += now - self._since
        self._since = now

    def metrics(self) -> dict[str, float]:
        """`time/PART`, seconds; what no lap has had is the host's."""
        self.end("host")
        return {f"time/{part}": seconds for part, seconds in self._seconds.items()}
