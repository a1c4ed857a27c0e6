"""The command `pairgrpo` before any sub-command."""

import importlib
import io
import os
import subprocess
import sys
import time

import jax
import pytest

from pairgrpo_jax.commands import main
from pairgrpo_jax.commands.cli import run_main
from pairgrpo_jax.commands.compiled import keep_compiled, prune

START = "from pairgrpo_jax.commands.main import main; main()"


def test_help_needs_no_jax():
    began = time.perf_counter()
    code = (
        f"import sys; sys.argv = ['pairgrpo', '--help']; {START}; print(sorted(set(sys.modules) & {{'jax', 'tyro'}}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]" and all(name in done.stdout for name in main.COMMANDS)
    assert time.perf_counter() - began < 5  # 0.1 s on a quiet machine


@pytest.mark.parametrize("name", main.COMMANDS)
def test_help_has_one_command_a_line(run_here, monkeypatch, name):
    monkeypatch.setenv("COLUMNS", "1000")
    module = importlib.import_module(f"pairgrpo_jax.commands.{name.replace('-', '_')}")
    words = {"plan": ["align", "hard"], "align": ["hard"], "cheetah": ["hard"]}.get(name, [])
    done = run_here(module.main, *words, "--help")
    lines = [line.strip() for line in done.stdout.splitlines() if line.strip().startswith("pairgrpo ")]
    assert done.returncode == 0 and not [line for line in lines if line.count("pairgrpo ") > 1]


@pytest.mark.parametrize(("word", "hint"), [("algin", "did you mean align?"), ("x", "choose one of cheetah")])
def test_an_unknown_command_is_named(monkeypatch, capsys, word, hint):
    monkeypatch.setattr(sys, "argv", ["pairgrpo", word])
    with pytest.raises(SystemExit) as end:
        main.main()
    said = capsys.readouterr().err
    assert end.value.code == 2 and hint in said and said.count("\n") == 1


@pytest.mark.parametrize("words", [["--help"], ["align", "soft", "--help"], ["report"]], ids=" ".join)
def test_a_reader_that_left_is_no_error_of_ours(tmp_path, words):
    """As of `pairgrpo ... | head`; what was wrong is still said on stderr."""
    read, write = os.pipe()
    os.close(read)
    program = [sys.executable, "-c", START, *words]
    done = subprocess.run(program, stdout=write, stderr=subprocess.PIPE, text=True, cwd=tmp_path, timeout=120)
    os.close(write)
    refused = words == ["report"]  # of no folder
    assert done.returncode == (2 if refused else 141) and len(done.stderr.splitlines()) == refused, done.stderr


LEFT, TOLD = (141, ""), (2, "pairgrpo: error: {}\n")


@pytest.mark.parametrize(
    ("body", "unread", "read"),
    [
        ("print('x' * 10**6)", LEFT, (0, "")),
        ("print('x')", LEFT, (0, "")),
        ("print('x'); sys.exit(0)", LEFT, (0, "")),
        ("LineConsole().print('x')", LEFT, (0, "")),
        ("print('x'); raise ValueError('bad')", (2, TOLD[1].format("bad")), (2, TOLD[1].format("bad"))),
        ("print('x'); return 3", LEFT, (3, "")),
        ("raise BrokenPipeError(32, 'of a judge')", LEFT, (2, TOLD[1].format("[Errno 32] of a judge"))),
    ],
)
def test_what_is_wrong_is_told_whether_or_not_anybody_reads(body, unread, read):
    """The last is not told apart where nobody reads either."""
    code = "import sys; from pairgrpo_jax.commands.cli import run_main; "
    code += f"from pairgrpo_jax.training.console import LineConsole\ndef f():\n {body}\nrun_main(f)"
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    run = {"stderr": subprocess.PIPE, "text": True, "timeout": 60, "env": kept}
    other, left = os.pipe()
    os.close(other)
    done = subprocess.run([sys.executable, "-c", code], stdout=left, **run)
    os.close(left)
    assert (done.returncode, done.stderr) == unread
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, **run)
    assert (done.returncode, done.stderr) == read


def test_output_may_be_no_file_at_all(monkeypatch):
    for output in (io.StringIO(), None):
        monkeypatch.setattr(sys, "stdout", output)
        with pytest.raises(SystemExit) as end:
            run_main(lambda: 3)
        assert end.value.code == 3


