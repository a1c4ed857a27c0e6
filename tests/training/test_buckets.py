"""Checkpoints in a bucket, on a server that speaks Google Cloud Storage's protocol."""

import logging
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_checkpoint import assert_identical, make_state

from experiments.benchmarks.resume import TINY, free_port
from pairgrpo_jax.commands import cheetah
from pairgrpo_jax.training import Checkpoints, read_metrics
from pairgrpo_jax.training.checkpoint import _files

RUN = (*TINY.split(), "--steps", "1280", "--evaluations", "1", "--no-anneal")


@pytest.fixture(scope="module")
def bucket():
    """The address of an empty bucket."""
    for package in ("gcsfs", "gcp_storage_emulator"):
        pytest.importorskip(package, reason=f"needs {package}, which make test installs")
    logging.getLogger("gcsfs").setLevel(logging.ERROR)  # it has no credentials, and needs none here
    port = free_port()
    command = [sys.executable, Path(__file__).parents[1] / "bucket_server.py", str(port)]
    with (
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server,
        pytest.MonkeyPatch.context() as environment,
    ):
        environment.setenv("STORAGE_EMULATOR_HOST", f"http://localhost:{port}")
        environment.setenv("TENSORSTORE_GCS_HTTP_URL", f"http://localhost:{port}")
        try:
            while not listens(port):
                assert server.poll() is None
                time.sleep(0.1)
            yield "gs://runs"
        finally:
            server.kill()


def listens(port):
    with socket.socket() as s:
        return s.connect_ex(("localhost", port)) == 0


def test_nothing_is_lost_there(bucket):
    folder = f"{bucket}/states"
    checkpoints = Checkpoints(folder, {"algo": "hard"}, keep=2)
    for step, score in enumerate([1.0, 9.0, 2.0, 3.0]):
        checkpoints.save(step, make_state(step), score)
    checkpoints.save(4, make_state(4))
    checkpoints.add_score(4, 10.0)
    assert checkpoints.steps() == [3, 4]
    again = Checkpoints(folder, keep=2)
    assert again.steps() == [3, 4] and again.best() == 4 and again.made_with() == {"algo": "hard"}
    again.save(5, make_state(5))
    again.save(6, make_state(6))
    assert again.steps() == [4, 5, 6]
    for wanted, step in ((None, 6), ("best", 4)):
        found, state = again.restore(make_state(0), wanted)
        assert found == step
        assert_identical(state, make_state(step))
    assert not os.path.exists("gs:")  # a folder of that name, here


def test_damage_there_is_noticed(bucket):
    checkpoints = Checkpoints(f"{bucket}/damaged")
    for step in (1, 2):
        checkpoints.save(step, make_state(step))
    largest = max(_files(checkpoints._folder(2)), key=lambda path: len(path.read_bytes()))
    largest.write_bytes(largest.read_bytes()[:-9])
    assert checkpoints.restore(make_state(0))[0] == 1


def test_a_run_goes_on_from_a_bucket_alone(bucket, run_here, tmp_path):
    words = (*RUN, "--checkpoints", f"{bucket}/run")
    done = run_here(cheetah.main, *words, "--output", tmp_path / "a")
    assert done.returncode == 0 and f"{bucket}/run" in done.stdout and not (tmp_path / "a" / "checkpoints").exists()
    for more, message in (
        ((), f"checkpoints: {bucket}/run holds those of another run; add --resume"),
        (
            ("--resume", "--seed", "7"),
            f"checkpoints: those in {bucket}/run were made with other settings (seed: 0 -> 7)",
        ),
    ):
        refused = run_here(cheetah.main, *words, *more, "--output", tmp_path / "b")
        assert refused.returncode == 2 and message in refused.stderr and refused.stderr.count("\n") == 1
        assert not (tmp_path / "b" / "metrics.jsonl").exists()
    ended = run_here(cheetah.main, *words, "--resume", "--output", tmp_path / "c")
    assert ended.returncode == 2 and "holds the end of the run" in ended.stderr
    resumed = run_here(cheetah.main, *words, "--resume", "--steps", "2560", "--output", tmp_path / "c")
    assert resumed.returncode == 0 and "after 4 of 8 iterations" in resumed.stdout
    assert [row["iteration"] for row in read_metrics(tmp_path / "c")] == [5, 6, 7, 8]


@pytest.mark.parametrize(
    ("place", "message"),
    [("s3://a/b", "s3://a/b is neither: Orbax writes to folders and to gs://"), ("gs://none/a", "cannot be opened")],
)
def test_other_places_are_refused(bucket, run_here, tmp_path, place, message):
    refused = run_here(cheetah.main, *RUN, "--checkpoints", place, "--output", tmp_path / "out")
    assert refused.returncode == 2 and message in refused.stderr and refused.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_what_reads_buckets_may_be_missing(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"checkpoints: gs:// needs gcsfs; pip install 'pairgrpo-jax\[gcs\]'"):
        Checkpoints("gs://runs/a")
