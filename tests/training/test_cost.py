"""FLOPs and collectives of programs whose cost is known."""

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from pairgrpo_jax.training.cost import bytes_on_a_device, collectives, matmul_flops


def test_loops_count_as_often_as_they_run():
    x = jnp.ones((4, 8))

    def f(x, w):
        y = jax.lax.scan(lambda y, _: (y @ w, None), x, None, length=5)[0]
        y = jax.lax.while_loop(lambda y: y.sum() < 3, lambda y: y @ w, y)
        return jax.lax.cond(y.sum() > 0, lambda y: y @ w @ w, lambda y: y @ w, y)

    product = 2 * 4 * 8 * 8
    assert matmul_flops(jax.make_jaxpr(jax.jit(f))(x, jnp.ones((8, 8))), 7) == product * (5 + 7 + 2)


def test_collectives_of_a_loop_and_bytes_of_a_shard():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    split, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    x = jax.ShapeDtypeStruct((16, 4), jnp.float32, sharding=split)
    assert bytes_on_a_device([x, jax.ShapeDtypeStruct((16, 4), jnp.float32, sharding=whole)]) == 2 * 4 * 4 + 16 * 4 * 4

    def f(x):
        def body(y, _):
            total = jax.lax.psum(y, "data")
            return y + jnp.sin(total), None

        inner = jax.shard_map(lambda x: jax.lax.scan(body, x, None, length=6)[0], mesh=mesh, in_specs=split.spec,
                              out_specs=split.spec)  # fmt: skip
        return inner(x)

    found = collectives(str(jax.jit(f).lower(x).compile().as_text()))
    assert found == {"all-reduce": (6, 6 * 2 * 4 * 4)}


def test_a_loop_of_the_tpu_s_compiler_counts_by_its_condition():
    text = """%below (p: (s32[], f32[8])) -> pred[] {
  %limit.1 = s32[]{:T(128)} constant(24)
  ROOT %lt = pred[] compare(%p.0, %limit.1), direction=LT
}
%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %g = bf16[8,16]{1,0} all-gather(%x), dimensions={0}
}
ENTRY %main (p: f32[8]) -> f32[8] {
  %loop = (s32[], f32[8]) while(%t), condition=%below, body=%body
}
"""
    assert collectives(text, 5) == {"all-gather": (24, 24 * 8 * 16 * 2)}
