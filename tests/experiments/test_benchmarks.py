"""What the benchmarks say of the machine."""

import pytest

from experiments.benchmarks.lm import processor, share_of_peak


def test_a_share_above_the_peak_is_refused():
    assert share_of_peak(150.0, 200.0) == 0.75 and share_of_peak(200.0, 200.0) == 1
    with pytest.raises(RuntimeError, match="a share of 147%: 287 GFLOP/s is above the 195"):
        share_of_peak(287.0, 195.0)


def test_the_processor_is_named():
    name, cores = processor().rsplit(", ", 1)
    assert name and int(cores.removesuffix(" cores")) >= 1