def test_every_name_of_the_package_is_importable():
    import pairgrpo_jax

    assert all(getattr(pairgrpo_jax, name) is not None for name in pairgrpo_jax.__all__)


def test_no_word_of_torch_that_nothing_needs_and_no_package_before_its_time(tmp_path):
    """Where torch is, transformers imports it; what a run does not use, or not yet, must not make it wait."""
    pytest.importorskip("transformers", reason="needs the extra lm")
    hide = "import importlib.util as u; real = u.find_spec; "
    hide += "u.find_spec = lambda *x: x[0] != 'torch' and real(*x) or None; "
    hide += "import sys; sys.argv = ['pairgrpo', 'align', '--model', 'nowhere']; "
    hide += "import atexit; atexit.register(lambda: print(*sys.modules, sep='\\n')); "
    done = subprocess.run([sys.executable, "-c", hide + START], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("pairgrpo align: error: "), done.stderr
    assert len(done.stderr.splitlines()) == 1 and "orch" not in done.stderr
    late = "torch tensorboardX scipy.stats scipy.special matplotlib pandas datasets reasoning_gym math_verify sympy "
    late += "mujoco brax gymnasium wandb mlflow trackio openai sklearn pyarrow"
    assert "pairgrpo_jax.lm.alignment.trainer" in done.stdout.splitlines()
    assert sorted(set(late.split()) & set(done.stdout.splitlines())) == []


COMPILE = (
    "from pairgrpo_jax.commands.compiled import keep_compiled; import jax, sys; left = keep_compiled(sys.argv[1:]); "
)
COMPILE += (
    "jax.config.update('jax_persistent_cache_min_compile_time_secs', 0); jax.jit(lambda x: x * 3)(1.0); print(left)"
)


def compile_one(home, *words, **changes):
    """Another process, with a cache and without what the tests set."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, *words],
        env=kept | {"XDG_CACHE_HOME": str(home)} | changes,
        capture_output=True,
        text=True,
        timeout=100,
    )
    return done, {path.parent for path in home.parent.rglob("*-cache")}


def test_programs_are_kept_where_one_says_or_in_the_users_cache(tmp_path):
    home, other = tmp_path / "home", tmp_path / "other"
    assert compile_one(home, "--compilation-cache=off", JAX_COMPILATION_CACHE_DIR=str(other))[1] == set()
    assert compile_one(home, JAX_COMPILATION_CACHE_DIR=str(other))[1] == {other}
    done, folders = compile_one(
        home, "a", "--compilation-cache", str(tmp_path / "named"), "--b", JAX_COMPILATION_CACHE_DIR=str(other)
    )
    assert done.stdout == "['a', '--b']\n" and folders == {other, tmp_path / "named"}, done.stderr
    (mine,) = compile_one(home)[1] - folders
    assert mine.parent == home / "pairgrpo_jax" / "compiled" and mine.stat().st_mode & 0o077 == 0
    for path in mine.glob("*-cache"):  # as a kill leaves it: compiled again
        path.write_bytes(path.read_bytes()[:50])
    done, _ = compile_one(home)
    assert done.returncode == 0 and done.stdout == "[]\n"


def test_a_cache_that_cannot_be_is_told(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    for words, message in (
        (["--compilation-cache"], "--compilation-cache: name a folder, or off"),
        (["--compilation-cache", "--seed", "1"], "name a folder, or off"),
        (["--compilation-cache="], "name a folder, or off"),
        (["--compilation-cache", tmp_path / "file" / "x"], "Not a directory; choose another, or off"),
        (["--compilation-cache", tmp_path / "open"], "must be yours alone to write: chmod go-w"),
    ):
        with pytest.raises(ValueError, match=message):
            keep_compiled([str(word) for word in words])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        assert keep_compiled(["a"]) == ["a"]  # nobody asked for it: the run goes on without
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
    assert "compiled programs are not kept" in capsys.readouterr().err


def test_a_cache_that_is_full_loses_what_was_not_used_for_longest(tmp_path):
    for age, name in enumerate("cab"):
        (tmp_path / f"{name}-cache").write_bytes(bytes(10))
        os.utime(tmp_path / f"{name}-cache", (1000 - age, 0))
    prune(tmp_path, 20)
    assert {path.name for path in tmp_path.iterdir()} == {"a-cache", "c-cache"}
