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


def test_what_is_saved_in_the_background_is_what_was_given(tmp_path):
    """Its memory is donated at once, to programs that write other values there."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    add = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    state = {"w": jnp.zeros((64, 30_000)), "split": jax.device_put(jnp.zeros((64, 10_000)), rows)}
    scores = [1.0, 9.0, 2.0, 3.0, 4.0]
    with Checkpoints(tmp_path, keep=2, background=True) as checkpoints:
        for step, score in enumerate(scores):
            checkpoints.save(step, state, score)
            for _ in range(10):
                state = add(state)
    reopened = Checkpoints(tmp_path)
    assert reopened.steps() == [1, 3, 4] and reopened.best() == 1
    for step in reopened.steps():
        assert (tmp_path / str(step) / "sha256.json").exists()
        _, found = reopened.restore(state, step)
        jax.tree.map(lambda x: np.testing.assert_array_equal(x, 10.0 * step), found)  # noqa: B023


def test_an_error_leaves_the_last_checkpoint_to_the_next_opening(tmp_path):
    with pytest.raises(KeyError), Checkpoints(tmp_path, background=True) as checkpoints:
        checkpoints.save(1, make_state(1))
        raise KeyError("boom")
    assert not (tmp_path / "1" / "sha256.json").exists()
    assert Checkpoints(tmp_path).restore(make_state(0))[0] == 1
    assert (tmp_path / "1" / "sha256.json").exists()


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
    assert step == 1 and "going back from checkpoint 2 to checkpoint 1" in caplog.text
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


SCHEDULED = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.linear_schedule(1, 0, 9)))
OTHERS = {
    "shape": (
        lambda s: s.replace(params={**s.params, "w": jnp.zeros((4, 4))}),
        r"params\.w is float32\[40,30\] in .*4,4",
    ),
    "dtype": (
        lambda s: s.replace(step=jnp.float32(0)),
        r"step is int32\[\] in checkpoint 2 .* and float32\[\] in the target",
    ),
    "more": (lambda s: s.replace(extra={"cursor": jnp.ones(2)}), r"extra\.cursor is missing in .* float32\[2\] in the"),
    "less": (lambda s: s.replace(env_state=None), r"env_state\.bits is uint32\[2\] in .* missing in the target"),
    "optimizer": (lambda s: s.replace(opt_state=SCHEDULED.init(s.params)), r"opt_state\.1\.0\.count is missing in"),
    "kind of key": (lambda s: s.replace(key=jax.random.key(0, impl="rbg")), r"key is uint32\[2\] in .* uint32\[4\] in"),
}


@pytest.mark.parametrize(("change", "message"), OTHERS.values(), ids=OTHERS)
def test_a_state_of_another_shape_is_refused_in_one_sentence(tmp_path, change, message, caplog, capfd):
    for step in (1, 2):
        Checkpoints(tmp_path).save(step, make_state(step))
    checkpoints = Checkpoints(tmp_path)
    capfd.readouterr(), caplog.clear()
    with pytest.raises(CheckpointError, match=message) as error:
        checkpoints.restore(change(make_state(0)))
    assert str(error.value).count(" in checkpoint ") == 1 and not caplog.text and not "".join(capfd.readouterr())
    assert checkpoints.restore(make_state(0))[0] == 2


def test_the_best_survives_reopening_and_kills(tmp_path):
    for step, score in enumerate([9.0, 1.0, None, 2.0, None, jnp.nan, 0.0, jnp.inf, None]):
        Checkpoints(tmp_path, keep=2).save(5 * step, make_state(step), score)  # no close: as if killed
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.steps() == [0, 35, 40] and checkpoints.best() == 0
    assert_identical(checkpoints.restore(make_state(0), "best")[1], make_state(0))
    assert [checkpoints.restore(make_state(0), step)[0] for step in ("best", 35, None)] == [0, 35, 40]
    checkpoints.save(45, make_state(9), 9.0)
    assert checkpoints.steps() == [40, 45] and checkpoints.best() == 45  # of equal ones the newest
    with pytest.raises(CheckpointError, match=r"no readable checkpoint 35 in .*holds \[40, 45\], the best is 45"):
        checkpoints.restore(make_state(0), 35)
    for options in ({"step": "best"}, {}):
        with pytest.raises(CheckpointError, match=r"no readable checkpoint.*it holds \[\], the best is None"):
            Checkpoints(tmp_path / "empty").restore(make_state(0), **options)
    with pytest.raises(ValueError, match="keep must be >= 1"):
        Checkpoints(tmp_path, keep=0)


def test_a_damaged_checkpoint_that_was_asked_for_has_no_substitute(tmp_path):
    for step in (1, 2):
        Checkpoints(tmp_path).save(step, make_state(step), score=step)
    flip(files(tmp_path, 2)[0])
    for step in (2, "best"):
        with pytest.raises(CheckpointError, match=r"no readable checkpoint .*\(checkpoint 2: .* is damaged\)"):
            Checkpoints(tmp_path).restore(make_state(0), step)


def test_what_was_saved_last_is_newest_after_going_back(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(4, make_state(4))
    checkpoints.save(2, make_state(2))
    assert checkpoints.steps() == [2]


def test_sums_that_a_kill_prevented_are_made_up_for(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, make_state(step))
    sums = tmp_path / "2" / "sha256.json"
    expected = sums.read_text()
    sums.rename(tmp_path / "2" / "sha256.json.partial")
    (tmp_path / "3.orbax-checkpoint-tmp").mkdir()
    assert Checkpoints(tmp_path).restore(make_state(0))[0] == 2
    assert sums.read_text() == expected
    flip(files(tmp_path, 2)[0])
    assert Checkpoints(tmp_path).restore(make_state(0))[0] == 1
    assert not list(tmp_path.glob("3*/sha256*"))


@pytest.mark.parametrize("name", ["state/_METADATA", "state/manifest.ocdbt", "_CHECKPOINT_METADATA"])
def test_content_that_cannot_be_read_is_damage_without_sums_too(tmp_path, name, caplog):
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, make_state(step), score=step)
    (tmp_path / "2" / "sha256.json").unlink()
    truncate(tmp_path / "2" / name)
    checkpoints = Checkpoints(tmp_path)
    expected = 2 if name == "_CHECKPOINT_METADATA" else 1  # only the score was there
    assert checkpoints.restore(make_state(0))[0] == expected
    assert expected == 2 or "going back from checkpoint 2 to checkpoint 1" in caplog.text


def test_a_file_that_may_not_be_read_is_no_damage(tmp_path, monkeypatch, caplog):
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save(step, make_state(step))
    barred, kind = files(tmp_path, 2)[0], type(checkpoints.manager.directory)
    read = kind.read_bytes

    def refuse(path):
        if str(path) == str(barred):
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(kind, "read_bytes", refuse)  # root may read all
    for use in (lambda: checkpoints.restore(make_state(0)), lambda: checkpoints.save(2, make_state(2))):
        with pytest.raises(PermissionError, match="Permission denied"):
            use()
    assert not caplog.text and checkpoints.steps() == [1, 2]


def test_a_donated_state_is_not_saved(tmp_path):
    state = make_state(1)
    jax.jit(lambda x: x, donate_argnums=0)(state.params)
    with pytest.raises(ValueError, match=r"donated.*donate=False"):
        Checkpoints(tmp_path).save(1, state)
    assert Checkpoints(tmp_path).steps() == []


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


def test_what_is_saved_over_a_step_is_told_once_and_left_out(tmp_path, caplog):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(40, make_state(1), score=0.1)
    assert not caplog.messages
    for _ in range(2):
        checkpoints.save(40, make_state(2), score=0.9)
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("checkpoint 40 is in ") and "save under another step" in caplog.messages[0]
    assert_identical(checkpoints.restore(make_state(0))[1], make_state(1))


@pytest.mark.parametrize("add", [Checkpoints.add_score, lambda found, *given: found.save(given[0], {}, given[1])])
def test_a_score_that_comes_later_writes_nothing_else_anew(tmp_path, monkeypatch, caplog, add):
    """With the only checkpoint: a kill must not find it deleted."""
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(4, make_state(4))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
        killed.setattr(type(checkpoints.manager.directory), "rename", raise_interrupt)
        add(checkpoints, 4, 0.5)
    reopened = Checkpoints(tmp_path, keep=1)
    assert reopened.restore(make_state(0))[0] == 4 and not reopened.scored(4)
    add(reopened, 4, 0.5)
    for score in (0.9, float("nan")):  # it has one
        reopened.add_score(4, score)
    assert all(path.stat().st_mtime_ns == when for path, when in before.items()) and not caplog.messages
    reopened = Checkpoints(tmp_path, keep=1)
    reopened.save(5, make_state(5), 0.1)
    assert reopened.steps() == [4, 5] and reopened.best() == 4 and reopened.holds(4)
    assert_identical(reopened.restore(make_state(0), "best")[1], make_state(4))


def raise_interrupt(*_):
    raise KeyboardInterrupt


def test_a_score_that_comes_later_is_read_and_makes_the_best_one(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    for step, score in ((1, 5.0), (2, None)):
        checkpoints.save(step, make_state(step), score)
    checkpoints.add_score(2, float("inf"))
    assert checkpoints.steps() == [1, 2] and not checkpoints.scored(2)
    (tmp_path / "2" / "sha256.json").unlink()  # as where a kill came before the sums
    (tmp_path / "2" / "score.json.partial").write_text("7")
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.add_score(2, 6.0)
    assert checkpoints.steps() == [2] and checkpoints.holds(2)
    checkpoints.save(3, make_state(3), 5.5)
    assert Checkpoints(tmp_path).steps() == [2, 3] and Checkpoints(tmp_path).best() == 2
    with pytest.raises(ValueError, match=r"no checkpoint 1 in .*; it holds \[2, 3\]"):
        checkpoints.add_score(1, 0.0)


def test_a_step_below_zero_is_refused(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(ValueError, match=r"step must be >= 0, got -1"):
        checkpoints.save(-1, make_state(0))
    assert checkpoints.steps() == []


def test_a_run_goes_on_below_a_damaged_checkpoint(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=1)
    for step, score in ((5, 1.0), (10, 0.0)):  # 5 stays as the best
        checkpoints.save(step, make_state(step), score)
    flip(files(tmp_path, 10)[0])
    assert checkpoints.restore(make_state(0))[0] == 5
    checkpoints.save(7, make_state(7))  # as where a signal stops it
    assert checkpoints.steps() == [5, 7] and Checkpoints(tmp_path).restore(make_state(0))[0] == 7
