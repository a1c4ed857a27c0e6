"""Trackers: the real packages, offline, and services that fail."""

import importlib
import json
import os
import signal
import struct
import subprocess
import sys
import threading

import pytest
from rich.console import Console

from pairgrpo_jax.commands import cheetah
from pairgrpo_jax.commands.runs import open_log, require_trackers
from pairgrpo_jax.training import MetricLog, Relay, read_metrics, services, trackers
from pairgrpo_jax.training.services import check_trackers

QUIET = Console(quiet=True)


def row(i, **more):
    return {"iteration": i, "steps": 10 * i, "reward": [i, i + 1.0], "held_out/f/pass@1": 0.5, **more}


class Flaky:
    """A service that fails at some calls and keeps what it took."""

    name, id, where = "flaky", "7", "nowhere"

    def __init__(self, fails=(), hangs=None):
        self.fails, self.hangs, self.calls, self.steps, self.ends = set(fails), hangs, 0, [], []

    def log(self, values, step):
        self.calls += 1
        if self.hangs:
            self.hangs.wait()
        if self.calls in self.fails:
            raise ConnectionError("no\nroute")
        self.steps.append(step)

    def finish(self, summary, complete):
        self.ends.append((summary, complete))


def test_a_failure_is_told_once_and_nothing_is_lost_or_doubled(tmp_path, caplog):
    service = Flaky(fails=(2, 3))
    log = MetricLog(tmp_path, trackers=[Relay(service, tmp_path)])
    for i in range(1, 5):
        log.write(row(i))
    log.close()
    assert service.steps == [1, 2, 3, 4] and [r["iteration"] for r in read_metrics(tmp_path)] == [1, 2, 3, 4]
    assert service.ends == [({"final/steps": 40, "final/reward": 4.5, "final/held_out/f/pass@1": 0.5}, True)]
    assert [r.getMessage() for r in caplog.records] == [
        "tracker flaky failed (ConnectionError: no route); training goes on without it"
    ]


def test_what_was_not_sent_is_said_and_goes_out_on_resume(tmp_path, caplog):
    log = MetricLog(tmp_path, trackers=[Relay(Flaky(fails=range(2, 99)), tmp_path)])
    for i in range(1, 5):
        log.write(row(i))
    log.close(complete=False)
    assert "rows after iteration 1" in caplog.messages[-1] and "--resume sends them" in caplog.messages[-1]
    service = Flaky()
    MetricLog(tmp_path, after=3, trackers=[Relay(service, tmp_path)]).close()
    assert service.steps == [2, 3]


def test_a_run_begun_anew_in_a_folder_is_sent_whole(tmp_path):
    for _ in range(2):
        service = Flaky()
        log = MetricLog(tmp_path, trackers=[Relay(service, tmp_path)])
        for i in range(1, 4):
            log.write(row(i))
        log.close()
        assert service.steps == [1, 2, 3] and len(service.ends) == 1
    assert json.loads((tmp_path / "tracker-flaky.json").read_text()) == {"id": "7", "sent": 3, "scored": 0}


def test_a_run_resumed_before_its_first_checkpoint_repeats_no_row(tmp_path):
    for expected in ([1, 2, 3], [4]):
        service = Flaky()
        log = MetricLog(tmp_path, after=0, trackers=[Relay(service, tmp_path)])
        for i in range(1, 4 if expected[0] == 1 else 5):
            log.write(row(i))
        log.close(complete=False)
        assert service.steps == expected


def test_a_score_that_comes_after_its_row_goes_with_the_next(tmp_path):
    """Once, and whatever kills come between: wandb drops a step that it has had."""
    heard = []
    service = Flaky()
    service.log = lambda values, step: heard.append((step, values["reward"], values.get("score")))

    def log(after):
        return MetricLog(tmp_path, after=after, trackers=[Relay(service, tmp_path)])

    first = log(0)
    for i in (1, 2):
        first.write(row(i))
    first.close(complete=False)
    late = log(2)
    late.amend(row(2, score=7.0))
    late.close()
    assert service.ends[-1][0]["final/score"] == 7
    for i in (3, 4):
        longer = log(i - 1)
        longer.write(row(i))
        longer.close(complete=False)
    scored = log(4)
    scored.write(row(5, score=8.0))
    scored.close()
    log(5).close()
    assert heard == [(1, 1.5, None), (2, 2.5, None), (3, 3.5, 7.0), (4, 4.5, None), (5, 5.5, 8.0)]


def test_a_memory_of_before_scores_were_remembered_repeats_none(tmp_path):
    (tmp_path / "tracker-flaky.json").write_text('{"id": "7", "sent": 2}')
    assert Relay(Flaky(), tmp_path)._scored == 2


def test_a_new_run_at_the_service_hears_all_rows(tmp_path):
    for name in ("first", "second"):
        service = Flaky()
        service.id = name
        log = MetricLog(tmp_path, after=2, trackers=[Relay(service, tmp_path)])
        log.write(row(3))
        log.close(complete=False)
        assert service.steps == [3]


