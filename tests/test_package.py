"""The package as a whole: public names and layers."""

import ast
import subprocess
import sys
from pathlib import Path

import pairgrpo_jax
from pairgrpo_jax.methods import NAMES as NAMES_OF_METHODS

ROOT = Path(__file__).parent.parent
NAMES = """
group_advantages Pairs pairs_from_rewards pair_rewards grpo_loss soft_pair_grpo_loss hard_pair_target
hard_pair_grpo_loss ppo_loss dpo_loss ipo_loss orpo_loss kl_k1 kl_k2 kl_k3 categorical_kl gaussian_kl
delta_schedule TrainState make_update_step
"""


def test_the_public_names_are_there():
    for name in NAMES.split():
        assert callable(getattr(pairgrpo_jax, name)) and name in pairgrpo_jax.__all__


def test_layers_look_only_down():
    """The contracts of pyproject.toml, which `make lint` holds too."""
    done = subprocess.run([Path(sys.executable).with_name("lint-imports")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "0 broken" in done.stdout, done.stdout


def test_nobody_else_compares_a_methods_name():
    files = [*(ROOT / "pairgrpo_jax").rglob("*.py"), *(ROOT / "experiments").rglob("*.py")]
    for path in files:
        if path.parent.name in ("methods", "theory"):  # theory names the rows of its tables
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Compare):
                sides = [node.left, *node.comparators]
                sides += [x for side in sides if isinstance(side, (ast.Tuple, ast.List, ast.Set)) for x in side.elts]
                named = {x.value for x in sides if isinstance(x, ast.Constant)} & set(NAMES_OF_METHODS)
                assert not named, f"{path}:{node.lineno} compares {named}"
