"""What a side of `experiments.benchmarks.align` answers. Standard library alone: peers have their own packages."""

import json
import resource
import sys
from collections.abc import Callable


def serve(loss: Callable[[str], tuple[float, ...]], step: Callable[[], float]) -> None:
    """Answers the lines of stdin on stdout until they end.

    `loss NAME` with loss and gradient norm, `step` with the seconds of one update, `memory` with the peak of this
    process in MiB.
    """
    for line in sys.stdin:
        what, *names = line.split()
        if what == "memory":
            answer = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        else:
            answer = loss(*names) if what == "loss" else step()
        print("answer", json.dumps(answer), flush=True)