@pytest.mark.parametrize(("resume", "expected"), [(True, "old"), (False, None)])
def test_a_service_goes_on_with_its_run_only_on_resume(tmp_path, monkeypatch, resume, expected):
    (tmp_path / "tracker-wandb.json").write_text('{"id": "old", "sent": 3}')
    asked = []
    monkeypatch.setitem(services._SERVICES, "wandb", lambda *args: asked.append(args[-1]) or Flaky())
    services.open_trackers(["wandb"], tmp_path, {}, resume=resume)
    assert asked == [expected]


def test_a_service_that_hangs_does_not_hold_the_run(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(trackers, "PATIENCE", 0.05)
    release = threading.Event()
    log = MetricLog(tmp_path, trackers=[Relay(Flaky(hangs=release), tmp_path)])
    log.write(row(1))
    log.close()
    assert "may be missing" in caplog.text
    release.set()


def test_a_mark_that_cannot_be_written_undoes_no_send(tmp_path, caplog):
    service = Flaky()
    log = MetricLog(tmp_path, trackers=[relay := Relay(service, tmp_path / "new" / "er")])
    (tmp_path / "new" / "er" / "tracker-flaky.partial").mkdir()
    for i in range(1, 4):
        log.write(row(i))
    log.close()
    assert service.steps == [1, 2, 3] and len(service.ends) == 1 and relay._sent == 3
    assert [message.split(" (")[0] for message in caplog.messages] == ["tracker flaky failed"]


def test_every_tracker_is_finished_whatever_one_raises(tmp_path):
    class Ends(list):
        """Notes its end, and fails then."""

        def log(self, row):
            """Takes all."""

        def finish(self, summary):
            self.append(summary)
            raise OSError("full")

    first, last = Ends(), Ends()
    log = MetricLog(tmp_path, trackers=[first, last])
    log.write(row(1))
    with pytest.raises(OSError, match="full"):
        log.close(complete=False)
    assert first == last == [{}]


@pytest.mark.parametrize("text", ["", "[]", '{"id": 1}', '{"id": "a", "sent": "x"}'])
def test_a_damaged_memory_is_named(tmp_path, text):
    (tmp_path / "tracker-flaky.json").write_text(text)
    with pytest.raises(ValueError, match=r"tracker-flaky\.json cannot be read .*remove it"):
        Relay(Flaky(), tmp_path)


@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
def test_a_package_that_is_not_installed(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModuleNotFoundError):
        require_trackers(cheetah.Run(tracker=(name,)))


def test_a_name_that_is_none():
    with pytest.raises(ValueError, match=r"'comet' is unknown; choose among wandb, mlflow, trackio"):
        check_trackers(["comet"])


def test_wandb_without_a_key_or_a_host(monkeypatch, tmp_path):
    wandb = pytest.importorskip("wandb", reason="needs the extra trackers")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    wandb.teardown()  # it reads the environment once
    with pytest.raises(ValueError, match=r"wandb has no key for http://127.0.0.1:9; run `wandb login`, .*offline"):
        check_trackers(["wandb"])
    (tmp_path / "none").write_text("machine 127.0.0.1 login user password " + 40 * "a")
    asked = []
    monkeypatch.setattr(wandb, "Api", lambda **_: asked.append(1) or 1 / 0)
    with pytest.raises(ValueError, match=r"wandb at http://127.0.0.1:9: division .*WANDB_MODE=offline"):
        check_trackers(["wandb"])
    assert asked
    monkeypatch.setenv("WANDB_MODE", "offline")
    wandb.teardown()
    check_trackers(["wandb"])
    wandb.teardown()


@pytest.mark.parametrize("store", ["http://127.0.0.1:9", "ftp://nowhere"])
def test_mlflow_without_a_store(monkeypatch, store):
    pytest.importorskip("mlflow", reason="needs the extra trackers")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ValueError, match=rf"mlflow at {store}: .*; set MLFLOW_TRACKING_URI to a server"):
        check_trackers(["mlflow"])


