"""HalfCheetah from a clone: `python -m experiments.halfcheetah METHOD` is `pairgrpo cheetah METHOD`."""

from pairgrpo_jax.commands.main import run

if __name__ == "__main__":
    run("cheetah")
