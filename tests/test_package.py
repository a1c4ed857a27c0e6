"""The package as a whole: public names, layers, and the README's code."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pairgrpo_jax

ROOT = Path(__file__).parent.parent
NAMES = """
group_advantages Pairs pairs_from_rewards pair_rewards grpo_loss soft_pair_grpo_loss hard_pair_target
hard_pair_grpo_loss ppo_loss dpo_loss ipo_loss orpo_loss kl_k1 kl_k2 kl_k3 categorical_kl gaussian_kl
delta_schedule TrainState make_update_step
"""
MAY_IMPORT = {
    "core": set(),
    "theory": {"core"},
    "training": {"core"},
    "control": {"core", "training"},
    "lm": {"core", "training"},
}


def test_the_public_names_are_there():
    for name in NAMES.split():
        assert callable(getattr(pairgrpo_jax, name)) and name in pairgrpo_jax.__all__


def imported_layers(path):
    """First-level sub-packages of ours that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "experiments":
                yield "experiments"
            elif parts[0] == "pairgrpo_jax" and len(parts) > 1 and parts[1] in MAY_IMPORT:
                yield parts[1]


def test_layers_look_only_down():
    package = ROOT / "pairgrpo_jax"
    for layer, allowed in MAY_IMPORT.items():
        for path in (package / layer).rglob("*.py"):
            assert set(imported_layers(path)) <= allowed | {layer}, path


def test_the_readmes_code_runs_and_learns():
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S).group(1)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    centre = [float(x) for x in re.search(r"\[(.*?)\]", done.stdout).group(1).split()]
    assert all(abs(x - 1) < 0.1 for x in centre)
