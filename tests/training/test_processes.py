"""Processes: their options, what one alone does, and two real ones that share work, checkpoints and failures."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.benchmarks.resume import free_port
from pairgrpo_jax.commands.cli import start_of
from pairgrpo_jax.training import processes
from pairgrpo_jax.training.processes import Start

ROOT = Path(__file__).parents[2]
PAIR = """
import json, sys, time
from pathlib import Path
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from pairgrpo_jax.training import Checkpoints, processes
from pairgrpo_jax.training.processes import PeerError, Start

folder, port, me = sys.argv[1], sys.argv[2], int(sys.argv[3])
processes.start(Start(coordinator=f"localhost:{port}", processes=2, process=me, start_timeout=60.0))
told = {"leads": processes.leads(), "share": [processes.share(5).start, processes.share(5).stop]}
told["gather"] = processes.gather({"from": me, "text": "x" * (me + 1)})
mine = np.arange(3.0 + me).reshape(-1, 1) + 10 * me
joined = processes.join({"a": mine, "b": mine[:, 0] > 1})
told["join"] = [joined["a"].ravel().tolist(), joined["b"].tolist(), str(joined["a"].dtype)]
told["empty"] = processes.join(np.ones((me, 2))).tolist()  # one row for two processes
told["highest"] = processes.highest(15 * me)

def caught(work):
    try:
        return work()
    except Exception as error:
        return f"{type(error).__name__}: {error}"

