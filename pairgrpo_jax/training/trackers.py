"""Trackers: who hears of a run besides its folder, and how one that may fail is kept from ending or doubling it."""

from __future__ import annotations

import functools
import json
import logging
import queue
import threading
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pairgrpo_jax.training.files import write_whole

logger = logging.getLogger(__name__)
PATIENCE = 30.0  # seconds that the end of a run waits for a service


class Tracker(Protocol):
    """Hears of one run."""

    def log(self, row: dict[str, Any]) -> None:
        """Takes a row of metrics; it holds `iteration`. Lists are per seed, or per prompt."""

    def finish(self, summary: dict[str, float]) -> None:
        """Takes the final figures; none where the run was interrupted and may go on."""


class Service(Protocol):
    """A run at a tracking service, which may raise anything.

    Attributes:
      name: of the service.
      id: the run's, for `--resume`.
      where: where the run can be seen, in words.
    """

    name: str
    id: str
    where: str

    def log(self, values: dict[str, float], step: int) -> None:
        """Takes the metrics of a step."""

    def finish(self, summary: dict[str, float], complete: bool) -> None:
        """Closes the run with its final figures."""


class Board:
    """TensorBoard, in a run's folder; its axis is `steps`."""

    def __init__(self, folder: Path):
        self._folder = folder

    @functools.cached_property
    def _writer(self) -> Any:
        from tensorboardX import SummaryWriter  # it imports torch, where that is: after the first batch, not before

        return SummaryWriter(str(self._folder))

    def log(self, row: dict[str, Any]) -> None:
        """Shows every metric of the row that is a number."""
        for name, value in numbers(row).items():
            if name not in ("iteration", "steps") and not np.isnan(value):
                self._writer.add_scalar(name, value, row["steps"])

    def finish(self, summary: dict[str, float]) -> None:
        """Flushes and closes."""
        if "_writer" in vars(self):
            self._writer.close()


class Relay:
    """A tracker at a service: rows go out in order from a thread of their own, and a failure is told once.

    What fails is tried again with the next row. The run's id and the last iterations that went out, of a row and of one
    with a score, are kept in `tracker-NAME.json` of the run's folder, so that a resumed run goes on where it was, and
    sends what was not sent; a new run, at the service or in the folder (`MetricLog(after=None)`), sends all.
    A service takes a step once: a score of a row that is out already goes with the next row, unless that has its own.
    Each row goes out at least once: a kill between a send and its mark repeats one row.
    """

    def __init__(self, service: Service, folder: Path | str):
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.service, self._path = service, remembered(folder, service.name)
        known = _remember(self._path)
        ours = known.get("id") == str(service.id)  # a new run there has heard nothing
        self._sent, self._scored = (known["sent"], known["scored"]) if ours else (0, 0)
        self._late: dict[str, float] = {}
        self._keep()
        self._queue: queue.SimpleQueue = queue.SimpleQueue()
        self._unsent, self._told = [], False
        self._thread = threading.Thread(target=self._work, name=f"tracker {service.name}", daemon=True)
        self._thread.start()

    def forget(self) -> None:
        """Sends all rows, those too that the service has had from a run before."""
        self._sent = self._scored = 0
        self._keep()

    def log(self, row: dict[str, Any]) -> None:
        """Hands the row over, unless the service has it."""
        values = numbers(row)
        if row["iteration"] > self._sent:
            self._queue.put(self._late | values)
            self._late = {}
        elif "score" in row and row["iteration"] > self._scored:
            self._late = values

    def finish(self, summary: dict[str, float]) -> None:
        """Waits a little for what has not gone out, and says what did not."""
        self._queue.put(summary)
        self._queue.put(None)
        self._thread.join(PATIENCE)
        if self._unsent or self._thread.is_alive():
            what = f"rows after iteration {self._sent} and the final figures may be missing there; all are in"
            logger.warning("tracker %s: %s metrics.jsonl, and --resume sends them", self.service.name, what)

    def _work(self) -> None:
        """Sends rows as they come; the summary, which holds no iteration, comes last."""
        while (item := self._queue.get()) is not None:
            self._unsent.append(item)
            try:
                while self._unsent:
                    self._send(self._unsent[0])
                    self._unsent.pop(0)
                    self._keep()
            except Exception as error:  # whatever it is, training goes on
                self._tell(error)

    def _send(self, item: dict[str, float]) -> None:
        if "iteration" in item:
            self.service.log(item, int(item["iteration"]))
            self._sent = int(item["iteration"])
            self._scored = self._sent if "score" in item else self._scored
        else:
            self.service.finish({f"final/{name}": value for name, value in item.items()}, bool(item))

    def _keep(self) -> None:
        write_whole(self._path, json.dumps({"id": self.service.id, "sent": self._sent, "scored": self._scored}) + "\n")

    def _tell(self, error: Exception) -> None:
        if not self._told:
            why = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            logger.warning("tracker %s failed (%s); training goes on without it", self.service.name, why)
        self._told = True


def numbers(row: dict[str, Any]) -> dict[str, float]:
    """The metrics of a row, a list as its mean."""
    return {name: float(np.mean(value)) for name, value in row.items()}


def figures(row: dict[str, Any]) -> dict[str, float]:
    """The final figures of a run, from the row that holds them."""
    return {name: x for name, x in numbers(row).items() if name != "iteration"}


def remembered(folder: Path, name: str) -> Path:
    """Where a run keeps its id at a service."""
    return folder / f"tracker-{name}.json"


def known_id(folder: Path, name: str) -> str | None:
    """The run's id at a service; None for a new one."""
    return _remember(remembered(folder, name)).get("id")


def _remember(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text())
        sent = int(found["sent"])
        return {"id": str(found["id"]), "sent": sent, "scored": int(found.get("scored", sent))}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"tracker: {path} cannot be read ({error!r}); remove it to begin a new run there") from error
