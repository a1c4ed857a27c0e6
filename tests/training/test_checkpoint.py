"""Checkpoints: nothing is lost, and damage is noticed."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pairgrpo_jax.training import CheckpointError, Checkpoints, TrainState


def make_state(seed=0):
    params = {"w": jax.random.normal(jax.random.key(seed), (40, 30)), "half": jnp.ones(3, jnp.bfloat16) / 3}
    state = TrainState.create(
        params, optax.adam(1e-3), jax.random.key(seed), env_state={"bits": jnp.uint32([7, 2**31])}
    )
    return state.replace(step=jnp.int32(seed))


def assert_identical(ours, expected):
    def same(a, b):
        assert a.dtype == b.dtype
        if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)

    jax.tree.map(same, ours, expected)
    assert jax.tree.structure(ours) == jax.tree.structure(expected)


def files(folder, step):
    return [path for path in (folder / str(step) / "state").rglob("*") if path.is_file() and path.stat().st_size > 200]


def test_restores_everything_bit_for_bit(tmp_path):
    checkpoints = Checkpoints(tmp_path, {"algo": "hard"})
    checkpoints.save(5, make_state(5))
    step, state = Checkpoints(tmp_path).restore(make_state(0))
    assert step == 5
    assert_identical(state, make_state(5))


def test_keeps_the_newest_and_the_best(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step, score in enumerate([1.0, 9.0, 2.0, 3.0, 4.0]):
        checkpoints.save(step, make_state(step), score)
    assert checkpoints.steps() == [1, 3, 4]


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("harm", [truncate, flip, lambda path: path.unlink()], ids=["truncate", "flip", "delete"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before_and_says_so(tmp_path, harm, caplog):
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, make_state(step))
    harm(files(tmp_path, 2)[0])
    step, state = Checkpoints(tmp_path).restore(make_state(0))
    assert step == 1 and "checkpoint 2" in caplog.text
    assert_identical(state, make_state(1))
    harm(files(tmp_path, 1)[0])
    with pytest.raises(CheckpointError, match=r"no readable checkpoint.*checkpoint 2.*checkpoint 1"):
        Checkpoints(tmp_path).restore(make_state(0))


def test_an_uncommitted_checkpoint_is_not_seen(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, make_state(1))
    (tmp_path / "2.orbax-checkpoint-tmp").mkdir()
    (tmp_path / "2.orbax-checkpoint-tmp" / "state").write_text("half written")
    assert Checkpoints(tmp_path).restore(make_state(0))[0] == 1


def test_a_state_of_another_shape_is_refused(tmp_path):
    Checkpoints(tmp_path).save(1, make_state(1))
    other = make_state(0).replace(params={"w": jnp.zeros((4, 4))})
    with pytest.raises(CheckpointError, match="checkpoint 1"):
        Checkpoints(tmp_path).restore(other)


def test_a_damaged_checkpoint_is_replaced_by_the_next_save(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, make_state(step))
    flip(files(tmp_path, 2)[0])
    assert checkpoints.restore(make_state(0))[0] == 1
    checkpoints.save(2, make_state(2))
    assert Checkpoints(tmp_path).restore(make_state(0))[0] == 2


def test_a_score_that_is_not_a_number_is_never_the_best(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    for step, score in ((1, 5.0), (2, float("nan")), (3, 1.0), (4, float("inf"))):
        checkpoints.save(step, {"x": jnp.full(3, step)}, score)
    assert checkpoints.steps() == [1, 4]
