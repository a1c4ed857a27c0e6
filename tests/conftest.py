"""What must be set before jax starts.

Eight host devices for every test, so that pmap and meshes run on a machine with one CPU. One cache of compiled
programs for all tests and the command lines they start, most of which compile the same. Programs are compiled with few
optimisations, as most tests compile for longer than they compute; those of the real model and the notebooks are not.
With jax 0.10 in one part and by the older emitter of loops too: a third of the time. Later ones do not know that flag.
"""

import contextlib
import gc
import inspect
import os
import sys
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import pytest

FLAGS = ["--xla_force_host_platform_device_count=8"]
if version("jaxlib").startswith("0.10."):
    FLAGS += ["--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"]
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *FLAGS]).strip()
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")


def pytest_collection_modifyitems(items):
    """The notebooks, which take longest, then files of many tests: nothing long is left for the end, to one worker."""
    tests = Counter(item.path for item in items)
    items.sort(key=lambda item: (item.path.name != "test_notebooks.py", -tests[item.path]))


@pytest.fixture(autouse=True)
def optimised_for_the_real_model(request):
    """SmolLM2 computes for longer than it compiles."""
    import jax

    name, real = "jax_disable_most_optimizations", "smollm2" in request.fixturenames
    before = jax.config.read(name)
    jax.config.update(name, before and not real)
    yield
    jax.config.update(name, before)


@pytest.fixture(autouse=True, scope="module")
def few_programs():
    """Compiled programs hold some of the 65,530 pieces of memory that Linux gives; without any the compiler crashes."""
    yield
    import jax

    pieces = Path("/proc/self/maps")
    if pieces.exists() and pieces.read_bytes().count(b"\n") > 15_000:
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def compiles_nothing(caplog):
    """`with compiles_nothing():` fails where a program is compiled meanwhile."""
    import jax

    def told():
        return [message for message in caplog.messages if "Compiling" in message]

    @contextlib.contextmanager
    def watch():
        caplog.clear()
        with jax.log_compiles():
            yield
            assert not told()
            jax.jit(lambda x: x + 1)(1.0)
            assert told()  # the log does tell

    return watch


@pytest.fixture
def only_read_programs(monkeypatch):
    """A process that is killed must not leave half a program in the cache that the tests share."""
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "1000000")


class Done(NamedTuple):
    """What a command line left."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def run_here(monkeypatch, capsys):
    """`run_here(main, *words)`: the program `main` with these arguments, in this process."""
    from pairgrpo_jax.commands.cli import run_main

    def run(main, *words) -> Done:
        words = [str(word) for word in words]
        monkeypatch.setattr(sys, "argv", ["program", *words])
        monkeypatch.setattr(sys, "path", sys.path.copy())
        with pytest.raises(SystemExit) as end:
            run_main((lambda: main(words)) if inspect.signature(main).parameters else main, "program")
        return Done(int(end.value.code or 0), *capsys.readouterr())

    return run


@pytest.fixture
def served(monkeypatch):
    """`served(*plan)`: a chat server that the environment points to, as long as the test runs; see `chat_server`."""
    from chat_server import KEY, ChatServer, serving

    with contextlib.ExitStack() as stack:

        def start(*plan, **options):
            state = ChatServer(*plan, **options)
            monkeypatch.setenv("OPENAI_BASE_URL", stack.enter_context(serving(state)))
            monkeypatch.setenv("OPENAI_API_KEY", KEY)
            return state

        yield start
