"""Parameters read straight into shards, and the memory plan of a 7B model."""

import os
import subprocess
import sys

import jax
import pytest

from pairgrpo_jax.lm import save_pretrained
from pairgrpo_jax.lm.models import sharding
from pairgrpo_jax.lm.models.model import read_config
from pairgrpo_jax.lm.models.params import abstract_params

from .conftest import tiny_model

LLAMA2_7B = {"model_type": "llama", "max_position_embeddings": 4096}

SCRIPT = """
import sys
import jax, jax.numpy as jnp, numpy as np
from pairgrpo_jax.lm import load_model
from pairgrpo_jax.lm.models import sharding
whole = load_model(sys.argv[1])
mesh = jax.make_mesh((4, 2), ("fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
split = load_model(sys.argv[1], shardings=lambda tree: sharding.shardings(tree, mesh))
for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(split.params)):
    np.testing.assert_array_equal(a, b)
name = sys.argv[2]
kernel = split.params["layers"]["mlp"]["up"]["kernel"]
assert kernel.addressable_shards[0].data.size * 8 == kernel.size
tokens = jnp.arange(3, 27).reshape(2, 12)
want = jax.jit(whole.apply)(whole.params, tokens)
np.testing.assert_allclose(jax.jit(split.apply)(split.params, tokens), want, atol=1e-4)
"""


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_shards_are_read_and_compute_the_same(family, tmp_path):
    model = tiny_model(family)
    save_pretrained(model, model.params, tmp_path, max_shard_bytes=60_000)
    flags = "--xla_force_host_platform_device_count=8"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), family]
    subprocess.run(command, check=True, env=environment)


def test_axes_that_do_not_divide_stay_whole():
    abstract = abstract_params(tiny_model().config)
    specs = sharding.specs(abstract, {"fsdp": 7, "tensor": 2})
    assert tuple(specs["layers"]["attn"]["q"]["kernel"]) == (None, None, "tensor")
    assert tuple(specs["embed"]) == (None, None)  # 97 rows, 64 columns


def test_seven_billion_parameters_are_planned_not_allocated():
    config = read_config(LLAMA2_7B, "llama-2-7b")
    count = sum(x.size for x in jax.tree.leaves(abstract_params(config)))
    assert count == 6_738_415_616
    plans = {
        n: sharding.memory_plan(config, axes, rows=64, steps=1024)
        for n, axes in {
            1: {"fsdp": 1, "tensor": 1},
            8: {"fsdp": 4, "tensor": 2},
            64: {"fsdp": 32, "tensor": 2},
        }.items()
    }
    assert plans[1].params == 4 * count and plans[1].optimizer == 8 * count
    for n, plan in plans.items():
        assert plan.devices == n
        # Norms alone are not split.
        assert 4 * count / n <= plan.params < 4 * count / n * 1.02
    assert plans[64].total < plans[8].total / 7
