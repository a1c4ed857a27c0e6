"""What the benchmarks say of the machine."""

import pytest

from experiments.benchmarks.lm import share_of_peak
from pairgrpo_jax.commands import processor

ARM = "processor\t: 0\nBogoMIPS\t: 243.75\nCPU part\t: 0xd40\n\nprocessor\t: 1\nCPU part\t: 0xd41\n"
EPYC = "processor\t: 0\ncpu family\t: 25\nmodel\t\t: 1\nmodel name\t: AMD EPYC\nflags\t\t: fma avx2\n\n"


def test_a_share_above_the_peak_is_refused():
    assert share_of_peak(150.0, 200.0) == 0.75 and share_of_peak(200.0, 200.0) == 1
    with pytest.raises(RuntimeError, match="a share of 147%: 287 GFLOP/s is above the 195"):
        share_of_peak(287.0, 195.0)


@pytest.mark.parametrize(
    "text, name", [(ARM, "0xd40"), (EPYC, "AMD EPYC family 25 model 1"), ("", "Mac"), (None, "Mac"), ("vendor", "Mac")]
)
def test_the_processor_is_named(tmp_path, monkeypatch, text, name):
    about = tmp_path / "cpuinfo"
    if text is not None:
        about.write_text(text)
    monkeypatch.setattr(processor, "_ABOUT", about)
    monkeypatch.setattr(processor.platform, "processor", lambda: "Mac")
    found, cores = processor.label().rsplit(", ", 1)
    assert found == name and int(cores.removesuffix(" cores")) >= 1


def test_bfloat16_is_refused_where_it_would_be_computed_by_float32(tmp_path, monkeypatch):
    monkeypatch.setattr(processor, "_ABOUT", tmp_path / "cpuinfo")
    processor._ABOUT.write_text(EPYC)
    with pytest.raises(ValueError, match="operands: this processor does not multiply bfloat16"):
        processor.require_bfloat16("operands")
    processor._ABOUT.write_text(EPYC.replace("avx2", "avx2 avx512_bf16"))
    processor.require_bfloat16("operands")


def test_processors_of_a_name_differ_by_their_instructions(tmp_path, monkeypatch):
    monkeypatch.setattr(processor, "_ABOUT", tmp_path / "cpuinfo")
    processor._ABOUT.write_text(EPYC)
    assert processor.fields("flags", "Features") == {"flags": "fma avx2"}
