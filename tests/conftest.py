"""What must be set before jax starts.

Eight host devices for every test, so that pmap and meshes run on a machine with one CPU. One cache of compiled
programs for all tests and the command lines they start, most of which compile the same. Programs are compiled with few
optimisations: tests compile for longer than they compute.
"""

import os
from pathlib import Path

import pytest

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")


@pytest.fixture
def only_read_programs(monkeypatch):
    """A process that is killed must not leave half a program in the cache that the tests share."""
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "1000000")
