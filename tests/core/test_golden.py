"""Our losses against TRL's, frozen by tests/golden/make_golden.py: values and gradients."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pairgrpo_jax as pg

pytestmark = pytest.mark.usefixtures("x64")
ENTRIES = json.loads((Path(__file__).parents[1] / "golden" / "trl_losses.json").read_text())


def call(entry, leaves):
    inputs = {name: jnp.asarray(x, entry["dtype"]) for name, x in entry["inputs"].items()} | leaves
    options = {name: tuple(x) if isinstance(x, list) else x for name, x in entry["kwargs"].items()}
    if "preferred" in inputs:
        index = {name: jnp.asarray(entry["inputs"][name], jnp.int32) for name in ("preferred", "rejected")}
        inputs["pairs"] = pg.Pairs(**index, weight=inputs["weight"])
        del inputs["preferred"], inputs["rejected"], inputs["weight"]
    if "other_logp" in inputs:
        inputs["reference_point"] = pg.kto_reference_point(inputs.pop("other_logp"), inputs.pop("other_ref"))
        inputs["desirable"] = jnp.asarray(entry["inputs"]["desirable"])
    elif "ref_logp" in inputs:
        inputs["kl"] = pg.kl_k3(inputs["logp"], inputs.pop("ref_logp"))
    return getattr(pg, entry["function"])(**inputs, **options)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["name"])
def test_value_and_gradient_equal_trl(entry):
    leaves = {name: jnp.asarray(entry["inputs"][name], entry["dtype"]) for name in entry["gradients"]}
    (value, _), gradients = jax.jit(jax.value_and_grad(lambda x: call(entry, x), has_aux=True))(leaves)
    assert value.dtype == entry["dtype"]
    np.testing.assert_allclose(value, entry["value"], rtol=1e-6, atol=1e-6)
    for name, expected in entry["gradients"].items():
        assert np.max(np.abs(expected)) > 1e-3  # the oracle says something
        np.testing.assert_allclose(gradients[name], expected, rtol=1e-6, atol=1e-6)
