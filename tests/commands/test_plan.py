"""`pairgrpo plan`: what a run takes, on machines that are not here."""

import importlib.util
import json
import os
import subprocess
import sys

import jax
import pytest

from pairgrpo_jax.commands import plan
from pairgrpo_jax.commands.align_settings import LABELS, preset
from pairgrpo_jax.lm.alignment import Data, EncodedPair, Placement, make_trainer
from pairgrpo_jax.lm.alignment.programs import minibatch, programs
from pairgrpo_jax.lm.models.model import read_config
from pairgrpo_jax.lm.models.params import init_params

FIELDS = {"model_type": "llama", "vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
FIELDS |= {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 128}
FIELDS |= {"tie_word_embeddings": True}
SMALL = ("--prompt-tokens", "8", "--completion-tokens", "8")


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(FIELDS))
    return path


def rows(stdout: str) -> dict[str, list[str]]:
    """Program -> cells of the printed table."""
    lines = [[x.strip() for x in line.strip("|").split(" | ")] for line in stdout.splitlines() if line.startswith("| ")]
    return {cells[0]: cells[1:] for cells in lines[1:]}


def test_all_programs_of_an_online_run_are_lowered_for_a_card_that_is_not_here(config, run_here):
    done = run_here(plan.main, "align", "hard", "--model", config, "--topology", "cuda", *SMALL)
    assert done.returncode == 0, done.stderr
    table = rows(done.stdout)
    assert list(table) == ["update", "prefill", "decode"]
    assert all(float(cells[6]) > 0 for cells in table.values())
    assert "lowered only" in done.stdout


@pytest.mark.slow
def test_a_run_that_fits_and_one_that_does_not(config, run_here, monkeypatch):
    words = ("align", "dpo", "--model", config, "--topology=cpu:2", "--prompts", "2", "--lora-rank", "0", *SMALL)
    done = run_here(plan.main, *words)
    assert done.returncode == 0, done.stderr
    assert "mesh fsdp" in done.stdout and "all-gather" in rows(done.stdout)["update"][-1]
    monkeypatch.setattr(plan.os, "sysconf", lambda name: 8)
    done = run_here(plan.main, *words)
    assert done.returncode == 1 and "DOES NOT FIT" in done.stdout


@pytest.mark.parametrize("devices", [1, 8])
def test_the_estimate_is_near_what_the_compiler_allocates(devices):
    """Of prefill and decode, whose cache and weights are most of it; a CPU's compiler fuses less of an update."""
    run = preset("grpo", ()).replace(prompts=8, candidates=8, prompt_tokens=128, completion_tokens=256)
    wide = FIELDS | {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4, "vocab_size": 4096}
    model, topology = plan.Model(read_config(wide, "config.json"), None), plan.open_topology(f"cpu:{devices}")
    placement = Placement(topology.mesh)
    for program, part in plan.with_parts(run, model, placement):
        cost = plan.cost_of(program, plan.estimated(part, topology.platform), topology)
        assert 0.5 * cost.total < cost.arguments + cost.beside + cost.estimate < 1.6 * cost.total, cost


@pytest.mark.parametrize("rank", [0, 4])
def test_the_state_is_the_run_s_own(rank):
    """Shapes and dtypes, of a frozen base too, beside a trainer with real parameters."""
    run = preset("dpo", ())
    config = run.config.replace(
        lora_rank=rank, quantize="nf4" if rank else "none", prompts=8, prompt_tokens=8, completion_tokens=8
    )
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    placement = Placement(mesh)
    model = plan.Model(read_config(FIELDS, "config.json"), None)
    full = plan.Model(model.config, init_params(model.config, jax.random.key(0)))
    trainer = make_trainer(config, full, Data(pairs=[EncodedPair([3, 4], [5], [6])]), iterations=2, placement=placement)
    real = trainer.init(jax.random.key(0))
    (update,) = programs(config, model, placement, 2)
    planned, real = update.traced.args_info[0][:2], (real, trainer.model.params if rank else None)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), planned) == jax.tree.map(lambda x: (x.shape, x.dtype), real)


@pytest.mark.parametrize("label", LABELS)
def test_every_method_s_batch_can_be_planned(label):
    batch = minibatch(preset(label, ()).config, 100, Placement())
    assert {len(x) for x in jax.tree.leaves(batch) if x.ndim} == {len(batch.lengths)}


def test_a_batch_that_devices_do_not_divide_is_planned_with_its_empty_places():
    placement = Placement(jax.make_mesh((8,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,)))
    config = preset("grpo", ()).config.replace(prompts=12, minibatches=2, accumulate=3, epochs=1)
    assert (
        minibatch(config, 100, placement).prompts.shape[0] == 24
    )  # three micro-batches of two groups on eight devices


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("align", "hard", "--topology", "v5e:2x3"), "'v5e:2x3' is unknown; did you mean v5e:2x"),
        (("align", "hard", "--topology", "cpu:0"), "v6e:1x1"),
        (("align", "hard"), "v5p:2x2x1"),
        (("align", "hard", "--topology", "cpu:2", "--mesh", "none"), "mesh='none' uses one of the 2 devices"),
        (("align", "hard", "--topology", "cpu:99"), "XLA_FLAGS=--xla_force_host_platform_device_count=99"),
        (("align", "hard", "--topology", "cuda", "--candidate", "4"), "--candidates"),
        (("align", "hard", "--topology", "cuda", "--evaluations", "3"), "--evaluations has no effect on a plan"),
        (("align", "dpo", "--topology", "cuda", "--seed=3"), "--seed has no effect on a plan; leave it out"),
        (("align", "dpo", "--topology", "cuda", "--tracker", "wandb"), "--tracker has no effect on a plan"),
        (("align", "dpo", "--topology", "cuda", "--no-export"), "--no-export has no effect on a plan"),
        (("align", "hard", "--topology", "cuda", "--output", "runs/x"), "--output has no effect on a plan"),
        (
            ("align", "hard", "--topology", "cuda", "--template-date", "2020-02-29"),
            "--template-date has no effect on a",
        ),
    ],
)
def test_what_cannot_be_planned_is_told(words, said, config, run_here):
    done = run_here(plan.main, *words, "--model", config)
    assert done.returncode == 2
    assert said in done.stderr


def test_a_missing_compiler_is_told_with_its_install(config, run_here, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    done = run_here(plan.main, "align", "hard", "--model", config, "--topology", "v5e:2x4")
    assert done.returncode == 2 and "pip install 'pairgrpo-jax[tpu]'" in done.stderr


@pytest.fixture
def libtpu():
    if importlib.util.find_spec("libtpu") is None and not os.environ.get("TPU_LIBRARY_PATH"):
        pytest.skip("libtpu is not here: pip install libtpu, or set TPU_LIBRARY_PATH")


@pytest.mark.parametrize(("name", "chips"), [("v5e:1x1", 1), ("v4:2x2x1", 4), ("v5p:2x2x1", 4)])
def test_a_chip_is_one_device(name, chips, libtpu):
    """In a process of its own, as the compiler is opened for one kind of chip."""
    code = f"from pairgrpo_jax.commands.topologies import open_topology; print(open_topology({name!r}).devices)"
    assert int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout) == chips


@pytest.mark.slow
def test_the_real_tpu_compiler(config, run_here, libtpu):
    words = ("align", "dpo", "--model", config, "--topology", "v5e:2x4", "--prompts", "8", *SMALL)
    done = run_here(plan.main, *words)
    assert done.returncode == 0, done.stderr
    assert "fits in 16.0 GiB a device" in done.stdout