told["together"] = caught(lambda: processes.together(lambda: 1 // (1 - me)))
told["lead"] = caught(lambda: processes.on_lead(lambda: open(f"{folder}/absent")))
told["agree"] = caught(lambda: processes.agree({"clip": 0.1 * me, "seed": 0}))
told["alike"] = processes.agree({"seed": 0})

mesh = Mesh(np.array(jax.devices()), ("data",))
rows, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())
state = {"w": processes.put(np.arange(8.0, dtype=np.float32), rows), "key": processes.put(jax.random.key(3), whole)}
told["put"] = [state["w"].is_fully_addressable, processes.fetch(state["w"]).tolist()]
if me == 1:
    time.sleep(31)  # gloo opens a channel in 30 s or never
told["late"] = float(jax.jit(jax.numpy.sum, out_shardings=whole)(state["w"]))
told["key"] = jax.random.key_data(processes.fetch(state["key"])).tolist()
checkpoints = Checkpoints(f"{folder}/checkpoints")
checkpoints.save(1, state)
checkpoints.save(2, jax.tree.map(lambda x: x, state) | {"w": state["w"] + 1})
if processes.leads():
    Path(f"{folder}/checkpoints/2/state/manifest.ocdbt").write_bytes(b"0" * 9)
processes.gather(0)
step, found = checkpoints.restore(state)
told["restored"] = [step, processes.fetch(found["w"]).tolist()]
checkpoints.close()
with Checkpoints(f"{folder}/behind", keep=1, background=True) as checkpoints:
    for step in (1, 2, 3):
        checkpoints.save(step, state)
        state["w"] = jax.jit(lambda x: 2 * x, donate_argnums=0)(state["w"])
    step, found = checkpoints.restore(state)
    checkpoints.add_score(3, 1.0)
told["behind"] = [checkpoints.steps(), processes.fetch(found["w"]).tolist(), Checkpoints(f"{folder}/behind").best()]
print("TOLD " + json.dumps(told), flush=True)

def work():
    if me == 1:
        raise KeyError("boom")
    processes.gather(0)  # waits for the other for ever

with processes.leaving_together(), processes.failing_together():
    work()
"""


ENDS = """
import sys
import jax
from pairgrpo_jax.commands.cli import run_main
from pairgrpo_jax.training import processes

port, me, how = sys.argv[1], int(sys.argv[2]), sys.argv[3]
endings = {"interrupt": KeyboardInterrupt(), "memory": jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 9 GiB asked")}

def command():
    processes.start(processes.Start(coordinator=f"localhost:{port}", processes=2, process=me, start_timeout=60.0))
    with processes.failing_together():
        if me == 1:
            raise endings[how]
        processes.gather(0)  # waits for the other for ever

with processes.leaving_together():
    run_main(command)
"""


def run_two(code, *words, after=()):
    """What two processes of two devices each said, and how they ended."""
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    running = [
        subprocess.Popen([sys.executable, "-c", code, *words, str(i), *after], env=os.environ | flags, **pipes)
        for i in range(2)
    ]
    return [process.communicate(timeout=200) for process in running], [process.returncode for process in running]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """What two processes told, said, and how they ended."""
    said, codes = run_two(PAIR, str(tmp_path_factory.mktemp("pair")), str(free_port()))
    told = [next((x[5:] for x in out.splitlines() if x.startswith("TOLD ")), err) for out, err in said]
    return [json.loads(x) for x in told], said, codes


@pytest.mark.parametrize(("how", "word"), [("interrupt", "KeyboardInterrupt"), ("memory", "RESOURCE_EXHAUSTED: 9 GiB")])
def test_an_abort_or_the_end_of_memory_in_one_ends_the_other(how, word):
    said, codes = run_two(ENDS, str(free_port()), after=(how,))
    assert codes[0] == 1 and codes[1] in (1, 130)
    assert f"process 1: {word}" in said[0][1] and "start all processes again" in said[0][1]
    assert "lost another process" not in said[1][1]


def test_shares_are_joined_in_order_and_only_the_first_process_leads(pair):
    told, said, _ = pair
    assert [x["leads"] for x in told] == [True, False]
    assert [x["share"] for x in told] == [[0, 2], [2, 5]]
    assert told[0]["gather"] == told[1]["gather"] == [{"from": 0, "text": "x"}, {"from": 1, "text": "xx"}]
    assert told[0]["join"] == told[1]["join"] and told[0]["empty"] == told[1]["empty"] == [[1.0, 1.0]]
    assert told[0]["join"] == [[0, 1, 2, 10, 11, 12, 13], [False, False, True, True, True, True, True], "float64"]
    assert [x["highest"] for x in told] == [15, 15]
    assert "2 processes, 4 devices" in said[0][0] and "processes, " not in said[1][0]


def test_an_error_of_one_is_an_error_of_all(pair):
    told, _, _ = pair
    assert told[0]["together"].startswith("PeerError: process 1: ZeroDivisionError")
    assert told[1]["together"].startswith("ZeroDivisionError")
    assert "process 0: FileNotFoundError" in told[1]["lead"] and "absent" in told[0]["lead"]
    assert told[0]["agree"] == told[1]["agree"]
    assert "clip is 0.0 in process 0 and 0.1 in 1" in told[0]["agree"] and "seed" not in told[0]["agree"]
    assert told[0]["alike"] is None


def test_arrays_span_all_devices_and_checkpoints_are_one(pair):
    for told in pair[0]:
        assert told["put"] == [False, list(range(8))] and told["key"] == [0, 3] and told["late"] == 28
        assert told["restored"] == [1, list(range(8))]  # 2 is damaged
        assert told["behind"] == [[3], [4 * x for x in range(8)], 3]


def test_a_failure_ends_a_process_that_waits_for_ever(pair):
    _, said, codes = pair
    assert codes == [1, 1]
    assert "process 1: 'boom'; start all processes again" in said[0][1]
    assert "KeyError: 'boom'" in said[1][1]


def test_alone_there_is_nothing_to_share():
    assert processes.count() == 1 and processes.leads() and processes.share(5) == slice(0, 5)
    assert processes.gather(3) == [3] and processes.highest(2) == 2 and processes.all_here("anywhere")
    assert processes.on_lead(lambda: 4) == 4
    tree = {"a": np.arange(3)}
    assert processes.join(tree) is tree
    assert jax.random.key_data(processes.fetch(jax.random.key(1))).tolist() == [0, 1]
    with pytest.raises(ZeroDivisionError):
        processes.together(lambda: 1 // 0)


@pytest.mark.parametrize(
    "options, problem",
    [
        ({"processes": 2, "process": 0}, "coordinator: --coordinator, --processes and --process go together"),
        ({"coordinator": "here:1"}, "processes: --coordinator, --processes and --process go together"),
        ({"coordinator": "here", "processes": 2, "process": 0}, "coordinator='here': expected HOST:PORT"),
        ({"coordinator": ":80", "processes": 2, "process": 0}, "expected HOST:PORT"),
        ({"coordinator": "here:0", "processes": 2, "process": 0}, "expected HOST:PORT"),
        ({"coordinator": "here:1", "processes": 2, "process": 2}, "process=2: of 2 processes, 0 to 1"),
        ({"coordinator": "here:1", "processes": 0, "process": 0}, "processes"),
        ({"coordinator": "here:1", "processes": 2, "process": 0, "distributed": "auto"}, "auto finds the other"),
        ({"distributed": "slurm"}, "distributed"),
        ({"start_timeout": 0.0}, "start_timeout"),
    ],
)
def test_a_start_that_cannot_be_is_refused(options, problem):
    with pytest.raises(ValueError, match=problem):
        Start(**options)


def test_the_options_of_a_start_are_taken_from_the_words():
    words = ["hard", "--coordinator=[::1]:80", "--seed", "1", "--processes", "2", "--process", "1", "--resume"]
    how, rest = start_of(words, "pairgrpo align")
    assert how == Start(coordinator="[::1]:80", processes=2, process=1) and not how.alone
    assert rest == ["hard", "--seed", "1", "--resume"]
    assert start_of(rest, "pairgrpo align") == (Start(), rest)
    with pytest.raises(ValueError, match="--process"):
        start_of(["--process"], "pairgrpo align")


def test_a_coordinator_that_is_not_there_is_named():
    address = f"localhost:{free_port()}"
    code = f"from pairgrpo_jax.training.processes import Start, start; start(Start('none', '{address}', 2, 1, 0.5))"
    ended = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    assert f"process 1 of 2 did not meet the others at {address} within 0.5 s" in ended.stderr