def records(path):
    """The records of a wandb run on disk, which is a log of LevelDB: blocks of 32 KiB, pieces with a sum and a kind."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, found, piece = path.read_bytes(), 7, [], b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        size, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        piece += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):
            found.append(Record.FromString(piece))
            piece = b""
    return found


def in_wandb(folder):
    import wandb

    wandb.teardown()  # what it keeps is written a little after a run's end
    values = {}
    steps, config, ids = [], {}, set()
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        for record in records(path):
            kind = record.WhichOneof("record_type")
            if kind == "history":
                items = {"/".join(x.nested_key) or x.key: json.loads(x.value_json) for x in record.history.item}
                steps.append(items["iteration"])
                values |= items
            elif kind == "summary":
                values |= {"/".join(x.nested_key) or x.key: json.loads(x.value_json) for x in record.summary.update}
            elif kind == "run":
                ids.add(record.run.run_id)
            if kind in ("config", "run"):
                update = (record.config if kind == "config" else record.run.config).update
                config |= {"/".join(x.nested_key) or x.key: json.loads(x.value_json) for x in update}
    assert len(ids) == 1
    return steps, {name: str(x) for name, x in config.items()}, values


def in_mlflow(folder):
    from mlflow import MlflowClient

    client = MlflowClient()
    (found,) = client.search_runs([client.get_experiment_by_name("pairgrpo").experiment_id])
    assert found.info.status == "FINISHED"
    steps = [m.step for m in client.get_metric_history(found.info.run_id, "iteration")]
    renamed = {name.replace("final.", "final/"): x for name, x in found.data.metrics.items()}
    return steps, found.data.params, renamed


def in_trackio(folder):
    from trackio.sqlite_storage import SQLiteStorage

    (name,) = [x for x in SQLiteStorage.get_runs("pairgrpo") if x.startswith(folder.name)]
    rows = SQLiteStorage.get_logs("pairgrpo", name)
    steps = [r["step"] for r in rows if "iteration" in r]
    config = SQLiteStorage.get_run_config("pairgrpo", name)
    return steps, {k: str(x) for k, x in config.items()}, {k: x for r in rows for k, x in r.items()}


READERS = {"wandb": in_wandb, "mlflow": in_mlflow, "trackio": in_trackio}


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """Settings of the services under which nothing leaves this machine."""
    for name, value in {
        "WANDB_MODE": "offline",
        "WANDB_ERROR_REPORTING": "false",
        "MLFLOW_TRACKING_URI": f"file://{tmp_path}/mlruns",
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "TRACKIO_DIR": str(tmp_path / "trackio"),
    }.items():
        monkeypatch.setenv(name, os.environ.get(f"TEST_{name}", value))


KILLED = """
import os, signal, sys, time
from pathlib import Path
from pairgrpo_jax.training import MetricLog
from pairgrpo_jax.training.services import open_trackers

folder, names = Path(sys.argv[1]), sys.argv[2:]
log = MetricLog(folder, trackers=open_trackers(names, folder, {}))
for i in (1, 2, 3):
    log.write({"iteration": i, "steps": 10 * i, "reward": i})
while not all('"sent": 3' in (folder / f"tracker-{name}.json").read_text() for name in names):
    time.sleep(0.01)
time.sleep(2 if "trackio" in names else 0.5)  # see docs/trackers.md: what a kill loses
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_real_packages_hear_each_row_once_over_a_kill_and_a_resume(tmp_path, offline, capfd):
    if not (names := tuple(name for name in READERS if importlib.util.find_spec(name))):
        pytest.skip("needs the extra trackers")
    if "wandb" in names:
        importlib.import_module("wandb").teardown()
        importlib.import_module("openai")  # as where a judge is asked; wandb has words for its users
    run = cheetah.Run(output=tmp_path / "mine", steps=60, tracker=names, resume=True)
    run.output.mkdir()
    killed = subprocess.run([sys.executable, "-c", KILLED, str(run.output), *names])
    assert killed.returncode == -signal.SIGKILL
    require_trackers(run)
    log = open_log(run, QUIET, after=2)  # row 3 went out, and the checkpoint is that of 2: row 3 is made again
    log.write(row(3, score=1.0, late=7.0))  # which was no evaluation when it went out
    for i in (4, 5, 6):
        log.write(row(i, score=[2.0, 3.0], **{"reward/x": [0.5], "pass@1": float("nan")}))
    log.close()
    for name in names:
        steps, config, values = READERS[name](run.output)
        assert steps == [1, 2, 3, 4, 5, 6], name
        assert values["final/score"] == 2.5 and values["final/reward"] == 6.5 and values["late"] == 7
        if name == "wandb":  # with others, settings are those of the start
            assert config["config.method.name"] == "hard" and config["steps"] == "60" and "versions.jax" in config
    told = capfd.readouterr()
    assert len((told.out + told.err).splitlines()) <= 2, told


def test_a_run_hears_of_its_trackers_in_one_line(tmp_path, offline):
    pytest.importorskip("mlflow", reason="needs the extra trackers")
    run, console = cheetah.Run(output=tmp_path, tracker=("mlflow", "mlflow")), Console(record=True, quiet=False)
    log = open_log(run, console)
    log.write(row(1))
    log.close()
    assert console.export_text().count("tracker mlflow: experiment pairgrpo in") == 1
    _, config, _ = in_mlflow(tmp_path)
    assert config["config.method.name"] == "hard" and config["steps"] == "3000000.0" and "versions.jax" in config
    (tmp_path / "tracker-mlflow.json").write_text('{"id": "gone", "sent": 0}')
    with pytest.raises(ValueError, match=r"mlflow: Run .gone. not found; remove .*tracker-mlflow\.json to begin"):
        open_log(run, QUIET)
