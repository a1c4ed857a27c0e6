"""The tracking services that a command can name: wandb, mlflow, trackio. Keys and hosts stay in their own settings."""

from __future__ import annotations

import contextlib
import contextvars
import importlib
import io
import netrc
import os
import re
import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

from pairgrpo_jax.training.trackers import PATIENCE, Relay, Service, known_id

Tracking = Literal["wandb", "mlflow", "trackio"]
PROJECT = "pairgrpo"


class Wandb:
    """Weights and Biases: project `WANDB_PROJECT`; `WANDB_MODE=offline` keeps all in the run's folder."""

    name = "wandb"

    @staticmethod
    def check() -> None:
        """ValueError without a key, or with one that its server does not take."""
        import wandb

        settings = wandb.setup().settings
        if settings.mode not in ("online", "run", "shared"):
            return
        remedy = "run `wandb login`, set WANDB_API_KEY, or set WANDB_MODE=offline to keep the run on disk"
        if not (settings.api_key or os.environ.get("WANDB_IDENTITY_TOKEN_FILE") or _in_netrc(settings.base_url)):
            raise ValueError(f"tracker: wandb has no key for {settings.base_url}; {remedy}")
        try:
            assert wandb.Api(timeout=15).viewer is not None
        except Exception as error:
            raise ValueError(f"tracker: wandb at {settings.base_url}: {_line(error)}; {remedy}") from error

    def __init__(self, title: str, folder: Path, config: dict[str, Any], known: str | None):
        import wandb

        self.id = known or secrets.token_hex(4)
        os.environ.setdefault("WANDB_DISABLE_WEAVE", "true")  # beside openai it would advertise another package
        quiet = wandb.Settings(silent=True, console="off", finish_timeout=0.8 * PATIENCE)
        quiet.x_transaction_log_flush_interval = 0.2  # seconds; a kill loses what is not in its file
        place: dict[str, Any] = {"project": os.environ.get("WANDB_PROJECT", PROJECT), "dir": str(folder), "name": title}
        self._run = wandb.init(**place, id=self.id, resume="allow", settings=quiet, reinit="create_new")
        self._run.config.update(config, allow_val_change=True)
        self.where = f"wandb sync {Path(self._run.dir).parent}" if self._run.offline else str(self._run.url)

    def log(self, values: dict[str, float], step: int) -> None:
        """Into the run's history, at once: without `commit` a row is held until the next one comes."""
        self._run.log(values, step=step, commit=True)

    def finish(self, summary: dict[str, float], complete: bool) -> None:
        """Into the run's summary."""
        self._run.summary.update(summary)
        self._run.finish(exit_code=0 if complete else 1)


class Mlflow:
    """MLflow: the store of `MLFLOW_TRACKING_URI`, experiment `MLFLOW_EXPERIMENT_NAME`."""

    name = "mlflow"

    @staticmethod
    def check() -> None:
        """ValueError where the store does not answer."""
        from mlflow import MlflowClient, get_tracking_uri

        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # minutes of retries would look like a hang
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        try:
            MlflowClient().search_experiments(max_results=1)
        except Exception as error:
            remedy = "set MLFLOW_TRACKING_URI to a server that answers, or to sqlite:///FILE with the whole of mlflow"
            raise ValueError(f"tracker: mlflow at {get_tracking_uri()}: {_line(error)}; {remedy}") from error

    def __init__(self, title: str, folder: Path, config: dict[str, Any], known: str | None):
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client = MlflowClient()
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        self.where = f"experiment {experiment} in {self._client.tracking_uri}"
        if known:
            self.id = known
            self._client.update_run(known, status="RUNNING")
            return
        found = self._client.get_experiment_by_name(experiment)
        place = found.experiment_id if found else self._client.create_experiment(experiment)
        self.id = self._client.create_run(place, run_name=title).info.run_id
        params = [Param(_allowed(name), str(value)[:6000]) for name, value in config.items()]
        for start in range(0, len(params), 100):  # as many as a call takes; they cannot change on resume
            self._client.log_batch(self.id, params=params[start : start + 100])

    def log(self, values: dict[str, float], step: int) -> None:
        """As metrics of the step."""
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        self._client.log_batch(self.id, [Metric(_allowed(name), x, now, step) for name, x in values.items()])

    def finish(self, summary: dict[str, float], complete: bool) -> None:
        """As metrics too."""
        self.log(summary, 0)
        self._client.set_terminated(self.id, "FINISHED" if complete else "KILLED")


class Trackio:
    """Trackio: on this machine, or where `TRACKIO_SPACE_ID` or `TRACKIO_SERVER_URL` says; a run's id is its name."""

    name = "trackio"

    @staticmethod
    def check() -> None:
        """Nothing is needed on this machine."""

    def __init__(self, title: str, folder: Path, config: dict[str, Any], known: str | None):
        import trackio

        self.id, self._step = known or f"{title}-{secrets.token_hex(4)}", 0
        off = {"auto_log_gpu": False, "auto_log_cpu": False, "embed": False}
        begin = contextvars.copy_context().run  # or it finishes its current run once more at the exit, and says so
        with contextlib.redirect_stdout(io.StringIO()):
            self._run = begin(trackio.init, PROJECT, name=self.id, config=config, resume="allow", **off)
        self.where = f"trackio show --project {PROJECT}"

    def log(self, values: dict[str, float], step: int) -> None:
        """As metrics of the step."""
        self._step = step
        self._run.log(values, step=step)

    def finish(self, summary: dict[str, float], complete: bool) -> None:
        """As metrics of the last step."""
        if summary:
            self._run.log(summary, step=self._step)
        with contextlib.redirect_stdout(io.StringIO()):
            self._run.finish()


_SERVICES: dict[str, Callable[..., Service]] = {"wandb": Wandb, "mlflow": Mlflow, "trackio": Trackio}


def check_trackers(names: Sequence[str]) -> None:
    """Looks for what the services need, before anything else is done.

    Raises:
      ModuleNotFoundError: for a package that is not installed.
      ValueError: for one without a key, or whose host does not answer; it names the remedy.
    """
    if unknown := [name for name in names if name not in get_args(Tracking)]:
        raise ValueError(f"tracker: {unknown[0]!r} is unknown; choose among {', '.join(get_args(Tracking))}")
    for name in dict.fromkeys(names):
        importlib.import_module(name)
        _SERVICES[name].check()  # type: ignore[attr-defined]


def open_trackers(names: Sequence[str], folder: Path, config: dict[str, Any], *, resume: bool = True) -> list[Relay]:
    """The run in `folder` at each service: the one that it had there, or a new one, without `resume` always.

    Raises:
      ValueError: where a service does not take the run.
    """
    opened = []
    for name in dict.fromkeys(names):
        known = known_id(folder, name) if resume else None
        try:
            service = _SERVICES[name](folder.resolve().name, folder, config, known)
        except Exception as error:
            went_on = f"; remove {folder}/tracker-{name}.json to begin a new run there" if known else ""
            raise ValueError(f"tracker: {name}: {_line(error)}{went_on}") from error
        opened.append(Relay(service, folder))
    return opened


def _allowed(name: str) -> str:
    """A name as MLflow takes it, without folders: its files could not hold `reward` beside `reward/length`."""
    return re.sub(r"[^\w\-. :]", "_", name.replace("/", "."))


def _in_netrc(url: str) -> bool:
    try:
        found = netrc.netrc(os.environ.get("NETRC"))
    except (OSError, netrc.NetrcParseError):
        return False
    return found.authenticators(urlsplit(url).hostname or "") is not None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
