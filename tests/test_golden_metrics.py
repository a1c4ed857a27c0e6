"""The first iterations of every method are what they were."""

import json
import os

import numpy as np
import pytest

from tests.golden import metrics as golden


def measured(case, smollm2=None):
    what, name, *option = case.split()
    if what == "cheetah":
        return golden.cheetah(name, option[0])
    if what == "smollm2":
        return golden.align(smollm2, golden.smollm2_data(smollm2), name, "")
    from tests.lm.conftest import tiny_model

    return golden.align(
        tiny_model(),
        golden.tiny_data(),
        name,
        (option or [""])[0],
        decode=lambda rows: [" ".join(map(str, r)) for r in rows],
    )


@pytest.fixture(scope="session")
def smollm2():
    from pairgrpo_jax.lm import load_model

    return load_model("smollm2")


def check(case, found):
    file = golden.FILE
    stored = json.loads(file.read_text()) if file.exists() else {}
    if os.environ.get("WRITE_GOLDEN"):
        stored[case] = found
        file.write_text(json.dumps(stored, indent=0))
        return
    expected = stored[case]
    assert sorted(found) == sorted(expected)
    bad = {}
    for n in found:
        a, b = np.array(found[n]), np.array(expected[n])
        if not np.array_equal(a, b, equal_nan=True):
            bad[n] = float(np.max(np.abs(a - b) / np.maximum(np.abs(b), 1e-12)))
    assert not bad, bad


@pytest.mark.parametrize("case", golden.CHEETAH + golden.TINY)
def test_small(case):
    check(case, measured(case))


@pytest.mark.parametrize("case", golden.SMOLLM2)
def test_smollm2(case, smollm2):
    check(case, measured(case, smollm2))
